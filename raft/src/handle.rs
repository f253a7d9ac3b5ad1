//! The handle that connections use.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use varve_engine::backend::{Backend, Damage, ScrubStats};
use varve_engine::mvcc::View;
use varve_engine::wal::WalStats;
use varve_types::ApiError;

use crate::change::Change;
use crate::driver;
use crate::error::RaftError;
use crate::io::Input;
use crate::loading::Incoming;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::receiver::SnapshotReceiver;
use crate::shared::Shared;
use crate::sink::{ChangeSink, DefragmentSink, Proposal, ReadSink, RemovalSink};
use crate::status::Status;
use crate::transport::SnapshotAnnouncement;

/// Bytes of other members' messages that may wait; more are dropped, as Raft allows.
const MAX_PEER_BYTES: usize = 256 << 20;

/// What connections do with a node. Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    pub(crate) shared: Arc<Shared>,
}

impl NodeHandle {
    /// Puts commands into the log. The sink is called exactly once; at once, if
    /// too much waits already.
    pub fn propose(&self, proposal: Proposal) {
        let shared = &self.shared;
        if shared.is_stopped.load(Ordering::Relaxed) {
            return proposal.sink.refuse(ApiError::Stopped);
        }
        if shared.lacks_space() {
            return proposal.sink.refuse(ApiError::NoSpace);
        }
        let bytes = proposal.commands.len();
        let before = shared.proposal_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > shared.max_pending_bytes {
            shared.proposal_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return proposal.sink.refuse(ApiError::TooManyRequests);
        }
        if let Err(error) = shared.input(Input::Propose(proposal))
            && let Input::Propose(proposal) = error
        {
            proposal.sink.refuse(ApiError::Stopped);
        }
    }

    /// Calls the sink with a view that holds all that was acknowledged by any
    /// member before now.
    pub fn read(&self, sink: Box<dyn ReadSink>) {
        if self.shared.is_stopped.load(Ordering::Relaxed) {
            return sink.refuse(ApiError::Stopped);
        }
        if let Err(error) = self.shared.input(Input::Read(sink))
            && let Input::Read(sink) = error
        {
            sink.refuse(ApiError::Stopped);
        }
    }

    /// The newest state that this member has, for serializable reads.
    pub fn view(&self) -> Arc<View> {
        self.shared.current.load().reader.view()
    }

    /// Tells the sink once this member has removed what is compacted: at once, if
    /// there is nothing to remove.
    pub fn when_removed(&self, sink: Box<dyn RemovalSink>) {
        let is_pending = || self.view().compaction_pending();
        self.shared.removal.wait(sink, is_pending);
    }

    /// Gives the free space of this member's store back to the file system, beside reads and
    /// writes. The sink is told once that is done, as far as readers let it.
    pub fn defragment(&self, sink: Box<dyn DefragmentSink>) {
        self.shared.defragment.ask(sink);
    }

    /// The engine in use, for its sizes. Another one after a snapshot came in.
    pub fn backend(&self) -> Arc<dyn Backend> {
        self.shared.current.load().backend.clone()
    }

    /// Hands in messages from another member, in their order: bytes that its `Transport`
    /// was given.
    pub fn peer_messages(&self, from: u64, messages: impl IntoIterator<Item = Bytes>) {
        let shared = &self.shared;
        let mut inputs = Vec::new();
        for bytes in messages {
            let length = bytes.len();
            let before = shared.peer_bytes.fetch_add(length, Ordering::Relaxed);
            if before + length > MAX_PEER_BYTES {
                shared.peer_bytes.fetch_sub(length, Ordering::Relaxed);
                continue;
            }
            inputs.push(Input::Peer { from, bytes });
        }
        shared.input_all(inputs);
    }

    /// Reports that a member cannot be reached, or that messages to it were dropped.
    pub fn peer_unreachable(&self, id: u64) {
        let _ = self.shared.inputs.send(Input::Unreachable(id));
    }

    /// Starts to take the snapshot in that member `from` announces, or goes on with
    /// it. Writes to disk: not on an async worker.
    pub fn snapshot_receiver(
        &self,
        from: u64,
        announcement: &SnapshotAnnouncement,
    ) -> Result<SnapshotReceiver, RaftError> {
        let shared = self.shared.clone();
        let applied = shared.metrics.applied_index.load(Ordering::Relaxed);
        let incoming = Incoming::begin(
            (from, announcement.id),
            &announcement.message,
            (shared.identity.member_id, applied),
            shared.files.clone(),
            shared.loading.clone(),
        )?;
        if incoming.resumed_at() > 0 {
            let metrics = &shared.metrics;
            metrics.snapshots_resumed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(SnapshotReceiver::new(incoming, shared))
    }

    /// What the node says of itself.
    pub fn status(&self) -> Status {
        let shared = &*self.shared;
        let mut errors = Vec::new();
        let leader = if shared.is_stopped.load(Ordering::Relaxed) {
            0
        } else {
            shared.leader()
        };
        if leader == 0 {
            errors.push(ApiError::NoLeader.to_string());
        }
        if shared.is_disk_stuck() {
            errors.push("the disk is stuck: no write of the log completes".to_owned());
        }
        if shared.lacks_space() {
            errors.push("the disk is full: log or store wait for space".to_owned());
        }
        errors.extend(self.found_damage().map(|found| format!("DAMAGED: {found}")));
        errors.extend(shared.failure());
        let members = shared.membership.load();
        errors.extend(
            members
                .alarms()
                .map(|alarm| format!("memberID:{} alarm:{} ", alarm.member_id, alarm.kind.name())),
        );
        Status {
            member_id: shared.identity.member_id,
            cluster_id: shared.identity.cluster_id,
            leader,
            term: shared.term(),
            last_index: shared.last_index(),
            commit_index: shared.metrics.committed_index.load(Ordering::Relaxed),
            applied_index: shared.metrics.applied_index.load(Ordering::Relaxed),
            is_learner: shared.is_learner(),
            is_removed: shared.is_removed(),
            errors,
        }
    }

    /// Why the node stopped by itself, if it did. The process should end then.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// What was found damaged of this member's files, if something was. The process
    /// should end then, or the member be healed (see [`crate::Healing`]).
    pub fn damage(&self) -> Option<&str> {
        self.shared.damage()
    }

    /// The first damage that was found, whether the process should end for it or can serve
    /// what is whole.
    pub fn found_damage(&self) -> Option<String> {
        let noted = self.shared.damage().map(str::to_owned);
        noted.or_else(|| self.shared.known_damage().first)
    }

    /// Notes that a read, or a check beside the requests, found a file damaged.
    pub fn report_damage(&self, found: String) {
        self.shared.note_damage(found);
    }

    /// What was found damaged: in the store in use since it was opened, by reads or by
    /// the scrub, and by the scrub in the log. What is damaged is never served.
    pub fn known_damage(&self) -> Damage {
        self.shared.known_damage()
    }

    /// How the scrub goes; `None` without one.
    pub fn scrub_stats(&self) -> Option<&Arc<ScrubStats>> {
        self.shared.scrub.get()
    }

    /// Whether this member has no vote.
    pub fn is_learner(&self) -> bool {
        self.shared.is_learner()
    }

    /// Whether the disk hangs: writes of the log are out, and none completes.
    pub fn is_disk_stuck(&self) -> bool {
        self.shared.is_disk_stuck()
    }

    /// Whether the disk is full: log or store wait for space, and writes are refused.
    pub fn lacks_space(&self) -> bool {
        self.shared.lacks_space()
    }

    /// This member's id.
    pub fn member_id(&self) -> u64 {
        self.shared.identity.member_id
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.shared.identity.cluster_id
    }

    /// The Raft term, for response headers.
    pub fn term(&self) -> u64 {
        self.shared.term()
    }

    /// The members as of the last applied entry.
    pub fn members(&self) -> Arc<Membership> {
        self.shared.membership.load_full()
    }

    /// Changes the membership. Any member may be asked; the leader decides. The sink
    /// is called once this member has applied the change, or with the refusal.
    pub fn change(&self, change: Change, sink: Box<dyn ChangeSink>) {
        if let Err(error) = self.shared.inputs.send(Input::Change(change, sink))
            && let Input::Change(_, sink) = error.0
        {
            sink.done(Err(ApiError::Stopped));
        }
    }

    /// Makes `id` the leader. Only the leader can, and only of a voter: `NotLeader`,
    /// `BadLeaderTransferee`. The sink is called when it is done.
    pub fn move_leader(&self, id: u64, sink: Box<dyn ChangeSink>) {
        if let Err(error) = self.shared.inputs.send(Input::MoveLeader(id, sink))
            && let Input::MoveLeader(_, sink) = error.0
        {
            sink.done(Err(ApiError::Stopped));
        }
    }

    /// Whether the alarm CORRUPT names this member: it is not to serve.
    pub fn is_corrupt(&self) -> bool {
        self.shared.is_corrupt()
    }

    /// Hands in that another member says that this one has been removed.
    pub fn told_removed(&self) {
        let _ = self.shared.inputs.send(Input::Removed);
    }

    /// Whether this member has been removed from the cluster. The process should
    /// end then, soon: there may be answers on their way.
    pub fn is_removed(&self) -> bool {
        self.shared.is_removed()
    }

    /// Makes a checkpoint now; the index that it covers. Waits for the disk.
    pub fn checkpoint(&self) -> Result<u64, RaftError> {
        driver::checkpoint(&self.shared)
    }

    /// Figures for `/metrics`.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// The log's figures for `/metrics`.
    pub fn wal_stats(&self) -> &Arc<WalStats> {
        &self.shared.wal_stats
    }
}

impl std::fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeHandle")
            .field("status", &self.status())
            .finish()
    }
}
