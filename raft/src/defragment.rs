//! Who waits for all free space to be given back.
//!
//! Invariant: whoever is among those of the vacuum that runs came before it started.
//! They are told by the applier once it is over, or when it cannot go on. Who comes
//! meanwhile waits for the next one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Receiver, Sender, bounded};
use varve_types::ApiError;

use crate::sink::DefragmentSink;

#[derive(Default)]
struct Waiting {
    /// For the next vacuum.
    next: Vec<Box<dyn DefragmentSink>>,
    /// For the one that runs.
    running: Vec<Box<dyn DefragmentSink>>,
    is_closed: bool,
}

/// Sinks that wait for a vacuum.
pub(crate) struct Defragment {
    waiting: Mutex<Waiting>,
    /// Whether a vacuum runs that somebody waits for.
    is_running: AtomicBool,
    wake: Sender<()>,
    woken: Receiver<()>,
}

impl Default for Defragment {
    fn default() -> Self {
        let (wake, woken) = bounded(1);
        Self {
            waiting: Mutex::default(),
            is_running: AtomicBool::new(false),
            wake,
            woken,
        }
    }
}

impl Defragment {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a vacuum; the sink is told once it is over.
    pub(crate) fn ask(&self, sink: Box<dyn DefragmentSink>) {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return;
        }
        waiting.next.push(sink);
        drop(waiting);
        self.wake();
    }

    /// Has an idle applier look.
    pub(crate) fn wake(&self) {
        // If it is full the applier is going to look anyway.
        let _ = self.wake.try_send(());
    }

    /// Gets something when the applier should look.
    pub(crate) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Whether a vacuum runs that somebody waits for.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }

    /// Whether a vacuum is to be started now, for those who asked for one.
    pub(crate) fn begin(&self) -> bool {
        let mut waiting = self.lock();
        if !waiting.running.is_empty() || waiting.next.is_empty() {
            return false;
        }
        waiting.running = std::mem::take(&mut waiting.next);
        self.is_running.store(true, Ordering::Relaxed);
        true
    }

    /// Tells those who waited for the vacuum that ran.
    pub(crate) fn done(&self) {
        if !self.is_running() {
            return;
        }
        let sinks = std::mem::take(&mut self.lock().running);
        self.is_running.store(false, Ordering::Relaxed);
        for sink in sinks {
            sink.done(Ok(()));
        }
    }

    /// Tells all that it cannot be done now.
    pub(crate) fn fail(&self, error: ApiError) {
        let mut waiting = self.lock();
        let running = std::mem::take(&mut waiting.running);
        let next = std::mem::take(&mut waiting.next);
        self.is_running.store(false, Ordering::Relaxed);
        drop(waiting);
        for sink in running.into_iter().chain(next) {
            sink.done(Err(error));
        }
    }

    /// Drops all, and those to come: the store takes no more batches.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let all = (
            std::mem::take(&mut waiting.running),
            std::mem::take(&mut waiting.next),
        );
        drop(waiting);
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Outcomes = Arc<Mutex<Vec<(u32, Result<(), ApiError>)>>>;

    struct Noting(u32, Outcomes);

    impl DefragmentSink for Noting {
        fn done(self: Box<Self>, outcome: Result<(), ApiError>) {
            self.1.lock().unwrap().push((self.0, outcome));
        }
    }

    #[test]
    fn who_comes_meanwhile_waits_for_the_next_vacuum() {
        let outcomes = Outcomes::default();
        let sink = |number| Box::new(Noting(number, outcomes.clone()));
        let waiting = Defragment::default();
        assert!(!waiting.begin());
        waiting.ask(sink(1));
        waiting.ask(sink(2));
        assert_eq!(waiting.woken().try_iter().count(), 1);
        waiting.done();
        assert_eq!(*outcomes.lock().unwrap(), [], "nothing ran yet");
        assert!(waiting.begin() && waiting.is_running());
        waiting.ask(sink(3));
        assert!(!waiting.begin(), "one at a time");
        waiting.done();
        assert_eq!(*outcomes.lock().unwrap(), [(1, Ok(())), (2, Ok(()))]);
        assert!(!waiting.is_running());
        assert!(waiting.begin());
        waiting.ask(sink(4));
        waiting.fail(ApiError::NoSpace);
        let refused = Err(ApiError::NoSpace);
        assert_eq!(outcomes.lock().unwrap()[2..], [(3, refused), (4, refused)]);
        waiting.close();
        waiting.ask(sink(5));
        assert!(!waiting.begin());
        assert_eq!(outcomes.lock().unwrap().len(), 4);
    }
}
