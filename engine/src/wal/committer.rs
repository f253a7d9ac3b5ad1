//! The thread that commits.

use std::sync::Arc;
use std::time::Duration;

use super::{Committed, Group, Lsn, Result, Wal, WalReader, WalStats};

/// The end of one submitted group.
#[derive(Debug)]
pub struct Completion {
    /// What the caller gave with it.
    pub ticket: u64,
    /// The group, for use again ([`Group::clear`] it).
    pub group: Group,
    /// Where it is, or why it is not durable. After the first error all later
    /// groups fail.
    pub result: Result<Committed>,
}

/// The thread that owns a [`Wal`]: it takes all groups that are queued, writes
/// them with one write and one sync, and calls back in order of submission.
#[derive(Debug)]
pub struct Committer {}

#[allow(unused_variables)]
impl Committer {
    /// Starts the thread. `complete` is called on it, once per group, in order of
    /// submission; it must not block. After `idle` without a group a mark is
    /// written (see [`Wal::sync_mark`]).
    pub fn spawn(
        wal: Wal,
        idle: Duration,
        complete: impl FnMut(Completion) + Send + 'static,
    ) -> std::io::Result<Self> {
        unimplemented!()
    }

    /// Queues a group; never waits for the disk. Fails with `Closed` if the
    /// thread has ended.
    pub fn submit(&self, ticket: u64, group: Group) -> Result<()> {
        unimplemented!()
    }

    /// As [`Wal::release`], later.
    pub fn release(&self, lsn: Lsn) {
        unimplemented!()
    }

    /// A reader.
    pub fn reader(&self) -> WalReader {
        unimplemented!()
    }

    /// Counters.
    pub fn stats(&self) -> Arc<WalStats> {
        unimplemented!()
    }

    /// Commits what is queued, writes a mark, ends the thread and hands the log
    /// back. Dropping the committer does the same without the log.
    pub fn shutdown(self) -> Result<Wal> {
        unimplemented!()
    }
}
