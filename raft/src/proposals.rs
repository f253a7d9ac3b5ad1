//! Proposals of this member: queued, in flight, timed out.
//!
//! Each has a number; numbers are given in order and never again, also not
//! after a restart (they start at a random base), because an entry that names a
//! number may come back from another member's log at any time later.
//!
//! Whoever proposed waits until the entry that holds the proposal is committed
//! here; then the sink leaves with the entry to the thread that applies it.

use std::collections::VecDeque;

use bytes::Bytes;
use varve_types::ApiError;

use crate::entry::{self, EntryHeader};
use crate::sink::{Proposal, ReplySink};

/// An entry is closed once it holds this many bytes.
pub(crate) const ENTRY_TARGET_BYTES: usize = 1 << 20;

/// An entry is closed before its answers may hold more than this many bytes of
/// keys and values: an entry is applied as a whole, and they are all in memory then.
pub(crate) const ENTRY_REPLY_BYTES: usize = varve_types::MAX_REPLY_BYTES;

/// Most bytes of commands in one proposal: with its headers it must fit a log record.
pub const MAX_PROPOSAL_BYTES: usize = (4 << 20) - 4096;

/// Proposals to an entry up to which the next one goes by itself.
const MAX_LONELY: usize = 2;

/// Proposals that one entry may take however few wait. Of more it takes half of all that
/// have no answer yet: while one half is applied the other one is answered, asks again and
/// is logged. All in one entry would leave the log idle, then the applier, in turns.
const MIN_SHARE: usize = 16;

/// Bytes that a waiting proposal counts beside its commands.
const OVERHEAD_BYTES: usize = 128;

/// The sinks of the proposals in one entry, in their order; `None` for those
/// that were refused already.
pub(crate) type Sinks = Vec<Option<Box<dyn ReplySink>>>;

struct InFlight {
    deadline: u64,
    bytes: usize,
    /// Whether it was sent to a leader that was lost since.
    leader_lost: bool,
    sink: Option<Box<dyn ReplySink>>,
}

/// What goes into an entry, and what its answers may come to.
struct Queued {
    commands: Bytes,
    count: u32,
    reply_bytes: usize,
}

/// All proposals of this member that have no answer yet.
pub(crate) struct Proposals {
    member_id: u64,
    /// Not yet in an entry.
    queued: VecDeque<Queued>,
    /// In an entry that raft-rs has not taken yet.
    packed: VecDeque<Bytes>,
    /// One for each number from `first_number` on; the queued ones at the end.
    waiting: VecDeque<InFlight>,
    first_number: u64,
    waiting_bytes: usize,
    /// How many shared an entry of late: the newest entry's, or half as many as before.
    crowd: usize,
    timeout_ticks: u64,
    /// The term of the leader that was lost last, while something of it waits.
    lost_term: Option<u64>,
    /// The tick after which what it had is given up: another member may have held it
    /// until there was a leader again.
    settles_at: Option<u64>,
    grace_ticks: u64,
    /// How many were refused or timed out.
    pub(crate) failed: u64,
}

impl Proposals {
    /// Numbers start at `first_number`, which must be random or otherwise new.
    pub(crate) fn new(
        member_id: u64,
        first_number: u64,
        timeout_ticks: u64,
        grace_ticks: u64,
    ) -> Self {
        Self {
            member_id,
            queued: VecDeque::new(),
            packed: VecDeque::new(),
            waiting: VecDeque::new(),
            first_number,
            waiting_bytes: 0,
            crowd: 0,
            timeout_ticks,
            lost_term: None,
            settles_at: None,
            grace_ticks,
            failed: 0,
        }
    }

    /// Whether a proposal need not wait for others that could share its entry: nothing
    /// is under way, and of late nothing was to share. Clients that are answered together
    /// come back together, and the first must not go without the others.
    pub(crate) fn is_lonely(&self) -> bool {
        self.waiting.is_empty() && self.crowd <= MAX_LONELY
    }

    /// How many wait, and their bytes.
    pub(crate) fn pending(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting_bytes)
    }

    /// Queues a proposal.
    pub(crate) fn push(&mut self, proposal: Proposal, now: u64) {
        if proposal.commands.len() > MAX_PROPOSAL_BYTES {
            return self.refuse(proposal.sink, ApiError::RequestTooLarge);
        }
        let bytes = proposal.commands.len() + OVERHEAD_BYTES;
        self.waiting_bytes += bytes;
        self.waiting.push_back(InFlight {
            deadline: now + self.timeout_ticks,
            bytes,
            leader_lost: false,
            sink: Some(proposal.sink),
        });
        self.queued.push_back(Queued {
            commands: proposal.commands,
            count: proposal.count,
            reply_bytes: proposal.reply_bytes,
        });
    }

    /// Refuses a proposal that is not queued.
    pub(crate) fn refuse(&mut self, sink: Box<dyn ReplySink>, error: ApiError) {
        self.failed += 1;
        sink.refuse(error);
    }

    /// Packs the next proposals into an entry of about [`ENTRY_TARGET_BYTES`].
    pub(crate) fn next_entry(&mut self) -> Option<Bytes> {
        if let Some(entry) = self.packed.pop_front() {
            return Some(entry);
        }
        let (mut bytes, mut replies) = (0, 0);
        let mut count = 0;
        let share = self.waiting.len().div_ceil(2).max(MIN_SHARE);
        for queued in self.queued.iter().take(share) {
            let with = bytes + queued.commands.len();
            let with_replies = replies + queued.reply_bytes;
            let is_full = with + (count + 1) * entry::PROPOSAL_HEADER_BYTES > ENTRY_TARGET_BYTES
                || with_replies > ENTRY_REPLY_BYTES;
            if count > 0 && is_full {
                break;
            }
            (bytes, replies, count) = (with, with_replies, count + 1);
        }
        if count == 0 {
            return None;
        }
        self.crowd = count.max(self.crowd / 2);
        let number = self.first_number + self.waiting.len() as u64 - self.queued.len() as u64;
        let packed = self.queued.iter().take(count);
        let data = entry::encode(
            self.member_id,
            number,
            packed.map(|queued| (&queued.commands[..], queued.count)),
            bytes,
        );
        self.queued.drain(..count);
        Some(data)
    }

    /// Takes an entry back that raft-rs did not take; it comes first next time.
    pub(crate) fn put_back(&mut self, entry: Bytes) {
        self.packed.push_front(entry);
    }

    /// The sinks of a committed entry's proposals, if this member proposed them.
    pub(crate) fn committed(&mut self, header: EntryHeader) -> Sinks {
        if header.proposer != self.member_id {
            return Sinks::new();
        }
        // The first of them may have been refused for their age and forgotten.
        let past = self.first_number.saturating_sub(header.number);
        let start = header.number.saturating_sub(self.first_number);
        if past >= u64::from(header.count) || start >= self.waiting.len() as u64 {
            return Sinks::new();
        }
        let (forgotten, start) = (past as usize, start as usize);
        let end = (start + header.count as usize - forgotten).min(self.waiting.len());
        let mut sinks = Sinks::new();
        sinks.resize_with(forgotten, || None);
        sinks.extend(self.waiting.range_mut(start..end).map(|waiting| {
            self.waiting_bytes -= std::mem::take(&mut waiting.bytes);
            waiting.sink.take()
        }));
        self.forget_done();
        sinks
    }

    /// Notes that the leader of `term` is gone. What was sent to it may be lost
    /// with it; what was not sent yet goes to the next one.
    pub(crate) fn leader_lost(&mut self, term: u64) {
        let sent = self.sent();
        for waiting in self.waiting.iter_mut().take(sent) {
            waiting.leader_lost = true;
            self.lost_term = Some(term);
            self.settles_at = None;
        }
    }

    /// An entry of `term` is committed. What was sent to the leader of an earlier
    /// term and is not committed soon is lost, but for an entry that still travels
    /// from member to member: it is refused as one that may be done later. Otherwise
    /// its client would wait for the whole timeout.
    pub(crate) fn settled(&mut self, term: u64, now: u64) {
        if self.lost_term.is_some_and(|lost| lost < term) {
            self.lost_term = None;
            self.settles_at = Some(now + self.grace_ticks);
        }
    }

    fn refuse_lost(&mut self) {
        self.settles_at = None;
        for waiting in &mut self.waiting {
            if waiting.leader_lost
                && let Some(sink) = waiting.sink.take()
            {
                self.failed += 1;
                sink.refuse(ApiError::TimeoutLeaderFailure);
                self.waiting_bytes -= std::mem::take(&mut waiting.bytes);
            }
        }
        self.forget_done();
    }

    /// Refuses those that waited too long. They may still be done later.
    pub(crate) fn expire(&mut self, now: u64) {
        if self.settles_at.is_some_and(|tick| tick <= now) {
            self.refuse_lost();
        }
        let unsent = self.queued.len();
        let mut expired_queued = 0;
        let sent = self.waiting.len() - unsent;
        for (position, waiting) in self.waiting.iter_mut().enumerate() {
            if waiting.deadline > now {
                break; // deadlines are in order
            }
            if let Some(sink) = waiting.sink.take() {
                self.failed += 1;
                sink.refuse(if waiting.leader_lost {
                    ApiError::TimeoutLeaderFailure
                } else {
                    ApiError::Timeout
                });
            }
            if position >= sent {
                expired_queued += 1;
            }
            self.waiting_bytes -= std::mem::take(&mut waiting.bytes);
        }
        // What was never sent must not be done after its refusal.
        if expired_queued > 0 {
            self.queued.drain(..expired_queued);
        }
        self.forget_done();
    }

    /// Answers all that wait, for a member that can do nothing for them: what was not
    /// sent to a leader is not done and will not be, the rest may be.
    pub(crate) fn give_up(&mut self) {
        let sent = self.sent();
        for (position, waiting) in self.waiting.iter_mut().enumerate() {
            if let Some(sink) = waiting.sink.take() {
                self.failed += 1;
                sink.refuse(match position < sent {
                    true => ApiError::TimeoutLeaderFailure,
                    false => ApiError::NoLeader,
                });
            }
            self.waiting_bytes -= std::mem::take(&mut waiting.bytes);
        }
        self.queued.clear();
        self.packed.clear();
        self.forget_done();
    }

    /// How many of those that wait may be in the leader's hands.
    fn sent(&self) -> usize {
        let packed: usize = self.packed.iter().map(|entry| proposals_in(entry)).sum();
        // An entry that was put back may hold proposals that are forgotten by now.
        self.waiting
            .len()
            .saturating_sub(self.queued.len() + packed)
    }

    /// Refuses all; for the end of the node.
    pub(crate) fn refuse_all(&mut self, error: ApiError) {
        for waiting in self.waiting.drain(..) {
            if let Some(sink) = waiting.sink {
                self.failed += 1;
                sink.refuse(error);
            }
        }
        self.queued.clear();
        self.packed.clear();
        self.waiting_bytes = 0;
    }

    fn forget_done(&mut self) {
        // A queued proposal always has its sink, so numbers of queued ones stay.
        while self
            .waiting
            .front()
            .is_some_and(|waiting| waiting.sink.is_none())
            && self.waiting.len() > self.queued.len()
        {
            if let Some(waiting) = self.waiting.pop_front() {
                self.waiting_bytes -= waiting.bytes;
                self.first_number += 1;
            }
        }
    }
}

/// How many proposals an entry of this member holds.
fn proposals_in(entry: &[u8]) -> usize {
    // It was encoded here.
    entry::decode(entry).map_or(0, |(header, _)| header.count as usize)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::sink::Completion;

    struct Recorder(Arc<Mutex<Vec<(u32, ApiError)>>>, u32);

    impl ReplySink for Recorder {
        fn complete(self: Box<Self>, _completion: Completion) {}
        fn refuse(self: Box<Self>, error: ApiError) {
            self.0.lock().unwrap().push((self.1, error));
        }
    }

    struct Test {
        proposals: Proposals,
        refused: Arc<Mutex<Vec<(u32, ApiError)>>>,
        next: u32,
    }

    impl Test {
        fn new() -> Self {
            Self {
                proposals: Proposals::new(9, 1000, 10, 2),
                refused: Arc::default(),
                next: 0,
            }
        }

        fn push(&mut self, bytes: usize, now: u64) {
            self.push_asking(bytes, now, 0);
        }

        fn push_asking(&mut self, bytes: usize, now: u64, reply_bytes: usize) {
            let sink = Box::new(Recorder(self.refused.clone(), self.next));
            self.next += 1;
            let commands = Bytes::from(vec![0; bytes]);
            self.proposals.push(
                Proposal {
                    commands,
                    count: 1,
                    reply_bytes,
                    sink,
                },
                now,
            );
        }

        fn refused(&self) -> Vec<(u32, ApiError)> {
            std::mem::take(&mut self.refused.lock().unwrap())
        }

        fn header(&self, entry: &[u8]) -> EntryHeader {
            entry::decode(entry).unwrap().0
        }
    }

    #[test]
    fn many_proposals_share_an_entry() {
        let mut test = Test::new();
        for _ in 0..100 {
            test.push(50, 0);
        }
        for number in [1000, 1050] {
            let entry = test.proposals.next_entry().unwrap();
            let header = test.header(&entry);
            assert_eq!(
                (header.proposer, header.number, header.count),
                (9, number, 50)
            );
            assert_eq!(entry.len(), entry::HEADER_BYTES + 50 * 58);
        }
        assert!(test.proposals.next_entry().is_none());
        for number in [1000, 1050] {
            let (proposer, count) = (9, 50);
            let header = EntryHeader {
                proposer,
                number,
                count,
            };
            assert_eq!(test.proposals.committed(header).len(), 50);
        }
        assert_eq!(test.proposals.pending(), (0, 0));
        for _ in 0..MIN_SHARE {
            test.push(50, 0);
        }
        let entry = test.proposals.next_entry().unwrap();
        assert_eq!(
            test.header(&entry).count as usize,
            MIN_SHARE,
            "few go together"
        );
    }

    #[test]
    fn after_a_crowd_it_takes_a_while_to_be_lonely() {
        let mut test = Test::new();
        let mut commit = |count| {
            for _ in 0..count {
                test.push(10, 0);
            }
            let entry = test.proposals.next_entry().unwrap();
            assert!(!test.proposals.is_lonely(), "it is under way");
            let header = test.header(&entry);
            test.proposals.committed(header);
            test.proposals.is_lonely()
        };
        assert!(commit(1) && commit(2));
        assert!(!commit(16));
        let lonely: Vec<bool> = (0..5).map(|_| commit(1)).collect();
        assert_eq!(lonely, [false, false, true, true, true]);
    }

    #[test]
    fn entries_are_closed_at_a_mebibyte() {
        let mut test = Test::new();
        for bytes in [600 << 10, 600 << 10, 3 << 20, 10] {
            test.push(bytes, 0);
        }
        let mut numbers = Vec::new();
        while let Some(entry) = test.proposals.next_entry() {
            let header = test.header(&entry);
            numbers.push((header.number, header.count));
        }
        assert_eq!(numbers, [(1000, 1), (1001, 1), (1002, 1), (1003, 1)]);
        test.push(MAX_PROPOSAL_BYTES + 1, 0);
        assert_eq!(test.refused(), [(4, ApiError::RequestTooLarge)]);
    }

    #[test]
    fn entries_are_closed_before_their_answers_are_too_large() {
        let mut test = Test::new();
        let half = ENTRY_REPLY_BYTES / 2;
        for reply_bytes in [half, half, 1, half, 0, ENTRY_REPLY_BYTES, 0, 1] {
            test.push_asking(10, 0, reply_bytes);
        }
        let mut counts = Vec::new();
        while let Some(entry) = test.proposals.next_entry() {
            counts.push(test.header(&entry).count);
        }
        assert_eq!(counts, [2, 3, 2, 1]);
    }

    #[test]
    fn numbers_stay_right_around_timeouts() {
        let mut test = Test::new();
        test.push(10, 0); // sent, answered
        let first = test.proposals.next_entry().unwrap();
        test.push(10, 1); // sent, times out, then is committed
        let second = test.proposals.next_entry().unwrap();
        test.push(10, 2); // times out in the queue: never sent
        test.push(10, 5);
        let header = test.header(&first);
        assert_eq!(test.proposals.committed(header).len(), 1);
        test.proposals.expire(12);
        assert_eq!(
            test.refused(),
            [(1, ApiError::Timeout), (2, ApiError::Timeout)]
        );
        let header = test.header(&second);
        assert!(test.proposals.committed(header).iter().all(Option::is_none));
        let last = test.proposals.next_entry().unwrap();
        let header = test.header(&last);
        assert_eq!((header.number, header.count), (1003, 1));
        test.proposals.leader_lost(1);
        test.proposals.expire(15);
        assert_eq!(test.refused(), [(3, ApiError::TimeoutLeaderFailure)]);
        assert_eq!(test.proposals.pending(), (0, 0));
        assert_eq!(test.proposals.failed, 3);
    }

    #[test]
    fn what_a_lost_leader_had_is_refused_once_the_next_one_commits() {
        let mut test = Test::new();
        for _ in 0..2 {
            test.push(10, 0); // one to be committed, one to be lost
            test.proposals.next_entry().unwrap();
        }
        test.push(10, 0); // raft-rs does not take it, for want of a leader
        let back = test.proposals.next_entry().unwrap();
        test.proposals.put_back(back);
        test.push(10, 0); // still queued
        test.proposals.leader_lost(7);
        test.proposals.settled(7, 0);
        test.proposals.expire(5);
        assert_eq!(test.refused(), []);
        let committed = EntryHeader {
            proposer: test.proposals.member_id,
            number: 1000,
            count: 1,
        };
        assert_eq!(test.proposals.committed(committed).len(), 1);
        test.proposals.settled(8, 0);
        test.proposals.expire(1);
        assert_eq!(test.refused(), [], "it may have been held somewhere");
        test.proposals.expire(2);
        assert_eq!(test.refused(), [(1, ApiError::TimeoutLeaderFailure)]);
        test.proposals.settled(9, 2);
        test.proposals.expire(5);
        assert_eq!(test.refused(), []);
        assert_eq!(test.proposals.pending().0, 2);
        let numbers: Vec<_> = (0..2)
            .map(|_| {
                let entry = test.proposals.next_entry().unwrap();
                test.header(&entry).number
            })
            .collect();
        assert_eq!(numbers, [1002, 1003]);
    }

    #[test]
    fn an_entry_put_back_comes_first() {
        let mut test = Test::new();
        test.push(10, 0);
        let entry = test.proposals.next_entry().unwrap();
        test.proposals.put_back(entry.clone());
        test.push(10, 0);
        assert_eq!(test.proposals.next_entry().unwrap(), entry);
        let next = test.proposals.next_entry().unwrap();
        assert_eq!(test.header(&next).number, 1001);
    }

    #[test]
    fn an_entry_whose_first_proposal_is_forgotten_answers_the_others() {
        let mut test = Test::new();
        test.push(10, 0);
        test.push(10, 50);
        let entry = test.proposals.next_entry().unwrap();
        let header = test.header(&entry);
        assert_eq!((header.number, header.count), (1000, 2));
        for tick in 1.. {
            test.proposals.expire(tick);
            if !test.refused().is_empty() {
                break;
            }
        }
        let sinks = test.proposals.committed(header);
        let answered: Vec<_> = sinks.iter().map(Option::is_some).collect();
        assert_eq!(answered, [false, true]);
    }

    #[test]
    fn entries_of_others_and_of_an_earlier_life_have_no_sinks() {
        let mut test = Test::new();
        test.push(10, 0);
        for (proposer, number) in [(8, 1000), (9, 999), (9, 1001), (9, 5)] {
            let header = EntryHeader {
                proposer,
                number,
                count: 1,
            };
            assert!(test.proposals.committed(header).is_empty());
        }
        test.proposals.refuse_all(ApiError::Stopped);
        assert_eq!(test.refused(), [(0, ApiError::Stopped)]);
    }
}
