//! A turn of the replica: an input or more, and what comes of them.
//!
//! The replica, with where its outputs go, is under one lock. Its thread takes
//! turns for as long as there are inputs; but where it has nothing to do, whoever
//! brings an input takes the turn on its own thread. Waking another thread costs
//! more than such a turn, and a lone put or read would wait for four of them.
//!
//! # Invariants
//! 1. Inputs of one thread are taken in the order in which it brought them: the
//!    thread of the replica takes inputs off the queue only under the lock, and
//!    nobody takes a turn past a queue that holds something.
//! 2. Nobody waits for the lock but the replica's thread: whoever finds it taken
//!    leaves the input in the queue.
//! 3. What may be shared by many does not go alone: while proposals or readers of
//!    this member are under way, or came in crowds of late, further ones collect in
//!    the queue.
//! 4. Jobs of the applier go in their order: it is locked before the turn ends.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::Sender;
use varve_engine::wal::Committer;

use crate::applying::{self, ApplyHere};
use crate::error::RaftError;
use crate::io::{ApplyJob, Input, Output};
use crate::loading::LoadedStore;
use crate::log::Fetch;
use crate::replica::Replica;
use crate::shared::Shared;
use crate::snapshot::{Offer, Outgoing};
use crate::transport::{SnapshotOutcome, Transport};

/// Longest message of another member that is taken on the thread that received it.
const MAX_PEER_BYTES_HERE: usize = 16 << 10;
/// Inputs that are taken in one turn there.
const MAX_INPUTS_HERE: usize = 16;

/// Where the replica's outputs go.
pub(crate) struct Outlets {
    pub(crate) committer: Committer,
    pub(crate) apply: Sender<ApplyJob>,
    pub(crate) fetch: Sender<Fetch>,
    pub(crate) transport: Box<dyn Transport>,
}

/// The replica and all that a turn of it needs.
pub(crate) struct Turn {
    pub(crate) replica: Replica,
    pub(crate) outlets: Outlets,
    output: Output,
    tick: Duration,
    /// A turn ended with an error: there are no more.
    has_failed: bool,
}

/// The turn, for whoever gets the lock; `None` before the replica's thread runs and
/// after its end.
#[derive(Default)]
pub(crate) struct Turns(Mutex<Option<Turn>>);

impl Turns {
    /// Waits for the lock; for the replica's thread.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Turn>> {
        // Whoever takes a turn catches its panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    pub(crate) fn new(replica: Replica, outlets: Outlets, tick: Duration) -> Self {
        Self {
            replica,
            outlets,
            output: Output::default(),
            tick,
            has_failed: false,
        }
    }

    /// Whether a turn on another thread failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Takes an input.
    pub(crate) fn step(&mut self, input: Input, shared: &Shared) -> Result<(), RaftError> {
        match &input {
            Input::Applied {
                membership: Some(members),
                ..
            } => self.outlets.transport.members_changed(members),
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
        self.replica.step(input)
    }

    /// Does what is to be done after the inputs. What is applied goes to its thread.
    pub(crate) fn finish(&mut self, shared: &Arc<Shared>) -> Result<(), RaftError> {
        self.collect(shared)?;
        self.send_jobs()
    }

    fn collect(&mut self, shared: &Arc<Shared>) -> Result<(), RaftError> {
        self.replica.poll(&mut self.output)?;
        shared.set_status(&self.replica.status(), self.tick);
        dispatch(&self.replica, &mut self.output, &mut self.outlets, shared)
    }

    fn send_jobs(&mut self) -> Result<(), RaftError> {
        for job in self.output.apply.drain(..) {
            if self.outlets.apply.send(job).is_err() {
                return Err(RaftError::Stopped("the apply thread is gone".to_owned()));
            }
        }
        Ok(())
    }

    /// Whether an input may be taken by itself, on the thread that brings it.
    fn is_taken_alone(&self, input: &Input) -> bool {
        match input {
            Input::Propose(_) => self.replica.proposals.is_lonely(),
            Input::Read(_) => self.replica.reads.pending() == 0,
            Input::Peer { bytes, .. } => bytes.len() <= MAX_PEER_BYTES_HERE,
            // With more behind it the log's thread has better things to do.
            Input::Persisted { .. } => self.replica.in_flight.writes_out() <= 1,
            Input::Applied { membership, .. } => membership.is_none(),
            _ => false,
        }
    }

    /// A whole turn. What it gives to apply is to be done by whoever
    /// calls, if it is little and the applier has nothing to do.
    fn take<'s>(
        &mut self,
        inputs: impl IntoIterator<Item = Input>,
        may_apply: bool,
        shared: &'s Arc<Shared>,
    ) -> Result<Option<ApplyHere<'s>>, RaftError> {
        for input in inputs {
            self.step(input, shared)?;
        }
        self.collect(shared)?;
        let here = match &self.output.apply[..] {
            [job] if may_apply && self.outlets.apply.is_empty() => applying::try_here(job, shared),
            _ => None,
        };
        match here {
            Some(guard) => Ok(self.output.apply.pop().map(|job| guard.with(job))),
            None => self.send_jobs().map(|()| None),
        }
    }
}

impl Shared {
    /// Hands an input to the replica. It comes back if the node has stopped.
    pub(crate) fn input(self: &Arc<Self>, input: Input) -> Result<(), Input> {
        match self.take_turn([input]) {
            None => Ok(()),
            Some([input]) => self.inputs.send(input).map_err(|error| error.0),
        }
    }

    /// Hands inputs that came together to the replica. A node that has stopped takes
    /// none.
    pub(crate) fn input_all(self: &Arc<Self>, inputs: Vec<Input>) {
        for input in self.take_turn(inputs).unwrap_or_default() {
            let _ = self.inputs.send(input);
        }
    }

    /// Takes a turn here, if the replica has nothing else to do; gives the inputs back
    /// if not.
    fn take_turn<I>(self: &Arc<Self>, inputs: I) -> Option<I>
    where
        I: AsRef<[Input]> + IntoIterator<Item = Input>,
    {
        let Ok(mut guard) = self.turns.0.try_lock() else {
            return Some(inputs);
        };
        let Some(turn) = guard.as_mut() else {
            return Some(inputs);
        };
        let all = inputs.as_ref();
        let is_taken = !turn.has_failed
            && self.inputs.is_empty()
            && all.len() <= MAX_INPUTS_HERE
            && all.iter().all(|input| turn.is_taken_alone(input));
        if !is_taken {
            return Some(inputs);
        }
        // To apply may wait for pages of the store that are on the disk: the log's thread may,
        // those that serve sockets leave it to the applier.
        let may_apply = all
            .iter()
            .all(|input| matches!(input, Input::Persisted { .. }));
        let taken =
            std::panic::catch_unwind(AssertUnwindSafe(|| turn.take(inputs, may_apply, self)));
        let here = match taken {
            Ok(Ok(here)) => here,
            failed => {
                // The replica's thread ends it; see `fail`.
                turn.has_failed = true;
                drop(guard);
                match failed {
                    Ok(Err(error)) => self.fail_with("", &error),
                    Err(panic) => self.fail_of_bug("replica", &*panic),
                    Ok(Ok(_)) => {}
                }
                return None;
            }
        };
        drop(guard);
        if let Some(here) = here {
            here.apply();
        }
        None
    }
}

/// All of it but the jobs for the applier.
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
