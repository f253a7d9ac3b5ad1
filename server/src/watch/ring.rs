//! The newest events in memory: what watchers near the head read.
//!
//! Invariant: the ring holds every event from its first batch's first revision
//! up to the hub's position, without a gap. Bounded in bytes; what falls out is
//! read from the store.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use varve_engine::mvcc::EventBatch;
use varve_types::{EventRef, KeyRange};

/// Bytes of events that are kept.
const MAX_BYTES: usize = 16 << 20;
/// Batches with fewer events are gone through rather than sorted by key.
const SORTED_FROM: usize = 32;

/// The events of one batch, and where each key's are.
#[derive(Debug)]
pub(crate) struct Recent {
    events: Arc<EventBatch>,
    /// Positions of the events by key, made when a watch of one key first asks:
    /// many such watches read a batch for one event each.
    by_key: OnceLock<Vec<u32>>,
}

impl Recent {
    pub(super) fn new(events: Arc<EventBatch>) -> Self {
        Self {
            events,
            by_key: OnceLock::new(),
        }
    }

    /// Main revision of the first event.
    pub(super) fn first_revision(&self) -> i64 {
        self.events.first_revision()
    }

    /// Main revision of the last event.
    pub(super) fn last_revision(&self) -> i64 {
        self.events.last_revision()
    }

    /// How many events it has.
    pub(super) fn events(&self) -> usize {
        self.events.len()
    }

    /// Visits the events of `range` from `revision` on, in order, until `visit` breaks.
    pub(super) fn visit(
        &self,
        range: KeyRange<'_>,
        revision: i64,
        visit: &mut impl FnMut(EventRef<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let events = &self.events;
        match range {
            KeyRange::One(key) if events.len() >= SORTED_FROM => {
                let by_key = self.by_key.get_or_init(|| sorted_by_key(events));
                let key_at = |at: &u32| events.get(*at as usize).map(|event| event.kv.key);
                let first = by_key.partition_point(|at| key_at(at) < Some(key));
                let of_key = by_key[first..]
                    .iter()
                    .map_while(|at| events.get(*at as usize))
                    .take_while(|event| event.kv.key == key);
                for event in of_key.skip_while(|event| event.kv.mod_revision < revision) {
                    visit(event)?;
                }
            }
            range => {
                let all = events.iter();
                let new = all.skip_while(|event| event.kv.mod_revision < revision);
                for event in new.filter(|event| range.contains(event.kv.key)) {
                    visit(event)?;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

fn sorted_by_key(events: &EventBatch) -> Vec<u32> {
    // A batch is bounded in bytes, far below 2^32 events.
    let mut positions: Vec<u32> = (0..events.len() as u32).collect();
    // Stable, so that the events of a key stay in order.
    positions.sort_by_key(|at| events.get(*at as usize).map(|event| event.kv.key));
    positions
}

/// The newest batches.
#[derive(Debug, Default)]
pub(super) struct Ring {
    batches: VecDeque<(Arc<Recent>, usize)>,
    bytes: usize,
}

impl Ring {
    /// Adds the batch that comes next.
    pub(super) fn push(&mut self, batch: Arc<EventBatch>, bytes: usize) {
        self.bytes += bytes;
        self.batches
            .push_back((Arc::new(Recent::new(batch)), bytes));
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
    pub(super) fn since(&self, revision: i64, most: usize) -> Option<(Vec<Arc<Recent>>, bool)> {
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

#[cfg(test)]
mod tests {
    use super::super::testing::TestStore;
    use super::*;

    fn visited(batch: &Recent, range: KeyRange<'_>, revision: i64) -> Vec<(Vec<u8>, i64)> {
        let mut seen = Vec::new();
        let _ = batch.visit(range, revision, &mut |event| {
            seen.push((event.kv.key.to_vec(), event.kv.mod_revision));
            ControlFlow::Continue(())
        });
        seen
    }

    #[test]
    fn one_key_is_found_by_order_as_by_going_through() {
        let mut store = TestStore::new();
        let keys: Vec<_> = (0..100).map(|i| format!("k{}", i * 7 % 10)).collect();
        let names: Vec<_> = keys.iter().map(String::as_str).collect();
        let large = Recent::new(store.put_all(&names));
        for revision in [0, 2, 50, 101, 102] {
            for key in ["k0", "k3", "k9", "k", "l"] {
                let all = visited(&large, KeyRange::From(b""), revision);
                let expected: Vec<_> = all
                    .into_iter()
                    .filter(|(found, _)| found == key.as_bytes())
                    .collect();
                assert_eq!(
                    visited(&large, KeyRange::One(key.as_bytes()), revision),
                    expected
                );
            }
        }
        let small = Recent::new(store.put_all(&["a", "b", "a"]));
        assert_eq!(visited(&small, KeyRange::One(b"a"), 0).len(), 2);
        assert_eq!(visited(&small, KeyRange::One(b"a"), 103).len(), 1);
    }

    #[test]
    fn the_oldest_batches_go() {
        let mut store = TestStore::new();
        let mut ring = Ring::default();
        assert!(ring.since(1, 10).is_none());
        for _ in 0..5 {
            ring.push(store.put_all(&["a"]), MAX_BYTES / 4);
        }
        // Revisions 2 to 6 were pushed; the ring holds the last four.
        assert!(ring.since(2, 10).is_none());
        let (found, all) = ring.since(3, 10).unwrap();
        assert_eq!((found.len(), all), (4, true));
        let (found, all) = ring.since(4, 2).unwrap();
        assert_eq!((found[0].first_revision(), found.len(), all), (4, 2, false));
        let (found, all) = ring.since(7, 2).unwrap();
        assert_eq!((found.len(), all), (0, true));
        // One that is larger than the ring is still kept, alone.
        ring.push(store.put_all(&["a"]), 2 * MAX_BYTES);
        assert_eq!(ring.since(7, 10).unwrap().0.len(), 1);
        assert!(ring.since(6, 10).is_none());
        ring.clear();
        assert!(ring.since(7, 10).is_none());
    }
}
