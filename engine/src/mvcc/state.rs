//! What the store knows of itself, kept in META with every batch.

use super::META;
use super::error::{MvccError, Result};
use super::keys::{LOADING, PRUNED, Revision, STATE};
use crate::backend::{Batch, Read};

const FORMAT: u8 = 1;
const STATE_BYTES: usize = 1 + 8 + 8 + 16;

/// The store's own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// Main revision of the last change; a new store is at 1, as in etcd.
    pub(super) revision: i64,
    /// Revision of the last compaction; -1 before the first.
    pub(super) compacted: i64,
    /// Sum of the hashes of all live records.
    pub(super) hash: u128,
    /// History below this is gone. Behind the compacted revision while
    /// [`super::compaction`] is at work; differs between members.
    pub(super) pruned: Revision,
}

impl Default for State {
    fn default() -> Self {
        Self {
            revision: 1,
            compacted: -1,
            hash: 0,
            pruned: Revision::default(),
        }
    }
}

impl State {
    /// Whether compacted history is still there.
    pub(super) fn compaction_pending(&self) -> bool {
        self.pruned < Revision::first_of(self.compacted.saturating_add(1))
    }

    /// Reads it; an empty store has the default.
    pub(super) fn load(read: &dyn Read) -> Result<Self> {
        if read.get(META, LOADING)?.is_some() {
            return Err(MvccError::HalfLoaded);
        }
        let Some(bytes) = read.get(META, STATE)? else {
            return Ok(Self::default());
        };
        let mut state = Self::decode(&bytes)
            .ok_or_else(|| MvccError::damaged(META, STATE, "not a state of format 1"))?;
        if let Some(bytes) = read.get(META, PRUNED)? {
            state.pruned = Revision::from_log_key(&bytes)
                .ok_or_else(|| MvccError::damaged(META, PRUNED, "not a revision"))?;
        }
        Ok(state)
    }

    /// Reads the replicated part.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; STATE_BYTES] = bytes.try_into().ok()?;
        if bytes[0] != FORMAT {
            return None;
        }
        Some(Self {
            revision: i64::from_le_bytes(bytes[1..9].try_into().ok()?),
            compacted: i64::from_le_bytes(bytes[9..17].try_into().ok()?),
            hash: u128::from_le_bytes(bytes[17..].try_into().ok()?),
            pruned: Revision::default(),
        })
    }

    fn encode(&self) -> [u8; STATE_BYTES] {
        let mut bytes = [0; STATE_BYTES];
        bytes[0] = FORMAT;
        bytes[1..9].copy_from_slice(&self.revision.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.compacted.to_le_bytes());
        bytes[17..].copy_from_slice(&self.hash.to_le_bytes());
        bytes
    }

    /// Writes what differs from `before`.
    pub(super) fn store(&self, before: &Self, batch: &mut dyn Batch) -> Result<()> {
        if self.encode() != before.encode() {
            batch.put(META, STATE, &self.encode())?;
        }
        if self.pruned != before.pruned {
            batch.put(META, PRUNED, &self.pruned.log_key())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let state = State {
            revision: 258,
            compacted: -1,
            hash: 3,
            pruned: Revision::default(),
        };
        let mut expected = b"\x01\x02\x01\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x03".to_vec();
        expected.resize(STATE_BYTES, 0);
        assert_eq!(state.encode()[..], expected);
        assert_eq!(State::decode(&expected), Some(state));
        expected[0] = 2;
        assert_eq!(State::decode(&expected), None);
        assert_eq!(State::decode(b""), None);
    }
}
