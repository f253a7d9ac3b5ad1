//! What a node is started with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use varve_engine::disk::Disk;

use crate::initial_cluster::InitialCluster;
use crate::membership::Membership;
use crate::stores::StoreOpener;

/// A cluster that runs already, and this member's place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    /// The cluster.
    pub cluster_id: u64,
    /// This member, as it was added to the cluster.
    pub member_id: u64,
    /// The members as one of them told, so that they can be reached. Who votes is
    /// learned with the first snapshot.
    pub members: Membership,
}

/// Settings of a node. All have etcd's defaults where etcd has them.
#[derive(Clone)]
pub struct Config {
    /// Where log and store are.
    pub data_dir: PathBuf,
    /// Where the log is instead, such as on a disk of its own.
    pub wal_dir: Option<PathBuf>,
    /// This member's name; one of `initial_cluster`'s.
    pub name: String,
    /// The URLs it advertises to peers.
    pub advertise_peer_urls: Vec<String>,
    /// The members to form a cluster with; ignored once the data directory is initialised.
    pub initial_cluster: InitialCluster,
    /// The cluster to join instead of forming one; ignored as well once the data
    /// directory is initialised.
    pub join: Option<Joining>,
    /// Tells clusters with the same URLs apart.
    pub initial_cluster_token: String,
    /// The disk that everything is on.
    pub disk: Arc<dyn Disk>,
    /// Opens the storage engine.
    pub open_store: StoreOpener,
    /// Time between heartbeats; one tick.
    pub heartbeat_interval: Duration,
    /// Time without a heartbeat after which a follower stands for election.
    pub election_timeout: Duration,
    /// Entries kept in the log behind the store's checkpoint, for slow followers.
    pub snapshot_catchup_entries: u64,
    /// Bytes of such entries at most.
    pub snapshot_catchup_bytes: u64,
    /// Bytes of one chunk of a snapshot for another member, but for what its last
    /// entry is longer.
    pub snapshot_chunk_bytes: usize,
    /// Bytes of another member's snapshot between two checkpoints of the store that
    /// it is loaded into: what a restart may lose of it.
    pub snapshot_checkpoint_bytes: usize,
    /// Entries applied after which a checkpoint is made.
    pub snapshot_count: u64,
    /// Bytes logged after which a checkpoint is made.
    pub checkpoint_bytes: u64,
    /// Time after which a checkpoint is made if anything changed.
    pub checkpoint_interval: Duration,
    /// Time in which all of store and log is read and verified once; zero for never.
    pub scrub_interval: Duration,
    /// Size of a log segment file.
    pub wal_segment_bytes: u64,
    /// Bytes of recent log entries kept in memory.
    pub log_cache_bytes: usize,
    /// Bytes of proposals that may wait at once; more are refused.
    pub max_pending_bytes: usize,
    /// Whether changes of the membership that endanger the quorum are refused.
    pub strict_reconfig_check: bool,
    /// Whether this member goes on alone with what it has, all others taken out.
    pub force_new_cluster: bool,
    /// By how much a restore raises the revision, with all before it compacted; 0 for
    /// a revision that goes on, with its history.
    pub restore_bump: i64,
    /// Whether the whole store is verified before it is used.
    pub initial_corrupt_check: bool,
    /// How many learners the cluster may have.
    pub max_learners: usize,
    /// How often the members' states are compared; zero for never.
    pub corrupt_check_time: Duration,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("data_dir", &self.data_dir)
            .field("name", &self.name)
            .field("initial_cluster", &self.initial_cluster)
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// A single member named `default` with etcd's default settings.
    pub fn new(data_dir: impl Into<PathBuf>, disk: Arc<dyn Disk>, open_store: StoreOpener) -> Self {
        let url = "http://localhost:2380".to_owned();
        Self {
            data_dir: data_dir.into(),
            wal_dir: None,
            name: "default".to_owned(),
            advertise_peer_urls: vec![url.clone()],
            initial_cluster: InitialCluster::single("default", url),
            join: None,
            initial_cluster_token: "etcd-cluster".to_owned(),
            disk,
            open_store,
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            snapshot_catchup_entries: 5000,
            snapshot_catchup_bytes: 256 << 20,
            snapshot_chunk_bytes: 1 << 20,
            snapshot_checkpoint_bytes: 64 << 20,
            snapshot_count: 10_000,
            checkpoint_bytes: 128 << 20,
            checkpoint_interval: Duration::from_secs(30),
            scrub_interval: Duration::from_secs(24 * 60 * 60),
            wal_segment_bytes: 64 << 20,
            log_cache_bytes: 64 << 20,
            max_pending_bytes: 64 << 20,
            strict_reconfig_check: true,
            force_new_cluster: false,
            restore_bump: 0,
            initial_corrupt_check: false,
            max_learners: 1,
            corrupt_check_time: Duration::from_millis(500),
        }
    }

    /// How long a request may take before it is refused: 5 s and two election
    /// timeouts, as in etcd.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// How long the log may complete nothing before the disk counts as stuck: longer
    /// than a disk that works takes on a bad day.
    pub fn disk_limit(&self) -> Duration {
        (2 * self.election_timeout).max(Duration::from_secs(2))
    }

    /// The replica's unit of time: a tenth of a heartbeat, so that members seldom
    /// stand for election at the same moment.
    pub(crate) fn tick(&self) -> Duration {
        (self.heartbeat_interval / 10).max(Duration::from_millis(1))
    }

    /// `duration` in ticks, rounded up, at least one.
    pub(crate) fn ticks(&self, duration: Duration) -> u64 {
        let ticks = duration.as_micros().div_ceil(self.tick().as_micros());
        u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
    }
}
