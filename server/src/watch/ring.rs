//! The newest events in memory: what watchers near the head read.
//!
//! Invariant: the ring holds every event from its first batch's first revision
//! up to the hub's position, without a gap. Bounded in bytes; what falls out is
//! read from the store.

use std::collections::VecDeque;
use std::sync::Arc;

use varve_engine::mvcc::EventBatch;

/// Bytes of events that are kept.
const MAX_BYTES: usize = 16 << 20;

/// The newest batches.
#[derive(Debug, Default)]
pub(super) struct Ring {
    batches: VecDeque<(Arc<EventBatch>, usize)>,
    bytes: usize,
}

impl Ring {
    /// Adds the batch that comes next.
    pub(super) fn push(&mut self, batch: Arc<EventBatch>, bytes: usize) {
        self.bytes += bytes;
        self.batches.push_back((batch, bytes));
        while self.bytes > MAX_BYTES && self.batches.len() > 1 {
            if let Some((_, bytes)) = self.batches.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// Drops everything: there will be a gap.
    pub(super) fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    /// Up to `most` batches with the events from `revision` on, and whether
    /// these are all; `None` if the first of them are gone.
    pub(super) fn since(&self, revision: i64, most: usize) -> Option<(Vec<Arc<EventBatch>>, bool)> {
        let (first, _) = self.batches.front()?;
        if first.first_revision() > revision {
            return None;
        }
        let start = self
            .batches
            .partition_point(|(batch, _)| batch.last_revision() < revision);
        let found = self.batches.iter().skip(start).take(most);
        let found: Vec<_> = found.map(|(batch, _)| Arc::clone(batch)).collect();
        let all = start + found.len() == self.batches.len();
        Some((found, all))
    }
}
