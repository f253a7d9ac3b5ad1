//! etcd's `key` / `range_end` convention.

use std::ops::Bound;

/// The keys that a `key` / `range_end` pair names.
///
/// An empty end is one key, `\0` is every key from `key` on, anything else is
/// the half-open interval `[key, range_end)`; an end at or before the key is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRange<'a> {
    /// Exactly this key.
    One(&'a [u8]),
    /// This key and all after it.
    From(&'a [u8]),
    /// From the first (inclusive) to the second (exclusive).
    Between(&'a [u8], &'a [u8]),
}

impl<'a> KeyRange<'a> {
    /// Reads the convention.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::From(key),
            end => Self::Between(key, end),
        }
    }

    /// Whether `key` is named.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => key == *one,
            Self::From(first) => key >= *first,
            Self::Between(first, end) => key >= *first && key < *end,
        }
    }

    /// Whether no key can be named.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Between(first, end) if end <= first)
    }

    /// The same as bounds of an ordered scan. Check [`KeyRange::is_empty`] first.
    pub fn bounds(&self) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
        match *self {
            Self::One(key) => (Bound::Included(key), Bound::Included(key)),
            Self::From(key) => (Bound::Included(key), Bound::Unbounded),
            Self::Between(key, end) => (Bound::Included(key), Bound::Excluded(end)),
        }
    }

    /// The `range_end` that makes `prefix` a prefix query: its successor, or
    /// `\0` where every byte is 0xff (or there is none).
    pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
        let kept = prefix.iter().rposition(|byte| *byte != 0xff);
        match kept {
            Some(last) => {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                end
            }
            None => vec![0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conventions() {
        assert_eq!(KeyRange::new(b"a", b""), KeyRange::One(b"a"));
        assert_eq!(KeyRange::new(b"a", b"\0"), KeyRange::From(b"a"));
        assert!(KeyRange::new(b"b", b"a").is_empty());
        assert!(KeyRange::new(b"a", b"a").is_empty());
        assert!(KeyRange::new(b"a", b"c").contains(b"b"));
        assert!(!KeyRange::new(b"a", b"c").contains(b"c"));
    }

    #[test]
    fn prefix_end_carries() {
        assert_eq!(KeyRange::prefix_end(b"foo"), b"fop");
        assert_eq!(KeyRange::prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(KeyRange::prefix_end(b"\xff"), b"\0");
        assert_eq!(KeyRange::prefix_end(b""), b"\0");
    }
}
