//! Who waits for compacted history to be removed.
//!
//! Invariant: whoever is in the list is told by the applier's next step of removal
//! that leaves nothing. The state it leaves is published before the list is locked,
//! and one joins the list only if the state, looked at under the lock, has something
//! left to remove.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sink::RemovalSink;

#[derive(Default)]
struct Waiting {
    sinks: Vec<Box<dyn RemovalSink>>,
    is_closed: bool,
}

/// Sinks that wait for the removal to be through.
#[derive(Default)]
pub(crate) struct Removal {
    waiting: Mutex<Waiting>,
}

impl Removal {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the sink once nothing `is_pending`: at once, if that is so already.
    pub(crate) fn wait(&self, sink: Box<dyn RemovalSink>, is_pending: impl FnOnce() -> bool) {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return;
        }
        if is_pending() {
            waiting.sinks.push(sink);
            return;
        }
        drop(waiting);
        sink.removed();
    }

    /// Tells all: nothing is pending in the published state.
    pub(crate) fn done(&self) {
        let sinks = std::mem::take(&mut self.lock().sinks);
        for sink in sinks {
            sink.removed();
        }
    }

    /// Drops all, and those to come: nothing is removed any more.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let sinks = std::mem::take(&mut waiting.sinks);
        drop(waiting);
        drop(sinks);
    }
}
