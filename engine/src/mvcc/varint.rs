//! Variable-length integers (LEB128): 7 bits a byte, least first.

/// Most bytes of one.
const MAX_BYTES: usize = 10;

/// Appends `value`.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes one off the front of `input`.
pub(super) fn take(input: &mut &[u8]) -> Option<u64> {
    let (first, rest) = input.split_first()?;
    if *first < 0x80 {
        *input = rest;
        return Some(u64::from(*first));
    }
    let mut value = 0u64;
    for (at, byte) in input.iter().enumerate().take(MAX_BYTES) {
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * at);
        if shifted >> (7 * at) != bits {
            return None;
        }
        value |= shifted;
        if *byte < 0x80 {
            *input = &input[at + 1..];
            return Some(value);
        }
    }
    None
}

/// As [`take`], for what is never negative in memory.
pub(super) fn take_i64(input: &mut &[u8]) -> Option<i64> {
    i64::try_from(take(input)?).ok()
}

/// As [`take`], for a `u32`.
pub(super) fn take_u32(input: &mut &[u8]) -> Option<u32> {
    u32::try_from(take(input)?).ok()
}

/// Takes `length` bytes off the front of `input`.
pub(super) fn take_bytes<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (bytes, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_bounds() {
        for value in [0, 1, 127, 128, 300, 1 << 35, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put(&mut out, value);
            out.push(9);
            let mut input = &out[..];
            assert_eq!(take(&mut input), Some(value));
            assert_eq!(input, [9]);
        }
        assert_eq!(take(&mut &[][..]), None);
        assert_eq!(take(&mut &[0x80, 0x80][..]), None);
        assert_eq!(take(&mut &[0xff; 11][..]), None);
        let mut over = [0xff; 10];
        over[9] = 0x02;
        assert_eq!(take(&mut &over[..]), None);
    }
}
