//! A running member: what the driver's threads do, one step at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use raft::eraftpb;
use varve_engine::mvcc::{LiveEvents, View};
use varve_engine::wal::{CommitQueue, Completion, Group, WalConfig, WalReader};

use super::plan::Plan;
use crate::apply::{AppliedBatch, Applier};
use crate::config::Config;
use crate::error::RaftError;
use crate::io::{ApplyJob, Input, LogWrite, Output, ToApply};
use crate::loading::{Incoming, LoadedStore, Loading};
use crate::log::{self, Fetch};
use crate::membership::Membership;
use crate::node::Watchers;
use crate::replica::{Replica, Settings};
use crate::snapshot::{Offer, Offers, Outgoing};
use crate::start;
use crate::stores::StoreFiles;
use crate::transport::{SnapshotOutcome, SnapshotStream};

/// What the applier told watchers.
type Told = Arc<Mutex<Vec<(LiveEvents, Arc<View>)>>>;

struct Feed(Told);

impl Watchers for Feed {
    fn wanted(&self) -> bool {
        true
    }

    fn notify(&mut self, events: LiveEvents, view: Arc<View>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.push((events, view));
    }
}

/// What the applier did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    Entries,
    /// It went on with another member's store.
    Install,
    NoSpace,
}

pub(super) struct Node {
    pub(super) id: u64,
    pub(super) life: u64,
    pub(super) replica: Replica,
    commits: CommitQueue,
    applier: Applier,
    reader: WalReader,
    files: StoreFiles,
    loading: Arc<Loading>,
    offers: Arc<Offers>,
    next_snapshot: u64,
    chunk_bytes: usize,
    store_number: u64,
    told: Told,
    /// As the replica's thread takes them.
    pub(super) inbox: VecDeque<Input>,
    /// Whether a turn of the replica's thread is planned.
    pub(super) is_woken: bool,
    queued: Vec<LogWrite>,
    /// Log writes of the sync that is under way.
    syncing: usize,
    jobs: VecDeque<ApplyJob>,
    /// Taken off the jobs, and not applied yet.
    entries: VecDeque<ToApply>,
    pub(super) is_applying: bool,
    /// All events below were held against the watchers that are idle.
    pub(super) watch_position: i64,
    pub(super) is_syncing: bool,
    /// Ticks for which writes of the log were out and none completed.
    pub(super) stuck_ticks: u64,
}

impl Node {
    pub(super) fn start(
        config: &Config,
        plan: &Plan,
        life: u64,
        incarnation: u64,
    ) -> Result<Self, RaftError> {
        let wal_config = WalConfig {
            segment_bytes: plan.segment_bytes,
            prepare_in_background: false,
            ..WalConfig::default()
        };
        let started = start::open(config, wal_config)?;
        let heartbeat = plan.heartbeat_ticks;
        let settings = Settings {
            member_id: started.identity.member_id,
            heartbeat_ticks: heartbeat,
            election_ticks: 10 * heartbeat,
            request_timeout_ticks: 70 * heartbeat,
            read_retry_ticks: 5 * heartbeat,
            disk_limit_ticks: 20 * heartbeat,
            max_pending_bytes: 1 << 20,
            max_apply_bytes: plan.max_apply_bytes,
            catchup_entries: config.snapshot_catchup_entries,
            catchup_bytes: 1 << 20,
            strict_reconfig: config.strict_reconfig_check,
            max_learners: config.max_learners,
            corrupt_check_ticks: heartbeat,
            incarnation,
        };
        let reader = started.wal.reader();
        let store_number = started.replayed.marker.store;
        let replica = Replica::new(
            settings,
            started.replayed,
            started.membership.clone(),
            started.store.view().applied().index,
        )?;
        let told = Told::default();
        let applier = Applier::new(
            started.store,
            started.membership,
            reader.clone(),
            Box::new(Feed(told.clone())),
            Arc::default(),
        );
        Ok(Self {
            id: started.identity.member_id,
            life,
            replica,
            commits: CommitQueue::new(started.wal),
            applier,
            reader,
            files: started.files,
            loading: Arc::new(started.loading),
            offers: Arc::default(),
            next_snapshot: incarnation,
            chunk_bytes: config.snapshot_chunk_bytes,
            store_number,
            told,
            inbox: VecDeque::new(),
            is_woken: false,
            queued: Vec::new(),
            syncing: 0,
            jobs: VecDeque::new(),
            entries: VecDeque::new(),
            is_applying: false,
            watch_position: 0,
            is_syncing: false,
            stuck_ticks: 0,
        })
    }

    /// One turn of the replica's thread: all that waits, then one poll.
    pub(super) fn turn(&mut self) -> Result<Output, RaftError> {
        self.is_woken = false;
        while let Some(input) = self.inbox.pop_front() {
            self.replica.step(input)?;
        }
        let mut output = Output::default();
        self.replica.poll(&mut output)?;
        Ok(output)
    }

    /// Takes log writes, to go with the next sync.
    pub(super) fn queue_writes(&mut self, writes: Vec<LogWrite>) {
        self.queued.extend(writes);
    }

    pub(super) fn release(&mut self, lsn: varve_engine::wal::Lsn) {
        self.commits.release(lsn);
    }

    /// Begins a sync if there is something for it and none is under way.
    pub(super) fn begin_sync(&mut self) -> bool {
        if self.is_syncing || self.queued.is_empty() && self.syncing == 0 {
            return false;
        }
        self.syncing += self.queued.len();
        for LogWrite { ticket, group } in self.queued.drain(..) {
            self.commits.push(ticket, group);
        }
        self.is_syncing = true;
        true
    }

    pub(super) fn is_syncing(&self) -> bool {
        self.is_syncing
    }

    /// The sync ends. Whether the log waits for space; what became durable is passed
    /// to `durable`.
    pub(super) fn end_sync(&mut self, mut durable: impl FnMut(&Self, &Group)) -> bool {
        self.is_syncing = false;
        let mut completions = Vec::new();
        let waits = self.commits.commit(&mut |done| completions.push(done));
        self.syncing -= completions.len();
        if !completions.is_empty() {
            self.stuck_ticks = 0;
        }
        for Completion {
            ticket,
            group,
            result,
        } in completions
        {
            if result.is_ok() {
                durable(self, &group);
            }
            self.inbox.push_back(match result {
                Ok(committed) => Input::Persisted {
                    ticket,
                    committed,
                    group,
                },
                Err(error) => Input::LogFailed(error.into()),
            });
        }
        waits.is_err()
    }

    /// Ticks pass for the disk as well.
    pub(super) fn count_disk_ticks(&mut self, ticks: u64) {
        match self.queued.is_empty() && self.syncing == 0 {
            true => self.stuck_ticks = 0,
            false => self.stuck_ticks += ticks,
        }
    }

    /// The log writes what is under way, and fails to sync it.
    pub(super) fn sync_until_failure(&mut self) {
        let _ = self.commits.commit(&mut |_| {});
    }

    /// As the log does when it is idle.
    pub(super) fn mark(&mut self) {
        if !self.is_syncing {
            self.commits.mark();
        }
    }

    pub(super) fn queue_jobs(&mut self, jobs: Vec<ApplyJob>) {
        self.jobs.extend(jobs);
    }

    /// The applier does its next job.
    pub(super) fn apply(&mut self, term: u64) -> Result<Applied, RaftError> {
        let mut applied = Applied::Entries;
        if self.entries.is_empty()
            && let Some(ApplyJob::Install(_)) = self.jobs.front()
            && let Some(ApplyJob::Install(loaded)) = self.jobs.pop_front()
        {
            let number = loaded.store_number;
            let (old, batch) = self.applier.install(*loaded);
            drop(old);
            self.files.remove(self.store_number)?;
            self.store_number = number;
            self.report(batch);
            return Ok(Applied::Install);
        }
        while let Some(ApplyJob::Compare { from, mark }) = self.jobs.front() {
            self.applier.compare(*from, *mark);
            self.jobs.pop_front();
            self.tell_compared();
        }
        if self.jobs.is_empty() && self.entries.is_empty() {
            return Ok(applied);
        }
        while let Some(ApplyJob::Entries(_)) = self.jobs.front()
            && let Some(ApplyJob::Entries(more)) = self.jobs.pop_front()
        {
            self.entries.extend(more);
        }
        match self.applier.apply(&mut self.entries, term) {
            Ok(batch) => self.report(batch),
            // What waits for space is done again, as the driver does.
            Err(error) if error.is_no_space() => applied = Applied::NoSpace,
            Err(error) => return Err(error),
        }
        Ok(applied)
    }

    /// Whether something is to be applied.
    pub(super) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty() || !self.entries.is_empty()
    }

    fn report(&mut self, batch: AppliedBatch) {
        let members = self.applier.members();
        for (sink, outcome) in batch.answers {
            sink.done(outcome.map(|()| members.clone()));
        }
        self.inbox.push_back(Input::Applied {
            index: batch.index,
            membership: batch.membership,
            changes: batch.changes,
            state: batch.state,
        });
        self.tell_compared();
    }

    fn tell_compared(&mut self) {
        if let Some((to, mark)) = self.applier.compared() {
            self.inbox.push_back(Input::Compared { to, mark });
        }
    }

    /// Does what goes on beside the commands, unless there is no space for it.
    pub(super) fn maintain(&mut self, now: Instant, idle: bool) -> Result<bool, RaftError> {
        match self.applier.maintain(now, idle) {
            Err(error) if error.is_no_space() => Ok(false),
            result => result,
        }
    }

    pub(super) fn checkpoint(&mut self) -> Result<(), RaftError> {
        match self.applier.checkpoint() {
            Ok(index) => self.inbox.push_back(Input::Checkpointed(index)),
            Err(error) if error.is_no_space() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn checkpoint_now(&self) -> Result<u64, RaftError> {
        self.applier.checkpoint()
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.applier.view()
    }

    pub(super) fn members(&self) -> Arc<Membership> {
        self.applier.members()
    }

    /// The engine's own check, and the store's.
    pub(super) fn check(&self) -> Result<(), String> {
        let checked = self.applier.check();
        checked.map(drop).map_err(|error| error.to_string())
    }

    /// What watchers were told since the last call.
    pub(super) fn take_told(&mut self) -> Vec<(LiveEvents, Arc<View>)> {
        std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads entries back, as the log reader's thread does.
    pub(super) fn fetch(&mut self, fetch: Fetch) {
        let entries = (fetch.low..)
            .zip(fetch.positions)
            .map_while(|(index, lsn)| log::read_entry(&self.reader, lsn, index).ok())
            .collect();
        self.inbox.push_back(Input::Fetched {
            low: fetch.low,
            entries,
        });
    }

    /// Removes a store that is not going to be used.
    pub(super) fn discard(&mut self, loaded: LoadedStore) -> Result<(), RaftError> {
        let number = loaded.store_number;
        drop(loaded);
        self.files.remove(number)
    }

    /// A snapshot for another member: the one that broke, or a new one.
    pub(super) fn stream(
        &mut self,
        to: u64,
        message: eraftpb::Message,
    ) -> Result<Outgoing, RaftError> {
        let first = self.replica.raw.store().first();
        let offer = match self.offers.take(to, first) {
            Some(offer) => offer,
            None => {
                self.next_snapshot += 1;
                Arc::new(Offer::new(message, self.view(), self.next_snapshot)?)
            }
        };
        let offers = self.offers.clone();
        let report = Box::new(move |offer, outcome| {
            if outcome == SnapshotOutcome::Broken {
                offers.keep(to, offer);
            }
        });
        Ok(Outgoing::new(offer, self.chunk_bytes, report))
    }

    /// The end of a snapshot's way to this member.
    fn incoming(&self, from: u64, outgoing: &Outgoing) -> Result<Incoming, RaftError> {
        let applied = self.view().applied().index;
        let (files, loading) = (self.files.clone(), self.loading.clone());
        let announced = outgoing.announcement();
        Incoming::begin(
            (from, announced.id),
            &announced.message,
            (self.id, applied),
            files,
            loading,
        )
    }
}

/// A snapshot on its way.
pub(super) struct Stream {
    pub(super) from: u64,
    pub(super) from_life: u64,
    pub(super) to: u64,
    pub(super) to_life: u64,
    outgoing: Option<Box<Outgoing>>,
    incoming: Option<Incoming>,
    /// Whether it goes on with what was there.
    pub(super) is_resumed: bool,
}

/// Where a snapshot is.
pub(super) enum Progress {
    UnderWay,
    Broken,
    Arrived(Box<LoadedStore>),
}

impl Stream {
    /// `None` if the receiver does not want it.
    pub(super) fn new(from: &Node, to: &Node, outgoing: Outgoing) -> Option<Self> {
        let mut outgoing = Box::new(outgoing);
        let incoming = match to.incoming(from.id, &outgoing) {
            Ok(incoming) => incoming,
            Err(RaftError::SnapshotBusy) => return None,
            Err(_) => {
                outgoing.finished(SnapshotOutcome::Refused);
                return None;
            }
        };
        outgoing.go_on_from(&incoming.position()).ok()?;
        Some(Self {
            from: from.id,
            from_life: from.life,
            to: to.id,
            to_life: to.life,
            is_resumed: incoming.resumed_at() > 0,
            outgoing: Some(outgoing),
            incoming: Some(incoming),
        })
    }

    /// Carries the next chunk over.
    pub(super) fn advance(&mut self) -> Progress {
        let (Some(mut outgoing), Some(mut incoming)) = (self.outgoing.take(), self.incoming.take())
        else {
            return Progress::Broken;
        };
        match outgoing.next_chunk() {
            Err(_) => Progress::Broken,
            Ok(Some(chunk)) if incoming.chunk(&chunk).is_ok() => {
                (self.outgoing, self.incoming) = (Some(outgoing), Some(incoming));
                Progress::UnderWay
            }
            Ok(None) => match incoming.finish() {
                Ok(loaded) => {
                    outgoing.finished(SnapshotOutcome::Delivered);
                    Progress::Arrived(Box::new(loaded))
                }
                Err(_) => {
                    outgoing.finished(SnapshotOutcome::Refused);
                    Progress::Broken
                }
            },
            Ok(Some(_)) => {
                outgoing.finished(SnapshotOutcome::Refused);
                Progress::Broken
            }
        }
    }
}
