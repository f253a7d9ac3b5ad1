//! One simulated machine: a disk that survives, and perhaps a running member.

use std::sync::Arc;

use varve_engine::backend::registry;
use varve_engine::btree;
use varve_engine::disk::sim::{Fault, FaultOn, Rng};
use varve_engine::disk::{Disk, SimDisk};

use super::agenda::Micros;
use super::node::Node;
use super::plan::Plan;
use crate::config::{Config, Joining};
use crate::error::RaftError;
use crate::initial_cluster::InitialCluster;
use crate::membership;
use crate::stores::StoreOpener;
use crate::test_stores::TestStores;

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Running,
    /// Its process is not there.
    Down,
    /// Its member refuses its damaged files: an operator has to replace it.
    Damaged(String),
}

/// What a machine's store is kept on.
enum Engine {
    Btree,
    /// In memory, with checkpoints that survive.
    Memory(TestStores),
}

pub(super) struct Host {
    config: Config,
    pub(super) disk: SimDisk,
    engine: Engine,
    seed: u64,
    /// Starts so far.
    pub(super) lives: u64,
    pub(super) node: Option<Node>,
    pub(super) condition: Condition,
    /// Its clock's idea of a tick.
    pub(super) tick_us: Micros,
    /// Stopped in its tracks until then.
    pub(super) paused_until: Micros,
    /// Ticks that a stopped member has missed.
    pub(super) missed_ticks: u64,
    /// How many times longer than usual its disk takes.
    pub(super) disk_factor: u64,
    /// Until then no sync ends.
    pub(super) disk_stuck_until: Micros,
    /// Whether faults of its disk are in force.
    pub(super) is_faulty: bool,
    /// Whether there were any since its member started.
    pub(super) is_excused: bool,
    /// Whether the end of its process is to be the end of its page cache, too: the
    /// simulated disk tells what was written through a map from what differs, and so
    /// would not see the same bytes written again after a sync that failed.
    must_reboot: bool,
    /// Whether bits of its files were changed.
    pub(super) is_rotten: bool,
    pub(super) installed: u64,
}

impl Host {
    pub(super) fn new(
        initial: &InitialCluster,
        member: &membership::Member,
        plan: &Plan,
        seed: u64,
        join: Option<Joining>,
    ) -> Self {
        let mut rng = Rng::new(seed ^ member.id);
        let disk = SimDisk::new();
        let engine = match rng.chance(plan.btree_percent) {
            true => Engine::Btree,
            false => Engine::Memory(TestStores::default()),
        };
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut config = Config::new("/data", shared.clone(), opener(&engine, shared));
        // A member that was added has its name from its own flags.
        config.name = match &join {
            Some(_) => format!("j{:x}", member.id),
            None => member.name.clone(),
        };
        config.join = join;
        config.advertise_peer_urls = member.peer_urls.clone();
        config.initial_cluster = initial.clone();
        config.initial_cluster_token = "sim".to_owned();
        config.snapshot_catchup_entries = plan.catchup_entries;
        // Small, so that transfers break and go on.
        config.snapshot_chunk_bytes = 4 << 10;
        config.snapshot_checkpoint_bytes = 16 << 10;
        config.log_cache_bytes = plan.log_cache_bytes;
        config.strict_reconfig_check = plan.strict;
        Self {
            config,
            disk,
            engine,
            seed: seed ^ member.id,
            lives: 0,
            node: None,
            condition: Condition::Down,
            tick_us: drifted(plan, &mut rng),
            paused_until: 0,
            missed_ticks: 0,
            disk_factor: 1,
            disk_stuck_until: 0,
            is_faulty: false,
            is_excused: false,
            must_reboot: false,
            is_rotten: false,
            installed: 0,
        }
    }

    /// Starts the member from what its disk holds.
    pub(super) fn start(&mut self, plan: &Plan) -> Result<(), RaftError> {
        self.lives += 1;
        self.is_excused = self.is_faulty;
        let life = self.seed ^ self.lives.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let incarnation = Rng::new(life).next_u64() >> 1;
        let node = Node::start(&self.config, plan, self.lives, incarnation)?;
        self.node = Some(node);
        self.condition = Condition::Running;
        (self.paused_until, self.missed_ticks) = (0, 0);
        Ok(())
    }

    /// A sync of files that `path` names is going to fail.
    pub(super) fn note_sync_failure(&mut self, on: FaultOn, path: &str) {
        let is_mapped = matches!(self.engine, Engine::Btree) && path != "wal";
        self.must_reboot |= is_mapped && on == FaultOn::Sync;
    }

    /// The process ends. What it wrote stays in the machine's cache; a store in
    /// memory is as of its checkpoint.
    pub(super) fn kill(&mut self) {
        self.end_process();
        if std::mem::take(&mut self.must_reboot) {
            let disk = self.disk.crash_now(self.seed ^ self.lives);
            self.use_disk(disk);
            self.is_faulty = false;
        }
    }

    fn end_process(&mut self) {
        self.node = None;
        self.condition = Condition::Down;
        // What still runs of the former life must not reach the stores of the next.
        if let Engine::Memory(stores) = &self.engine {
            self.engine = Engine::Memory(stores.after_power_loss());
            self.use_disk(self.disk.clone());
        }
    }

    /// The machine loses power: what was not synced is lost or torn, a log write or
    /// a checkpoint that is under way as well.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        if let Some(node) = &mut self.node
            && !self.is_faulty
        {
            let on = FaultOn::Sync;
            if node.is_syncing() {
                self.disk.inject(fault(on, 0, "wal", libc_eio()));
                node.sync_until_failure();
            }
            if rng.chance(30) {
                let after = rng.below(4);
                self.disk.inject(fault(on, after, "store-", libc_eio()));
                let _ = node.checkpoint_now();
            }
        }
        self.end_process();
        self.must_reboot = false;
        let seed = rng.next_u64() >> rng.below(64);
        let disk = self.disk.crash_now(seed);
        self.use_disk(disk);
        self.is_faulty = false;
    }

    fn use_disk(&mut self, disk: SimDisk) {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        self.config.open_store = opener(&self.engine, shared.clone());
        self.config.disk = shared;
        self.disk = disk;
    }

    /// Whether it runs and is not stopped.
    pub(super) fn is_awake(&self, now: Micros) -> bool {
        self.node.is_some() && self.paused_until <= now
    }
}

/// A clock that is off by as much as the plan allows.
pub(super) fn drifted(plan: &Plan, rng: &mut Rng) -> Micros {
    let percent = 100 - plan.drift_percent + rng.below(2 * plan.drift_percent + 1);
    plan.tick_us * percent / 100
}

/// EIO on Linux.
pub(super) fn libc_eio() -> i32 {
    5
}

/// A fault that stays in force once it hits.
pub(super) fn fault(on: FaultOn, after: u64, path_contains: &str, errno: i32) -> Fault {
    Fault {
        on,
        after,
        forever: true,
        path_contains: path_contains.to_owned(),
        errno,
    }
}

fn opener(engine: &Engine, disk: Arc<dyn Disk>) -> StoreOpener {
    match engine {
        Engine::Memory(stores) => stores.opener(disk),
        Engine::Btree => Arc::new(move |path| {
            let options = registry::Options {
                btree: btree::Options {
                    map_bytes: 64 << 20,
                },
                ..registry::Options::default()
            };
            registry::open_store(btree::NAME, &*disk, path, &options)
        }),
    }
}
