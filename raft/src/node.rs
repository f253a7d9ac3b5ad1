//! A running node: its threads, from start to end.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Sender};
use varve_engine::backend::Scrubber;
use varve_engine::disk::Disk;
use varve_engine::mvcc::{LiveEvents, View};
use varve_engine::wal::{Committer, WalConfig};

use crate::apply::Applier;
use crate::applying::run_apply;
use crate::config::Config;
use crate::driver::{self, CheckpointPolicy};
use crate::error::RaftError;
use crate::handle::NodeHandle;
use crate::io::Input;
use crate::replica::{Replica, Settings};
use crate::shared::{Current, Shared};
use crate::start;
use crate::transport::Transport;
use crate::turn::{Outlets, Turn};

/// Idle time after which the log writes a mark.
const LOG_IDLE: Duration = Duration::from_millis(500);

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
        let late = Arc::new(OnceLock::new());
        let on_committed = driver::on_committed(inputs.clone(), Arc::clone(&late));
        let committer = Committer::spawn(started.wal, LOG_IDLE, on_committed)
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
        let _ = late.set(Arc::clone(&shared));
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
        let turn = Turn::new(replica, outlets, tick);
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
                driver::run_replica(turn, &input_queue, shared, tick)
            })?,
            apply: spawn("varve-apply", shared, move |shared| {
                run_apply(applier, &apply_queue, shared);
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
