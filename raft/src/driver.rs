//! The threads around a replica.
//!
//! | thread | does | waits for |
//! |---|---|---|
//! | replica | steps the state machine | inputs, the next tick |
//! | log (the engine's) | group commit | disk |
//! | apply | applies, publishes, answers; compacts when idle | committed entries |
//! | checkpoint | makes the store durable, now and then | disk |
//! | log reader | reads old entries for followers that lag | disk |
//! | scrub | reads store and log again and verifies them | time, disk |
//!
//! The replica never waits for any of the others: ticks and heartbeats go on
//! whatever the disk does.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, select};
use varve_engine::backend::{Scrubber, memory};
use varve_engine::wal::{Committer, Completion, WalReader};
use varve_types::ApiError;

use crate::apply::{AppliedBatch, Applier};
use crate::error::RaftError;
use crate::io::{ApplyJob, Input, Output, ToApply};
use crate::loading::LoadedStore;
use crate::log::{self, Fetch};
use crate::replica::Replica;
use crate::shared::{Current, Shared};
use crate::snapshot::{Offer, Outgoing};
use crate::transport::{SnapshotOutcome, Transport};

/// Inputs taken in one turn, so that ticks come through.
const MAX_INPUTS_PER_TURN: usize = 4096;

/// Ticks in one turn: those of one heartbeat.
const MAX_TICKS_PER_TURN: usize = 10;

/// Entries that are applied as one batch.
const MAX_BATCH_ENTRIES: usize = 4096;

/// Batches between two steps of compaction while there is no idle moment.
const BATCHES_PER_COMPACTION_STEP: u32 = 8;

/// How long to wait before the disk is tried again where it was full.
const SPACE_RETRY: Duration = Duration::from_millis(250);

/// How often the checkpoint thread looks whether one is due.
const CHECKPOINT_POLL: Duration = Duration::from_millis(200);

/// How often an idle applier looks whether there is something to maintain.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two checkpoints that the engine wants.
const ENGINE_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two checkpoints that are made for their count of entries.
const MIN_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// Where the replica's outputs go.
pub(crate) struct Outlets {
    pub(crate) committer: Committer,
    pub(crate) apply: Sender<ApplyJob>,
    pub(crate) fetch: Sender<Fetch>,
    pub(crate) transport: Box<dyn Transport>,
}

/// What the log's thread calls when a group is durable.
pub(crate) fn on_committed(inputs: Sender<Input>) -> impl FnMut(Completion) + Send + 'static {
    move |completion| {
        let Completion {
            ticket,
            group,
            result,
        } = completion;
        let input = match result {
            Ok(committed) => Input::Persisted {
                ticket,
                committed,
                group,
            },
            Err(error) => Input::LogFailed(error.into()),
        };
        // The replica is gone only when the node has stopped.
        let _ = inputs.send(input);
    }
}

/// The replica's thread. Returns the committer, for a clean end.
pub(crate) fn run_replica(
    mut replica: Replica,
    inputs: &Receiver<Input>,
    mut outlets: Outlets,
    shared: &Arc<Shared>,
    tick: Duration,
) -> Committer {
    let run = AssertUnwindSafe(|| replica_loop(&mut replica, inputs, &mut outlets, shared, tick));
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => shared.fail_with("", &error),
        Err(panic) => shared.fail(format!("a bug in the replica: {}", panic_text(&*panic))),
    }
    shared.is_stopped.store(true, Ordering::SeqCst);
    shared.metrics.has_leader.store(false, Ordering::Relaxed);
    shared.metrics.is_leader.store(false, Ordering::Relaxed);
    // A replica that panicked may be half done, but its waiting sinks are whole.
    replica.stop();
    for input in inputs.try_iter() {
        if let Input::Propose(_) | Input::Read(_) | Input::Change(..) | Input::MoveLeader(..) =
            input
        {
            let _ = replica.step(input);
        }
    }
    outlets.committer
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unknown")
}

fn replica_loop(
    replica: &mut Replica,
    inputs: &Receiver<Input>,
    outlets: &mut Outlets,
    shared: &Arc<Shared>,
    tick: Duration,
) -> Result<(), RaftError> {
    let mut next_tick = Instant::now() + tick;
    let mut output = Output::default();
    loop {
        replica.poll(&mut output)?;
        shared.set_status(&replica.status(), tick);
        dispatch(replica, &mut output, outlets, shared)?;

        match inputs.recv_deadline(next_tick) {
            Ok(Input::Stop) => return Ok(()),
            Ok(input) => step(replica, input, outlets, shared)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        for _ in 0..MAX_INPUTS_PER_TURN {
            match inputs.try_recv() {
                Ok(Input::Stop) => return Ok(()),
                Ok(input) => step(replica, input, outlets, shared)?,
                Err(_) => break,
            }
        }
        next_tick = tick_until(Instant::now(), next_tick, tick, replica)?;
    }
}

/// Steps the ticks that are due; when the next one is. A thread that came late
/// makes up for it, but not for a pause of the whole process: the messages that
/// came meanwhile must count first.
fn tick_until(
    now: Instant,
    mut next_tick: Instant,
    tick: Duration,
    replica: &mut Replica,
) -> Result<Instant, RaftError> {
    for _ in 0..MAX_TICKS_PER_TURN {
        if now < next_tick {
            return Ok(next_tick);
        }
        replica.step(Input::Tick)?;
        next_tick += tick;
    }
    Ok(next_tick.max(now + tick))
}

fn step(
    replica: &mut Replica,
    input: Input,
    outlets: &mut Outlets,
    shared: &Shared,
) -> Result<(), RaftError> {
    match &input {
        Input::Applied {
            membership: Some(members),
            ..
        } => outlets.transport.members_changed(members),
        Input::Propose(proposal) => {
            shared
                .proposal_bytes
                .fetch_sub(proposal.commands.len(), Ordering::Relaxed);
        }
        Input::Peer { bytes, .. } => {
            shared.peer_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
        _ => {}
    }
    replica.step(input)
}

fn dispatch(
    replica: &Replica,
    output: &mut Output,
    outlets: &mut Outlets,
    shared: &Arc<Shared>,
) -> Result<(), RaftError> {
    for write in output.writes.drain(..) {
        outlets.committer.submit(write.ticket, write.group)?;
    }
    for (to, messages) in output.messages.drain(..) {
        outlets.transport.send(to, messages);
    }
    for job in output.apply.drain(..) {
        if outlets.apply.send(job).is_err() {
            return Err(RaftError::Stopped("the apply thread is gone".to_owned()));
        }
    }
    if !output.reads.is_empty() {
        let view = shared.current.load().reader.view();
        let term = replica.status().term;
        for sink in output.reads.drain(..) {
            sink.ready(view.clone(), term);
        }
    }
    for (to, message) in output.snapshots.drain(..) {
        let first = replica.raw.store().first();
        send_snapshot(to, message, first, outlets, shared);
    }
    for fetch in output.fetches.drain(..) {
        // Without the reader raft-rs asks again later.
        let _ = outlets.fetch.send(fetch);
    }
    if let Some(lsn) = output.release.take() {
        outlets.committer.release(lsn);
    }
    for loaded in output.discard.drain(..) {
        discard(loaded, shared);
    }
    Ok(())
}

/// Sends a member the state that its last transfer was of when it broke, or else the
/// newest. `first` is the first entry in the log.
fn send_snapshot(
    to: u64,
    message: raft::eraftpb::Message,
    first: u64,
    outlets: &mut Outlets,
    shared: &Arc<Shared>,
) {
    let kept = shared.offers.take(to, first);
    let offer = kept.map_or_else(
        || {
            let view = shared.current.load().reader.view();
            let id = shared.next_snapshot.fetch_add(1, Ordering::Relaxed);
            Offer::new(message, view, id).map(Arc::new)
        },
        Ok,
    );
    let offer = match offer {
        Ok(offer) => offer,
        Err(error) => {
            tracing::warn!("snapshot for member {to:x}: {error}");
            let delivered = false;
            let _ = shared.inputs.send(Input::SnapshotSent { to, delivered });
            return;
        }
    };
    tracing::info!(
        "sending member {to:x} a snapshot of index {}",
        offer.index()
    );
    let sharing = shared.clone();
    let report = Box::new(move |offer, outcome| {
        let metrics = &sharing.metrics;
        if outcome != SnapshotOutcome::Delivered {
            metrics.snapshots_failed.fetch_add(1, Ordering::Relaxed);
        }
        if outcome == SnapshotOutcome::Broken {
            sharing.offers.keep(to, offer);
        }
        let delivered = outcome == SnapshotOutcome::Delivered;
        let _ = sharing.inputs.send(Input::SnapshotSent { to, delivered });
    });
    let metrics = &shared.metrics;
    metrics.snapshots_sent.fetch_add(1, Ordering::Relaxed);
    let stream = Box::new(Outgoing::new(offer, shared.snapshot_chunk_bytes, report));
    outlets.transport.send_snapshot(to, stream);
}

/// Removes a store that is not going to be used. Not on the replica's thread:
/// unmapping a large file takes its time.
fn discard(loaded: LoadedStore, shared: &Arc<Shared>) {
    let shared = shared.clone();
    let number = loaded.store_number;
    std::thread::spawn(move || {
        let LoadedStore { store, _permit, .. } = loaded;
        drop(store);
        if let Err(error) = shared.files.remove(number) {
            tracing::warn!("cannot remove store {number}: {error}");
        }
    });
}

/// The applier's thread.
pub(crate) fn run_apply(mut applier: Applier, jobs: &Receiver<ApplyJob>, shared: &Arc<Shared>) {
    let mut entries = VecDeque::new();
    let run = AssertUnwindSafe(|| apply_loop(&mut applier, &mut entries, jobs, shared));
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => shared.fail_with("", &error),
        Err(panic) => shared.fail(format!("a bug in the store: {}", panic_text(&*panic))),
    }
    shared.removal.close();
    shared.defragment.close();
    for job in jobs.try_iter() {
        if let ApplyJob::Entries(more) = job {
            entries.extend(more);
        }
    }
    for sink in entries.into_iter().flat_map(|entry| entry.sinks).flatten() {
        sink.refuse(ApiError::Stopped);
    }
}

/// After an error or a panic `entries` holds those that were not applied.
fn apply_loop(
    applier: &mut Applier,
    entries: &mut VecDeque<ToApply>,
    jobs: &Receiver<ApplyJob>,
    shared: &Arc<Shared>,
) -> Result<(), RaftError> {
    let mut batches = 0u32;
    let mut next = None;
    loop {
        let job = match next.take() {
            Some(job) => job,
            None => match next_job(applier, jobs, shared)? {
                Some(job) => job,
                None => return Ok(()),
            },
        };
        match job {
            ApplyJob::Entries(more) => {
                entries.extend(more);
                next = merge(entries, jobs);
                while !entries.is_empty() {
                    let batch = wait_for_space(shared, || applier.apply(entries, shared.term()))?;
                    report(batch, shared);
                    batches = batches.wrapping_add(1);
                    if batches.is_multiple_of(BATCHES_PER_COMPACTION_STEP) {
                        maintain(applier, shared, false)?;
                    }
                }
            }
            ApplyJob::Install(loaded) => install(applier, *loaded, shared)?,
            ApplyJob::Compare { from, mark } => applier.compare(from, mark),
        }
        if let Some((to, mark)) = applier.compared() {
            let _ = shared.inputs.send(Input::Compared { to, mark });
        }
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

/// Waits for a job, and meanwhile does what goes on beside the commands.
fn next_job(
    applier: &mut Applier,
    jobs: &Receiver<ApplyJob>,
    shared: &Shared,
) -> Result<Option<ApplyJob>, RaftError> {
    let mut idle = false;
    loop {
        match jobs.try_recv() {
            Ok(job) => return Ok(Some(job)),
            Err(TryRecvError::Disconnected) => return Ok(None),
            Err(TryRecvError::Empty) => {}
        }
        if !maintain(applier, shared, idle)? {
            select! {
                recv(jobs) -> job => return Ok(job.ok()),
                recv(shared.defragment.woken()) -> _ => {}
                default(MAINTENANCE_INTERVAL) => idle = true,
            }
        }
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

fn report(batch: AppliedBatch, shared: &Shared) {
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
    let _ = shared.inputs.send(Input::Applied {
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

/// When a checkpoint is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckpointPolicy {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) interval: Duration,
}

/// The checkpoint thread; ends when `stop` is disconnected.
pub(crate) fn run_checkpoints(policy: CheckpointPolicy, stop: &Receiver<()>, shared: &Arc<Shared>) {
    let mut last = Instant::now();
    let mut last_end = shared.wal_stats.end_lsn.load(Ordering::Relaxed);
    let mut is_full = false;
    let mut last_index = shared.current.load().backend.durable().index;
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(CHECKPOINT_POLL) {
        shared.offers.expire();
        shared.loading.expire(&shared.files);
        let end = shared.wal_stats.end_lsn.load(Ordering::Relaxed);
        let applied = shared.metrics.applied_index.load(Ordering::Relaxed);
        let entries = applied.saturating_sub(last_index);
        let is_due = end.saturating_sub(last_end) >= policy.bytes
            || (entries > 0 && last.elapsed() >= policy.interval)
            || (entries >= policy.entries && last.elapsed() >= MIN_CHECKPOINT_INTERVAL)
            || ((last.elapsed() >= ENGINE_CHECKPOINT_INTERVAL || shared.defragment.is_running())
                && shared.current.load().backend.wants_checkpoint(entries == 0));
        if !is_due {
            continue;
        }
        match checkpoint(shared) {
            Ok(index) => (last_index, is_full) = (index, false),
            Err(error) if error.is_no_space() => {
                // The last checkpoint stands, and the log behind it.
                shared.defragment.fail(ApiError::NoSpace);
                if !std::mem::replace(&mut is_full, true) {
                    tracing::warn!("no checkpoint yet: {error}");
                }
                continue;
            }
            Err(error) => return shared.fail_with("checkpoint: ", &error),
        }
        (last, last_end) = (Instant::now(), end);
        if shared.defragment.is_running() {
            shared.defragment.wake();
        }
    }
}

/// The scrub's thread; ends when `stop` is disconnected.
pub(crate) fn run_scrub(
    mut scrubber: Scrubber,
    log: &WalReader,
    stop: &Receiver<()>,
    shared: &Shared,
) {
    let mut pause = scrubber.first_pause();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(pause) {
        let backend = Arc::clone(&shared.current.load().backend);
        pause = scrubber.step(&*backend, log);
    }
}

/// Makes the store durable and tells the replica how far it applies.
///
/// What is applied was durable in this member's log before it was handed to the
/// applier, so a checkpoint never gets ahead of the log.
pub(crate) fn checkpoint(shared: &Shared) -> Result<u64, RaftError> {
    let started = Instant::now();
    let current = shared.current.load_full();
    let index = current.backend.checkpoint()?.index;
    shared
        .metrics
        .checkpoint_duration
        .observe(started.elapsed());
    // An engine that keeps nothing needs the whole log at the next start.
    if current.backend.name() != memory::NAME {
        let _ = shared.inputs.send(Input::Checkpointed(index));
    }
    Ok(index)
}

/// The thread that reads old entries back for followers that lag.
pub(crate) fn run_log_reader(reader: &WalReader, fetches: &Receiver<Fetch>, shared: &Shared) {
    for fetch in fetches {
        let mut entries = Vec::with_capacity(fetch.positions.len());
        for (index, lsn) in (fetch.low..).zip(fetch.positions) {
            match log::read_entry(reader, lsn, index) {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    if error.is_damage() {
                        shared.note_damage(error.to_string());
                    }
                    // Let go meanwhile: raft-rs will send a snapshot instead.
                    tracing::warn!("entry {index} for a follower: {error}");
                    break;
                }
            }
        }
        let _ = shared.inputs.send(Input::Fetched {
            low: fetch.low,
            entries,
        });
    }
}
