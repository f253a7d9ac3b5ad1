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
//! whatever the disk does. What comes to an idle replica or applier is done by the
//! thread that brings it ([`crate::turn`], [`crate::applying`]).

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Select, Sender, TryRecvError};
use varve_engine::backend::{CheckpointPace, Scrubber, memory};
use varve_engine::wal::{Committer, Completion, WalReader};
use varve_types::ApiError;

use crate::error::RaftError;
use crate::io::Input;
use crate::log::{self, Fetch};
use crate::replica::Replica;
use crate::shared::Shared;
use crate::turn::Turn;

/// Inputs taken in one turn, so that ticks come through.
const MAX_INPUTS_PER_TURN: usize = 4096;

/// Ticks in one turn: those of one heartbeat.
const MAX_TICKS_PER_TURN: usize = 10;

/// How often the checkpoint thread looks whether one is due.
const CHECKPOINT_POLL: Duration = Duration::from_millis(200);

/// Least time between two checkpoints that the engine wants.
const ENGINE_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two checkpoints that are made for their count of entries.
const MIN_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// What the log's thread calls when a group is durable. Until `shared` is set, which
/// is before the replica runs, everything goes into the queue.
pub(crate) fn on_committed(
    inputs: Sender<Input>,
    shared: Arc<OnceLock<Arc<Shared>>>,
) -> impl FnMut(Completion) + Send + 'static {
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
        match shared.get() {
            Some(shared) => drop(shared.input(input)),
            None => drop(inputs.send(input)),
        }
    }
}

/// The replica's thread. Returns the committer, for a clean end.
pub(crate) fn run_replica(
    turn: Turn,
    inputs: &Receiver<Input>,
    shared: &Arc<Shared>,
    tick: Duration,
) -> Committer {
    *shared.turns.lock() = Some(turn);
    let run = AssertUnwindSafe(|| replica_loop(inputs, shared, tick));
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => shared.fail_with("", &error),
        Err(panic) => shared.fail_of_bug("replica", &*panic),
    }
    shared.is_stopped.store(true, Ordering::SeqCst);
    shared.metrics.has_leader.store(false, Ordering::Relaxed);
    shared.metrics.is_leader.store(false, Ordering::Relaxed);
    let turn = shared.turns.lock().take();
    let Turn {
        mut replica,
        outlets,
        ..
    } = turn.expect("only this thread takes it away");
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

fn replica_loop(
    inputs: &Receiver<Input>,
    shared: &Arc<Shared>,
    tick: Duration,
) -> Result<(), RaftError> {
    let mut next_tick = Instant::now() + tick;
    loop {
        {
            let mut guard = shared.turns.lock();
            let Some(turn) = guard.as_mut().filter(|turn| !turn.has_failed()) else {
                return Ok(());
            };
            for _ in 0..MAX_INPUTS_PER_TURN {
                match inputs.try_recv() {
                    Ok(Input::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                    Ok(input) => turn.step(input, shared)?,
                    Err(TryRecvError::Empty) => break,
                }
            }
            next_tick = tick_until(Instant::now(), next_tick, tick, &mut turn.replica)?;
            turn.finish(shared)?;
        }
        let mut ready = Select::new();
        ready.recv(inputs);
        // Either way: there may be something, or it is time.
        let _ = ready.ready_deadline(next_tick);
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

/// When a checkpoint is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckpointPolicy {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) interval: Duration,
}

/// The checkpoint thread; ends when `stop` is disconnected.
pub(crate) fn run_checkpoints(policy: CheckpointPolicy, stop: &Receiver<()>, shared: &Arc<Shared>) {
    let mut pace = CheckpointPace::new(Instant::now());
    let mut last_end = shared.wal_stats.end_lsn.load(Ordering::Relaxed);
    let mut is_full = false;
    let mut last_index = shared.current.load().backend.durable().index;
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(CHECKPOINT_POLL) {
        shared.offers.expire();
        shared.loading.expire(&shared.files);
        let end = shared.wal_stats.end_lsn.load(Ordering::Relaxed);
        let applied = shared.metrics.applied_index.load(Ordering::Relaxed);
        let entries = applied.saturating_sub(last_index);
        let started = Instant::now();
        let since = pace.since(started);
        let has_time = entries == 0 || pace.has_time(started);
        let is_due = end.saturating_sub(last_end) >= policy.bytes
            || (entries > 0 && since >= policy.interval)
            || (entries >= policy.entries && since >= MIN_CHECKPOINT_INTERVAL)
            || ((since >= ENGINE_CHECKPOINT_INTERVAL || shared.defragment.is_running())
                && shared.current.load().backend.wants_checkpoint(has_time));
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
        pace.note(started, Instant::now());
        last_end = end;
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
