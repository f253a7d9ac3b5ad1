//! One member of a simulated cluster: what the driver's threads would do, one
//! step at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use varve_engine::disk::{Disk, SimDisk};
use varve_engine::wal::{Wal, WalConfig};

use crate::apply::Applier;
use crate::config::{Config, Joining};
use crate::error::RaftError;
use crate::initial_cluster::InitialCluster;
use crate::io::{ApplyJob, Input, LogWrite, Output};
use crate::log;
use crate::membership;
use crate::replica::{Replica, Settings};
use crate::start;
use crate::stores::StoreFiles;
use crate::test_stores::TestStores;

pub(crate) struct Member {
    config: Config,
    disk: SimDisk,
    stores: TestStores,
    boot_seed: u64,
    pub(crate) lives: u64,
    wal: Wal,
    pub(crate) replica: Replica,
    applier: Applier,
    files: StoreFiles,
    writes: VecDeque<LogWrite>,
    jobs: VecDeque<ApplyJob>,
    /// Index up to which the log is durable, as the simulation knows it.
    durable_index: u64,
    pub(crate) installed: u64,
}

impl Member {
    pub(crate) fn new(
        initial: &InitialCluster,
        member: &membership::Member,
        catchup_entries: u64,
        boot_seed: u64,
        join: Option<Joining>,
    ) -> Self {
        let (disk, stores) = (SimDisk::new(), TestStores::default());
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut config = Config::new("/data", shared.clone(), stores.opener(shared));
        // A member that was added has its name from its own flags.
        config.name = match &join {
            Some(_) => format!("j{:x}", member.id),
            None => member.name.clone(),
        };
        config.join = join;
        config.advertise_peer_urls = member.peer_urls.clone();
        config.initial_cluster = initial.clone();
        config.initial_cluster_token = "sim".to_owned();
        config.snapshot_catchup_entries = catchup_entries;
        // So small that entries leave the cache and are read back.
        config.log_cache_bytes = 4 << 10;
        Self::boot(config, disk, stores, boot_seed, 0).unwrap()
    }

    /// Fails if the data directory says that the member has been removed.
    fn boot(
        config: Config,
        disk: SimDisk,
        stores: TestStores,
        boot_seed: u64,
        lives: u64,
    ) -> Result<Self, RaftError> {
        let wal_config = WalConfig {
            segment_bytes: 64 << 10,
            prepare_in_background: false,
            ..WalConfig::default()
        };
        let started = match start::open(&config, wal_config) {
            Err(removed @ RaftError::Removed { .. }) => return Err(removed),
            started => started.unwrap(),
        };
        let id = started.identity.member_id;
        let settings = Settings {
            member_id: id,
            heartbeat_ticks: 2,
            election_ticks: 20,
            request_timeout_ticks: 140,
            read_retry_ticks: 10,
            disk_limit_ticks: 40,
            max_pending_bytes: 1 << 20,
            max_apply_bytes: 2 << 10,
            catchup_entries: config.snapshot_catchup_entries,
            catchup_bytes: 1 << 20,
            strict_reconfig: config.strict_reconfig_check,
            max_learners: config.max_learners,
            corrupt_check_ticks: 5,
            incarnation: boot_seed.wrapping_add(lives.wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 1,
        };
        let applied = started.store.view().applied().index;
        let reader = started.wal.reader();
        let durable_index = started.replayed.log.last();
        let replica = Replica::new(
            settings,
            started.replayed,
            started.membership.clone(),
            applied,
        )
        .unwrap();
        let applier = Applier::new(
            started.store,
            started.membership,
            reader,
            Box::new(()),
            Arc::default(),
        );
        Ok(Self {
            config,
            disk,
            stores,
            boot_seed,
            lives,
            wal: started.wal,
            replica,
            applier,
            files: started.files,
            writes: VecDeque::new(),
            jobs: VecDeque::new(),
            durable_index,
            installed: 0,
        })
    }

    /// Jobs that wait for the applier.
    pub(crate) fn jobs(&self) -> &VecDeque<ApplyJob> {
        &self.jobs
    }

    /// Power loss: log writes that had not completed and all since the store's
    /// last checkpoint are gone. Whether it starts again.
    pub(crate) fn crash(&mut self, seed: u64) -> bool {
        let disk = self.disk.crash_now(seed);
        let stores = self.stores.after_power_loss();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut config = self.config.clone();
        config.open_store = stores.opener(shared.clone());
        // Who has a data directory does not ask others what to join.
        config.join = None;
        config.disk = shared;
        let installed = self.installed;
        match Self::boot(config, disk, stores, self.boot_seed, self.lives + 1) {
            Ok(again) => *self = again,
            Err(_) => return false,
        }
        self.installed = installed;
        true
    }

    pub(crate) fn step(&mut self, input: Input) {
        self.replica.step(input).unwrap();
    }

    /// Takes the replica's outputs; returns those that leave the member.
    pub(crate) fn poll(&mut self) -> Output {
        let mut output = Output::default();
        self.replica.poll(&mut output).unwrap();
        self.writes.extend(output.writes.drain(..));
        self.jobs.extend(output.apply.drain(..));
        for sink in output.reads.drain(..) {
            sink.ready(self.applier.view(), 0);
        }
        if let Some(lsn) = output.release.take() {
            self.wal.release(lsn);
        }
        for fetch in std::mem::take(&mut output.fetches) {
            let reader = self.wal.reader();
            let entries = (fetch.low..)
                .zip(fetch.positions)
                .map_while(|(index, lsn)| log::read_entry(&reader, lsn, index).ok())
                .collect();
            self.step(Input::Fetched {
                low: fetch.low,
                entries,
            });
        }
        for loaded in output.discard.drain(..) {
            let number = loaded.store_number;
            drop(loaded);
            self.files.remove(number).unwrap();
        }
        output
    }

    /// The log writes and syncs the next group.
    pub(crate) fn complete_write(&mut self) {
        let Some(LogWrite { ticket, mut group }) = self.writes.pop_front() else {
            return;
        };
        let committed = self.wal.commit(&mut group).unwrap();
        self.step(Input::Persisted {
            ticket,
            committed,
            group,
        });
        let log = self.replica.raw.store();
        let durable = |index: &u64| log.slot(*index).is_some_and(|slot| slot.lsn != 0);
        self.durable_index = (log.first()..=log.last())
            .take_while(durable)
            .last()
            .unwrap_or(log.first() - 1);
    }
}
