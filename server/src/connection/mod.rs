//! One client connection that speaks the binary protocol: one task, which reads,
//! answers and writes.
//!
//! Invariants:
//! - nothing is allocated, locked or woken per request where per batch will do:
//!   all writes of one read of the socket are one proposal, all linearizable
//!   reads one waiter;
//! - the socket is not read while too much is in flight or waits to be sent, so
//!   that a client which does not read its answers slows down itself alone;
//! - output in memory is bounded by `OUT_ROOM` plus one piece of an answer;
//! - a poll ends once its `Budget` is spent, and keeps no view beyond its end.

mod budget;
mod direct;
mod inbox;
mod intake;
mod ranges;
mod snapshot;
mod work;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use varve_protocol::{Decoder, FrameError, Step, WireError, encode_connection_error, encode_error};
use varve_types::ApiError;

pub(crate) use budget::Budget;
pub use inbox::Inbox;

use crate::metrics::add;
use crate::rate_limit::LogLimit;
use crate::service::Service;
use crate::watch::WatchSet;
use direct::Direct;
use inbox::Delivery;
pub(crate) use inbox::{ChangeDone, Mail};
use intake::{Batch, Spares};
use ranges::PausedRange;
use snapshot::SnapshotOut;
use work::Work;

/// Requests that may be in flight on one connection.
const MAX_IN_FLIGHT: usize = 8_192;
/// Bytes of requests that may be in flight on one connection.
const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;
/// Bytes that the answers of all writes in flight on one connection may come to:
/// one answer of the largest kind, or many of a value each. What a proposal
/// passes it by is one answer.
const MAX_IN_FLIGHT_REPLY_BYTES: usize = varve_types::MAX_REPLY_BYTES;
/// Output past which nothing more is answered from views or sent to watches.
const OUT_ROOM: usize = 256 << 10;
/// Ranges that may be under way on one connection; further reads wait for them.
const MAX_PAUSED: usize = 16;
/// Output past which the socket is not read.
const OUT_READ_LIMIT: usize = 4 << 20;
/// Size of the input buffer at first, and up to which it grows with the traffic.
const INPUT_FIRST: usize = 4 << 10;
const INPUT_MOST: usize = 64 << 10;
/// Capacity of the output buffer that an idle connection keeps.
const OUT_KEPT: usize = 64 << 10;
/// Writes in flight up to which their answers may go to the socket past the task.
const DIRECT_WRITES: usize = 16;
/// How long, and how much, is read and thrown away after an error, so that the
/// other side gets to see the error before the reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// A connection.
pub struct Connection {
    service: Arc<Service>,
    inbox: Arc<Inbox>,
    stream: TcpStream,
    peer: String,
    log_limit: Arc<LogLimit>,
    decoder: Decoder,
    input: Vec<u8>,
    filled: usize,
    out: Vec<u8>,
    sent: usize,
    /// Swapped with what the inbox holds.
    mail: Mail,
    spares: Spares,
    work: VecDeque<Work>,
    /// Ranges with more to answer, behind all reads that are not: a long range must
    /// not hold up short ones.
    ranges: VecDeque<PausedRange>,
    /// Reads left no time for a range in the last poll.
    ranges_waited: bool,
    watches: Option<WatchSet>,
    /// One at a time: its view keeps old pages.
    snapshot: Option<SnapshotOut>,
    notice: Option<Pin<Box<Sleep>>>,
    in_flight: usize,
    in_flight_bytes: usize,
    in_flight_reply_bytes: usize,
    /// Whole frames may be left in the input, because too much was in flight.
    held: bool,
    /// The client has closed its side.
    ended: bool,
    /// The connection ends once the output is written.
    failed: bool,
}

impl Connection {
    /// A connection on `stream`.
    pub fn new(service: Arc<Service>, stream: TcpStream, log_limit: Arc<LogLimit>) -> Self {
        let peer = match stream.peer_addr() {
            Ok(address) => address.to_string(),
            Err(_) => "a client".to_owned(),
        };
        Self {
            decoder: Decoder::for_requests(service.limits.request_bytes),
            service,
            inbox: Arc::default(),
            stream,
            peer,
            log_limit,
            input: vec![0; INPUT_FIRST],
            filled: 0,
            out: Vec::new(),
            sent: 0,
            mail: Mail::default(),
            spares: Spares::default(),
            work: VecDeque::new(),
            ranges: VecDeque::new(),
            ranges_waited: false,
            watches: None,
            snapshot: None,
            notice: None,
            in_flight: 0,
            in_flight_bytes: 0,
            in_flight_reply_bytes: 0,
            held: false,
            ended: false,
            failed: false,
        }
    }

    /// Serves it until the client or an error ends it.
    pub async fn run(mut self) {
        let ended = std::future::poll_fn(|context| self.poll(context)).await;
        if let Err(error) = ended {
            tracing::debug!("connection of {}: {error}", self.peer);
        } else if self.failed {
            self.linger().await;
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut budget = Budget::new();
        loop {
            let mut progress = self.take_mail();
            self.fill_output(&mut budget);
            progress |= self.poll_notice(context);
            if let Some(snapshot) = &mut self.snapshot
                && snapshot.poll_overdue(context, &mut self.out)
            {
                self.snapshot = None;
                progress = true;
            }
            match self.poll_write(context) {
                Poll::Ready(result) => progress |= result?,
                Poll::Pending => {}
            }
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if self.may_read() && self.held {
                self.take_frames();
                progress = true;
            } else if self.may_read() {
                match self.poll_read(context) {
                    Poll::Ready(result) => {
                        result?;
                        progress = true;
                    }
                    Poll::Pending => {}
                }
            }
            if budget.is_spent() {
                // There may be more to do, but the worker's other connections come first. A
                // mere wake-up would not do: a worker looks at its sockets only now and then
                // while a task is ready, and this one always would be.
                let _ = std::pin::pin!(tokio::task::yield_now()).poll(context);
            } else if progress {
                continue;
            }
            self.work.iter_mut().for_each(Work::release);
            let lent = self.may_lend();
            let lent = lent.then(|| Direct::new(&self.stream, &self.service));
            // What came meanwhile is for the next poll, if this one's budget is spent.
            if self.inbox.wait(context, lent) || budget.is_spent() {
                return Poll::Pending;
            }
        }
    }

    /// Whether others may write to the socket while this waits: it has nothing to send, and
    /// what they leave to be counted is bounded.
    fn may_lend(&self) -> bool {
        (1..=DIRECT_WRITES).contains(&self.in_flight)
            && self.out.is_empty()
            && !self.failed
            && !self.ended
    }

    fn is_done(&self) -> bool {
        let written = self.sent == self.out.len();
        let answered = self.in_flight == 0 && self.work.is_empty() && self.ranges.is_empty();
        let answered = answered && self.snapshot.is_none();
        written && (self.failed || (self.ended && answered))
    }

    fn may_read(&self) -> bool {
        !self.failed
            && !self.ended
            && self.in_flight < MAX_IN_FLIGHT
            && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
            && self.in_flight_reply_bytes < MAX_IN_FLIGHT_REPLY_BYTES
            && self.out.len() - self.sent < OUT_READ_LIMIT
    }

    /// Takes what other threads left; whether there was something.
    fn take_mail(&mut self) -> bool {
        if !self.inbox.take(&mut self.mail) {
            return false;
        }
        for delivery in self.mail.deliveries.drain(..) {
            match delivery {
                Delivery::Change(done) => {
                    self.in_flight -= 1;
                    self.service.answer_change(&mut self.out, done);
                }
                Delivery::Writes(writes, started, outcome) => {
                    self.in_flight -= writes.requests.len();
                    self.in_flight_bytes -= writes.bytes;
                    self.in_flight_reply_bytes -= writes.reply_bytes;
                    let (service, out) = (&self.service, &mut self.out);
                    service.metrics.observe(&writes.kinds, started.elapsed());
                    match outcome {
                        Ok(completion) => {
                            let inbox = &self.inbox;
                            self.in_flight +=
                                work::answer_writes(service, inbox, out, &writes, completion);
                        }
                        Err(error) => {
                            let requests = writes.requests.iter().copied();
                            work::refuse_all(service, out, requests, error);
                        }
                    }
                    self.spares.keep_writes(writes);
                }
                Delivery::Answered(writes, unsent) => {
                    self.in_flight -= writes.requests.len();
                    self.in_flight_bytes -= writes.bytes;
                    self.in_flight_reply_bytes -= writes.reply_bytes;
                    self.out.extend_from_slice(&unsent);
                    self.spares.keep_writes(writes);
                }
                Delivery::Reads(reads, started, Ok((view, term))) => {
                    let work = Work::new(&self.service, reads, started, view, term);
                    self.work.push_back(work);
                }
                Delivery::Maintained(id, opcode, outcome) => {
                    self.in_flight -= 1;
                    work::answer_maintained(&self.service, &mut self.out, (id, opcode), outcome);
                }
                Delivery::Reads(reads, started, Err(error)) => {
                    self.in_flight -= reads.requests.len();
                    self.in_flight_bytes -= reads.bodies.len();
                    let (service, out) = (&self.service, &mut self.out);
                    service.metrics.observe(&reads.kinds, started.elapsed());
                    let requests = reads.requests.iter().map(|&(id, opcode, _)| (id, opcode));
                    work::refuse_all(service, out, requests, error);
                }
            }
        }
        if let Some(watches) = &mut self.watches {
            watches.woken(&self.mail.watches);
        }
        self.mail.watches.clear();
        true
    }

    fn has_room(&self) -> bool {
        self.out.len() - self.sent < OUT_ROOM
    }

    /// Answers what can be answered here, as far as there is room and `budget`.
    fn fill_output(&mut self, budget: &mut Budget) {
        if std::mem::take(&mut self.ranges_waited) && self.has_room() {
            self.resume_range(budget);
        }
        while self.has_room() && !budget.is_spent() && self.ranges.len() < MAX_PAUSED {
            let Some(work) = self.work.front_mut() else {
                break;
            };
            work.step(&self.service, &mut self.out, budget, &mut self.ranges);
            if let Some(reads) = work.finished(&self.service) {
                self.work.pop_front();
                self.in_flight -= reads.requests.len();
                self.in_flight_bytes -= reads.bodies.len();
                self.spares.keep_reads(reads);
            }
        }
        self.ranges_waited = !self.ranges.is_empty() && budget.is_spent();
        while self.has_room() && !budget.is_spent() && !self.ranges.is_empty() {
            self.resume_range(budget);
        }
        while self.has_room()
            && !budget.is_spent()
            && let Some(snapshot) = self.snapshot.as_mut().filter(|it| it.may_send())
        {
            if snapshot.send(&mut self.out) {
                self.snapshot = None;
            }
            budget.charge(Budget::SCAN);
        }
        let room = self.sent + OUT_ROOM;
        if let Some(watches) = &mut self.watches {
            watches.pump(&mut self.out, room, budget);
        }
    }

    /// Goes on with the first range that is under way: one at a time, so that no
    /// more than one collects keys to sort.
    fn resume_range(&mut self, budget: &mut Budget) {
        if let Some(range) = self.ranges.front_mut() {
            let view = self.service.node.view();
            if range.resume(&self.service, &mut self.out, &view) {
                self.ranges.pop_front();
            }
            budget.charge(Budget::SCAN);
        }
    }

    fn poll_notice(&mut self, context: &mut Context<'_>) -> bool {
        let Some(watches) = &mut self.watches else {
            return false;
        };
        let Some(due) = watches.next_notice() else {
            self.notice = None;
            return false;
        };
        let sleep = self
            .notice
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
        if sleep.as_mut().poll(context).is_pending() {
            return false;
        }
        let has_room = self.out.len() - self.sent < OUT_ROOM;
        watches.notice(Instant::now(), has_room, &mut self.out);
        self.notice = None;
        true
    }

    /// Writes as much as the socket takes; whether that was something.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut wrote = false;
        while self.sent < self.out.len() {
            let rest = &self.out[self.sent..];
            match Pin::new(&mut self.stream).poll_write(context, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => {
                    self.sent += count;
                    add(&self.service.metrics.sent_bytes, count as u64);
                    wrote = true;
                }
                Poll::Pending => break,
            }
        }
        if self.sent == self.out.len() && self.sent > 0 {
            self.sent = 0;
            self.out.clear();
            self.out.shrink_to(OUT_KEPT);
        } else if self.sent > OUT_ROOM {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Poll::Ready(Ok(wrote))
    }

    /// Reads once and hands over what came. The input has room: it holds no whole frame.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(&mut self.input[self.filled..]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        let count = buffer.filled().len();
        if count == 0 {
            self.ended = true;
            if let Err(error) = self.decoder.finish(&self.input[..self.filled]) {
                self.refuse(&error);
            }
            return Poll::Ready(Ok(()));
        }
        self.filled += count;
        add(&self.service.metrics.received_bytes, count as u64);
        self.take_frames();
        Poll::Ready(Ok(()))
    }

    fn take_frames(&mut self) {
        let mut batch = Batch::new(&mut self.spares, self.filled);
        let input = std::mem::take(&mut self.input);
        let mut start = 0;
        self.held = false;
        let needed = loop {
            if self.in_flight_reply_bytes + batch.reply_bytes() >= MAX_IN_FLIGHT_REPLY_BYTES {
                self.held = true;
                break 0;
            }
            match self.decoder.step(&input[start..self.filled]) {
                Ok(Step::Frame(frame, length)) => {
                    self.take_request(&frame, &mut batch);
                    start += length;
                    if batch.is_full() {
                        self.hand_over(std::mem::take(&mut batch));
                    }
                }
                Ok(Step::TooLarge(header, length)) => {
                    add(&self.service.metrics.failed, 1);
                    let error = WireError::from(ApiError::RequestTooLarge);
                    encode_error(&mut self.out, header.opcode, header.request_id, &error);
                    start += length;
                }
                Ok(Step::Skipped(length)) => start += length,
                Ok(Step::NeedMore(needed)) => break needed,
                Err(error) => {
                    self.refuse(&error);
                    break 0;
                }
            }
        };
        self.input = input;
        self.keep_rest(start, needed);
        self.hand_over(batch);
    }

    /// Moves the unread bytes to the front and makes room for what is needed.
    fn keep_rest(&mut self, start: usize, needed: usize) {
        let was_full = self.filled == self.input.len();
        self.input.copy_within(start..self.filled, 0);
        self.filled -= start;
        let size = self.input.len();
        let wanted = if was_full && size < INPUT_MOST {
            size * 2
        } else {
            size
        };
        if needed > size || wanted > size {
            self.input.resize(wanted.max(needed), 0);
        } else if size > INPUT_MOST && self.filled == 0 {
            // One large request must not keep its memory for the connection's life.
            self.input.truncate(INPUT_MOST);
            self.input.shrink_to_fit();
        }
    }

    /// Says why the connection can't go on; it ends once that is written.
    fn refuse(&mut self, error: &FrameError) {
        self.failed = true;
        add(&self.service.metrics.malformed, 1);
        self.log_limited(format_args!("closing it: {error}"));
        encode_connection_error(&mut self.out, &WireError::from(error));
    }

    fn log_limited(&self, what: fmt::Arguments<'_>) {
        if let Some(suppressed) = self.log_limit.pass() {
            tracing::warn!(suppressed, "connection of {}: {what}", self.peer);
        }
    }

    /// Lets the other side read the last frame: closing with unread input would
    /// reset the connection and take the frame away.
    async fn linger(&mut self) {
        let _ = self.stream.shutdown().await;
        let drain = async {
            let mut thrown = 0;
            let mut buffer = [0; 4096];
            while thrown < LINGER_BYTES {
                match self.stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => thrown += count,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, drain).await;
    }

    /// The output and the watches, which are made with the first watch.
    fn watches(&mut self) -> (&mut Vec<u8>, &mut WatchSet) {
        let watches = self.watches.get_or_insert_with(|| {
            WatchSet::new(Arc::clone(&self.service), Arc::clone(&self.inbox))
        });
        (&mut self.out, watches)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.inbox.close();
    }
}
