//! What writers, the applying thread and the checkpoint thread share: who is in
//! flight, whether there is room for more, and whether the store still runs.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::batch::WriteBatch;
use super::error::{DbError, Result};
use super::options::Options;
use super::pending::{Pending, Waiter};
use crate::backend::{Backend, CheckpointPace, VacuumExtent, memory};
use crate::wal::{Committer, FIRST_LSN, Group, Lsn, WalStats};

/// Groups kept to be used again.
const SPARE_GROUPS: usize = 8;
/// A larger group gives its memory back.
const SPARE_GROUP_BYTES: usize = 1 << 20;

/// How often it is looked whether the engine wants a checkpoint.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often whoever waits for a vacuum looks how it goes.
const VACUUM_POLL: Duration = Duration::from_millis(2);

/// How much may wait, and how long the log may get.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    in_flight_bytes: usize,
    checkpoint_log_bytes: u64,
    /// `None` for an engine that needs the whole log at the next open.
    max_log_bytes: Option<u64>,
}

/// Shared by all threads of one store. There is one lock, held for moments.
pub(super) struct Gate<T> {
    state: Mutex<State<T>>,
    /// There may be room, or no use in waiting for it.
    room: Condvar,
    /// A checkpoint is due, or none will be.
    checkpoint_due: Condvar,
    backend: Arc<dyn Backend>,
    log: Arc<WalStats>,
    bounds: Bounds,
}

struct State<T> {
    /// `None` once the store is being closed.
    committer: Option<Committer>,
    /// Those whose batches are with the committer, in order.
    waiting: VecDeque<Waiter<T>>,
    in_flight_bytes: usize,
    spare_groups: Vec<Group>,
    /// How far the last checkpoint applies.
    durable: Lsn,
    is_checkpoint_due: bool,
    /// Why the store takes no more batches.
    stopped: Option<String>,
}

impl<T> Gate<T> {
    pub(super) fn new(committer: Committer, backend: Arc<dyn Backend>, options: &Options) -> Self {
        let checkpoint_log_bytes = options.checkpoint_log_bytes.max(1);
        let keeps = backend.name() != memory::NAME;
        let bounds = Bounds {
            in_flight_bytes: options.max_in_flight_bytes,
            checkpoint_log_bytes,
            // Less could never be reached: nothing would call for a checkpoint.
            max_log_bytes: keeps.then(|| options.max_log_bytes.max(checkpoint_log_bytes)),
        };
        let durable = backend.durable().index.max(FIRST_LSN);
        let log = committer.stats();
        let gate = Self {
            state: Mutex::new(State {
                committer: Some(committer),
                waiting: VecDeque::new(),
                in_flight_bytes: 0,
                spare_groups: Vec::new(),
                durable,
                is_checkpoint_due: false,
                stopped: None,
            }),
            room: Condvar::new(),
            checkpoint_due: Condvar::new(),
            backend,
            log,
            bounds,
        };
        // The log may be long already.
        gate.call_for_checkpoint(&mut gate.lock());
        gate
    }

    /// Every change under the lock is made in one step.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a batch to the log; waits while there is no room.
    pub(super) fn submit(&self, batch: &WriteBatch, replies: bool) -> Result<Pending<T>> {
        let mut group = self.lock().spare_groups.pop().unwrap_or_default();
        batch.log(&mut group)?;
        let bytes = group.bytes();
        let (waiter, pending) = Waiter::new(replies, bytes);
        let mut state = self.lock();
        while !self.has_room(&state, bytes)? {
            let waited = self.room.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let Some(committer) = &state.committer else {
            return Err(DbError::Stopped("it was closed".to_owned()));
        };
        // Within the lock, so that those who wait are in the order of the log.
        committer.submit(0, group)?;
        state.in_flight_bytes += bytes;
        state.waiting.push_back(waiter);
        Ok(pending)
    }

    fn has_room(&self, state: &State<T>, bytes: usize) -> Result<bool> {
        if let Some(why) = &state.stopped {
            return Err(DbError::Stopped(why.clone()));
        }
        let in_flight = state.in_flight_bytes;
        let fits = in_flight == 0 || in_flight + bytes <= self.bounds.in_flight_bytes;
        let is_log_short = match self.bounds.max_log_bytes {
            Some(most) => self.log_bytes(state) <= most,
            None => true,
        };
        Ok(fits && is_log_short)
    }

    /// Bytes of the log that an open would read again.
    fn log_bytes(&self, state: &State<T>) -> u64 {
        let end = self.log.end_lsn.load(Ordering::Relaxed);
        end.saturating_sub(state.durable)
    }

    /// The next `count` of those who wait.
    pub(super) fn take_waiting(&self, count: usize, taken: &mut Vec<Waiter<T>>) {
        let mut state = self.lock();
        let count = count.min(state.waiting.len());
        taken.extend(state.waiting.drain(..count));
    }

    /// `bytes` were applied; their groups may be used again.
    pub(super) fn applied(&self, bytes: usize, groups: impl Iterator<Item = Group>) {
        let mut state = self.lock();
        state.in_flight_bytes = state.in_flight_bytes.saturating_sub(bytes);
        for mut group in groups {
            if state.spare_groups.len() < SPARE_GROUPS && group.bytes() <= SPARE_GROUP_BYTES {
                group.clear();
                state.spare_groups.push(group);
            }
        }
        self.call_for_checkpoint(&mut state);
        drop(state);
        self.room.notify_all();
    }

    fn call_for_checkpoint(&self, state: &mut State<T>) {
        let is_long = self.bounds.max_log_bytes.is_some()
            && self.log_bytes(state) >= self.bounds.checkpoint_log_bytes;
        if is_long || self.backend.wants_checkpoint(false) {
            state.is_checkpoint_due = true;
            self.checkpoint_due.notify_one();
        }
    }

    /// Makes checkpoints when they are due, until the store is closed or stops.
    pub(super) fn run_checkpoints(&self) {
        let mut pace = CheckpointPace::new(Instant::now());
        loop {
            let mut state = self.lock();
            let mut end = self.log.end_lsn.load(Ordering::Relaxed);
            let mut has_time = false;
            while !state.is_checkpoint_due && !self.backend.wants_checkpoint(has_time) {
                if state.committer.is_none() || state.stopped.is_some() {
                    return;
                }
                let waited = self.checkpoint_due.wait_timeout(state, LOOK_INTERVAL);
                (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                let now = self.log.end_lsn.load(Ordering::Relaxed);
                let idle = now == std::mem::replace(&mut end, now);
                has_time = idle || pace.has_time(Instant::now());
            }
            state.is_checkpoint_due = false;
            drop(state);
            let started = Instant::now();
            if let Err(error) = self.checkpoint() {
                return self.stop(&format!("checkpoint: {error}"));
            }
            pace.note(started, Instant::now());
        }
    }

    /// Makes what is applied durable in the store, and lets go of the log behind
    /// it. What is applied was durable in the log before, so the store never
    /// gets ahead of the log.
    pub(super) fn checkpoint(&self) -> Result<()> {
        let applied = self.backend.checkpoint()?;
        let mut state = self.lock();
        if self.bounds.max_log_bytes.is_some() && applied.index > state.durable {
            state.durable = applied.index;
            // The last batch applied stays: opening looks for it.
            if let Some(committer) = &state.committer {
                committer.release(applied.index);
            }
            // Whoever called for one meanwhile may have got it.
            state.is_checkpoint_due = false;
            self.call_for_checkpoint(&mut state);
        }
        drop(state);
        self.room.notify_all();
        Ok(())
    }

    /// Gives all free space back. The applying thread moves pages when it is idle
    /// and between batches; the checkpoints that let the old ones go are made here.
    pub(super) fn vacuum(&self) -> Result<()> {
        self.backend.start_vacuum(VacuumExtent::All);
        while self.backend.vacuums() {
            if let Some(why) = self.stopped() {
                return Err(DbError::Stopped(why));
            }
            if self.backend.wants_checkpoint(false) {
                self.checkpoint()?;
            }
            std::thread::sleep(VACUUM_POLL);
        }
        Ok(())
    }

    /// The store takes no more batches; the first reason stays.
    pub(super) fn stop(&self, why: &str) {
        let mut state = self.lock();
        if state.stopped.is_none() {
            tracing::error!("the store takes no more writes: {why}");
            state.stopped = Some(why.to_owned());
        }
        drop(state);
        self.room.notify_all();
        self.checkpoint_due.notify_all();
    }

    /// No more batches; the committer, the first time.
    pub(super) fn close(&self) -> Option<Committer> {
        let committer = self.lock().committer.take();
        self.room.notify_all();
        self.checkpoint_due.notify_all();
        committer
    }

    /// Whether the committer was taken, and so everything is going to end.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().committer.is_none()
    }

    /// Why the store stopped, if it did.
    pub(super) fn stopped(&self) -> Option<String> {
        self.lock().stopped.clone()
    }

    /// How far the last checkpoint applies.
    pub(super) fn durable(&self) -> Lsn {
        self.lock().durable
    }

    /// The engine.
    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Counters of the log.
    pub(super) fn log(&self) -> &Arc<WalStats> {
        &self.log
    }
}
