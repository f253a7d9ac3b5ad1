//! Revisions and the keys of the store's own trees.

/// A point in the store's history: the transaction, and the change within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Revision {
    /// The transaction.
    pub(super) main: i64,
    /// The change in it, from 0.
    pub(super) sub: u32,
}

/// Bytes of a LOG key: main as big-endian `u64`, sub as big-endian `u32`, so
/// that byte order is the order of revisions.
pub(super) const LOG_KEY_BYTES: usize = 12;

pub(super) type LogKey = [u8; LOG_KEY_BYTES];

impl Revision {
    /// The first change of a transaction.
    pub(super) fn first_of(main: i64) -> Self {
        Self { main, sub: 0 }
    }

    /// Past every change of a transaction that there can be.
    pub(super) fn last_of(main: i64) -> Self {
        Self {
            main,
            sub: u32::MAX,
        }
    }

    /// Its key in LOG.
    pub(super) fn log_key(self) -> LogKey {
        let mut key = [0; LOG_KEY_BYTES];
        key[..8].copy_from_slice(&(self.main.max(0) as u64).to_be_bytes());
        key[8..].copy_from_slice(&self.sub.to_be_bytes());
        key
    }

    /// Reads a LOG key.
    pub(super) fn from_log_key(key: &[u8]) -> Option<Self> {
        let key: &LogKey = key.try_into().ok()?;
        let (main, sub) = key.split_first_chunk::<8>()?;
        Some(Self {
            main: i64::try_from(u64::from_be_bytes(*main)).ok()?,
            sub: u32::from_be_bytes(sub.try_into().ok()?),
        })
    }
}

/// Prefix of the names in META that are the store's own.
pub(super) const RESERVED: &[u8] = b"mvcc/";
/// Name of [`super::state::State`] in META.
pub(super) const STATE: &[u8] = b"mvcc/state";
/// Name of how far compaction came; differs between members.
pub(super) const PRUNED: &[u8] = b"mvcc/pruned";
/// Present while a snapshot is being loaded.
pub(super) const LOADING: &[u8] = b"mvcc/loading";
/// Prefix of members' attributes, followed by the id in big-endian.
pub(super) const MEMBER: &[u8] = b"member/";
/// Prefix of leases, followed by the id in big-endian.
pub(super) const LEASE: &[u8] = b"lease/";

/// `prefix` followed by a number whose byte order is its order.
pub(super) fn numbered(prefix: &[u8], number: u64) -> Vec<u8> {
    let mut name = prefix.to_vec();
    name.extend_from_slice(&number.to_be_bytes());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_keys_sort_as_revisions() {
        let revisions = [
            (0, 0),
            (1, 0),
            (1, 1),
            (2, 0),
            (255, 7),
            (256, 0),
            (1 << 40, 3),
        ];
        let keys: Vec<_> = revisions
            .iter()
            .map(|(main, sub)| {
                Revision {
                    main: *main,
                    sub: *sub,
                }
                .log_key()
            })
            .collect();
        assert!(keys.is_sorted());
        for (key, (main, sub)) in keys.iter().zip(revisions) {
            assert_eq!(Revision::from_log_key(key), Some(Revision { main, sub }));
        }
        assert_eq!(
            Revision { main: 258, sub: 3 }.log_key(),
            *b"\0\0\0\0\0\0\x01\x02\0\0\0\x03"
        );
        assert_eq!(Revision::from_log_key(b"short"), None);
    }
}
