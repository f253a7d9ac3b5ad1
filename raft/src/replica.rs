//! One replica as a plain state machine.
//!
//! [`Replica::step`] takes an input, [`Replica::poll`] gives what is to be done:
//! log writes, messages, entries to apply, readers to serve. It has no thread, no
//! clock, no socket and does no I/O (but to read log entries back that left the
//! cache, at a restart), so that it runs the same in a simulation.
//!
//! # Invariants
//! 1. A message that depends on term or vote leaves after they are durable; an
//!    acknowledgement of entries leaves after these are. A leader's appends leave
//!    at once, beside its own write (Raft thesis, 10.2.1).
//! 2. Entries are handed out to be applied once they are committed *and* durable
//!    in this member's log, so that no checkpoint can be ahead of the log.
//! 3. Log writes are submitted in order and complete in order.
//! 4. That a change of the membership is committed is durable in the hard state before
//!    it is applied, and before a leader tells anyone.
//! 5. The log begins at or below what the store's last checkpoint holds.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft::{RawNode, SnapshotStatus, StateRole};
use varve_engine::mutations::{Mutation, is_on};
use varve_types::ApiError;

use crate::changes::{AppliedChange, Changes};
use crate::corruption::{Corruption, Mark};
use crate::disk_watch::DiskWatch;
use crate::error::RaftError;
use crate::io::{Input, Output};
use crate::loading::LoadedStore;
use crate::log::RaftLog;
use crate::membership::Membership;
use crate::proposals::Proposals;
use crate::read_index::ReadIndex;
use crate::ready::InFlight;
use crate::replay::Replayed;
use crate::sink::Proposal;
use crate::status::ReplicaStatus;
use crate::transfers::Transfers;

/// Entries that may be committed but not applied before proposals are refused, as in etcd.
const MAX_APPLY_GAP: u64 = 5000;

/// Log writes that may be out while further entries are proposed; proposals that
/// come in meanwhile share the next entry.
const MAX_WRITES_OUT: usize = 2;

/// Entries proposed in one turn.
const MAX_ENTRIES_PER_TURN: usize = 4;

/// Messages of other members that wait until this leader can do what they ask.
pub(crate) const MAX_HELD: usize = 64;

/// Settings of a replica, in ticks and bytes.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) member_id: u64,
    pub(crate) heartbeat_ticks: u64,
    pub(crate) election_ticks: u64,
    pub(crate) request_timeout_ticks: u64,
    pub(crate) read_retry_ticks: u64,
    /// Without a completed log write, after which the disk counts as stuck.
    pub(crate) disk_limit_ticks: u64,
    pub(crate) max_pending_bytes: usize,
    /// Bytes of entries at the applier past which only their positions are handed out.
    pub(crate) max_apply_bytes: usize,
    pub(crate) catchup_entries: u64,
    pub(crate) catchup_bytes: u64,
    /// Random or otherwise new at each start.
    pub(crate) incarnation: u64,
    /// Whether changes of the membership that endanger the quorum are refused.
    pub(crate) strict_reconfig: bool,
    pub(crate) max_learners: usize,
    /// Between two comparisons of the members' states; 0 for none.
    pub(crate) corrupt_check_ticks: u64,
}

/// From 1.1 to 1.4 election timeouts. Under 1, others would not listen, as they
/// heard of the leader too lately; the tenth makes up for clocks out of step. Up
/// to 2, as in the Raft paper, writes would wait longer than they must: with ten
/// ticks to a heartbeat the range is wide enough to keep candidates apart.
fn election_range(election_ticks: u64) -> std::ops::RangeInclusive<u64> {
    let first = election_ticks + election_ticks.div_ceil(10);
    first..=first.max(election_ticks * 14 / 10)
}

/// Fewest ticks of a part: half of it must be more than what members' ticks differ by.
const LEAST_PART: u64 = 4;

/// What `draw` gives in the part of `range` that is for the voter of this `rank` among
/// `count`. The other half of each part keeps it apart from the next.
fn drawn(range: std::ops::RangeInclusive<u64>, rank: u64, count: u64, draw: u64) -> u64 {
    let width = range.end() - range.start() + 1;
    // A member that joins knows of no voters yet.
    let count = count.max(1);
    let part = width / count;
    let offset = if part < LEAST_PART {
        draw % width
    } else {
        rank % count * part + draw % part.div_ceil(2)
    };
    range.start() + offset
}

/// One member's part in the consensus.
pub(crate) struct Replica {
    pub(crate) raw: RawNode<RaftLog>,
    pub(crate) settings: Settings,
    pub(crate) membership: Arc<Membership>,
    pub(crate) proposals: Proposals,
    pub(crate) changes: Changes,
    pub(crate) reads: ReadIndex,
    pub(crate) transfers: Transfers,
    pub(crate) disk: DiskWatch,
    pub(crate) corruption: Corruption,
    /// Of the store file in use or about to be.
    pub(crate) store: u64,
    pub(crate) tick: u64,
    pub(crate) applied: u64,
    pub(crate) in_flight: InFlight,
    /// What the last [`raft::Ready`] said; what was last written; what is durable.
    pub(crate) hard_state: HardState,
    pub(crate) written_state: HardState,
    pub(crate) durable_state: HardState,
    /// A store from another member that raft-rs has taken.
    pub(crate) loaded: Option<LoadedStore>,
    /// Until the log names that store durably.
    pub(crate) is_recording_snapshot: bool,
    pub(crate) discard: Vec<LoadedStore>,
    /// Stores that other members sent, before raft-rs was told.
    pub(crate) arrived: Vec<LoadedStore>,
    /// What other members asked of this leader that it cannot do yet.
    pub(crate) held: Vec<Message>,
    leader: u64,
    /// The term in which `leader` was noted.
    leader_term: u64,
    leader_changes: u64,
    read_rounds: u64,
    pub(crate) is_stopped: bool,
    /// Answers to other members that no message of Raft carries.
    pub(crate) answers: Vec<(u64, Bytes)>,
}

impl Replica {
    /// Starts from a replayed log and what the store holds: the members and the
    /// index applied.
    pub(crate) fn new(
        settings: Settings,
        replayed: Replayed,
        membership: Arc<Membership>,
        applied: u64,
    ) -> Result<Self, RaftError> {
        let Replayed {
            mut log,
            mut hard_state,
            marker,
        } = replayed;
        // What is applied was committed, although the log may not say so yet.
        hard_state.commit = hard_state.commit.max(applied);
        // A member that joins knows the others, but not yet who votes.
        let conf_state = match applied {
            0 => ConfState::default(),
            _ => membership.conf_state(),
        };
        log.set_initial(hard_state.clone(), conf_state.clone());
        log.set_applied(applied, conf_state);
        let config = raft::Config {
            id: settings.member_id,
            election_tick: settings.election_ticks as usize,
            heartbeat_tick: settings.heartbeat_ticks as usize,
            min_election_tick: *election_range(settings.election_ticks).start() as usize,
            max_election_tick: *election_range(settings.election_ticks).end() as usize + 1,
            applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 512,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            batch_append: true,
            max_committed_size_per_ready: 16 << 20,
            // Bounds what a leader holds for followers whose disks are stuck, and
            // what followers forward to a leader whose own disk is.
            max_uncommitted_size: (2 * settings.max_pending_bytes).max(16 << 20) as u64,
            ..raft::Config::default()
        };
        config
            .validate()
            .map_err(|error| RaftError::Settings(error.to_string()))?;
        let raw = RawNode::new(&config, log, &crate::logging::logger())
            .map_err(|error| RaftError::Inconsistent(error.to_string()))?;
        let (id, incarnation) = (settings.member_id, settings.incarnation);
        let timeout = settings.request_timeout_ticks;
        let mut replica = Self {
            raw,
            proposals: Proposals::new(id, incarnation, timeout, 3 * settings.heartbeat_ticks),
            reads: ReadIndex::new(id, incarnation, timeout, settings.read_retry_ticks),
            transfers: Transfers::new(settings.election_ticks),
            corruption: Corruption::new(settings.corrupt_check_ticks),
            changes: Changes::new(settings.incarnation, applied),
            disk: DiskWatch::new(settings.disk_limit_ticks),
            in_flight: InFlight::new(applied),
            settings,
            membership,
            store: marker.store,
            tick: 0,
            applied,
            written_state: hard_state.clone(),
            durable_state: hard_state.clone(),
            hard_state,
            loaded: None,
            is_recording_snapshot: false,
            discard: Vec::new(),
            arrived: Vec::new(),
            held: Vec::new(),
            leader: 0,
            leader_term: 0,
            leader_changes: 0,
            read_rounds: 0,
            is_stopped: false,
            answers: Vec::new(),
        };
        if replica.is_alone() {
            // Nobody else can be leader: do not wait for the election timeout.
            replica.ignore(|raw| raw.campaign());
        }
        Ok(replica)
    }

    /// Whether this member is the only voter.
    pub(crate) fn is_alone(&self) -> bool {
        let prs = self.raw.raft.prs();
        prs.is_singleton() && prs.conf().voters().contains(self.settings.member_id)
    }

    /// Does what raft-rs may refuse for reasons that need no answer.
    pub(crate) fn ignore(&mut self, act: impl FnOnce(&mut RawNode<RaftLog>) -> raft::Result<()>) {
        if let Err(error) = act(&mut self.raw) {
            tracing::debug!("raft: {error}");
        }
    }

    /// Takes an input.
    pub(crate) fn step(&mut self, input: Input) -> Result<(), RaftError> {
        match input {
            Input::Propose(proposal) => self.propose(proposal),
            Input::Read(sink) if self.is_stopped || self.changes.is_removed => {
                sink.refuse(ApiError::Stopped)
            }
            Input::Read(sink) if self.is_out_of_action() => sink.refuse(ApiError::NoLeader),
            Input::Read(sink) => self.reads.push(sink, self.tick),
            Input::Peer { from, bytes } => self.peer_message(from, &bytes),
            Input::Unreachable(id) => {
                self.changes.unreachable(id);
                self.raw.report_unreachable(id);
            }
            Input::Persisted {
                ticket,
                committed,
                group,
            } => {
                self.persisted(ticket, committed, group)?;
            }
            Input::Applied {
                index,
                membership,
                changes,
                state,
            } => {
                self.corruption.applied(Mark { index, state });
                self.note_applied(index, membership, &changes);
            }
            Input::Compared { to, mark } => self.compared(to, mark),
            Input::Change(change, sink) => self.ask_change(change, sink),
            Input::MoveLeader(to, sink) => self.move_leader(to, sink),
            Input::Removed => self.note_removed(),
            Input::Checkpointed(index) => self.compact_log(index)?,
            Input::Tick => self.tick(),
            Input::Fetched { low, entries } => {
                if let Some(context) = self.raw.mut_store().fetched(low, entries) {
                    self.raw.on_entries_fetched(context);
                }
            }
            Input::SnapshotLoaded(loaded) => self.arrived.push(*loaded),
            Input::SnapshotSent { to, delivered } => {
                self.transfers.ended(to, self.tick);
                let status = if delivered {
                    SnapshotStatus::Finish
                } else {
                    SnapshotStatus::Failure
                };
                self.raw.report_snapshot(to, status);
            }
            Input::HandOver => self.hand_over(),
            Input::LogFailed(error) => return Err(error),
            Input::Stop => self.stop(),
        }
        Ok(())
    }

    /// Refuses all that wait and all that will come.
    pub(crate) fn stop(&mut self) {
        self.is_stopped = true;
        self.proposals.refuse_all(ApiError::Stopped);
        self.reads.refuse_all(ApiError::Stopped);
        self.changes.refuse_all(ApiError::Stopped);
    }

    fn propose(&mut self, proposal: Proposal) {
        let gap = self
            .raw
            .raft
            .raft_log
            .committed
            .saturating_sub(self.applied);
        let (_, pending_bytes) = self.proposals.pending();
        if self.is_stopped || self.changes.is_removed {
            self.proposals.refuse(proposal.sink, ApiError::Stopped);
        } else if self.is_out_of_action() {
            self.proposals.refuse(proposal.sink, ApiError::NoLeader);
        } else if gap > MAX_APPLY_GAP
            || pending_bytes + proposal.commands.len() > self.settings.max_pending_bytes
        {
            self.proposals
                .refuse(proposal.sink, ApiError::TooManyRequests);
        } else {
            self.proposals.push(proposal, self.tick);
        }
    }

    fn tick(&mut self) {
        self.tick += 1;
        self.watch_disk();
        let timeout = self.election_timeout();
        self.raw.raft.set_randomized_election_timeout(timeout);
        // While a snapshot is being recorded raft-rs must not stand for election:
        // it would look for entries that the log has already let go.
        let is_out = (self.changes.is_removed || self.disk.is_stuck) && !self.is_leader();
        if !self.is_recording_snapshot && !is_out {
            self.raw.tick();
        }
        self.tick_changes();
        self.tick_corruption();
        self.proposals.expire(self.tick);
        self.reads.expire(self.tick);
    }

    /// The ticks without a leader after which to stand for election. Each voter has a
    /// part of the range to itself, so that two of them do not ask for votes at the same
    /// time, which would cost all of them a further timeout; the parts go round with
    /// the terms, so that one that cannot win is not always the first. Within its part
    /// it is drawn anew for each election timeout that passes. raft-rs would ask the
    /// thread's generator; this is a function of the inputs, so that a simulated run
    /// comes out the same again.
    fn election_timeout(&self) -> usize {
        let round = self.tick / self.settings.election_ticks;
        let mut draw = self.settings.incarnation ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // The finalizer of splitmix64.
        draw = (draw ^ (draw >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        draw = (draw ^ (draw >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        draw ^= draw >> 31;
        let voters = self.raw.raft.prs().conf().voters().ids();
        let (mut count, mut rank) = (0, self.raw.raft.term);
        for voter in voters.iter() {
            count += 1;
            rank += u64::from(voter < self.settings.member_id);
        }
        drawn(
            election_range(self.settings.election_ticks),
            rank,
            count,
            draw,
        ) as usize
    }

    fn note_applied(
        &mut self,
        index: u64,
        membership: Option<Arc<Membership>>,
        changes: &[AppliedChange],
    ) {
        self.note_changes(membership, changes);
        self.in_flight.applied(index);
        if index > self.applied {
            self.applied = index;
            if index > self.raw.raft.raft_log.applied {
                self.raw.advance_apply_to(index);
            }
        }
        let conf_state = self.conf_state();
        self.raw.mut_store().set_applied(self.applied, conf_state);
    }

    fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Sends queued proposals and readers on their way.
    fn send_queued(&mut self) {
        if self.raw.raft.leader_id == 0 {
            return;
        }
        self.take_arrived();
        for message in std::mem::take(&mut self.held) {
            if self.can_lead(&message) {
                self.ignore(|raw| raw.step(message));
            } else {
                self.held.push(message);
            }
        }
        self.ask_for_indexes();
        for _ in 0..MAX_ENTRIES_PER_TURN {
            if self.is_leader()
                && (self.in_flight.writes_out() >= MAX_WRITES_OUT
                    || self.raw.raft.lead_transferee.is_some())
            {
                return;
            }
            let Some(data) = self.proposals.next_entry() else {
                return;
            };
            let entry = Entry {
                data: data.clone(),
                ..Entry::default()
            };
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgPropose);
            message.from = self.settings.member_id;
            message.set_entries(vec![entry].into());
            if self.raw.raft.step(message).is_err() {
                return self.proposals.put_back(data);
            }
        }
    }

    fn ask_for_indexes(&mut self) {
        if !self.reads.has_unasked() {
            return;
        }
        if self.is_leader() {
            if !self.raw.raft.commit_to_current_term() {
                return; // the leader does not know yet what was committed before it
            }
            if self.is_alone() || is_on(Mutation::StaleRead) {
                self.reads
                    .index_without_round(self.raw.raft.raft_log.committed);
                return;
            }
        }
        for context in self.reads.ask(self.tick) {
            self.read_rounds += 1;
            self.raw.read_index(context);
        }
    }

    /// Collects what is to be done.
    pub(crate) fn poll(&mut self, out: &mut Output) -> Result<(), RaftError> {
        loop {
            self.send_queued();
            self.decide_changes(out);
            if !self.raw.has_ready() {
                break;
            }
            self.handle_ready(out)?;
        }
        for (to, answer) in self.answers.drain(..) {
            out.send_bytes(to, answer);
        }
        self.in_flight.take(out);
        self.reads.take_ready(self.applied, &mut out.reads);
        out.fetches.append(&mut self.raw.mut_store().take_fetches());
        out.discard.append(&mut self.discard);
        for (to, message) in &out.snapshots {
            let index = message.get_snapshot().get_metadata().index;
            self.transfers.started(*to, index);
        }
        Ok(())
    }

    /// Notes who leads; called when raft-rs says that it changed.
    pub(crate) fn note_leader(&mut self, leader: u64) {
        if leader == self.leader {
            return;
        }
        if self.leader != 0 {
            self.proposals.leader_lost(self.leader_term);
        }
        if leader != 0 {
            self.leader_changes += 1;
            tracing::info!(
                "member {:x}: leader is {leader:x} at term {}",
                self.settings.member_id,
                self.raw.raft.term
            );
        } else {
            tracing::warn!(
                "member {:x}: lost leader {:x}",
                self.settings.member_id,
                self.leader
            );
        }
        // Reads are asked for again by those who wait for them.
        self.held
            .retain(|message| message.get_msg_type() == MessageType::MsgPropose);
        self.note_leader_of_changes(leader);
        self.leader = leader;
        self.leader_term = self.raw.raft.term;
        self.reads.ask_again();
    }

    /// How it stands.
    pub(crate) fn status(&self) -> ReplicaStatus {
        let raft = &self.raw.raft;
        ReplicaStatus {
            term: raft.term,
            leader: raft.leader_id,
            is_leader: self.is_leader(),
            is_learner: self
                .membership
                .get(self.settings.member_id)
                .is_some_and(|member| member.is_learner),
            is_removed: self.changes.is_removed,
            is_corrupt: self.is_corrupt(),
            state_checks: self.corruption.checks,
            state_mismatches: self.corruption.mismatches,
            last_index: raft.raft_log.last_index(),
            commit_index: raft.raft_log.committed,
            applied_index: self.applied,
            leader_changes: self.leader_changes,
            pending_proposals: self.proposals.pending().0,
            pending_reads: self.reads.pending(),
            failed_proposals: self.proposals.failed,
            failed_reads: self.reads.failed,
            read_rounds: self.read_rounds,
            log_waits_ticks: self.disk.waited(self.tick),
            is_disk_stuck: self.disk.is_stuck,
            disk_stalls: self.disk.stalls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_stand_for_election_one_after_the_other() {
        let range = election_range(100);
        for count in 1..=7 {
            for term in 0..10 {
                let mut turns: Vec<_> = (0..count)
                    .map(|rank| {
                        let draws =
                            (0..1000).map(|draw| drawn(range.clone(), term + rank, count, draw));
                        let draws: Vec<_> = draws.collect();
                        (*draws.iter().min().unwrap(), *draws.iter().max().unwrap())
                    })
                    .collect();
                turns.sort_unstable();
                assert!(
                    turns
                        .iter()
                        .all(|(first, last)| range.contains(first) && range.contains(last))
                );
                assert!(
                    turns.windows(2).all(|pair| pair[0].1 + 2 <= pair[1].0),
                    "{turns:?}"
                );
            }
        }
        // Too few ticks for that: the whole range is for each.
        let short = election_range(20);
        let draws: Vec<_> = (0..1000)
            .map(|draw| drawn(short.clone(), 1, 3, draw))
            .collect();
        assert_eq!(draws.iter().min(), Some(short.start()));
        assert_eq!(draws.iter().max(), Some(short.end()));
        drawn(short, 0, 0, 7);
    }
}
