//! What the threads of a node and its handles share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam::channel::Sender;
use varve_engine::backend::{Backend, Damage, ScrubStats};
use varve_engine::mvcc::{Reader, Store};
use varve_engine::wal::{Identity, WalStats};

use crate::applying::ApplyLock;
use crate::defragment::Defragment;
use crate::error::RaftError;
use crate::io::Input;
use crate::loading::Loading;
use crate::membership::Membership;
use crate::metrics::Metrics;
use crate::removal::Removal;
use crate::snapshot::Offers;
use crate::status::ReplicaStatus;
use crate::stores::StoreFiles;
use crate::turn::Turns;

/// The store in use.
pub(crate) struct Current {
    pub(crate) reader: Reader,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) number: u64,
}

impl Current {
    pub(crate) fn of(store: &Store, number: u64) -> Self {
        Self {
            reader: store.reader(),
            backend: store.backend().clone(),
            number,
        }
    }
}

/// One per node.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    /// The queue; see [`Shared::input`] for the short way.
    pub(crate) inputs: Sender<Input>,
    pub(crate) turns: Turns,
    pub(crate) applying: ApplyLock,
    pub(crate) current: ArcSwap<Current>,
    pub(crate) membership: ArcSwap<Membership>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) wal_stats: Arc<WalStats>,
    pub(crate) files: StoreFiles,
    pub(crate) loading: Arc<Loading>,
    /// Transfers to other members that broke.
    pub(crate) offers: Offers,
    pub(crate) snapshot_chunk_bytes: usize,
    /// The id of the next snapshot that is sent.
    pub(crate) next_snapshot: AtomicU64,
    /// Bytes of proposals on their way to the replica.
    pub(crate) proposal_bytes: AtomicUsize,
    /// Bytes of other members' messages on their way to the replica.
    pub(crate) peer_bytes: AtomicUsize,
    pub(crate) max_pending_bytes: usize,
    pub(crate) is_stopped: AtomicBool,
    pub(crate) removal: Removal,
    pub(crate) defragment: Defragment,
    /// The applier waits for space.
    pub(crate) is_store_full: AtomicBool,
    /// How the scrub goes; unset without one.
    pub(crate) scrub: OnceLock<Arc<ScrubStats>>,
    failure: Mutex<Option<String>>,
    /// What was found damaged, first of all.
    damage: OnceLock<String>,
    status: SharedStatus,
}

/// The newest [`ReplicaStatus`], field by field.
#[derive(Default)]
struct SharedStatus {
    term: AtomicU64,
    leader: AtomicU64,
    last_index: AtomicU64,
    is_learner: AtomicBool,
    is_removed: AtomicBool,
    is_corrupt: AtomicBool,
}

impl Shared {
    #[allow(clippy::too_many_arguments)] // named at the one place that calls it
    pub(crate) fn new(
        identity: Identity,
        inputs: Sender<Input>,
        current: Current,
        membership: Arc<Membership>,
        wal_stats: Arc<WalStats>,
        files: StoreFiles,
        loading: Loading,
        snapshot_chunk_bytes: usize,
        first_snapshot: u64,
        max_pending_bytes: usize,
    ) -> Self {
        Self {
            identity,
            inputs,
            turns: Turns::default(),
            applying: ApplyLock::default(),
            current: ArcSwap::from_pointee(current),
            membership: ArcSwap::new(membership),
            metrics: Arc::default(),
            wal_stats,
            files,
            loading: Arc::new(loading),
            offers: Offers::default(),
            snapshot_chunk_bytes,
            next_snapshot: AtomicU64::new(first_snapshot),
            proposal_bytes: AtomicUsize::new(0),
            peer_bytes: AtomicUsize::new(0),
            max_pending_bytes,
            is_stopped: AtomicBool::new(false),
            removal: Removal::default(),
            defragment: Defragment::default(),
            is_store_full: AtomicBool::new(false),
            scrub: OnceLock::new(),
            failure: Mutex::new(None),
            damage: OnceLock::new(),
            status: SharedStatus::default(),
        }
    }

    /// Publishes how the replica stands, whose unit of time is `tick`.
    pub(crate) fn set_status(&self, status: &ReplicaStatus, tick: Duration) {
        self.status.term.store(status.term, Ordering::Relaxed);
        self.status.leader.store(status.leader, Ordering::Relaxed);
        self.status
            .last_index
            .store(status.last_index, Ordering::Relaxed);
        self.status
            .is_learner
            .store(status.is_learner, Ordering::Relaxed);
        self.status
            .is_corrupt
            .store(status.is_corrupt, Ordering::Relaxed);
        // Never back: a replica that stopped says nothing.
        if status.is_removed {
            self.status.is_removed.store(true, Ordering::Relaxed);
        }
        let metrics = &*self.metrics;
        metrics
            .committed_index
            .store(status.commit_index, Ordering::Relaxed);
        metrics
            .applied_index
            .store(status.applied_index, Ordering::Relaxed);
        metrics
            .proposals_pending
            .store(status.pending_proposals as u64, Ordering::Relaxed);
        metrics
            .reads_pending
            .store(status.pending_reads as u64, Ordering::Relaxed);
        metrics
            .proposals_failed
            .store(status.failed_proposals, Ordering::Relaxed);
        metrics
            .reads_failed
            .store(status.failed_reads, Ordering::Relaxed);
        metrics
            .read_rounds
            .store(status.read_rounds, Ordering::Relaxed);
        metrics
            .state_checks
            .store(status.state_checks, Ordering::Relaxed);
        metrics
            .state_mismatches
            .store(status.state_mismatches, Ordering::Relaxed);
        metrics
            .leader_changes
            .store(status.leader_changes, Ordering::Relaxed);
        metrics
            .has_leader
            .store(status.leader != 0, Ordering::Relaxed);
        metrics.is_leader.store(status.is_leader, Ordering::Relaxed);
        self.note_disk(status, tick);
    }

    fn note_disk(&self, status: &ReplicaStatus, tick: Duration) {
        let metrics = &*self.metrics;
        let tick_ms = u64::try_from(tick.as_millis()).unwrap_or(u64::MAX);
        let waited_ms = status.log_waits_ticks.saturating_mul(tick_ms);
        metrics.log_waits_ms.store(waited_ms, Ordering::Relaxed);
        metrics
            .disk_stalls
            .store(status.disk_stalls, Ordering::Relaxed);
        match (
            metrics
                .is_disk_stuck
                .swap(status.is_disk_stuck, Ordering::Relaxed),
            status.is_disk_stuck,
        ) {
            (false, true) => tracing::error!(
                "the disk is stuck: no write of the log has completed for {waited_ms} ms; until one \
                 does, this member refuses requests and does not lead if another can (look at the \
                 device below the data directory)"
            ),
            (true, false) => tracing::warn!("the disk completes writes of the log again"),
            _ => {}
        }
    }

    /// Whether the disk hangs.
    pub(crate) fn is_disk_stuck(&self) -> bool {
        self.metrics.is_disk_stuck.load(Ordering::Relaxed)
    }

    /// Whether log or store lack space on their disk.
    pub(crate) fn lacks_space(&self) -> bool {
        self.is_store_full.load(Ordering::Relaxed)
            || self.wal_stats.low_space.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn term(&self) -> u64 {
        self.status.term.load(Ordering::Relaxed)
    }

    pub(crate) fn leader(&self) -> u64 {
        self.status.leader.load(Ordering::Relaxed)
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.status.last_index.load(Ordering::Relaxed)
    }

    pub(crate) fn is_learner(&self) -> bool {
        self.status.is_learner.load(Ordering::Relaxed)
    }

    pub(crate) fn is_corrupt(&self) -> bool {
        self.status.is_corrupt.load(Ordering::Relaxed)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.status.is_removed.load(Ordering::Relaxed)
    }

    /// Notes why the node cannot go on, and stops the replica. The first reason counts.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!("the node stops: {reason}");
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(reason);
        drop(failure);
        // If the replica is gone already there is nothing left to stop.
        let _ = self.inputs.send(Input::Stop);
    }

    /// The same for a panic of what `part` names.
    pub(crate) fn fail_of_bug(&self, part: &str, panic: &(dyn std::any::Any + Send)) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        self.fail(format!(
            "a bug in the {part}: {}",
            text.unwrap_or("unknown")
        ));
    }

    /// The same for an error, which may be damage.
    pub(crate) fn fail_with(&self, action: &str, error: &RaftError) {
        if error.is_damage() {
            self.note_damage(error.to_string());
        }
        self.fail(format!("{action}{error}"));
    }

    /// Notes that a file of this member is damaged. The first finding counts.
    pub(crate) fn note_damage(&self, found: String) {
        if self.damage.set(found).is_ok() {
            tracing::error!(
                "this member is damaged: {}",
                self.damage().unwrap_or_default()
            );
        }
    }

    /// What was found damaged, if something was.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// What was found damaged in the store in use, and by the scrub in the log.
    pub(crate) fn known_damage(&self) -> Damage {
        let store = self.current.load().backend.damage();
        match self.scrub.get() {
            Some(stats) => store.and(stats.log_damage()),
            None => store,
        }
    }

    /// Why the node stopped by itself, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
