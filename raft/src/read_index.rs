//! Linearizable reads.
//!
//! Readers that come in while a round is out wait for the next one. A round asks
//! the leader for an index that is at least as new as everything acknowledged
//! before the round began (ReadIndex of the Raft thesis, 6.4); its readers may be
//! served once this member has applied up to it. A round's context is unique for
//! ever, so that a late answer to an earlier life's round proves nothing.

use std::collections::VecDeque;

use varve_types::ApiError;

use crate::sink::ReadSink;

/// Rounds that may be out at once.
const MAX_ROUNDS: usize = 2;

/// Readers that may wait at once.
const MAX_READERS: usize = 100_000;

type Readers = VecDeque<(u64, Box<dyn ReadSink>)>;

struct Round {
    number: u64,
    /// Tick at which it was last asked for; `None` if it must be asked for (again).
    asked: Option<u64>,
    readers: Readers,
}

/// All readers of this member that wait.
pub(crate) struct ReadIndex {
    member_id: u64,
    incarnation: u64,
    next_number: u64,
    /// In no round yet, with their deadlines.
    queued: Readers,
    rounds: VecDeque<Round>,
    /// The index is known; not yet applied.
    indexed: VecDeque<(u64, Readers)>,
    count: usize,
    timeout_ticks: u64,
    retry_ticks: u64,
    /// How many were refused or timed out.
    pub(crate) failed: u64,
}

impl ReadIndex {
    /// `incarnation` must differ at each start of the member.
    pub(crate) fn new(
        member_id: u64,
        incarnation: u64,
        timeout_ticks: u64,
        retry_ticks: u64,
    ) -> Self {
        Self {
            member_id,
            incarnation,
            next_number: 1,
            queued: Readers::new(),
            rounds: VecDeque::new(),
            indexed: VecDeque::new(),
            count: 0,
            timeout_ticks,
            retry_ticks,
            failed: 0,
        }
    }

    /// Queues a reader.
    pub(crate) fn push(&mut self, sink: Box<dyn ReadSink>, now: u64) {
        if self.count >= MAX_READERS {
            self.failed += 1;
            return sink.refuse(ApiError::TooManyRequests);
        }
        self.count += 1;
        self.queued.push_back((now + self.timeout_ticks, sink));
    }

    /// How many readers wait.
    pub(crate) fn pending(&self) -> usize {
        self.count
    }

    /// Whether readers wait for a round to begin or to be asked for again.
    pub(crate) fn has_unasked(&self) -> bool {
        (!self.queued.is_empty() && self.rounds.len() < MAX_ROUNDS)
            || self.rounds.iter().any(|round| round.asked.is_none())
    }

    /// Serves all queued readers at `index` without a round; for a cluster of one.
    pub(crate) fn index_without_round(&mut self, index: u64) {
        let mut readers = std::mem::take(&mut self.queued);
        for round in self.rounds.drain(..).rev() {
            for reader in round.readers.into_iter().rev() {
                readers.push_front(reader);
            }
        }
        if !readers.is_empty() {
            self.indexed.push_back((index, readers));
        }
    }

    /// The contexts to ask the leader with now.
    pub(crate) fn ask(&mut self, now: u64) -> Vec<Vec<u8>> {
        if !self.queued.is_empty() && self.rounds.len() < MAX_ROUNDS {
            let readers = std::mem::take(&mut self.queued);
            self.rounds.push_back(Round {
                number: self.next_number,
                asked: None,
                readers,
            });
            self.next_number += 1;
        }
        let mut contexts = Vec::new();
        for round in &mut self.rounds {
            if round.asked.is_none() {
                round.asked = Some(now);
                let ids = [self.member_id, self.incarnation, round.number];
                contexts.push(ids.iter().flat_map(|id| id.to_le_bytes()).collect());
            }
        }
        contexts
    }

    /// Takes the answer to a round. It answers earlier rounds as well: its index
    /// is at least as new.
    pub(crate) fn answered(&mut self, context: &[u8], index: u64) {
        let mut ids = [0; 3];
        if context.len() != 24 {
            return;
        }
        for (id, bytes) in ids.iter_mut().zip(context.chunks_exact(8)) {
            *id = bytes
                .iter()
                .rev()
                .fold(0, |id, byte| id << 8 | u64::from(*byte));
        }
        if ids[..2] != [self.member_id, self.incarnation] {
            return;
        }
        while self
            .rounds
            .front()
            .is_some_and(|round| round.number <= ids[2])
        {
            if let Some(round) = self.rounds.pop_front() {
                self.indexed.push_back((index, round.readers));
            }
        }
    }

    /// Readers that may be served now that `applied` is.
    pub(crate) fn take_ready(&mut self, applied: u64, ready: &mut Vec<Box<dyn ReadSink>>) {
        while self
            .indexed
            .front()
            .is_some_and(|(index, _)| *index <= applied)
        {
            if let Some((_, readers)) = self.indexed.pop_front() {
                self.count -= readers.len();
                ready.extend(readers.into_iter().map(|(_, sink)| sink));
            }
        }
    }

    /// Asks again after a change of leader or term; the old leader's answers may
    /// be lost.
    pub(crate) fn ask_again(&mut self) {
        for round in &mut self.rounds {
            round.asked = None;
        }
    }

    /// Refuses those that waited too long, and asks again where no answer came.
    pub(crate) fn expire(&mut self, now: u64) {
        for round in &mut self.rounds {
            if round
                .asked
                .is_some_and(|asked| asked + self.retry_ticks <= now)
            {
                round.asked = None;
            }
        }
        let mut refused = 0;
        let mut expire = |readers: &mut Readers, error: ApiError| {
            while readers
                .front()
                .is_some_and(|(deadline, _)| *deadline <= now)
            {
                if let Some((_, sink)) = readers.pop_front() {
                    refused += 1;
                    sink.refuse(error);
                }
            }
        };
        for (_, readers) in &mut self.indexed {
            expire(readers, ApiError::TimeoutWaitAppliedIndex);
        }
        for round in &mut self.rounds {
            expire(&mut round.readers, ApiError::Timeout);
        }
        expire(&mut self.queued, ApiError::Timeout);
        self.indexed.retain(|(_, readers)| !readers.is_empty());
        self.rounds.retain(|round| !round.readers.is_empty());
        self.count -= refused;
        self.failed += refused as u64;
    }

    /// Refuses all; for the end of the node.
    pub(crate) fn refuse_all(&mut self, error: ApiError) {
        let rounds = self.rounds.drain(..).map(|round| round.readers);
        let indexed = self.indexed.drain(..).map(|(_, readers)| readers);
        for (_, sink) in indexed.chain(rounds).flatten().chain(self.queued.drain(..)) {
            sink.refuse(error);
        }
        self.failed += self.count as u64;
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use varve_engine::mvcc::View;

    use super::*;

    struct Reader(Arc<Mutex<Vec<ApiError>>>);

    impl ReadSink for Reader {
        fn ready(self: Box<Self>, _view: Arc<View>, _term: u64) {}
        fn refuse(self: Box<Self>, error: ApiError) {
            self.0.lock().unwrap().push(error);
        }
    }

    fn new() -> (ReadIndex, Arc<Mutex<Vec<ApiError>>>) {
        (ReadIndex::new(1, 77, 10, 5), Arc::default())
    }

    fn ready(reads: &mut ReadIndex, applied: u64) -> usize {
        let mut ready = Vec::new();
        reads.take_ready(applied, &mut ready);
        ready.len()
    }

    #[test]
    fn readers_of_one_turn_share_a_round() {
        let (mut reads, errors) = new();
        for _ in 0..50 {
            reads.push(Box::new(Reader(errors.clone())), 0);
        }
        let contexts = reads.ask(0);
        assert_eq!(contexts.len(), 1);
        assert!(!reads.has_unasked());
        reads.answered(&contexts[0], 8);
        assert_eq!(ready(&mut reads, 7), 0);
        assert_eq!(ready(&mut reads, 8), 50);
    }

    #[test]
    fn only_two_rounds_are_out_and_a_later_answer_serves_earlier_ones() {
        let (mut reads, errors) = new();
        let mut contexts = Vec::new();
        for _ in 0..3 {
            reads.push(Box::new(Reader(errors.clone())), 0);
            contexts.extend(reads.ask(0));
        }
        assert_eq!(contexts.len(), 2);
        reads.answered(&contexts[1], 5);
        assert_eq!(ready(&mut reads, 5), 2);
        assert!(reads.has_unasked());
        assert_eq!(reads.ask(0).len(), 1);
    }

    #[test]
    fn answers_of_another_life_or_member_prove_nothing() {
        let (mut reads, errors) = new();
        reads.push(Box::new(Reader(errors)), 0);
        let context = reads.ask(0).remove(0);
        for byte in [0, 8] {
            let mut other = context.clone();
            other[byte] ^= 1;
            reads.answered(&other, 1);
        }
        reads.answered(b"short", 1);
        assert_eq!(ready(&mut reads, 1), 0);
        reads.answered(&context, 1);
        assert_eq!(ready(&mut reads, 1), 1);
    }

    #[test]
    fn lost_rounds_are_asked_for_again_until_they_time_out() {
        let (mut reads, errors) = new();
        reads.push(Box::new(Reader(errors.clone())), 0);
        let first = reads.ask(0);
        reads.expire(4);
        assert!(!reads.has_unasked());
        reads.expire(5);
        assert_eq!(reads.ask(5), first);
        reads.ask_again();
        assert_eq!(reads.ask(6), first);
        reads.expire(10);
        assert_eq!(*errors.lock().unwrap(), [ApiError::Timeout]);
        assert!(!reads.has_unasked());
    }

    #[test]
    fn waiting_for_the_applied_index_has_its_own_text() {
        let (mut reads, errors) = new();
        reads.push(Box::new(Reader(errors.clone())), 0);
        reads.index_without_round(3);
        reads.expire(10);
        assert_eq!(*errors.lock().unwrap(), [ApiError::TimeoutWaitAppliedIndex]);
        reads.push(Box::new(Reader(errors.clone())), 10);
        reads.refuse_all(ApiError::Stopped);
        assert_eq!(errors.lock().unwrap()[1], ApiError::Stopped);
        assert_eq!(reads.failed, 2);
    }
}
