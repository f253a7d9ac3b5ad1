//! The applier: the store's single writer.
//!
//! Committed entries become batches of the store; each batch is published with
//! the index of its last entry, so data and index cannot part. Membership changes
//! are part of the batch. What a command is answered is a function of the log:
//! the same on every member, also for commands that do not decode.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use raft::eraftpb::ConfChangeType;
use varve_engine::backend::{Applied, Lookahead, Upkeep, VacuumExtent};
use varve_engine::mutations::{Mutation, is_on};
use varve_engine::mvcc::{BatchOptions, CommandResponse, LiveEvents, Reply, Store, View, WriteTxn};
use varve_engine::wal::WalReader;
use varve_types::{
    AlarmKind, AlarmRequest, AlarmResponse, ApiError, Command, Commands, MemberAttributes,
};

use crate::change::Tagged;
use crate::changes::AppliedChange;
use crate::corruption::{Mark, State};
use crate::entry;
use crate::error::RaftError;
use crate::io::{EntryData, ToApply};
use crate::loading::LoadedStore;
use crate::log;
use crate::membership::Membership;
use crate::meta;
use crate::metrics::Metrics;
use crate::node::Watchers;
use crate::proposals::Sinks;
use crate::sink::{ChangeSink, Completion};

/// A batch ends after the entry with which its answers come to this many bytes
/// of keys and values. All of them are in memory until the batch is published;
/// those of one entry are bounded when it is packed.
const BATCH_REPLY_BYTES: usize = varve_types::MAX_REPLY_BYTES / 2;

/// Commands after which a batch ends with an entry that clients of this member wait for:
/// they are answered, and ask again, while the next entry is applied.
const AWAITED_COMMANDS: u64 = 64;

/// Owns the store and applies to it.
pub(crate) struct Applier {
    store: Store,
    membership: Arc<Membership>,
    reader: WalReader,
    watchers: Box<dyn Watchers>,
    options: BatchOptions,
    metrics: Arc<Metrics>,
    applied: Applied,
    upkeep: Upkeep,
    /// Answers to hand out once the batch is published.
    answers: Vec<Answer>,
    /// Whether what is applied is little and comes alone.
    pub(crate) is_alone: bool,
    /// The leader's state, if it is to be compared and was not yet.
    to_compare: Option<(u64, Mark)>,
}

/// The answers to one proposal of a batch.
struct Answer {
    /// The entry's place in the batch, and the proposal's in the entry.
    place: (usize, usize),
    replies: Vec<Reply>,
}

/// Who waits for a change, and whether it was made.
pub(crate) type ChangeAnswer = (Box<dyn ChangeSink>, ChangeOutcome);

type ChangeOutcome = Result<(), ApiError>;

/// What a batch came to.
pub(crate) struct AppliedBatch {
    /// Index of its last entry.
    pub(crate) index: u64,
    /// The members, if it changed them.
    pub(crate) membership: Option<Arc<Membership>>,
    /// What was changed, in order.
    pub(crate) changes: Vec<AppliedChange>,
    /// The state that the store came to.
    pub(crate) state: State,
    /// To be answered once the members are known to all who may be asked next.
    pub(crate) answers: Vec<ChangeAnswer>,
}

impl Applier {
    /// Goes on with a store that was opened or bootstrapped.
    pub(crate) fn new(
        store: Store,
        membership: Arc<Membership>,
        reader: WalReader,
        watchers: Box<dyn Watchers>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let applied = store.view().applied();
        let options = BatchOptions {
            collect_events: true,
            ..BatchOptions::default()
        };
        Self {
            store,
            membership,
            reader,
            watchers,
            options,
            metrics,
            applied,
            upkeep: Upkeep::default(),
            answers: Vec::new(),
            is_alone: false,
            to_compare: None,
        }
    }

    /// Applies entries as one batch, publishes it, and answers those who proposed
    /// them. It takes them off `entries` until there are none or the answers are
    /// large: what is left is for the next batch. `term` goes into the answers.
    ///
    /// After an error nothing was changed, and `entries` holds all that it held:
    /// on a full disk the same can be done again.
    pub(crate) fn apply(
        &mut self,
        entries: &mut VecDeque<ToApply>,
        term: u64,
    ) -> Result<AppliedBatch, RaftError> {
        let started = Instant::now();
        let mut applied = self.applied;
        let mut membership = None;
        let mut commands = 0;
        let mut options = self.options;
        if !self.watchers.wanted() {
            options.max_event_bytes = 0;
        }
        self.answers.clear();
        let mut txn = self.store.begin(options)?;
        let (mut changes, mut outcomes) = (Vec::new(), Vec::new());
        let mut batch = Batch {
            membership: &self.membership,
            changed: &mut membership,
            answers: &mut self.answers,
            commands: &mut commands,
            changes: &mut changes,
            outcomes: &mut outcomes,
        };
        let (mut count, mut is_awaited) = (0, false);
        while txn.reply_bytes() < BATCH_REPLY_BYTES
            && !(is_awaited && *batch.commands >= AWAITED_COMMANDS)
            && let Some(entry) = entries.get(count)
        {
            let place = count;
            count += 1;
            if entry.index <= applied.index {
                continue; // the store had it already before the restart
            }
            applied = Applied {
                term: entry.term,
                index: entry.index,
            };
            if is_on(Mutation::EntrySkipped) && count == entries.len() && place > 0 {
                break;
            }
            if let Some(change) = &entry.change {
                batch.change(entry.index, place, &change.tagged);
                continue;
            }
            let data = match &entry.data {
                EntryData::Here(data) => data,
                EntryData::At(lsn) => &log::read_entry(&self.reader, *lsn, entry.index)?.data,
            };
            batch.entry(&mut txn, (entry.index, place), data, &entry.sinks)?;
            is_awaited |= !entry.sinks.is_empty();
        }
        if let Some(changed) = &membership {
            txn.put_meta(meta::MEMBERS, &meta::encode_members(changed))?;
        }
        let published = txn.publish(match is_on(Mutation::AppliedNotStored) {
            true => self.applied,
            false => applied,
        })?;
        self.applied = applied;
        let membership = membership.map(Arc::new);
        if let Some(changed) = &membership {
            self.membership = changed.clone();
        }
        let mut done: Vec<ToApply> = entries.drain(..count).collect();
        let change_answers = outcomes.into_iter().filter_map(|(place, outcome)| {
            let sink = done[place].change.as_mut()?.sink.take()?;
            Some((sink, outcome))
        });
        let change_answers = change_answers.collect();
        let state = state_of(&published.view);
        self.answer(&mut done, published.events, published.view, term);
        self.metrics
            .commands_applied
            .fetch_add(commands, Ordering::Relaxed);
        self.metrics.batches_applied.fetch_add(1, Ordering::Relaxed);
        self.metrics.apply_duration.observe(started.elapsed());
        Ok(AppliedBatch {
            index: applied.index,
            membership,
            changes,
            state,
            answers: change_answers,
        })
    }

    fn answer(&mut self, done: &mut [ToApply], events: LiveEvents, view: Arc<View>, term: u64) {
        self.metrics
            .proposals_applied
            .fetch_add(self.answers.len() as u64, Ordering::Relaxed);
        for Answer { place, replies } in self.answers.drain(..) {
            if let Some(sink) = done[place.0].sinks[place.1].take() {
                sink.complete(Completion {
                    term,
                    replies,
                    is_alone: self.is_alone,
                });
            }
        }
        if !matches!(events, LiveEvents::None) {
            self.watchers.notify(events, view);
        }
    }

    /// The newest published state.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn view(&self) -> Arc<View> {
        self.store.view()
    }

    /// The members as of the last batch.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn members(&self) -> Arc<Membership> {
        self.membership.clone()
    }

    /// Makes the published state durable; the index it applies to.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn checkpoint(&self) -> Result<u64, RaftError> {
        Ok(self.store.backend().checkpoint()?.index)
    }

    /// Goes over all of the store, the engine's own check included.
    #[cfg(feature = "simulation")]
    pub(crate) fn check(&self) -> Result<varve_engine::mvcc::MvccReport, RaftError> {
        Ok(self.store.check()?)
    }

    /// Goes on with a store that another member sent; the old one is returned.
    pub(crate) fn install(&mut self, loaded: LoadedStore) -> (Store, AppliedBatch) {
        let first = self.store.view().revision() + 1;
        let old = std::mem::replace(&mut self.store, loaded.store);
        let view = self.store.view();
        self.applied = view.applied();
        self.membership = Arc::new(loaded.membership);
        let last = view.revision();
        if last >= first {
            self.watchers
                .notify(LiveEvents::ReadFromStore { first, last }, view);
        }
        let batch = AppliedBatch {
            index: self.applied.index,
            membership: Some(self.membership.clone()),
            changes: Vec::new(),
            state: state_of(&self.store.view()),
            answers: Vec::new(),
        };
        (old, batch)
    }

    /// Takes the leader's state, to be compared once this store is as far. One at a time.
    pub(crate) fn compare(&mut self, from: u64, mark: Mark) {
        self.to_compare.get_or_insert((from, mark));
    }

    /// Whether a state waits to be compared.
    pub(crate) fn is_comparing(&self) -> bool {
        self.to_compare.is_some()
    }

    /// What this store has where the leader's state is of, if it is as far: whom to
    /// tell, and what. Nothing of what is compacted.
    pub(crate) fn compared(&mut self) -> Option<(u64, Mark)> {
        let applied = self.applied.index;
        let (to, mark) = self.to_compare.take_if(|(_, mark)| mark.index <= applied)?;
        let view = self.store.view();
        let mut state = state_of(&view);
        let revision = mark.state.revision;
        if applied > mark.index && revision <= state.revision {
            // A damaged store says so to whoever reads it.
            let hash = view.hash_at(revision).ok()?;
            state = State { revision, hash };
        }
        Some((to, Mark { state, ..mark }))
    }

    /// Whether compacted history is still to be removed.
    pub(crate) fn compaction_pending(&self) -> bool {
        self.store.compaction_pending()
    }

    /// Starts to give all free space back.
    pub(crate) fn start_vacuum(&self) {
        self.store.backend().start_vacuum(VacuumExtent::All);
    }

    /// Whether free space is being given back.
    pub(crate) fn vacuums(&self) -> bool {
        self.store.backend().vacuums()
    }

    /// Does some of what goes on beside the commands: removes compacted history,
    /// then gives space back; whether there is more to do. `idle` says that no
    /// command came for a while.
    pub(crate) fn maintain(&mut self, now: Instant, idle: bool) -> Result<bool, RaftError> {
        Ok(self.store.tidy(&mut self.upkeep, now, idle)?)
    }
}

fn state_of(view: &View) -> State {
    State {
        revision: view.revision(),
        hash: view.hash(),
    }
}

/// What entries of one batch share.
struct Batch<'a> {
    membership: &'a Membership,
    changed: &'a mut Option<Membership>,
    answers: &'a mut Vec<Answer>,
    commands: &'a mut u64,
    changes: &'a mut Vec<AppliedChange>,
    /// The outcomes of changes, with the entry's place in the batch.
    outcomes: &'a mut Vec<(usize, ChangeOutcome)>,
}

impl Batch<'_> {
    fn entry(
        &mut self,
        txn: &mut WriteTxn<'_>,
        (index, place): (u64, usize),
        data: &Bytes,
        sinks: &Sinks,
    ) -> Result<(), RaftError> {
        if data.is_empty() {
            return Ok(()); // a new leader's first entry
        }
        if let Err(error) = entry::validate(data) {
            // Every member sees the same bytes and skips them alike.
            tracing::error!("entry {index} is skipped: {error}");
            return Ok(());
        }
        let (_, mut proposals) = match entry::decode(data) {
            Ok(decoded) => decoded,
            Err(_) => return Ok(()),
        };
        let mut ahead = Lookahead::new(proposals.raw_commands());
        let mut number = 0;
        while let Ok(Some((count, commands))) = proposals.next_proposal() {
            if let Some(Some(_)) = sinks.get(number) {
                let mut replies = Vec::with_capacity(count as usize);
                self.commands(txn, commands, &mut ahead, |reply| replies.push(reply))?;
                let place = (place, number);
                self.answers.push(Answer { place, replies });
            } else {
                self.silent(txn, commands, &mut ahead)?;
            }
            number += 1;
        }
        Ok(())
    }

    fn commands<'c>(
        &mut self,
        txn: &mut WriteTxn<'_>,
        mut commands: Commands<'_>,
        ahead: &mut Lookahead<'c, impl Iterator<Item = (u8, &'c [u8])>>,
        mut reply: impl FnMut(Reply),
    ) -> Result<(), RaftError> {
        while let Ok(Some((opcode, body))) = commands.next_command() {
            *self.commands += 1;
            txn.look_ahead(ahead);
            reply(match Command::decode_body(opcode, body) {
                Ok(Command::MemberAttributes(attributes)) => {
                    self.publish_member(attributes);
                    let result = Ok(CommandResponse::MemberAttributes);
                    Reply {
                        revision: txn.revision(),
                        result,
                    }
                }
                Ok(Command::Alarm(request)) => Reply {
                    revision: txn.revision(),
                    result: self.alarm(&request),
                },
                Ok(_) if self.is_corrupt() => Reply {
                    revision: txn.revision(),
                    result: Err(ApiError::Corrupt),
                },
                Ok(command) => txn.apply(&command)?,
                Err(_) => Reply {
                    revision: txn.revision(),
                    result: Err(ApiError::NotCapable),
                },
            });
        }
        Ok(())
    }

    fn silent<'c>(
        &mut self,
        txn: &mut WriteTxn<'_>,
        mut commands: Commands<'_>,
        ahead: &mut Lookahead<'c, impl Iterator<Item = (u8, &'c [u8])>>,
    ) -> Result<(), RaftError> {
        while let Ok(Some((opcode, body))) = commands.next_command() {
            *self.commands += 1;
            txn.look_ahead(ahead);
            match Command::decode_body(opcode, body) {
                Ok(Command::MemberAttributes(attributes)) => self.publish_member(attributes),
                Ok(Command::Alarm(request)) => {
                    // Refused alike by every member; whoever asked does not wait.
                    let _ = self.alarm(&request);
                }
                Ok(_) if self.is_corrupt() => {}
                Ok(command) => txn.apply_silent(&command)?,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Changes the members. The leader has made sure that it can be done, with all
    /// before it applied; if not, every member refuses it alike.
    fn change(&mut self, index: u64, place: usize, tagged: &Tagged) {
        let members = self.changed.get_or_insert_with(|| self.membership.clone());
        let outcome = members.change(&tagged.change);
        let id = tagged.change.member_id();
        let made = tagged.change.conf_change().map(|kind| (kind, id));
        let learner = tagged.change.replacement();
        let learner = learner.map(|id| (ConfChangeType::AddLearnerNode, id));
        match outcome {
            Ok(()) => tracing::info!("membership changed at entry {index}: {}", tagged.change),
            Err(error) => tracing::error!("entry {index} changes no member: {error}"),
        }
        self.changes.push(AppliedChange {
            index,
            origin: tagged.origin,
            number: tagged.number,
            conf: [made, learner].map(|conf| conf.filter(|_| outcome.is_ok())),
        });
        self.outcomes.push((place, outcome));
    }

    /// Whether the members' states differ: then nothing is written, as in etcd.
    fn is_corrupt(&self) -> bool {
        let members = self.changed.as_ref().unwrap_or(self.membership);
        members.is_on(AlarmKind::Corrupt)
    }

    fn alarm(&mut self, request: &AlarmRequest) -> Result<CommandResponse, ApiError> {
        let members = self.changed.get_or_insert_with(|| self.membership.clone());
        let alarms = members.alarm(request)?;
        for alarm in &alarms {
            let (id, name) = (alarm.member_id, alarm.kind.name());
            tracing::warn!("alarm {name} of member {id:x}: {:?}", request.action);
        }
        Ok(CommandResponse::Alarm(AlarmResponse { alarms }))
    }

    fn publish_member(&mut self, attributes: MemberAttributes) {
        let members = self.changed.get_or_insert_with(|| self.membership.clone());
        members.publish(attributes);
    }
}
