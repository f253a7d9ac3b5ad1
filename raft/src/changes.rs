//! Changes of the membership and of the leader: asked for at any member, decided
//! by the leader, answered where they were asked for.
//!
//! # Invariants
//! 1. The leader decides on a change only after it has applied every change before
//!    it: one at a time, and never on an old membership.
//! 2. A change that is asked for again after a change of leader is made once: who
//!    decides on it knows the ones that were applied lately.
//! 3. A leader that is to be removed hands leadership over first.
//! 4. A member that finds itself removed takes part in nothing any more, but for
//!    leading until another one does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, Message, MessageType};
use varve_types::ApiError;

use crate::change::{Change, FORMAT, Tagged};
use crate::io::Output;
use crate::membership::Membership;
use crate::promotion::Promotions;
use crate::replica::Replica;
use crate::sink::ChangeSink;
use crate::wire;

/// Changes that may wait at one member.
const MAX_WAITING: usize = 64;

/// Changes that are remembered after they were applied, to know them again.
const MAX_APPLIED: usize = 256;

/// A learner that lags no more entries than this may be promoted.
pub(crate) const MAX_PROMOTION_LAG: u64 = 100;

/// A change that was asked for here.
struct Waiting {
    change: Change,
    /// Tick after which it is given up.
    deadline: u64,
    /// Whether a leader was lost meanwhile.
    leader_lost: bool,
    sink: Box<dyn ChangeSink>,
}

/// A change that the leader has to decide on; a follower passes it on.
struct Queued {
    tagged: Tagged,
    deadline: u64,
    /// Whether this leader has tried to hand over, as the change removes it.
    tried_hand_over: bool,
}

/// A change of leader that was asked for.
struct Moving {
    to: u64,
    deadline: u64,
    sink: Box<dyn ChangeSink>,
}

/// What a replica knows of changes under way.
pub(crate) struct Changes {
    next_number: u64,
    waiting: BTreeMap<u64, Waiting>,
    queue: VecDeque<Queued>,
    /// Origin and number of the newest ones applied.
    applied: VecDeque<(u64, u64)>,
    /// Index of the one that was proposed last; the next one waits for it.
    proposed: u64,
    moving: Option<Moving>,
    /// The tick at which each member was last heard of.
    heard: BTreeMap<u64, u64>,
    /// The tick at which this member became leader.
    leader_since: u64,
    /// How far learners have caught up that get their vote by themselves.
    pub(crate) promotions: Promotions,
    /// Index of the newest entry or snapshot whose voters raft-rs knows.
    pub(crate) conf_index: u64,
    pub(crate) is_removed: bool,
}

impl Changes {
    /// Numbers start at `first_number`, which must be random or otherwise new.
    pub(crate) fn new(first_number: u64, conf_index: u64) -> Self {
        Self {
            next_number: first_number,
            waiting: BTreeMap::new(),
            queue: VecDeque::new(),
            applied: VecDeque::new(),
            proposed: 0,
            moving: None,
            heard: BTreeMap::new(),
            leader_since: 0,
            promotions: Promotions::default(),
            conf_index,
            is_removed: false,
        }
    }

    /// Notes that a member gave a sign of life.
    pub(crate) fn heard(&mut self, id: u64, tick: u64) {
        self.heard.insert(id, tick);
    }

    /// Notes that a member cannot be reached.
    pub(crate) fn unreachable(&mut self, id: u64) {
        self.heard.remove(&id);
    }

    /// The sink of a change that is being applied, if it was asked for here.
    pub(crate) fn committed(
        &mut self,
        tagged: &Tagged,
        own_id: u64,
    ) -> Option<Box<dyn ChangeSink>> {
        if tagged.origin != own_id {
            return None;
        }
        self.waiting
            .remove(&tagged.number)
            .map(|waiting| waiting.sink)
    }

    /// Refuses all; for the end of the node.
    pub(crate) fn refuse_all(&mut self, error: ApiError) {
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            waiting.sink.done(Err(error));
        }
        if let Some(moving) = self.moving.take() {
            moving.sink.done(Err(error));
        }
        self.queue.clear();
    }

    fn expire(&mut self, now: u64) {
        while let Some(entry) = self
            .waiting
            .first_entry()
            .filter(|entry| entry.get().deadline <= now)
        {
            let waiting = entry.remove();
            waiting.sink.done(Err(match waiting.leader_lost {
                true => ApiError::TimeoutLeaderFailure,
                false => ApiError::Timeout,
            }));
        }
        self.queue.retain(|queued| queued.deadline > now);
    }
}

/// What an applied entry changed, for the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppliedChange {
    pub(crate) index: u64,
    pub(crate) origin: u64,
    pub(crate) number: u64,
    /// What Raft has to know, in order; nothing if it was refused.
    pub(crate) conf: [Option<(ConfChangeType, u64)>; 2],
}

impl Replica {
    /// Takes a change that a client of this member asks for.
    pub(crate) fn ask_change(&mut self, change: Change, sink: Box<dyn ChangeSink>) {
        let changes = &mut self.changes;
        if changes.is_removed || self.is_stopped {
            return sink.done(Err(ApiError::Stopped));
        }
        if changes.waiting.len() >= MAX_WAITING {
            return sink.done(Err(ApiError::TooManyRequests));
        }
        let number = changes.next_number;
        changes.next_number += 1;
        let deadline = self.tick + self.settings.request_timeout_ticks;
        let tagged = Tagged {
            origin: self.settings.member_id,
            number,
            change: change.clone(),
        };
        changes.queue.push_back(Queued {
            tagged,
            deadline,
            tried_hand_over: false,
        });
        let waiting = Waiting {
            change,
            deadline,
            leader_lost: false,
            sink,
        };
        changes.waiting.insert(number, waiting);
    }

    /// Takes a change that another member passes on.
    pub(crate) fn change_asked(&mut self, tagged: Tagged, out: &mut Vec<(u64, Bytes)>) {
        let is_queued = |queued: &Queued| {
            (queued.tagged.origin, queued.tagged.number) == (tagged.origin, tagged.number)
        };
        if self.changes.queue.iter().any(is_queued) {
            return;
        }
        if self.changes.queue.len() >= MAX_WAITING {
            let refusal = wire::encode_refusal(tagged.number, ApiError::TooManyRequests);
            out.push((tagged.origin, refusal));
            return;
        }
        self.changes.queue.push_back(Queued {
            tagged,
            deadline: self.tick + self.settings.request_timeout_ticks,
            tried_hand_over: false,
        });
    }

    /// Takes the leader's refusal of a change that was asked for here.
    pub(crate) fn change_refused(&mut self, number: u64, error: ApiError) {
        if let Some(waiting) = self.changes.waiting.remove(&number) {
            waiting.sink.done(Err(error));
        }
    }

    /// Moves leadership to `to`, if this member has it.
    pub(crate) fn move_leader(&mut self, to: u64, sink: Box<dyn ChangeSink>) {
        if self.is_stopped || !self.is_leader() {
            return sink.done(Err(match self.is_stopped {
                true => ApiError::Stopped,
                false => ApiError::NotLeader,
            }));
        }
        match self.membership.get(to) {
            Some(member) if !member.is_learner => {}
            _ => return sink.done(Err(ApiError::BadLeaderTransferee)),
        }
        if to == self.settings.member_id {
            return sink.done(Ok(self.membership.clone()));
        }
        if let Some(former) = self.changes.moving.take() {
            former.sink.done(Err(ApiError::TimeoutLeaderTransfer));
        }
        let deadline = self.tick + self.settings.request_timeout_ticks;
        self.raw.transfer_leader(to);
        self.changes.moving = Some(Moving { to, deadline, sink });
    }

    /// Hands leadership to the voter that has most of the log, of those that answer.
    pub(crate) fn hand_over(&mut self) {
        let own_id = self.settings.member_id;
        let prs = self.raw.raft.prs();
        let best = prs
            .iter()
            .filter(|(id, _)| **id != own_id && prs.conf().voters().contains(**id))
            .max_by_key(|(id, progress)| (self.is_connected(**id), progress.matched))
            .map(|(id, _)| *id);
        if let (true, Some(best)) = (self.is_leader(), best) {
            self.raw.transfer_leader(best);
        }
    }

    /// What is to be done for changes once a tick.
    pub(crate) fn tick_changes(&mut self) {
        self.changes.expire(self.tick);
        self.promote_learners();
        if self.tick.is_multiple_of(self.settings.election_ticks) {
            self.ask_again();
        }
        let is_over = self.raw.raft.lead_transferee.is_none() && self.is_leader();
        let now = self.tick;
        if let Some(moving) = self
            .changes
            .moving
            .take_if(|moving| is_over || moving.deadline <= now)
        {
            moving.sink.done(Err(ApiError::TimeoutLeaderTransfer));
        }
        if self.changes.is_removed && is_over {
            self.hand_over();
        }
    }

    /// Notes a new leader, or that there is none (0).
    pub(crate) fn note_leader_of_changes(&mut self, leader: u64) {
        let (own_id, tick) = (self.settings.member_id, self.tick);
        let changes = &mut self.changes;
        changes.proposed = 0; // raft-rs counts everything before its election as pending
        changes.leader_since = tick;
        if leader == 0 {
            return;
        }
        if let Some(moving) = changes.moving.take_if(|_| leader != own_id) {
            moving.sink.done(match leader == moving.to {
                true => Ok(self.membership.clone()),
                false => Err(ApiError::LeaderChanged),
            });
        }
        for waiting in changes.waiting.values_mut() {
            waiting.leader_lost = true;
        }
        self.ask_again();
    }

    /// Asks for what waits once more, as it may have been lost on its way or with a
    /// leader. Whoever leads knows those that are done.
    fn ask_again(&mut self) {
        let own_id = self.settings.member_id;
        let changes = &mut self.changes;
        for (number, waiting) in &changes.waiting {
            let is_queued =
                |queued: &Queued| (queued.tagged.origin, queued.tagged.number) == (own_id, *number);
            if !changes.queue.iter().any(is_queued) {
                changes.queue.push_back(Queued {
                    tagged: Tagged {
                        origin: own_id,
                        number: *number,
                        change: waiting.change.clone(),
                    },
                    deadline: waiting.deadline,
                    tried_hand_over: false,
                });
            }
        }
    }

    /// Queues a change that this leader makes of itself, with nobody who waits for it.
    /// If it comes to nothing it is asked for again.
    pub(crate) fn queue_own_change(&mut self, change: Change) {
        let number = self.changes.next_number;
        self.changes.next_number += 1;
        self.changes.queue.push_back(Queued {
            tagged: Tagged {
                origin: self.settings.member_id,
                number,
                change,
            },
            deadline: self.tick + self.settings.election_ticks,
            tried_hand_over: false,
        });
    }

    /// Whether a change waits to be decided on.
    pub(crate) fn has_queued_changes(&self) -> bool {
        !self.changes.queue.is_empty()
    }

    /// Decides on what waits, or passes it on to the leader.
    pub(crate) fn decide_changes(&mut self, out: &mut Output) {
        let leader = self.raw.raft.leader_id;
        if self.changes.queue.is_empty() || leader == 0 || self.changes.is_removed {
            return;
        }
        if !self.is_leader() {
            for queued in std::mem::take(&mut self.changes.queue) {
                out.send_bytes(leader, queued.tagged.encode(wire::CHANGE).into());
            }
            return;
        }
        while self.may_decide()
            && let Some(queued) = self.changes.queue.pop_front()
        {
            self.decide(queued, out);
        }
    }

    /// Whether this leader knows all that a decision depends on.
    pub(crate) fn may_decide(&self) -> bool {
        // So long it takes until it has heard from everyone who is there.
        let warm_up = 2 * self.settings.heartbeat_ticks;
        self.raw.raft.lead_transferee.is_none()
            && self.raw.raft.commit_to_current_term()
            && !self.raw.raft.has_pending_conf()
            && self.applied >= self.changes.proposed
            && (self.is_alone() || self.tick - self.changes.leader_since >= warm_up)
    }

    fn decide(&mut self, mut queued: Queued, out: &mut Output) {
        let Tagged { origin, number, .. } = queued.tagged;
        if self.changes.applied.contains(&(origin, number)) {
            return; // asked for twice; the origin sees it applied
        }
        if let Err(error) = self.judge(&queued.tagged.change) {
            return self.refuse_change(&queued.tagged, error, out);
        }
        if queued.tagged.change == Change::Remove(self.settings.member_id) {
            if queued.tried_hand_over {
                return self.refuse_change(&queued.tagged, ApiError::Unhealthy, out);
            }
            self.hand_over();
            queued.tried_hand_over = true;
            return self.changes.queue.push_front(queued);
        }
        match self.propose_change(&queued.tagged) {
            Ok(()) => self.changes.proposed = self.raw.raft.raft_log.last_index(),
            Err(error) => {
                tracing::debug!("a change of the membership is not taken yet: {error}");
                // Asked for again by its origin if there is another leader, else dropped
                // with its deadline; here it must not spin.
                self.changes.queue.push_front(queued);
                self.changes.proposed = self.applied + 1;
            }
        }
    }

    fn refuse_change(&mut self, tagged: &Tagged, error: ApiError, out: &mut Output) {
        tracing::warn!(
            "refused to change the membership ({}): {error}",
            tagged.change
        );
        match tagged.origin == self.settings.member_id {
            true => self.change_refused(tagged.number, error),
            false => out.send_bytes(tagged.origin, wire::encode_refusal(tagged.number, error)),
        }
    }

    fn propose_change(&mut self, tagged: &Tagged) -> raft::Result<()> {
        let data = tagged.encode(FORMAT);
        let Some(kind) = tagged.change.conf_change() else {
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgPropose);
            message.from = self.settings.member_id;
            let entry = Entry {
                data: data.into(),
                ..Entry::default()
            };
            message.set_entries(vec![entry].into());
            return self.raw.raft.step(message);
        };
        let mut conf_change = ConfChange::default();
        conf_change.set_change_type(kind);
        conf_change.node_id = tagged.change.member_id();
        conf_change.context = data.into();
        self.raw.propose_conf_change(Vec::new(), conf_change)
    }

    /// Whether a change may be made: etcd's rules.
    pub(crate) fn judge(&self, change: &Change) -> Result<(), ApiError> {
        let mut after = (*self.membership).clone();
        after.change(change)?;
        if let Change::Replace { id, .. } = change {
            return self.judge_replacement(*id, &after);
        }
        if let Change::Promote(id) = change
            && !self.is_in_sync(*id)
        {
            return Err(ApiError::LearnerNotReady);
        }
        if let Change::Add(member) = change
            && member.is_learner
        {
            let learners = after.members().filter(|member| member.is_learner).count();
            return match learners > self.settings.max_learners {
                true => Err(ApiError::TooManyLearners),
                false => Ok(()),
            };
        }
        if self.settings.strict_reconfig {
            self.judge_strictly(change, &after)?;
        }
        Ok(())
    }

    /// Refuses what would leave the cluster without quorum, now or with the next failure.
    fn judge_strictly(&self, change: &Change, after: &Membership) -> Result<(), ApiError> {
        let id = change.member_id();
        let is_learner = self
            .membership
            .get(id)
            .is_some_and(|member| member.is_learner);
        let voters = after.voters().count();
        let started = after
            .voters()
            .filter(|voter| voter.is_started() || (is_learner && voter.id == id))
            .count();
        let has_started_quorum = started > voters / 2;
        let connected = |voters: &Membership| {
            voters
                .voters()
                .filter(|voter| self.is_connected(voter.id))
                .count()
        };
        match change {
            Change::Add(_) => {
                // The second member of a cluster of one, to get its data out.
                let is_second = started == 1 && voters == 2;
                if !has_started_quorum && !is_second {
                    return Err(ApiError::NotEnoughStarted);
                }
                if connected(&self.membership) < voters - 1 {
                    return Err(ApiError::Unhealthy);
                }
            }
            Change::Promote(_) if !has_started_quorum => return Err(ApiError::NotEnoughStarted),
            Change::Remove(_) if !is_learner => {
                if !has_started_quorum {
                    return Err(ApiError::NotEnoughStarted);
                }
                // One that is down is no part of the quorum that is there.
                if self.is_connected(id) && connected(after) < 1 + voters / 2 {
                    return Err(ApiError::Unhealthy);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a member was heard of within an election timeout. Itself is.
    pub(crate) fn is_connected(&self, id: u64) -> bool {
        let is_recent = |heard: &u64| heard + self.settings.election_ticks > self.tick;
        id == self.settings.member_id || self.changes.heard.get(&id).is_some_and(is_recent)
    }

    /// Whether a learner has nearly all of the log.
    pub(crate) fn is_in_sync(&self, id: u64) -> bool {
        let Some(progress) = self.raw.raft.prs().get(id) else {
            return false;
        };
        let last = self.raw.raft.raft_log.last_index();
        progress.matched > 0
            && progress.matched + MAX_PROMOTION_LAG >= last
            && self.is_connected(id)
    }

    /// Takes in what the applier changed: raft-rs learns who votes.
    pub(crate) fn note_changes(
        &mut self,
        membership: Option<Arc<Membership>>,
        applied: &[AppliedChange],
    ) {
        let own_id = self.settings.member_id;
        for change in applied {
            self.changes
                .applied
                .push_back((change.origin, change.number));
            if self.changes.applied.len() > MAX_APPLIED {
                self.changes.applied.pop_front();
            }
            // A snapshot that was taken meanwhile holds it already.
            if change.index <= self.changes.conf_index {
                continue;
            }
            for (kind, id) in change.conf.into_iter().flatten() {
                // A member that is removed itself stays in its own picture: it may still
                // have to lead until another one does, which raft-rs cannot do from outside.
                if kind == ConfChangeType::RemoveNode && id == own_id {
                    continue;
                }
                self.changes.conf_index = change.index;
                let mut conf_change = ConfChange::default();
                conf_change.set_change_type(kind);
                conf_change.node_id = id;
                if let Err(error) = self.raw.apply_conf_change(&conf_change) {
                    // The applier refuses what raft-rs would.
                    tracing::error!("entry {} changes the voters in vain: {error}", change.index);
                }
            }
        }
        let Some(membership) = membership else { return };
        self.changes
            .heard
            .retain(|id, _| membership.get(*id).is_some());
        let is_removed = membership.is_removed(own_id);
        self.membership = membership;
        if is_removed {
            self.note_removed();
        }
    }

    /// This member is none any more: it applied that, or another member said so.
    pub(crate) fn note_removed(&mut self) {
        if std::mem::replace(&mut self.changes.is_removed, true) {
            return;
        }
        tracing::error!("the member has been permanently removed from the cluster");
        let own_id = self.settings.member_id;
        for (_, waiting) in std::mem::take(&mut self.changes.waiting) {
            let mut members = (*self.membership).clone();
            if waiting.change == Change::Remove(own_id) {
                let _ = members.change(&waiting.change); // it may be gone already
                waiting.sink.done(Ok(members.into()));
            } else {
                waiting.sink.done(Err(ApiError::Stopped));
            }
        }
        self.proposals.refuse_all(ApiError::Stopped);
        self.reads.refuse_all(ApiError::Stopped);
    }
}
