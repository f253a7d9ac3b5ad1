//! All trees in one key space, for engines that have no numbered trees.
//!
//! The key of tree `t` is the byte `t + 1` followed by the caller's key, so
//! that trees lie one after the other, an empty key is not empty for the
//! engine, and one commit of the engine covers all trees. Keys that begin with
//! 0 belong to the engine itself; [`APPLIED`] is the only one.

use std::ops::{Bound, Deref};

use super::{Applied, BackendError, Bounds, MAX_TREES, Result, TreeId};

/// Where [`Applied`] is kept, as [`encode_applied`] makes it.
pub(super) const APPLIED: &[u8] = &[0];

/// Bytes that a tag adds to a key.
pub(super) const TAG_BYTES: usize = 1;

/// Keys up to this length are built on the stack.
const INLINE: usize = 128;

/// A key with its tree in front.
pub(super) enum TaggedKey {
    Inline { bytes: [u8; INLINE], length: usize },
    Heap(Vec<u8>),
}

/// Bounds of a scan with their tree in front.
pub(super) type TaggedBounds = (Bound<TaggedKey>, Bound<TaggedKey>);

impl TaggedKey {
    /// `key` in `tree`; an error where there is no such tree.
    pub(super) fn new(tree: TreeId, key: &[u8]) -> Result<Self> {
        Ok(Self::with_tag(tag(tree)?, key))
    }

    fn with_tag(tag: u8, key: &[u8]) -> Self {
        let length = TAG_BYTES + key.len();
        if length <= INLINE {
            let mut bytes = [0; INLINE];
            bytes[0] = tag;
            bytes[TAG_BYTES..length].copy_from_slice(key);
            Self::Inline { bytes, length }
        } else {
            let mut bytes = Vec::with_capacity(length);
            bytes.push(tag);
            bytes.extend_from_slice(key);
            Self::Heap(bytes)
        }
    }
}

impl Deref for TaggedKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline { bytes, length } => &bytes[..*length],
            Self::Heap(bytes) => bytes,
        }
    }
}

fn tag(tree: TreeId) -> Result<u8> {
    if usize::from(tree.0) < MAX_TREES {
        Ok(tree.0 + 1)
    } else {
        Err(BackendError::UnknownTree { tree: tree.0 })
    }
}

/// `bounds` within `tree`, or nothing where no key can lie in them: engines
/// differ in what they make of inverted bounds, and some panic.
///
/// Bounds longer than `limit` bytes, tag included, are cut to it, as engines
/// don't look for keys that they can't hold. No key is as long as such a bound,
/// so whatever is above the bound is above the cut one, too, and the cut one
/// itself is below.
pub(super) fn tagged_bounds(
    tree: TreeId,
    bounds: Bounds<'_>,
    limit: usize,
) -> Result<Option<TaggedBounds>> {
    let tag = tag(tree)?;
    if super::is_empty(bounds) {
        return Ok(None);
    }
    let longest = limit - TAG_BYTES;
    let tagged = |key| TaggedKey::with_tag(tag, key);
    let start = match bounds.0 {
        Bound::Included(key) | Bound::Excluded(key) if key.len() > longest => {
            Bound::Excluded(tagged(&key[..longest]))
        }
        Bound::Included(key) => Bound::Included(tagged(key)),
        Bound::Excluded(key) => Bound::Excluded(tagged(key)),
        Bound::Unbounded => Bound::Included(tagged(&[])),
    };
    let end = match bounds.1 {
        Bound::Included(key) | Bound::Excluded(key) if key.len() > longest => {
            Bound::Included(tagged(&key[..longest]))
        }
        Bound::Included(key) => Bound::Included(tagged(key)),
        Bound::Excluded(key) => Bound::Excluded(tagged(key)),
        Bound::Unbounded => Bound::Excluded(TaggedKey::with_tag(tag + 1, &[])),
    };
    let cut = (borrow(&start), borrow(&end));
    Ok((!super::is_empty(cut)).then_some((start, end)))
}

fn borrow(bound: &Bound<TaggedKey>) -> Bound<&[u8]> {
    bound.as_ref().map(Deref::deref)
}

/// The same bounds, borrowed.
pub(super) fn borrowed(bounds: &TaggedBounds) -> Bounds<'_> {
    (borrow(&bounds.0), borrow(&bounds.1))
}

/// The caller's key within a tagged one.
pub(super) fn untagged(key: &[u8]) -> &[u8] {
    key.get(TAG_BYTES..).unwrap_or_default()
}

/// Goes along with a walk over everything stored.
#[derive(Default)]
pub(super) struct Walk {
    previous: Vec<u8>,
    /// Keys so far, the engine's own among them.
    pub(super) keys: u64,
    /// Entries of trees so far.
    pub(super) entries: u64,
}

impl Walk {
    /// Takes the next key; an error where it can't be that.
    pub(super) fn step(&mut self, engine: &'static str, key: &[u8]) -> Result<()> {
        let damaged = |what| BackendError::Other {
            engine,
            message: format!("key {} {what}: the store is damaged", key.escape_ascii()),
        };
        if self.keys > 0 && key <= self.previous.as_slice() {
            return Err(damaged("is out of order"));
        }
        let is_own = key == APPLIED;
        let in_tree = |tag: &u8| (1..=MAX_TREES).contains(&usize::from(*tag));
        if !is_own && !key.first().is_some_and(in_tree) {
            return Err(damaged("is of no tree"));
        }
        self.previous.clear();
        self.previous.extend_from_slice(key);
        self.keys += 1;
        self.entries += u64::from(!is_own);
        Ok(())
    }

    /// Takes the end; an error where the engine counted another number of keys.
    pub(super) fn end(&self, engine: &'static str, counted: u64) -> Result<()> {
        if counted == self.keys {
            return Ok(());
        }
        Err(BackendError::Other {
            engine,
            message: format!(
                "{} keys are stored but {counted} are counted: the store is damaged",
                self.keys
            ),
        })
    }
}

/// Refuses keys of more than `limit` bytes, tag included.
pub(super) fn check_length(key: &[u8], limit: usize) -> Result<()> {
    let limit = limit - TAG_BYTES;
    if key.len() > limit {
        return Err(BackendError::KeyTooLong {
            length: key.len(),
            limit,
        });
    }
    Ok(())
}

/// The value under [`APPLIED`]: term and index, little-endian.
pub(super) fn encode_applied(applied: Applied) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&applied.term.to_le_bytes());
    bytes[8..].copy_from_slice(&applied.index.to_le_bytes());
    bytes
}

/// Reads back what [`encode_applied`] made; a store in which nothing was
/// published has no such value.
pub(super) fn decode_applied(engine: &'static str, value: Option<&[u8]>) -> Result<Applied> {
    let Some(value) = value else {
        return Ok(Applied::default());
    };
    let (term, index) = value
        .split_first_chunk::<8>()
        .and_then(|(term, rest)| Some((term, <&[u8; 8]>::try_from(rest).ok()?)))
        .ok_or_else(|| BackendError::Other {
            engine,
            message: format!(
                "the record of the applied log entry has {} bytes instead of 16: the store is damaged",
                value.len()
            ),
        })?;
    Ok(Applied {
        term: u64::from_le_bytes(*term),
        index: u64::from_le_bytes(*index),
    })
}

#[cfg(test)]
mod tests {
    use std::ops::RangeBounds;

    use super::*;

    #[test]
    fn trees_do_not_overlap() -> Result<()> {
        let last = TreeId(MAX_TREES as u8 - 1);
        let unbounded = (Bound::Unbounded, Bound::Unbounded);
        for (low, high) in [(TreeId(0), TreeId(1)), (TreeId(6), last)] {
            let end_of_low = tagged_bounds(low, unbounded, usize::MAX)?.map(|bounds| bounds.1);
            let Some(Bound::Excluded(end)) = end_of_low else {
                panic!("the end of a tree is open");
            };
            assert!(*TaggedKey::new(low, &[0xff; 300])? < *end);
            assert!(*TaggedKey::new(high, &[])? >= *end);
        }
        assert!(APPLIED < &*TaggedKey::new(TreeId(0), &[])?);
        assert!(TaggedKey::new(TreeId(MAX_TREES as u8), &[]).is_err());
        Ok(())
    }

    fn holds(bounds: Bounds<'_>, key: &[u8]) -> bool {
        RangeBounds::<&[u8]>::contains(&bounds, &key)
    }

    /// Cut bounds hold the same keys, of those that an engine can hold.
    #[test]
    fn long_bounds_are_cut() -> Result<()> {
        const LIMIT: usize = 3;
        let mut words: Vec<Vec<u8>> = vec![Vec::new()];
        for length in 0..4 {
            for word in words.clone() {
                if word.len() == length {
                    words.extend([1, 2].map(|byte| [word.as_slice(), &[byte]].concat()));
                }
            }
        }
        let sides = |word| {
            [
                Bound::Included(word),
                Bound::Excluded(word),
                Bound::Unbounded,
            ]
        };
        for (start, end) in words
            .iter()
            .flat_map(|start| words.iter().map(move |end| (start, end)))
        {
            for start in sides(start.as_slice()) {
                for end in sides(end.as_slice()) {
                    let cut = tagged_bounds(TreeId(0), (start, end), LIMIT)?;
                    for key in words.iter().filter(|key| key.len() + TAG_BYTES <= LIMIT) {
                        let tagged = TaggedKey::new(TreeId(0), key)?;
                        let inside = cut
                            .as_ref()
                            .is_some_and(|cut| holds(borrowed(cut), &tagged));
                        let expected = holds((start, end), key);
                        assert_eq!(inside, expected, "{key:?} in {start:?} to {end:?}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn keys_come_back() -> Result<()> {
        for length in [0, 1, INLINE - 2, INLINE - 1, INLINE, 5000] {
            let key = vec![7; length];
            let tagged = TaggedKey::new(TreeId(3), &key)?;
            assert_eq!(untagged(&tagged), key);
        }
        Ok(())
    }

    #[test]
    fn a_walk_finds_what_is_out_of_place() -> Result<()> {
        let mut walk = Walk::default();
        for key in [APPLIED, &[1], &[1, 0], &[MAX_TREES as u8, 9]] {
            walk.step("test", key)?;
        }
        assert_eq!((walk.keys, walk.entries), (4, 3));
        assert!(walk.end("test", 4).is_ok() && walk.end("test", 3).is_err());
        assert!(walk.step("test", &[MAX_TREES as u8, 9]).is_err());
        for key in [&[][..], &[0, 1], &[MAX_TREES as u8 + 1]] {
            assert!(Walk::default().step("test", key).is_err());
        }
        Ok(())
    }

    #[test]
    fn applied_comes_back() -> Result<()> {
        let applied = Applied {
            term: 7,
            index: 1 << 40,
        };
        let bytes = encode_applied(applied);
        assert_eq!(decode_applied("test", Some(&bytes))?, applied);
        assert_eq!(decode_applied("test", None)?, Applied::default());
        assert!(decode_applied("test", Some(&bytes[1..])).is_err());
        Ok(())
    }
}
