//! The running hash of the live state.
//!
//! The state hash is the sum, modulo 2^128, of a 128-bit hash of every live
//! record: a change costs one subtraction and one addition, the order of keys
//! does not matter, and two members can compare at any revision that both have
//! (an additive set hash, after Bellare and Micciancio, "A New Paradigm for
//! Collision-Free Hashing", Eurocrypt 1997). It finds faults; it does not
//! resist someone who constructs collisions.
//!
//! The record hash is XXH3-128 from the crate `xxhash-rust`: the algorithm is
//! frozen and specified, so that members of any version agree, the crate is
//! pure Rust and maintained, and one short record takes some ten nanoseconds.

use xxhash_rust::xxh3::xxh3_128;

use super::record::Record;

/// Marks (main, sub, create, version, lease) and the hash of the value.
const MARKS_BYTES: usize = 8 + 4 + 8 + 8 + 8 + 16;
/// Keys up to this length are hashed without an allocation.
const SHORT_KEY_BYTES: usize = 256 - MARKS_BYTES;

/// Key and value of so many bytes make a record keep its hash. Less than what any
/// engine keeps beside the key: see [`Peek`].
///
/// [`Peek`]: crate::backend::Peek
const LONG_BYTES: usize = 1024;

/// Whether the record of a live key has its hash with it.
pub(super) fn keeps_hash(key: &[u8], value: &[u8]) -> bool {
    key.len() + value.len() >= LONG_BYTES
}

/// The hash of a record, without a look at the value where it is kept.
pub(super) fn kept_hash(key: &[u8], record: &Record<'_>) -> u128 {
    record.hash.unwrap_or_else(|| record_hash(key, record))
}

/// What a live record adds to the state hash; a tombstone adds nothing.
pub(super) fn record_hash(key: &[u8], record: &Record<'_>) -> u128 {
    if !record.live {
        return 0;
    }
    let mut buffer = [0; MARKS_BYTES + SHORT_KEY_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        buffer[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&record.modified.main.to_le_bytes());
    put(&record.modified.sub.to_le_bytes());
    put(&record.create.to_le_bytes());
    put(&record.version.to_le_bytes());
    put(&record.lease.to_le_bytes());
    put(&xxh3_128(record.value).to_le_bytes());
    if key.len() <= SHORT_KEY_BYTES {
        put(key);
        return xxh3_128(&buffer[..MARKS_BYTES + key.len()]);
    }
    let mut long = buffer[..MARKS_BYTES].to_vec();
    long.extend_from_slice(key);
    xxh3_128(&long)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::keys::Revision;
    use crate::mvcc::record::{LiveMarks, NewVersion};

    fn hash(key: &[u8], value: &[u8]) -> u128 {
        let mut bytes = Vec::new();
        let version = NewVersion {
            modified: Revision { main: 7, sub: 0 },
            live: Some(LiveMarks {
                create: 5,
                version: 2,
                lease: 0,
                value,
                hash: None,
            }),
        };
        version.encode(None, &mut bytes).unwrap();
        record_hash(key, &Record::decode(&bytes).unwrap())
    }

    #[test]
    fn golden() {
        // Members of all versions must agree on this.
        assert_eq!(hash(b"foo", b"bar"), GOLDEN);
    }

    const GOLDEN: u128 = 0xf1df5cad_8956f14b_4c531a95_4772bf19;

    #[test]
    fn depends_on_everything_and_on_lengths() {
        assert_ne!(hash(b"foo", b"bar"), hash(b"foo", b"baz"));
        assert_ne!(hash(b"foo", b"bar"), hash(b"fob", b"bar"));
        assert_ne!(hash(b"a", b"bc"), hash(b"ab", b"c"));
        for length in [
            SHORT_KEY_BYTES - 1,
            SHORT_KEY_BYTES,
            SHORT_KEY_BYTES + 1,
            5000,
        ] {
            let key = vec![b'k'; length];
            assert_ne!(hash(&key, b""), hash(&key[1..], b""));
        }
    }
}
