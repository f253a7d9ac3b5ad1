//! Keys and values: a function of their number, so that every engine gets the
//! same, and every answer can be compared with what must be there.

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 19;

/// The number and the round are at the front of a value.
pub(crate) const MIN_VALUE_SIZE: usize = 16;

/// A key.
pub(crate) type Key = [u8; KEY_BYTES];

/// Bytes that values are cut from.
const POOL_BYTES: usize = 4 << 20;

/// One step of SplitMix64 from `state`: a bijection that looks random.
pub(crate) fn mix(state: u64) -> u64 {
    let mut x = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The key with this number; all are different.
pub(crate) fn key(number: u32) -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut key = *b"key0000000000000000";
    let mut bits = mix(u64::from(number));
    for digit in key[3..].iter_mut().rev() {
        *digit = DIGITS[(bits & 15) as usize];
        bits >>= 4;
    }
    key
}

/// The numbers below `count` in the order of their keys. Keys are found a range at a
/// time, so that memory does not grow with their count.
pub(crate) fn sorted(count: u32) -> impl Iterator<Item = u32> {
    const AT_A_TIME: u32 = 1 << 20;
    let ranges = u128::from(count.div_ceil(AT_A_TIME)).max(1);
    (0..ranges).flat_map(move |range| {
        let is_within = |bits: &u64| (u128::from(*bits) * ranges) >> 64 == range;
        let keys = (0..count).map(|number| (mix(u64::from(number)), number));
        let mut keys: Vec<_> = keys.filter(|(bits, _)| is_within(bits)).collect();
        keys.sort_unstable();
        keys.into_iter().map(|(_, number)| number)
    })
}

/// Random numbers from a seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// Uniform below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(1);
        ((u128::from(mix(self.0)) * u128::from(bound)) >> 64) as u32
    }
}

/// The numbers below `count` in an order that the seed decides.
pub(crate) fn shuffled(count: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = Random::new(seed);
    for at in (1..count).rev() {
        order.swap(at as usize, random.below(at + 1) as usize);
    }
    order
}

/// Makes values, and knows them again.
pub(crate) struct Values {
    pool: Vec<u8>,
    size: usize,
}

impl Values {
    pub(crate) fn new(size: usize, compressible: bool) -> Self {
        let words = [
            "layer ",
            "sediment ",
            "spring ",
            "clay ",
            "silt ",
            "lake ",
            "year ",
            "ice ",
        ];
        let mut pool = Vec::with_capacity(POOL_BYTES + size + 8);
        let mut number = 0;
        while pool.len() < POOL_BYTES + size {
            number += 1;
            let bits = mix(number);
            if compressible {
                pool.extend_from_slice(words[(bits & 7) as usize].as_bytes());
            } else {
                pool.extend_from_slice(&bits.to_le_bytes());
            }
        }
        Self { pool, size }
    }

    /// Bytes of a value.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    fn rest(&self, number: u32, round: u32) -> &[u8] {
        let bits = mix(u64::from(number) << 32 | u64::from(round));
        let start = bits as usize % POOL_BYTES;
        &self.pool[start..start + self.size - MIN_VALUE_SIZE]
    }

    fn marks(number: u32, round: u32) -> [u8; MIN_VALUE_SIZE] {
        let mut marks = [0; MIN_VALUE_SIZE];
        marks[..4].copy_from_slice(&number.to_le_bytes());
        marks[4..8].copy_from_slice(&round.to_le_bytes());
        marks
    }

    /// Appends the value of key `number` after update `round` (0: as loaded).
    pub(crate) fn push(&self, number: u32, round: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&Self::marks(number, round));
        out.extend_from_slice(self.rest(number, round));
    }

    /// Whether `value` is that.
    pub(crate) fn is(&self, number: u32, round: u32, value: &[u8]) -> bool {
        value.split_at_checked(MIN_VALUE_SIZE).is_some_and(|parts| {
            parts.0 == Self::marks(number, round) && parts.1 == self.rest(number, round)
        })
    }

    /// The number and the round that `value` says.
    pub(crate) fn says(value: &[u8]) -> Option<(u32, u32)> {
        let (number, rest) = value.split_first_chunk::<4>()?;
        let (round, _) = rest.split_first_chunk::<4>()?;
        Some((u32::from_le_bytes(*number), u32::from_le_bytes(*round)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_are_the_same_every_time() {
        let mut keys: Vec<_> = (0..10_000).map(key).collect();
        assert_eq!(&keys[0], b"keye220a8397b1dcdaf");
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 10_000);
    }

    #[test]
    fn sorted_numbers_are_all_of_them_by_key() {
        let count = 3 << 20;
        let mut seen = vec![false; count as usize];
        let mut last = [0; KEY_BYTES];
        for number in sorted(count) {
            assert!(key(number) > last);
            last = key(number);
            assert!(!std::mem::replace(&mut seen[number as usize], true));
        }
        assert!(seen.into_iter().all(|seen| seen));
        assert_eq!(sorted(0).count(), 0);
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut order = shuffled(1000, 7);
        assert_ne!(order, shuffled(1000, 8));
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }

    #[test]
    fn values_are_known_again() {
        for compressible in [false, true] {
            for size in [16, 17, 256, 1 << 20] {
                let values = Values::new(size, compressible);
                let mut value = Vec::new();
                values.push(7, 3, &mut value);
                assert_eq!(value.len(), size);
                assert!(values.is(7, 3, &value));
                assert_eq!(Values::says(&value), Some((7, 3)));
                assert!(!values.is(7, 2, &value) && !values.is(8, 3, &value));
                assert!(!values.is(7, 3, &value[1..]) && !values.is(7, 3, &value[..size - 1]));
                *value.last_mut().unwrap() ^= 1;
                assert!(!values.is(7, 3, &value));
            }
        }
    }
}
