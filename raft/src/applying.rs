//! The applier, under a lock: its thread applies what is committed; a little that
//! comes alone is applied on the thread of the log, where that finds it committed.
//!
//! # Invariants
//! 1. Jobs are done in order: its thread takes them off the queue only under the
//!    lock, and who applies elsewhere got the lock before anybody could queue a later
//!    one (see [`crate::turn`]), with nothing in the queue and nothing left over.
//! 2. Elsewhere neither the lock is waited for, nor space on the disk, nor, as far as
//!    the engine knows, pages that are not in memory.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Select, TryRecvError};
use varve_types::{ApiError, PutRequest, Reader, opcode};

use crate::apply::{AppliedBatch, Applier};
use crate::entry;
use crate::error::RaftError;
use crate::io::{ApplyJob, EntryData, Input, ToApply};
use crate::loading::LoadedStore;
use crate::shared::{Current, Shared};

/// Entries that are applied as one batch.
const MAX_BATCH_ENTRIES: usize = 4096;

/// Batches between two steps of compaction while there is no idle moment.
const BATCHES_PER_COMPACTION_STEP: u32 = 8;

/// How long to wait before the disk is tried again where it was full.
const SPACE_RETRY: Duration = Duration::from_millis(250);

/// How often an idle applier looks whether there is something to maintain.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Puts that are applied elsewhere than on the applier's thread.
const MAX_PUTS_HERE: usize = 4;
/// And the bytes of their entry.
const MAX_BYTES_HERE: usize = 16 << 10;

/// The applier and what it has taken off the queue.
pub(crate) struct Applying {
    applier: Applier,
    /// After an error or a panic it holds those that were not applied.
    entries: VecDeque<ToApply>,
    batches: u32,
    has_failed: bool,
}

/// For whoever gets the lock; `None` before the applier's thread runs and after its
/// end.
#[derive(Default)]
pub(crate) struct ApplyLock(Mutex<Option<Applying>>);

impl ApplyLock {
    fn lock(&self) -> MutexGuard<'_, Option<Applying>> {
        // Whoever applies catches panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The applier, locked for entries that are applied on this thread.
pub(crate) struct ApplyHere<'s> {
    guard: MutexGuard<'s, Option<Applying>>,
    shared: &'s Arc<Shared>,
}

/// Locks the applier if `job` is little and it has nothing to do.
pub(crate) fn try_here<'s>(job: &ApplyJob, shared: &'s Arc<Shared>) -> Option<ApplyHere<'s>> {
    let ApplyJob::Entries(entries) = job else {
        return None;
    };
    let [entry] = entries.as_slice() else {
        return None;
    };
    if !is_little(entry) || shared.current.load().backend.may_wait() {
        return None;
    }
    let guard = shared.applying.0.try_lock().ok()?;
    let is_idle = |applying: &Applying| {
        !applying.has_failed && applying.entries.is_empty() && !applying.applier.is_comparing()
    };
    guard
        .as_ref()
        .is_some_and(is_idle)
        .then_some(ApplyHere { guard, shared })
}

/// Whether an entry has nothing but few puts that read no values: other commands may go
/// over much.
fn is_little(entry: &ToApply) -> bool {
    let EntryData::Here(data) = &entry.data else {
        return false;
    };
    if entry.change.is_some() || data.len() > MAX_BYTES_HERE {
        return false;
    }
    let Ok((_, proposals)) = entry::decode(data) else {
        return false;
    };
    let mut puts = 0;
    proposals.raw_commands().all(|(code, body)| {
        puts += 1;
        let put = PutRequest::decode(&mut Reader::new(body));
        let is_blind = put.is_ok_and(|put| !put.prev_kv && !put.ignore_value);
        code == opcode::PUT && puts <= MAX_PUTS_HERE && is_blind
    })
}

impl ApplyHere<'_> {
    /// Takes the entries over.
    pub(crate) fn with(mut self, job: ApplyJob) -> Self {
        if let (Some(applying), ApplyJob::Entries(entries)) = (self.guard.as_mut(), job) {
            applying.entries.extend(entries);
        }
        self
    }

    /// Applies them, and answers those who wait.
    pub(crate) fn apply(mut self) {
        let shared = self.shared;
        let Some(applying) = self.guard.as_mut() else {
            return;
        };
        let run = AssertUnwindSafe(|| {
            let Applying {
                applier, entries, ..
            } = &mut *applying;
            applier.is_alone = true;
            applier.apply(entries, shared.term())
        });
        match std::panic::catch_unwind(run) {
            Ok(Ok(batch)) => {
                applying.batches = applying.batches.wrapping_add(1);
                // Under the lock, so that the replica hears of batches in order.
                report(batch, shared);
                return;
            }
            // Its thread waits for space.
            Ok(Err(error)) if error.is_no_space() => {}
            Ok(Err(error)) => {
                applying.has_failed = true;
                shared.fail_with("", &error);
            }
            Err(panic) => {
                applying.has_failed = true;
                shared.fail_of_bug("store", &*panic);
            }
        }
        shared.defragment.wake();
    }
}

/// The applier's thread.
pub(crate) fn run_apply(applier: Applier, jobs: &Receiver<ApplyJob>, shared: &Arc<Shared>) {
    *shared.applying.lock() = Some(Applying {
        applier,
        entries: VecDeque::new(),
        batches: 0,
        has_failed: false,
    });
    let run = AssertUnwindSafe(|| apply_loop(jobs, shared));
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => shared.fail_with("", &error),
        Err(panic) => shared.fail_of_bug("store", &*panic),
    }
    shared.removal.close();
    shared.defragment.close();
    let applying = shared.applying.lock().take();
    let mut entries = applying.map_or_else(VecDeque::new, |applying| applying.entries);
    for job in jobs.try_iter() {
        if let ApplyJob::Entries(more) = job {
            entries.extend(more);
        }
    }
    for sink in entries.into_iter().flat_map(|entry| entry.sinks).flatten() {
        sink.refuse(ApiError::Stopped);
    }
}

/// Takes jobs whenever there are some. The lock is let go only to wait.
fn apply_loop(jobs: &Receiver<ApplyJob>, shared: &Arc<Shared>) -> Result<(), RaftError> {
    let mut idle = false;
    loop {
        let mut guard = shared.applying.lock();
        let Some(applying) = guard.as_mut().filter(|applying| !applying.has_failed) else {
            return Ok(());
        };
        let is_over = applying.work(jobs, shared, idle)?;
        let batches = applying.batches;
        drop(guard);
        if is_over {
            return Ok(());
        }
        idle = !wait(jobs, shared)
            && shared
                .applying
                .lock()
                .as_ref()
                .is_some_and(|applying| applying.batches == batches);
    }
}

/// Waits for a job, or until there may be something to maintain; whether for a reason.
fn wait(jobs: &Receiver<ApplyJob>, shared: &Shared) -> bool {
    let mut select = Select::new();
    select.recv(jobs);
    select.recv(shared.defragment.woken());
    let ready = select.ready_timeout(MAINTENANCE_INTERVAL);
    let _ = shared.defragment.woken().try_recv();
    ready.is_ok()
}

impl Applying {
    /// Does all jobs that there are, and what goes on beside them, until there is
    /// nothing to do; whether there will be no more.
    fn work(
        &mut self,
        jobs: &Receiver<ApplyJob>,
        shared: &Arc<Shared>,
        idle: bool,
    ) -> Result<bool, RaftError> {
        let mut idle = idle;
        // Left over by another thread, for want of space.
        self.apply_entries(shared)?;
        loop {
            let mut next = match jobs.try_recv() {
                Ok(job) => Some(job),
                Err(TryRecvError::Disconnected) => return Ok(true),
                Err(TryRecvError::Empty) => {
                    let started = Instant::now();
                    if !maintain(&mut self.applier, shared, idle)? {
                        return Ok(false);
                    }
                    // As long again the processor is there for what brings the next job.
                    match jobs.recv_timeout(started.elapsed()) {
                        Ok(job) => Some(job),
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => return Ok(true),
                    }
                }
            };
            idle = false;
            while let Some(job) = next {
                next = self.do_job(job, jobs, shared)?;
            }
        }
    }

    /// Does a job; the one after it, if that was taken as well.
    fn do_job(
        &mut self,
        job: ApplyJob,
        jobs: &Receiver<ApplyJob>,
        shared: &Arc<Shared>,
    ) -> Result<Option<ApplyJob>, RaftError> {
        let mut next = None;
        match job {
            ApplyJob::Entries(more) => {
                self.entries.extend(more);
                next = merge(&mut self.entries, jobs);
                self.apply_entries(shared)?;
            }
            ApplyJob::Install(loaded) => install(&mut self.applier, *loaded, shared)?,
            ApplyJob::Compare { from, mark } => self.applier.compare(from, mark),
        }
        if let Some((to, mark)) = self.applier.compared() {
            let _ = shared.inputs.send(Input::Compared { to, mark });
        }
        Ok(next)
    }

    fn apply_entries(&mut self, shared: &Arc<Shared>) -> Result<(), RaftError> {
        let Self {
            applier, entries, ..
        } = self;
        while !entries.is_empty() {
            applier.is_alone = entries.len() == 1 && is_little(&entries[0]);
            let batch = wait_for_space(shared, || applier.apply(entries, shared.term()))?;
            report(batch, shared);
            self.batches = self.batches.wrapping_add(1);
            if self.batches.is_multiple_of(BATCHES_PER_COMPACTION_STEP) {
                maintain(applier, shared, false)?;
            }
        }
        Ok(())
    }
}

/// Does `what`, again and again while the disk of the store is full. Meanwhile
/// no new proposals are taken, but the replica goes on.
fn wait_for_space<T>(
    shared: &Shared,
    mut what: impl FnMut() -> Result<T, RaftError>,
) -> Result<T, RaftError> {
    loop {
        let result = what();
        let error = match result {
            Err(error) if error.is_no_space() && !shared.is_stopped.load(Ordering::Relaxed) => {
                error
            }
            result => {
                shared.is_store_full.store(false, Ordering::Relaxed);
                return result;
            }
        };
        if !shared.is_store_full.swap(true, Ordering::Relaxed) {
            tracing::error!("the store waits for space: {error}");
        }
        std::thread::sleep(SPACE_RETRY);
    }
}

/// Does some maintenance, and tells those who wait for compacted history to be removed
/// when there is none left, and those who wait for a vacuum when it is over.
fn maintain(applier: &mut Applier, shared: &Shared, idle: bool) -> Result<bool, RaftError> {
    let more = match applier.maintain(Instant::now(), idle) {
        // It can wait for space.
        Err(error) if error.is_no_space() => {
            shared.defragment.fail(ApiError::NoSpace);
            return Ok(false);
        }
        result => result?,
    };
    if applier.compaction_pending() {
        return Ok(more); // what it frees is to be given back too
    }
    shared.removal.done();
    if !applier.vacuums() {
        shared.defragment.done();
    }
    if shared.defragment.begin() {
        applier.start_vacuum();
        return Ok(true);
    }
    Ok(more)
}

/// Takes more entries that wait, for one batch; the job after them, if it is another.
fn merge(entries: &mut VecDeque<ToApply>, jobs: &Receiver<ApplyJob>) -> Option<ApplyJob> {
    while entries.len() < MAX_BATCH_ENTRIES {
        match jobs.try_recv() {
            Ok(ApplyJob::Entries(more)) => entries.extend(more),
            Ok(job) => return Some(job),
            Err(_) => break,
        }
    }
    None
}

fn report(batch: AppliedBatch, shared: &Arc<Shared>) {
    let AppliedBatch {
        index,
        membership,
        changes,
        state,
        answers,
    } = batch;
    if let Some(membership) = &membership {
        shared.membership.store(membership.clone());
    }
    for (sink, outcome) in answers {
        sink.done(outcome.map(|()| shared.membership.load_full()));
    }
    let _ = shared.input(Input::Applied {
        index,
        membership,
        changes,
        state,
    });
}

fn install(
    applier: &mut Applier,
    loaded: LoadedStore,
    shared: &Arc<Shared>,
) -> Result<(), RaftError> {
    let number = loaded.store_number;
    let old_number = shared.current.load().number;
    // Readers must find the new store before watchers are sent to it.
    shared
        .current
        .store(Arc::new(Current::of(&loaded.store, number)));
    let (old, batch) = applier.install(loaded);
    tracing::info!(
        "store {number} of index {} replaces store {old_number}",
        batch.index
    );
    shared
        .metrics
        .snapshots_received
        .fetch_add(1, Ordering::Relaxed);
    report(batch, shared);
    drop(old);
    shared.files.remove(old_number)
}
