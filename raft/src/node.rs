//! A running node, and the handle that connections use.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{self, Sender};
use varve_engine::backend::{Backend, Damage, ScrubStats, Scrubber};
use varve_engine::disk::Disk;
use varve_engine::mvcc::{LiveEvents, View};
use varve_engine::wal::{Committer, WalConfig, WalStats};
use varve_types::ApiError;

use crate::apply::Applier;
use crate::change::Change;
use crate::config::Config;
use crate::driver::{self, CheckpointPolicy, Outlets};
use crate::error::RaftError;
use crate::io::Input;
use crate::loading::Incoming;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::receiver::SnapshotReceiver;
use crate::replica::{Replica, Settings};
use crate::shared::{Current, Shared};
use crate::sink::{ChangeSink, DefragmentSink, Proposal, ReadSink, RemovalSink};
use crate::start;
use crate::status::Status;
use crate::transport::{SnapshotAnnouncement, Transport};

/// Idle time after which the log writes a mark.
const LOG_IDLE: Duration = Duration::from_millis(500);

/// Bytes of other members' messages that may wait; more are dropped, as Raft allows.
const MAX_PEER_BYTES: usize = 256 << 20;

/// Bytes of committed entries that wait in memory to be applied; more wait on disk.
const MAX_APPLY_BYTES: usize = 64 << 20;

/// Time after which a round of ReadIndex that got no answer is asked for again, as in etcd.
const READ_RETRY: Duration = Duration::from_millis(500);

/// Takes the events of each applied batch, on the apply thread; must not block.
pub trait Watchers: Send {
    /// Whether anyone watches. If not, the events of the next batch are not
    /// collected: `notify` is given `ReadFromStore`.
    fn wanted(&self) -> bool;

    /// `events` became visible with `view`. After a snapshot from another member
    /// they are `ReadFromStore`, and the start may be compacted.
    fn notify(&mut self, events: LiveEvents, view: Arc<View>);
}

/// Watchers for a node that has none.
impl Watchers for () {
    fn wanted(&self) -> bool {
        false
    }

    fn notify(&mut self, _events: LiveEvents, _view: Arc<View>) {}
}

/// A running node. Dropping it stops it without handing over leadership.
pub struct Node {
    handle: NodeHandle,
    threads: Option<Threads>,
    election_timeout: Duration,
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
}

struct Threads {
    replica: JoinHandle<Committer>,
    apply: JoinHandle<()>,
    checkpoint: JoinHandle<()>,
    log_reader: JoinHandle<()>,
    scrub: Option<JoinHandle<()>>,
    stop_checkpoints: Sender<()>,
}

impl Node {
    /// Opens or makes the data directory, recovers, and starts the threads.
    /// The caller holds the lock on the data directory.
    pub fn start(
        config: Config,
        transport: Box<dyn Transport>,
        watchers: Box<dyn Watchers>,
    ) -> Result<Self, RaftError> {
        let wal_config = WalConfig {
            segment_bytes: config.wal_segment_bytes,
            ..WalConfig::default()
        };
        let started = start::open(&config, wal_config)?;
        let (inputs, input_queue) = channel::unbounded();
        let reader = started.wal.reader();
        let committer =
            Committer::spawn(started.wal, LOG_IDLE, driver::on_committed(inputs.clone()))
                .map_err(|error| RaftError::Stopped(format!("no thread for the log: {error}")))?;
        let shared = Arc::new(Shared::new(
            started.identity,
            inputs,
            Current::of(&started.store, started.replayed.marker.store),
            started.membership.clone(),
            committer.stats(),
            started.files,
            started.loading,
            config.snapshot_chunk_bytes,
            random(),
            config.max_pending_bytes,
        ));
        let applied = started.store.view().applied().index;
        tracing::info!(
            "starting member {:x} in cluster {:x} at commit index {}",
            started.identity.member_id,
            started.identity.cluster_id,
            started.replayed.hard_state.commit.max(applied)
        );
        let replica = Replica::new(
            settings(&config, started.identity.member_id),
            started.replayed,
            started.membership.clone(),
            applied,
        )?;
        shared.set_status(&replica.status(), config.tick());
        let applier = Applier::new(
            started.store,
            started.membership,
            reader.clone(),
            watchers,
            shared.metrics.clone(),
        );
        let threads = Threads::spawn(
            &config,
            &shared,
            ThreadParts {
                replica,
                input_queue,
                committer,
                transport,
                applier,
                reader,
            },
        )?;
        Ok(Self {
            handle: NodeHandle { shared },
            threads: Some(threads),
            election_timeout: config.election_timeout,
            disk: config.disk,
            data_dir: config.data_dir,
        })
    }

    /// The handle that connections use.
    pub fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// Hands leadership over if there is someone to take it, stops the threads,
    /// and makes a checkpoint. An error says what went wrong, now or before.
    pub fn shutdown(mut self) -> Result<(), RaftError> {
        self.hand_over();
        self.stop()
    }

    /// Hands leadership over if there is someone to take it, and waits until another
    /// member leads, for an election timeout at most.
    pub fn hand_over(&self) {
        let shared = &self.handle.shared;
        let own_id = shared.identity.member_id;
        let is_alone = shared.membership.load().voters().count() < 2;
        if is_alone || shared.leader() != own_id || shared.inputs.send(Input::HandOver).is_err() {
            return;
        }
        self.wait_while(|| matches!(shared.leader(), leader if leader == own_id || leader == 0));
    }

    /// Waits until nothing that was proposed or asked for here waits for an answer,
    /// for an election timeout at most. The caller lets nothing new come in.
    pub fn drain(&self) {
        let shared = &self.handle.shared;
        self.wait_while(|| {
            shared.proposal_bytes.load(Ordering::Relaxed) > 0
                || shared.metrics.proposals_pending.load(Ordering::Relaxed) > 0
                || shared.metrics.reads_pending.load(Ordering::Relaxed) > 0
        });
    }

    fn wait_while(&self, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + self.election_timeout;
        while holds() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stop(&mut self) -> Result<(), RaftError> {
        let Some(threads) = self.threads.take() else {
            return Ok(());
        };
        let shared = &self.handle.shared;
        // If the replica has stopped already there is nobody to tell.
        let _ = shared.inputs.send(Input::Stop);
        let gone = |name: &str| RaftError::Stopped(format!("the {name} thread panicked"));
        drop(threads.stop_checkpoints);
        threads.checkpoint.join().map_err(|_| gone("checkpoint"))?;
        // The ends of the queues that the replica held close one thread after the other.
        let committer = threads.replica.join().map_err(|_| gone("replica"))?;
        threads.apply.join().map_err(|_| gone("apply"))?;
        threads.log_reader.join().map_err(|_| gone("log reader"))?;
        if let Some(scrub) = threads.scrub {
            scrub.join().map_err(|_| gone("scrub"))?;
        }
        if let Some(reason) = shared.failure() {
            return Err(RaftError::Stopped(reason));
        }
        if shared.is_removed() {
            start::mark_removed(&*self.disk, &self.data_dir, shared.identity)?;
        }
        committer.shutdown()?;
        driver::checkpoint(shared)?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!("{error}");
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

fn settings(config: &Config, member_id: u64) -> Settings {
    Settings {
        member_id,
        heartbeat_ticks: config.ticks(config.heartbeat_interval),
        election_ticks: config.ticks(config.election_timeout),
        request_timeout_ticks: config.ticks(config.request_timeout()),
        read_retry_ticks: config.ticks(READ_RETRY),
        disk_limit_ticks: config.ticks(config.disk_limit()),
        max_pending_bytes: config.max_pending_bytes,
        max_apply_bytes: MAX_APPLY_BYTES,
        catchup_entries: config.snapshot_catchup_entries,
        catchup_bytes: config.snapshot_catchup_bytes,
        incarnation: random(),
        strict_reconfig: config.strict_reconfig_check,
        max_learners: config.max_learners,
        corrupt_check_ticks: match config.corrupt_check_time {
            Duration::ZERO => 0,
            time => config.ticks(time),
        },
    }
}

/// A random number, from the keys that std draws for its hash maps.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Half of the range, so that counting up from it does not overflow.
    RandomState::new().build_hasher().finish() >> 1
}

struct ThreadParts {
    replica: Replica,
    input_queue: channel::Receiver<Input>,
    committer: Committer,
    transport: Box<dyn Transport>,
    applier: Applier,
    reader: varve_engine::wal::WalReader,
}

impl Threads {
    fn spawn(config: &Config, shared: &Arc<Shared>, parts: ThreadParts) -> Result<Self, RaftError> {
        let (apply_jobs, apply_queue) = channel::unbounded();
        let (fetches, fetch_queue) = channel::unbounded();
        let (stop_checkpoints, stop) = channel::bounded(0);
        let policy = CheckpointPolicy {
            bytes: config.checkpoint_bytes,
            entries: config.snapshot_count,
            interval: config.checkpoint_interval,
        };
        let ThreadParts {
            replica,
            input_queue,
            committer,
            transport,
            applier,
            reader,
        } = parts;
        let outlets = Outlets {
            committer,
            apply: apply_jobs,
            fetch: fetches,
            transport,
        };
        let tick = config.tick();
        let scrub = match Scrubber::new(config.scrub_interval) {
            Some(scrubber) => {
                let (log, stop) = (reader.clone(), stop.clone());
                let _ = shared.scrub.set(scrubber.stats());
                Some(spawn("varve-scrub", shared, move |shared| {
                    driver::run_scrub(scrubber, &log, &stop, shared);
                })?)
            }
            None => None,
        };
        Ok(Self {
            replica: spawn("varve-replica", shared, move |shared| {
                driver::run_replica(replica, &input_queue, outlets, shared, tick)
            })?,
            apply: spawn("varve-apply", shared, move |shared| {
                driver::run_apply(applier, &apply_queue, shared);
            })?,
            checkpoint: spawn("varve-checkpoint", shared, move |shared| {
                driver::run_checkpoints(policy, &stop, shared);
            })?,
            log_reader: spawn("varve-log-reader", shared, move |shared| {
                driver::run_log_reader(&reader, &fetch_queue, shared);
            })?,
            scrub,
            stop_checkpoints,
        })
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    shared: &Arc<Shared>,
    run: impl FnOnce(&Arc<Shared>) -> T + Send + 'static,
) -> Result<JoinHandle<T>, RaftError> {
    let shared = shared.clone();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&shared))
        .map_err(|error| RaftError::Stopped(format!("no thread {name}: {error}")))
}

/// What connections do with a node. Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    shared: Arc<Shared>,
}

impl NodeHandle {
    /// Puts commands into the log. The sink is called exactly once; at once, if
    /// too much waits already.
    pub fn propose(&self, proposal: Proposal) {
        let shared = &*self.shared;
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
        if let Err(error) = shared.inputs.send(Input::Propose(proposal))
            && let Input::Propose(proposal) = error.0
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
        if let Err(error) = self.shared.inputs.send(Input::Read(sink))
            && let Input::Read(sink) = error.0
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

    /// Hands in a message from another member: bytes that its `Transport` was given.
    pub fn peer_message(&self, from: u64, message: Bytes) {
        let shared = &*self.shared;
        let bytes = message.len();
        let before = shared.peer_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > MAX_PEER_BYTES {
            shared.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        let _ = shared.inputs.send(Input::Peer {
            from,
            bytes: message,
        });
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
        let noted = shared.damage().map(str::to_owned);
        let found = noted.or_else(|| shared.known_damage().first);
        errors.extend(found.map(|found| format!("DAMAGED: {found}")));
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
