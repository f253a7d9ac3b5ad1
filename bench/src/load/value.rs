//! Keys and values that say what they are.
//!
//! A value is `sequence u64 | tag u64 | filler`, little-endian. The sequence is
//! unique to one write; the tag is a hash of key and sequence; the filler comes
//! from the tag. So a value alone proves which key and which write it belongs
//! to, and a bit changed anywhere in it shows.

/// Sequence and tag.
pub(crate) const MIN_VALUE_SIZE: usize = 16;

/// What every key starts with.
pub(crate) const KEY_PREFIX: &[u8] = b"bench/";
const KEY_DIGITS: usize = 13;

/// Bytes of a key.
pub(crate) const KEY_SIZE: usize = KEY_PREFIX.len() + KEY_DIGITS;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Murmur's finalizer: every input bit moves every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn tag(key: u32, sequence: u64) -> u64 {
    mix(mix(u64::from(key).wrapping_mul(GOLDEN)) ^ sequence)
}

/// Word `index` of the filler; cheap, and not compressible.
fn filler(tag: u64, index: usize) -> [u8; 8] {
    mix(tag.wrapping_add(GOLDEN.wrapping_mul(index as u64 + 1))).to_le_bytes()
}

/// SplitMix64: the generator's random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Streams of different seeds do not overlap in practice.
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(GOLDEN)))
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform below `bound`, by multiplication.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// The bytes of a key.
pub(crate) fn key_bytes(key: u32) -> [u8; KEY_SIZE] {
    let mut out = [b'0'; KEY_SIZE];
    out[..KEY_PREFIX.len()].copy_from_slice(KEY_PREFIX);
    let mut rest = key;
    for digit in out[KEY_PREFIX.len()..].iter_mut().rev() {
        if rest == 0 {
            break;
        }
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out
}

/// The number of a key, if it is one of ours.
pub(crate) fn key_number(key: &[u8]) -> Option<u32> {
    let digits = key.strip_prefix(KEY_PREFIX)?;
    if digits.len() != KEY_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Makes `out` the value of one write.
pub(crate) fn fill(out: &mut Vec<u8>, size: usize, key: u32, sequence: u64) {
    let tag = tag(key, sequence);
    out.clear();
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&tag.to_le_bytes());
    let mut index = 0;
    while out.len() + 8 <= size {
        out.extend_from_slice(&filler(tag, index));
        index += 1;
    }
    let left = size.saturating_sub(out.len());
    out.extend_from_slice(&filler(tag, index)[..left]);
}

/// The sequence in `value` if it is, to the last byte, a value written to `key`.
pub(crate) fn check(value: &[u8], size: usize, key: u32) -> Result<u64, String> {
    if value.len() != size {
        return Err(format!("{} bytes where {size} were written", value.len()));
    }
    let word = |at: usize| -> [u8; 8] {
        let mut word = [0; 8];
        word.copy_from_slice(&value[at..at + 8]);
        word
    };
    let sequence = u64::from_le_bytes(word(0));
    let tag = tag(key, sequence);
    if word(8) != tag.to_le_bytes() {
        return Err(format!(
            "no write of this key made it (sequence {sequence})"
        ));
    }
    let (words, rest) = value[MIN_VALUE_SIZE..].as_chunks::<8>();
    let whole = words.iter().enumerate().all(|(i, w)| *w == filler(tag, i))
        && *rest == filler(tag, words.len())[..rest.len()];
    if whole {
        Ok(sequence)
    } else {
        Err(format!(
            "bytes after the head are damaged (sequence {sequence})"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_sort() {
        for key in [0, 1, 9, 10, 99_999, u32::MAX] {
            assert_eq!(key_number(&key_bytes(key)), Some(key));
        }
        assert!(key_bytes(9) < key_bytes(10));
        assert_eq!(&key_bytes(42), b"bench/0000000000042");
        assert_eq!(key_number(b"bench/42"), None);
        assert_eq!(key_number(b"other"), None);
    }

    #[test]
    fn any_changed_bit_shows() {
        for size in [16, 17, 24, 31, 256] {
            let mut value = Vec::new();
            fill(&mut value, size, 7, 1234);
            assert_eq!(value.len(), size);
            assert_eq!(check(&value, size, 7), Ok(1234));
            assert!(check(&value, size, 8).is_err(), "another key's value");
            assert!(check(&value[1..], size, 7).is_err());
            for bit in 0..size * 8 {
                value[bit / 8] ^= 1 << (bit % 8);
                assert!(check(&value, size, 7).is_err(), "bit {bit} of {size}");
                value[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn rng_stays_in_bounds() {
        let mut rng = Rng::new(3);
        assert!((0..10_000).all(|_| rng.below(17) < 17));
        assert!((0..100).map(|_| rng.below(17)).any(|n| n == 16));
    }
}
