//! What the batches of a log are applied to.

use std::sync::Arc;

use super::error::{DbError, Result};
use crate::backend::{Applied, Backend};
use crate::wal::Lsn;

/// A batch that is durable in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logged<'a> {
    pub(super) lsn: Lsn,
    pub(super) payload: &'a [u8],
    /// Whether the answers to its commands are wanted.
    pub(super) replies: bool,
}

impl Logged<'_> {
    /// The error for a record that is whole and yet no batch.
    pub(super) fn foreign(&self, what: String) -> DbError {
        DbError::Record {
            lsn: self.lsn,
            what,
        }
    }
}

/// The state after the batch at `lsn`. There are no terms without Raft.
pub(super) fn applied(lsn: Lsn) -> Applied {
    Applied {
        term: 0,
        index: lsn,
    }
}

/// What batches are applied to, in the order of the log.
pub(super) trait Machine: Send + 'static {
    /// What the writer of a batch is told.
    type Output: Send + 'static;

    /// The engine below.
    fn backend(&self) -> &Arc<dyn Backend>;

    /// Applies the batches and publishes them together, as of the last one;
    /// appends an output for each. An error is a fault of the store.
    fn apply(&mut self, batches: &[Logged<'_>], outputs: &mut Vec<Self::Output>) -> Result<()>;

    /// Does a little of what can wait; whether there is more. `idle` says that
    /// no batch came for a while.
    fn tidy(&mut self, idle: bool) -> Result<bool>;
}
