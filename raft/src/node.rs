//! The handle to a running node.

use std::sync::Arc;

use bytes::Bytes;
use varve_engine::backend::Stats;
use varve_engine::mvcc::{LiveEvents, View};
use varve_engine::wal::WalStats;
use varve_types::ApiError;

use crate::config::Config;
use crate::error::RaftError;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::sink::{Proposal, ReadSink};
use crate::status::Status;
use crate::transport::Transport;

/// Takes the events of each applied batch, on the apply thread; must not block.
pub trait Watchers: Send {
    /// `events` became visible with `view`. After a snapshot from another member
    /// they are `ReadFromStore`, and the start may be compacted.
    fn notify(&mut self, events: LiveEvents, view: Arc<View>);
}

/// Watchers for a node that has none.
impl Watchers for () {
    fn notify(&mut self, _events: LiveEvents, _view: Arc<View>) {}
}

/// A running node. Dropping it stops it without handing over leadership.
#[derive(Debug)]
pub struct Node {
    handle: NodeHandle,
}

impl Node {
    /// Opens or creates the data directory, recovers, and starts the threads.
    /// The caller holds the lock on the data directory.
    pub fn start(
        config: Config,
        transport: Box<dyn Transport>,
        watchers: Box<dyn Watchers>,
    ) -> Result<Self, RaftError> {
        let _ = (config, transport, watchers);
        unimplemented!()
    }

    /// The handle that connections use.
    pub fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// Hands leadership over if there is someone to take it, makes a
    /// checkpoint, stops the threads and waits for them.
    pub fn shutdown(self) -> Result<(), RaftError> {
        unimplemented!()
    }
}

/// What connections do with a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeHandle {}

impl NodeHandle {
    /// Puts commands into the log. The sink is called exactly once; at once,
    /// if too much waits already.
    pub fn propose(&self, proposal: Proposal) {
        let _ = proposal;
        unimplemented!()
    }

    /// Calls the sink with a view that holds all that was acknowledged by any
    /// member before now.
    pub fn read(&self, sink: Box<dyn ReadSink>) {
        let _ = sink;
        unimplemented!()
    }

    /// The newest state that this member has, for serializable reads.
    pub fn view(&self) -> Arc<View> {
        unimplemented!()
    }

    /// Hands in a message from another member: bytes that its `Transport` was given.
    pub fn peer_message(&self, from: u64, message: Bytes) {
        let _ = (from, message);
        unimplemented!()
    }

    /// Reports that a member cannot be reached, or that messages to it were dropped.
    pub fn peer_unreachable(&self, id: u64) {
        let _ = id;
        unimplemented!()
    }

    /// Starts to take a snapshot in that another member sends.
    pub fn snapshot_receiver(&self, from: u64) -> Box<dyn SnapshotReceiver> {
        let _ = from;
        unimplemented!()
    }

    /// What the node says of itself.
    pub fn status(&self) -> Status {
        unimplemented!()
    }

    /// The members as of the last applied entry.
    pub fn members(&self) -> Arc<Membership> {
        unimplemented!()
    }

    /// Asks that `id` become leader. Only the leader can, and only to a voter:
    /// `NotLeader`, `BadLeaderTransferee`. To itself succeeds at once.
    pub fn transfer_leader(&self, id: u64) -> Result<(), ApiError> {
        let _ = id;
        unimplemented!()
    }

    /// Sizes of the store, for `endpoint status` and `/metrics`.
    pub fn storage(&self) -> Stats {
        unimplemented!()
    }

    /// Figures of the log, for `/metrics`.
    pub fn wal_stats(&self) -> Arc<WalStats> {
        unimplemented!()
    }

    /// The disk in use (`uring` or `psync`), and why it is not the one that was asked for.
    pub fn disk(&self) -> (&'static str, Option<String>) {
        unimplemented!()
    }

    /// Figures for `/metrics`.
    pub fn metrics(&self) -> Arc<Metrics> {
        unimplemented!()
    }
}

/// Takes in one snapshot stream. Writes to disk: not on an async worker.
/// Dropping it before `finish` abandons the snapshot.
pub trait SnapshotReceiver: Send {
    /// The next part, in order. An error ends the stream.
    fn chunk(&mut self, bytes: Bytes) -> Result<(), RaftError>;

    /// After the last part: hands the loaded store to the replica.
    fn finish(self: Box<Self>) -> Result<(), RaftError>;
}
