//! Logical snapshots: sorted key/value streams that any engine can load.

use std::sync::Arc;

use super::error::Result;
use super::view::View;
use crate::backend::{Applied, Backend};

/// What a snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The log entry up to which it applies.
    pub applied: Applied,
    /// Its revision.
    pub revision: i64,
    /// Its compacted revision.
    pub compacted: i64,
    /// Hash of its live state.
    pub hash: u128,
}

/// Where a transfer stands: how many chunks the receiver has, and their last entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotPosition {
    /// Chunks received.
    pub chunks: u64,
    /// Tree and key of the last entry received.
    pub after: Option<(u8, Vec<u8>)>,
}

/// Streams a view as chunks of bytes, each with its own checksum.
pub struct SnapshotSource {}

impl SnapshotSource {
    /// Starts at the beginning.
    pub fn new(_view: Arc<View>) -> Self {
        unimplemented!()
    }

    /// Goes on after a broken transfer. The view must be the one the transfer began with.
    pub fn resume(_view: Arc<View>, _position: SnapshotPosition) -> Self {
        unimplemented!()
    }

    /// What is being streamed.
    pub fn info(&self) -> SnapshotInfo {
        unimplemented!()
    }

    /// The next chunk of about `max_bytes` (one entry may be larger), or `None` at the end.
    pub fn next_chunk(&mut self, _max_bytes: usize) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }
}

/// Loads chunks into an empty backend.
pub struct SnapshotSink {}

impl SnapshotSink {
    /// Starts to load into `backend`, which must be empty.
    pub fn new(_backend: Arc<dyn Backend>) -> Result<Self> {
        unimplemented!()
    }

    /// Loads the next chunk. A damaged or misplaced chunk is refused and changes nothing.
    pub fn push(&mut self, _chunk: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Where to go on after a broken transfer.
    pub fn position(&self) -> SnapshotPosition {
        unimplemented!()
    }

    /// Verifies counts and hash and publishes the loaded state. Fails if chunks are missing.
    pub fn finish(self) -> Result<SnapshotInfo> {
        unimplemented!()
    }
}
