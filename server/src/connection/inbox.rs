//! What other threads leave for a connection, and how they wake it.
//!
//! Invariant: a wake-up happens only while the connection waits, and then once,
//! however much was left: whoever leaves the first thing takes the waker with it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Waker};
use std::time::Instant;

use varve_engine::mvcc::View;
use varve_raft::{
    ChangeSink, Completion, DefragmentSink, Membership, ReadSink, RemovalSink, ReplySink,
};
use varve_types::{ApiError, ResponseHeader};

use super::direct::Direct;
use super::work::answer_writes;
use crate::metrics::{Kinds, add};

/// Requests that were proposed together.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// Request id and opcode of each, in the order of the proposal.
    pub(crate) requests: Vec<(u64, u8)>,
    /// Places in it of compactions that are answered once the history is gone.
    pub(crate) physical: Vec<usize>,
    /// Bytes of their bodies, for the connection's bound.
    pub(crate) bytes: usize,
    /// The most that their answers may hold of keys and values, for its other bound.
    pub(crate) reply_bytes: usize,
    /// How many of each kind.
    pub(crate) kinds: Kinds,
}

impl Writes {
    /// Empties it, to be used again.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
        self.physical.clear();
        (self.bytes, self.reply_bytes) = (0, 0);
        self.kinds = Kinds::default();
    }
}

/// Requests that wait for one linearizable view.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Request id, opcode, and where the body ends in `bodies`.
    pub(crate) requests: Vec<(u64, u8, usize)>,
    /// The bodies, one after the other.
    pub(crate) bodies: Vec<u8>,
    /// How many of each kind.
    pub(crate) kinds: Kinds,
}

impl Reads {
    /// Empties it, to be used again.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
        self.bodies.clear();
        self.kinds = Kinds::default();
    }
}

/// Something that a connection waited for.
pub(crate) enum Delivery {
    /// Answers to a proposal.
    Writes(Writes, Instant, Result<Completion, ApiError>),
    /// A proposal whose answers went to the socket, but for these bytes.
    Answered(Writes, Vec<u8>),
    /// A view that reads may be answered from, with the Raft term.
    Reads(Reads, Instant, Result<(Arc<View>, u64), ApiError>),
    /// What a compaction dropped is removed, or free space is given back: the request,
    /// its opcode, and the header of the answer.
    Maintained(u64, u8, Result<ResponseHeader, ApiError>),
    /// What came of a change.
    Change(ChangeDone),
}

/// What came of a request that changes the membership or moves leadership.
pub(crate) struct ChangeDone {
    /// The request.
    pub(crate) id: u64,
    pub(crate) opcode: u8,
    /// The member that it adds, if it does.
    pub(crate) added: u64,
    /// The members after it.
    pub(crate) outcome: Result<Arc<Membership>, ApiError>,
}

impl ChangeDone {
    /// Takes the outcome to `inbox`.
    pub(crate) fn sink(inbox: &Arc<Inbox>, id: u64, opcode: u8, added: u64) -> Box<dyn ChangeSink> {
        Box::new(ChangeWaiter {
            inbox: Arc::clone(inbox),
            // Dropped unused, it says that the node has stopped.
            pending: Some(Self {
                id,
                opcode,
                added,
                outcome: Err(ApiError::Stopped),
            }),
        })
    }
}

struct ChangeWaiter {
    inbox: Arc<Inbox>,
    pending: Option<ChangeDone>,
}

impl ChangeSink for ChangeWaiter {
    fn done(mut self: Box<Self>, outcome: Result<Arc<Membership>, ApiError>) {
        if let Some(pending) = &mut self.pending {
            pending.outcome = outcome;
        }
    }
}

impl Drop for ChangeWaiter {
    fn drop(&mut self) {
        if let Some(done) = self.pending.take() {
            self.inbox.deliver(Delivery::Change(done));
        }
    }
}

/// Everything left at one time.
#[derive(Default)]
pub(crate) struct Mail {
    /// What was waited for.
    pub(crate) deliveries: Vec<Delivery>,
    /// Watches that have something to send.
    pub(crate) watches: Vec<u64>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.deliveries.is_empty() && self.watches.is_empty()
    }
}

#[derive(Default)]
struct State {
    mail: Mail,
    waker: Option<Waker>,
    closed: bool,
    /// The socket, while the task waits and has nothing to send.
    lent: Option<Direct>,
    /// Memory for answers that leave past the task.
    out: Vec<u8>,
}

/// The inbox of a connection.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves the state in pieces when it panics.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn leave(&self, put: impl FnOnce(&mut Mail)) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        put(&mut state.mail);
        // What is written past the task must not overtake this, nor come between its parts.
        state.lent = None;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn deliver(&self, delivery: Delivery) {
        self.leave(|mail| mail.deliveries.push(delivery));
    }

    /// Says that these watches have something to send.
    pub(crate) fn wake_watches(&self, watches: &[u64]) {
        self.leave(|mail| mail.watches.extend_from_slice(watches));
    }

    /// Writes the answers to a proposal to the socket, if it is lent. Else they come
    /// back.
    fn answer(
        self: &Arc<Self>,
        writes: Writes,
        started: Instant,
        completion: Completion,
    ) -> Option<(Writes, Completion)> {
        let mut state = self.lock();
        let Some(direct) = state.lent.take() else {
            return Some((writes, completion));
        };
        let mut out = std::mem::take(&mut state.out);
        let service = &direct.service;
        service.metrics.observe(&writes.kinds, started.elapsed());
        answer_writes(service, self, &mut out, &writes, completion);
        // The task meets the errors of its socket by itself.
        let count = direct.write(&out).unwrap_or(0);
        add(&service.metrics.sent_bytes, count as u64);
        let unsent = out[count..].to_vec();
        let waker = match unsent.is_empty() {
            true => {
                state.lent = Some(direct);
                None
            }
            false => state.waker.take(),
        };
        state
            .mail
            .deliveries
            .push(Delivery::Answered(writes, unsent));
        out.clear();
        out.shrink_to(super::OUT_KEPT);
        state.out = out;
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Moves everything into `mail`, which must be empty; whether there was something.
    /// From here on the task is awake: nobody wakes it, nobody has its socket.
    pub(crate) fn take(&self, mail: &mut Mail) -> bool {
        let mut state = self.lock();
        (state.waker, state.lent) = (None, None);
        if state.mail.is_empty() {
            return false;
        }
        std::mem::swap(&mut state.mail, mail);
        true
    }

    /// Has the task woken by the next thing that is left, and lends its socket until
    /// then; not if there is something already: whether it may wait.
    pub(super) fn wait(&self, context: &Context<'_>, socket: Option<Direct>) -> bool {
        let mut state = self.lock();
        if !state.mail.is_empty() {
            return false;
        }
        state.waker = Some(context.waker().clone());
        state.lent = socket;
        true
    }

    /// Drops what is there and what is still to come.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.lent = None;
        let mail = std::mem::take(&mut state.mail);
        state.waker = None;
        drop(state);
        // Views are let go outside of the lock.
        drop(mail);
    }
}

/// Takes the answers of a proposal to its connection. Dropped unused, it says
/// that the node has stopped.
pub(crate) struct WriteSink {
    inbox: Arc<Inbox>,
    pending: Option<(Writes, Instant)>,
}

impl WriteSink {
    pub(crate) fn new(inbox: Arc<Inbox>, writes: Writes, started: Instant) -> Box<Self> {
        Box::new(Self {
            inbox,
            pending: Some((writes, started)),
        })
    }

    fn end(&mut self, outcome: Result<Completion, ApiError>) {
        if let Some((writes, started)) = self.pending.take() {
            self.inbox
                .deliver(Delivery::Writes(writes, started, outcome));
        }
    }
}

impl ReplySink for WriteSink {
    fn complete(mut self: Box<Self>, mut completion: Completion) {
        if completion.is_alone
            && let Some((writes, started)) = self
                .pending
                .take_if(|(writes, _)| writes.physical.is_empty())
        {
            let Some((writes, back)) = self.inbox.answer(writes, started, completion) else {
                return;
            };
            self.pending = Some((writes, started));
            completion = back;
        }
        self.end(Ok(completion));
    }

    fn refuse(mut self: Box<Self>, error: ApiError) {
        self.end(Err(error));
    }
}

impl Drop for WriteSink {
    fn drop(&mut self) {
        self.end(Err(ApiError::Stopped));
    }
}

/// Takes a view to the reads of a connection.
pub(crate) struct ViewSink {
    inbox: Arc<Inbox>,
    pending: Option<(Reads, Instant)>,
}

impl ViewSink {
    pub(crate) fn new(inbox: Arc<Inbox>, reads: Reads, started: Instant) -> Box<Self> {
        Box::new(Self {
            inbox,
            pending: Some((reads, started)),
        })
    }

    fn end(&mut self, outcome: Result<(Arc<View>, u64), ApiError>) {
        if let Some((reads, started)) = self.pending.take() {
            self.inbox.deliver(Delivery::Reads(reads, started, outcome));
        }
    }
}

impl ReadSink for ViewSink {
    fn ready(mut self: Box<Self>, view: Arc<View>, term: u64) {
        self.end(Ok((view, term)));
    }

    fn refuse(mut self: Box<Self>, error: ApiError) {
        self.end(Err(error));
    }
}

impl Drop for ViewSink {
    fn drop(&mut self) {
        self.end(Err(ApiError::Stopped));
    }
}

/// Takes the answer to a request for maintenance to its connection once that is done.
/// Dropped unused, it says that the node has stopped.
pub(crate) struct MaintainedSink {
    inbox: Arc<Inbox>,
    pending: Option<(u64, u8, ResponseHeader)>,
}

impl MaintainedSink {
    pub(crate) fn new(
        inbox: Arc<Inbox>,
        request_id: u64,
        opcode: u8,
        header: ResponseHeader,
    ) -> Box<Self> {
        Box::new(Self {
            inbox,
            pending: Some((request_id, opcode, header)),
        })
    }

    fn end(&mut self, outcome: Result<(), ApiError>) {
        if let Some((id, opcode, header)) = self.pending.take() {
            let outcome = outcome.map(|()| header);
            self.inbox
                .deliver(Delivery::Maintained(id, opcode, outcome));
        }
    }
}

impl RemovalSink for MaintainedSink {
    fn removed(mut self: Box<Self>) {
        self.end(Ok(()));
    }
}

impl DefragmentSink for MaintainedSink {
    fn done(mut self: Box<Self>, outcome: Result<(), ApiError>) {
        self.end(outcome);
    }
}

impl Drop for MaintainedSink {
    fn drop(&mut self) {
        self.end(Err(ApiError::Stopped));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn one_wake_between_two_looks() {
        let inbox = Arc::new(Inbox::default());
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let context = Context::from_waker(&waker);
        let mut mail = Mail::default();
        inbox.wake_watches(&[9]);
        assert!(!inbox.wait(&context, None), "there is something");
        assert!(inbox.take(&mut mail));
        mail = Mail::default();
        assert!(inbox.wait(&context, None));
        assert!(!inbox.take(&mut mail));
        assert!(inbox.wait(&context, None));
        let sink = WriteSink::new(Arc::clone(&inbox), Writes::default(), Instant::now());
        sink.refuse(ApiError::NoLeader);
        drop(WriteSink::new(
            Arc::clone(&inbox),
            Writes::default(),
            Instant::now(),
        ));
        inbox.wake_watches(&[1, 2]);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(inbox.take(&mut mail));
        assert_eq!((mail.deliveries.len(), mail.watches.len()), (2, 2));
        let errors: Vec<_> = mail
            .deliveries
            .iter()
            .map(|delivery| match delivery {
                Delivery::Writes(_, _, Err(error)) => *error,
                _ => ApiError::Corrupt,
            })
            .collect();
        assert_eq!(errors, [ApiError::NoLeader, ApiError::Stopped]);
        inbox.close();
        inbox.wake_watches(&[3]);
        assert!(!inbox.take(&mut Mail::default()));
    }
}
