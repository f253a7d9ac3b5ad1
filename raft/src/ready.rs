//! From what raft-rs has ready to log writes, messages and entries to apply.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use varve_engine::mutations::{Mutation, is_on};
use varve_engine::wal::{Committed, Group, Lsn, MAX_GROUP_BYTES};

use crate::change::{self, Tagged};
use crate::entry;
use crate::error::RaftError;
use crate::io::{ApplyJob, EntryData, LogWrite, Output, ToApply, ToChange};
use crate::loading::LoadedStore;
use crate::proposals::Sinks;
use crate::record::{self, Marker};
use crate::replica::Replica;

/// A group is closed once it holds this many bytes.
const GROUP_TARGET_BYTES: usize = MAX_GROUP_BYTES / 2;

/// Groups kept for use again.
const SPARE_GROUPS: usize = 8;

/// One log write that is not durable yet, and what waits for it.
#[derive(Default)]
struct Write {
    ticket: u64,
    /// Index, term and offset in the group of each entry.
    entries: Vec<(u64, u64, u64)>,
    /// The newest [`raft::Ready`] that is durable with it.
    ready: Option<u64>,
    hard_state: Option<HardState>,
    messages: Vec<Message>,
    install: Option<LoadedStore>,
    /// A marker that begins the log later: its offset, and the position of the
    /// first entry after it, if there was one.
    compacted: Option<(u64, Option<Lsn>)>,
}

/// Log writes and applies that are out.
pub(crate) struct InFlight {
    writes: VecDeque<Write>,
    next_ticket: u64,
    spare: Vec<Group>,
    /// Written but not yet taken by `poll`.
    submitted: Vec<LogWrite>,
    /// What completed writes set free; for the next `poll`.
    released: Vec<Message>,
    jobs: Vec<ApplyJob>,
    release_lsn: Option<Lsn>,
    /// Last index and bytes of each job at the applier.
    applying: VecDeque<(u64, usize)>,
    applying_bytes: usize,
    handed: u64,
    /// Committed, and not handed out before that is settled: see
    /// [`Replica::commit_is_settled`].
    unsettled: Vec<Entry>,
}

impl InFlight {
    /// Nothing is out; entries up to `applied` were handed out in an earlier life.
    pub(crate) fn new(applied: u64) -> Self {
        Self {
            writes: VecDeque::new(),
            next_ticket: 1,
            spare: Vec::new(),
            submitted: Vec::new(),
            released: Vec::new(),
            jobs: Vec::new(),
            release_lsn: None,
            applying: VecDeque::new(),
            applying_bytes: 0,
            handed: applied,
            unsettled: Vec::new(),
        }
    }

    /// How many log writes are out.
    pub(crate) fn writes_out(&self) -> usize {
        self.writes.len()
    }

    /// Notes that entries up to `index` are applied.
    pub(crate) fn applied(&mut self, index: u64) {
        while self
            .applying
            .front()
            .is_some_and(|(last, _)| *last <= index)
        {
            if let Some((_, bytes)) = self.applying.pop_front() {
                self.applying_bytes -= bytes;
            }
        }
    }

    /// Takes what is to be done.
    pub(crate) fn take(&mut self, out: &mut Output) {
        out.writes.append(&mut self.submitted);
        out.apply.append(&mut self.jobs);
        out.send_all(self.released.drain(..));
        if let Some(lsn) = self.release_lsn.take() {
            out.release = Some(lsn);
        }
    }

    /// Hands the applier something beside the entries.
    pub(crate) fn push_job(&mut self, job: ApplyJob) {
        self.jobs.push(job);
    }

    fn group(&mut self) -> Group {
        self.spare.pop().unwrap_or_default()
    }

    fn submit(&mut self, mut write: Write, group: Group) {
        write.ticket = self.next_ticket;
        self.next_ticket += 1;
        self.submitted.push(LogWrite {
            ticket: write.ticket,
            group,
        });
        self.writes.push_back(write);
    }

    /// Writes a marker and the hard state, so that older ones may go. `first` is
    /// the position of the first entry after the marker's index, if there is one.
    pub(crate) fn restate(
        &mut self,
        marker: &Marker,
        first: Option<Lsn>,
        state: &HardState,
    ) -> Result<(), RaftError> {
        let mut group = self.group();
        let offset = record::push_marker(&mut group, marker)?;
        record::push_hard_state(&mut group, state)?;
        let compacted = Some((offset, first));
        self.submit(
            Write {
                compacted,
                ..Write::default()
            },
            group,
        );
        Ok(())
    }
}

/// Of the rounds of ReadIndex that begin, or are asked for again, leaves one heartbeat to
/// each member. Its answer confirms the `newest` one that waits, and with it those before
/// it (raft-rs advances them all).
fn thin_heartbeats(messages: &mut Vec<Message>, newest: Option<Vec<u8>>) {
    let newest = newest.map(bytes::Bytes::from);
    let mut seen = Vec::new();
    let mut kept: Vec<Message> = std::mem::take(messages);
    kept.reverse();
    kept.retain_mut(|message| {
        let is_round =
            message.get_msg_type() == MessageType::MsgHeartbeat && !message.context.is_empty();
        !is_round || {
            let is_last = !seen.contains(&message.to);
            if is_last {
                seen.push(message.to);
                if let Some(newest) = &newest {
                    message.context = newest.clone();
                }
            }
            is_last
        }
    });
    kept.reverse();
    *messages = kept;
}

impl Replica {
    /// Handles one [`raft::Ready`], top to bottom as raft-rs demands.
    pub(crate) fn handle_ready(&mut self, out: &mut Output) -> Result<(), RaftError> {
        let mut ready = self.raw.ready();
        if let Some(state) = ready.ss() {
            let leader = state.leader_id;
            self.note_leader(leader);
        }
        for state in ready.take_read_states() {
            self.reads.answered(&state.request_ctx, state.index);
        }
        // Only a leader has messages that need not wait: its term is durable, or nobody
        // could have voted for it. But one that votes alone leads before that, and what
        // it sent to learners would be of a term that it may lead once more.
        let mut unready = self.without_unsettled_commit(ready.take_messages());
        self.mend_appends(&mut unready);
        let newest = self.raw.raft.read_only.last_pending_request_ctx();
        thin_heartbeats(&mut unready, newest);
        if self.durable_state.term == self.raw.raft.term {
            out.send_all(unready.drain(..));
        }

        if let Some(state) = ready.hs() {
            self.hard_state = state.clone();
        }
        let number = ready.number();
        let must_sync = ready.must_sync() || self.must_settle_commit();
        let snapshot = ready.snapshot().get_metadata().clone();
        let entries = ready.take_entries();
        let mut waiting = self.send_early(ready.take_persisted_messages(), out);
        waiting.append(&mut unready);
        let committed = ready.take_committed_entries();

        let mut write = Write {
            ready: Some(number),
            messages: waiting,
            ..Write::default()
        };
        if must_sync || !entries.is_empty() || snapshot.index != 0 {
            let mut group = self.in_flight.group();
            if snapshot.index != 0 {
                self.record_snapshot(snapshot.index, snapshot.term, &mut write, &mut group)?;
            }
            self.write_entries(&entries, &mut write, &mut group)?;
            if self.hard_state != self.written_state {
                let mut state = self.hard_state.clone();
                if is_on(Mutation::VoteNotPersisted) {
                    state.vote = 0;
                }
                record::push_hard_state(&mut group, &state)?;
                self.written_state = self.hard_state.clone();
                write.hard_state = Some(self.hard_state.clone());
            }
            self.in_flight.submit(write, group);
            self.raw.advance_append_async(ready);
        } else {
            self.raw.advance_append_async(ready);
            self.after_writes_out(write);
        }
        self.in_flight.unsettled.extend(committed);
        self.hand_out_settled();
        Ok(())
    }

    /// Whether it is durable that entries up to `index` are committed, as far as they change
    /// the membership. Before that nobody learns it: they are not applied here, nor answered,
    /// nor told of. Else a member that is removed learns it and stops for good, and who told
    /// it forgets it in a power loss: it may need the vote of the one that is gone.
    fn commit_is_settled(&self, index: u64) -> bool {
        let change = self.raw.store().newest_change();
        index < change || self.durable_state.commit >= change || is_on(Mutation::UnsettledCommit)
    }

    /// Whether the hard state is to be written for its commit index alone.
    fn must_settle_commit(&self) -> bool {
        let change = self.raw.store().newest_change();
        self.hard_state.commit >= change
            && self.written_state.commit < change
            && !is_on(Mutation::UnsettledCommit)
    }

    /// Takes out of a leader's messages that a change of the membership is committed, until
    /// that is settled. Who gets them takes it for committed later.
    fn without_unsettled_commit(&self, mut messages: Vec<Message>) -> Vec<Message> {
        let change = self.raw.store().newest_change();
        if !self.commit_is_settled(change) {
            for message in messages.iter_mut().filter(|m| m.commit >= change) {
                // Without its term it counts for nothing in answers to candidates.
                (message.commit, message.commit_term) = (change - 1, 0);
            }
        }
        messages
    }

    /// raft-rs adds entries to an append without any that is to go to the same member in the
    /// same turn, wherever they begin (`batch_append`): after a rejection they begin earlier
    /// than that one said. Here it says what they follow.
    pub(crate) fn mend_appends(&self, messages: &mut Vec<Message>) {
        messages.retain_mut(|message| {
            let first = message.entries.first().map_or(0, |entry| entry.index);
            if message.get_msg_type() != MessageType::MsgAppend
                || first == 0
                || message.index + 1 == first
            {
                return true;
            }
            let term = self.raw.raft.raft_log.term(first - 1).unwrap_or(0);
            (message.index, message.log_term) = (first - 1, term);
            term != 0 // else it is as if it were lost on its way
        });
    }

    /// Sends what depends on nothing but a term that is durable already, so that
    /// heartbeats never wait for a slow disk; returns the rest.
    fn send_early(&mut self, messages: Vec<Message>, out: &mut Output) -> Vec<Message> {
        let durable_term = self.durable_state.term;
        let (early, waiting): (Vec<_>, Vec<_>) =
            messages
                .into_iter()
                .partition(|message| match message.get_msg_type() {
                    MessageType::MsgHeartbeatResponse => message.term <= durable_term,
                    MessageType::MsgPropose
                    | MessageType::MsgReadIndex
                    | MessageType::MsgTransferLeader => true,
                    MessageType::MsgAppendResponse => is_on(Mutation::EarlyAppendResponse),
                    _ => false,
                });
        out.send_all(early);
        waiting
    }

    /// Writes the entries, in several groups if they are many.
    fn write_entries(
        &mut self,
        entries: &[Entry],
        write: &mut Write,
        group: &mut Group,
    ) -> Result<(), RaftError> {
        self.raw.mut_store().append(entries);
        for entry in entries {
            if !group.is_empty() && group.bytes() + entry.data.len() > GROUP_TARGET_BYTES {
                let next = self.in_flight.group();
                let full = std::mem::replace(group, next);
                let part = Write {
                    entries: std::mem::take(&mut write.entries),
                    ..Write::default()
                };
                self.in_flight.submit(part, full);
            }
            let offset = record::push_entry(group, entry)?;
            write.entries.push((entry.index, entry.term, offset));
        }
        Ok(())
    }

    /// Tells raft-rs of stores that other members sent. What they hold is committed,
    /// whoever leads by now: so they are taken as sent by the present leader, or a
    /// change of leader would waste the transfer.
    pub(crate) fn take_arrived(&mut self) {
        for mut loaded in std::mem::take(&mut self.arrived) {
            let raft = &self.raw.raft;
            let own_id = self.settings.member_id;
            let index = loaded.message.get_snapshot().get_metadata().index;
            if self.is_recording_snapshot
                || self.is_leader()
                || loaded.message.to != own_id
                || loaded.message.term > raft.term
            {
                self.discard.push(loaded);
                continue;
            }
            loaded.message.from = raft.leader_id;
            loaded.message.term = raft.term;
            if let Err(error) = self.raw.step(loaded.message.clone()) {
                tracing::debug!("raft: {error}");
            }
            match self.raw.raft.snap() {
                Some(snapshot) if snapshot.get_metadata().index == index => {
                    self.loaded = Some(loaded);
                    self.is_recording_snapshot = true;
                }
                _ => self.discard.push(loaded), // it came too late to be of use
            }
        }
    }

    /// Begins the log anew after the snapshot of the store that was loaded.
    fn record_snapshot(
        &mut self,
        index: u64,
        term: u64,
        write: &mut Write,
        group: &mut Group,
    ) -> Result<(), RaftError> {
        let Some(loaded) = self.loaded.take() else {
            return Err(RaftError::Inconsistent(format!(
                "a snapshot of index {index} came without its store"
            )));
        };
        let marker = Marker {
            index,
            term,
            store: loaded.store_number,
            reset: true,
            membership: loaded.membership.clone(),
        };
        self.store = marker.store;
        // Before the log lets go of them. Who sent the snapshot has settled them.
        let committed = std::mem::take(&mut self.in_flight.unsettled);
        self.hand_out(committed);
        record::push_marker(group, &marker)?;
        self.raw.mut_store().reset(index, term);
        self.in_flight.handed = index;
        self.changes.conf_index = index;
        write.install = Some(loaded);
        Ok(())
    }

    /// What waits for nothing but the writes that are out already.
    fn after_writes_out(&mut self, write: Write) {
        match self.in_flight.writes.back_mut() {
            Some(last) => {
                last.ready = write.ready;
                last.messages.extend(write.messages);
            }
            None => self.completed(write),
        }
    }

    /// A log write is durable.
    pub(crate) fn persisted(
        &mut self,
        ticket: u64,
        committed: Committed,
        mut group: Group,
    ) -> Result<(), RaftError> {
        self.disk.works(self.tick);
        let Some(mut write) = self
            .in_flight
            .writes
            .pop_front()
            .filter(|w| w.ticket == ticket)
        else {
            return Err(RaftError::Inconsistent(format!(
                "log write {ticket} is out of order"
            )));
        };
        if self.in_flight.spare.len() < SPARE_GROUPS {
            group.clear();
            self.in_flight.spare.push(group);
        }
        for (index, term, offset) in write.entries.drain(..) {
            let lsn = committed.first_lsn + offset;
            self.raw.mut_store().set_durable(index, term, lsn);
        }
        if let Some((offset, first)) = write.compacted {
            let marker = committed.first_lsn + offset;
            self.in_flight.release_lsn = Some(first.unwrap_or(marker));
        }
        self.completed(write);
        Ok(())
    }

    fn completed(&mut self, write: Write) {
        if let Some(state) = write.hard_state {
            let change = self.raw.store().newest_change();
            let was_settled = self.commit_is_settled(change);
            self.durable_state = state;
            if !was_settled && self.commit_is_settled(change) && self.is_leader() {
                self.raw.raft.bcast_append(); // now the others may know
            }
        }
        if let Some(number) = write.ready {
            self.raw.on_persist_ready(number);
        }
        if let Some(loaded) = write.install {
            let index = loaded.message.get_snapshot().get_metadata().index;
            self.raw.advance_apply_to(index);
            self.is_recording_snapshot = false;
            self.in_flight
                .jobs
                .push(ApplyJob::Install(Box::new(loaded)));
        }
        self.in_flight.released.extend(write.messages);
        self.hand_out_settled();
    }

    fn hand_out_settled(&mut self) {
        if let Some(last) = self.in_flight.unsettled.last()
            && self.commit_is_settled(last.index)
        {
            let committed = std::mem::take(&mut self.in_flight.unsettled);
            self.hand_out(committed);
        }
    }

    /// Hands committed entries to the applier, with the sinks of those who wait.
    fn hand_out(&mut self, committed: Vec<Entry>) {
        let Some((last, term)) = committed.last().map(|entry| (entry.index, entry.term)) else {
            return;
        };
        debug_assert!(last > self.in_flight.handed);
        let bytes: usize = committed.iter().map(|entry| entry.data.len()).sum();
        let only_positions = self.in_flight.applying_bytes + bytes > self.settings.max_apply_bytes;
        let mut entries = Vec::with_capacity(committed.len());
        for entry in committed {
            let slot = self.raw.store().slot(entry.index);
            let lsn = slot.map_or(0, |slot| slot.lsn);
            debug_assert_ne!(
                lsn, 0,
                "entry {} is applied before it is durable",
                entry.index
            );
            entries.push(ToApply {
                index: entry.index,
                term: entry.term,
                change: self.change_of(&entry),
                sinks: self.sinks_of(&entry),
                data: if only_positions && lsn != 0 && !entry.data.is_empty() {
                    EntryData::At(lsn)
                } else {
                    EntryData::Here(entry.data)
                },
            });
        }
        let held = if only_positions { 0 } else { bytes };
        self.in_flight.applying.push_back((last, held));
        self.in_flight.applying_bytes += held;
        self.in_flight.handed = last;
        self.raw.mut_store().set_handed(last);
        self.proposals.settled(term, self.tick);
        self.in_flight.jobs.push(ApplyJob::Entries(entries));
    }

    /// What an entry changes of the membership. One that cannot be read changes
    /// nothing, on any member.
    fn change_of(&mut self, entry: &Entry) -> Option<ToChange> {
        if !change::is_change(entry) {
            return None;
        }
        let in_conf_change = entry.get_entry_type() != EntryType::EntryNormal;
        match Tagged::of_entry(&entry.data, in_conf_change) {
            Ok(tagged) => Some(ToChange {
                sink: self.changes.committed(&tagged, self.settings.member_id),
                tagged,
            }),
            Err(error) => {
                tracing::error!("entry {} is skipped: {error}", entry.index);
                None
            }
        }
    }

    fn sinks_of(&mut self, entry: &Entry) -> Sinks {
        if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
            return Sinks::new();
        }
        match entry::decode(&entry.data) {
            Ok((header, _)) => self.proposals.committed(header),
            Err(_) => Sinks::new(), // the applier reports it
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_of_read_index_stands_for_those_before_it() {
        let message = |kind, to, context: &'static [u8]| {
            let mut message = Message::default();
            message.set_msg_type(kind);
            message.to = to;
            message.context = context.into();
            message
        };
        let heartbeat = |to, context| message(MessageType::MsgHeartbeat, to, context);
        let mut messages = vec![
            heartbeat(2, b"a"),
            heartbeat(3, b"a"),
            message(MessageType::MsgAppend, 2, b""),
            heartbeat(2, b"b"),
            heartbeat(3, b"b"),
            heartbeat(3, b"a"), // asked for again
            heartbeat(2, b""),
            message(MessageType::MsgAppend, 2, b""),
        ];
        thin_heartbeats(&mut messages, Some(b"b".to_vec()));
        let left: Vec<_> = messages
            .iter()
            .map(|message| (message.to, &message.context[..]))
            .collect();
        assert_eq!(
            left,
            [(2, &b""[..]), (2, b"b"), (3, b"b"), (2, b""), (2, b"")]
        );
    }
}
