//! The watches of one connection.
//!
//! A watch sends when it has credit, when the connection's output has room, and
//! in turn with the others, so that a slow or a wide one holds none of them up.
//! Nothing is kept per event: what can't be sent now is read again later, from
//! the hub's ring or from the store.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use varve_engine::mvcc::{EventLimits, View};
use varve_protocol::{
    Empty, ErrorCode, EventsWriter, REPLY_CHUNK, WatchRequest, WatchResponse, WireError,
    encode_error, encode_reply, encode_watch, opcode,
};
use varve_types::{ApiError, EventKind, EventRef, ResponseHeader};

use super::{OwnedRange, Source};
use crate::connection::{Budget, Inbox};
use crate::metrics::{add, subtract};
use crate::service::Service;

/// Most watches of a connection.
const MAX_WATCHES: usize = 65_536;
/// Most bytes of keys that a connection's watches keep.
const MAX_RANGE_BYTES: usize = 16 << 20;
/// Most requests for progress that wait.
const MAX_PROGRESS: usize = 1024;
/// etcd's words for a watch id that is taken.
const DUPLICATE_ID: &str = "etcdserver: mvcc: duplicate watch ID provided on the WatchStream";
/// Changes that one turn of a watch goes over at most (of recent ones: with the rest of
/// their batch), so that a watch of a rare key does not keep its worker for long.
const MAX_SCANNED: usize = 4_000;

struct Watch {
    hub_key: usize,
    range: OwnedRange,
    /// Everything below has been sent.
    next: i64,
    /// Bytes of frames that may still be sent; `None` is no bound.
    credit: Option<i64>,
    prev_kv: bool,
    no_put: bool,
    no_delete: bool,
    progress_notify: bool,
    last_sent: Instant,
    /// Whether it is in `ready`.
    queued: bool,
    /// Whether it waits for credit.
    starved: bool,
}

impl Watch {
    fn wants(&self, event: &EventRef<'_>) -> bool {
        let kind = match event.kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        };
        kind && self.range.range().contains(event.kv.key)
    }

    /// Bytes of events that may be sent at once.
    fn allowance(&self) -> usize {
        match self.credit {
            Some(credit) => REPLY_CHUNK.min(usize::try_from(credit).unwrap_or(0)),
            None => REPLY_CHUNK,
        }
    }

    fn spend(&mut self, bytes: usize) {
        if let Some(credit) = &mut self.credit {
            *credit -= i64::try_from(bytes).unwrap_or(i64::MAX);
        }
    }
}

/// How far one turn of a watch came.
enum Turn {
    /// It is idle, or waits for credit.
    Rests,
    /// There may be more to send.
    GoesOn,
    /// It is over.
    Ended,
}

/// The watches of one connection.
pub(crate) struct WatchSet {
    service: Arc<Service>,
    inbox: Arc<Inbox>,
    watches: HashMap<u64, Watch>,
    ready: VecDeque<u64>,
    range_bytes: usize,
    /// Requests for progress that wait until every watch has caught up.
    progress: Vec<u64>,
    /// Watches with `progress_notify`.
    notified: usize,
    next_notice: Option<Instant>,
}

impl WatchSet {
    pub(crate) fn new(service: Arc<Service>, inbox: Arc<Inbox>) -> Self {
        add(&service.metrics.watch_streams, 1);
        Self {
            service,
            inbox,
            watches: HashMap::new(),
            ready: VecDeque::new(),
            range_bytes: 0,
            progress: Vec::new(),
            notified: 0,
            next_notice: None,
        }
    }

    fn header(&self, revision: i64) -> ResponseHeader {
        self.service.header(revision, self.service.term())
    }

    /// Opens a watch.
    pub(crate) fn create(&mut self, id: u64, request: &WatchRequest<'_>, out: &mut Vec<u8>) {
        let range = OwnedRange::new(request.key, request.range_end);
        if self.watches.len() >= MAX_WATCHES || self.range_bytes + range.bytes() > MAX_RANGE_BYTES {
            let text = format!("the connection has {} watches open", self.watches.len());
            let error = WireError::new(ErrorCode::TooManyInFlight, text);
            return encode_error(out, opcode::WATCH, id, &error);
        }
        let view = self.service.node.view();
        let header = self.header(view.revision());
        let Entry::Vacant(entry) = self.watches.entry(id) else {
            // An answer under this id would end the watch that has it.
            let error = WireError::new(ErrorCode::MalformedBody, DUPLICATE_ID);
            return encode_error(out, opcode::WATCH, id, &error);
        };
        encode_watch(out, id, &header, &WatchResponse::Created);
        let start = request.start_revision;
        if start < 0 || (start > 0 && start < view.compacted()) {
            let error = WireError::compacted(view.compacted().max(0));
            return encode_watch(out, id, &header, &WatchResponse::Canceled(error));
        }
        let next = if start == 0 {
            view.revision() + 1
        } else {
            start
        };
        self.range_bytes += range.bytes();
        let now = Instant::now();
        if request.progress_notify {
            self.notified += 1;
            self.next_notice
                .get_or_insert(now + self.service.limits.progress_interval);
        }
        entry.insert(Watch {
            hub_key: self.service.hub.add(range.clone(), next, &self.inbox, id),
            range,
            next,
            credit: (request.credit > 0).then_some(i64::from(request.credit)),
            prev_kv: request.prev_kv,
            no_put: request.no_put,
            no_delete: request.no_delete,
            progress_notify: request.progress_notify,
            last_sent: now,
            queued: true,
            starved: false,
        });
        self.ready.push_back(id);
    }

    /// Ends a watch at the client's wish. An unknown one is not answered.
    pub(crate) fn cancel(&mut self, id: u64, out: &mut Vec<u8>) {
        if self.remove(id) {
            let header = self.header(self.service.node.view().revision());
            let error = ApiError::WatchCanceled.into();
            encode_watch(out, id, &header, &WatchResponse::Canceled(error));
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        let Some(watch) = self.watches.remove(&id) else {
            return false;
        };
        self.service.hub.remove(watch.hub_key);
        self.range_bytes -= watch.range.bytes();
        self.notified -= usize::from(watch.progress_notify);
        true
    }

    /// Lets a watch send more.
    pub(crate) fn credit(&mut self, id: u64, bytes: u32) {
        if let Some(watch) = self.watches.get_mut(&id)
            && let Some(credit) = &mut watch.credit
        {
            *credit = credit.saturating_add(i64::from(bytes));
            if watch.starved && *credit > 0 {
                watch.starved = false;
                self.enqueue(id);
            }
        }
    }

    /// Asks for progress, to be answered once every watch has caught up.
    pub(crate) fn ask_progress(&mut self, id: u64, out: &mut Vec<u8>) {
        if self.progress.len() < MAX_PROGRESS {
            self.progress.push(id);
        } else {
            let text = "too many requests for progress wait for a watch to catch up";
            let error = WireError::new(ErrorCode::TooManyInFlight, text);
            encode_error(out, opcode::WATCH_PROGRESS, id, &error);
        }
    }

    /// Takes note of watches that the hub woke.
    pub(crate) fn woken(&mut self, watches: &[u64]) {
        for id in watches {
            self.enqueue(*id);
        }
    }

    fn enqueue(&mut self, id: u64) {
        if let Some(watch) = self.watches.get_mut(&id)
            && !watch.queued
            && !watch.starved
        {
            watch.queued = true;
            self.ready.push_back(id);
        }
    }

    /// When [`WatchSet::notice`] wants to be called.
    pub(crate) fn next_notice(&self) -> Option<Instant> {
        self.next_notice
    }

    /// Sends what there is, until `out` holds `room` bytes or `budget` is spent, but
    /// gives one watch its turn in any case.
    pub(crate) fn pump(&mut self, out: &mut Vec<u8>, room: usize, budget: &mut Budget) {
        while out.len() < room
            && let Some(id) = self.ready.pop_front()
        {
            let Some(mut watch) = self.watches.remove(&id) else {
                continue;
            };
            watch.queued = false;
            let turn = self.turn(id, &mut watch, out);
            if let Turn::Rests | Turn::GoesOn = turn {
                self.watches.insert(id, watch);
            } else {
                self.watches.insert(id, watch);
                self.remove(id);
            }
            if matches!(turn, Turn::GoesOn) {
                self.enqueue(id);
            }
            budget.charge(Budget::SCAN);
            if budget.is_spent() {
                break;
            }
        }
        self.answer_progress(out);
    }

    fn turn(&self, id: u64, watch: &mut Watch, out: &mut Vec<u8>) -> Turn {
        if watch.credit.is_some_and(|credit| credit <= 0) {
            watch.starved = true;
            return Turn::Rests;
        }
        let hub = &self.service.hub;
        let (next, source) = hub.source(watch.hub_key, watch.next);
        watch.next = next;
        let view = self.service.node.view();
        let before = out.len();
        let caught_up = match source {
            Source::Recent(batches, done) => {
                let header = self.header(view.revision().max(done - 1));
                let mut frames = Frames::new(out, id, &header, watch);
                let mut stopped = None;
                let mut scanned = 0;
                let _ = batches.iter().try_for_each(|batch| {
                    if scanned >= MAX_SCANNED {
                        stopped = Some(batch.first_revision());
                        return ControlFlow::Break(());
                    }
                    scanned += batch.events();
                    batch.visit(watch.range.range(), next, &mut |event| {
                        if frames.full(event.kv.mod_revision) {
                            stopped = Some(event.kv.mod_revision);
                            return ControlFlow::Break(());
                        }
                        frames.push(event);
                        ControlFlow::Continue(())
                    })
                });
                let spent = frames.finish(&self.service);
                watch.spend(spent);
                watch.next = stopped.unwrap_or(done);
                stopped.is_none()
            }
            Source::Store if next > view.revision() => true,
            Source::Store => match self.read_store(id, watch, &view, out) {
                Ok(caught_up) => caught_up,
                Err(error) => {
                    out.truncate(before);
                    let header = self.header(view.revision());
                    encode_watch(out, id, &header, &WatchResponse::Canceled(error));
                    return Turn::Ended;
                }
            },
        };
        if out.len() > before {
            watch.last_sent = Instant::now();
        }
        if caught_up && hub.settle(watch.hub_key, watch.next) {
            Turn::Rests
        } else {
            Turn::GoesOn
        }
    }

    /// Sends events of the store; whether the watch has caught up with it.
    fn read_store(
        &self,
        id: u64,
        watch: &mut Watch,
        view: &View,
        out: &mut Vec<u8>,
    ) -> Result<bool, WireError> {
        add(&self.service.metrics.watch_store_reads, 1);
        let header = self.header(view.revision());
        let limits = EventLimits {
            bytes: watch.allowance(),
            scanned: MAX_SCANNED,
            ..EventLimits::default()
        };
        let mut frames = Frames::new(out, id, &header, watch);
        let end = view
            .events(
                watch.range.range(),
                watch.next,
                limits,
                watch.prev_kv,
                &mut |event| frames.push(event),
            )
            .map_err(|error| self.service.wire_error(&error, view));
        let spent = frames.finish(&self.service);
        let end = end?;
        watch.spend(spent);
        watch.next = end.next_revision;
        Ok(end.done)
    }

    /// Answers requests for progress if every watch has caught up.
    fn answer_progress(&mut self, out: &mut Vec<u8>) {
        if self.progress.is_empty() || !self.ready.is_empty() {
            return;
        }
        let view = self.service.node.view();
        let mut done = view.revision();
        for watch in self.watches.values() {
            match self.service.hub.done_below(watch.hub_key) {
                Some(below) => done = done.min(below - 1),
                None => return,
            }
        }
        let header = self.header(done);
        for id in std::mem::take(&mut self.progress) {
            encode_reply(out, opcode::WATCH_PROGRESS, id, &header, &Empty);
        }
    }

    /// Tells idle watches that asked for it how far they are; lets it be this time
    /// if the client does not take what waits for it already.
    pub(crate) fn notice(&mut self, now: Instant, has_room: bool, out: &mut Vec<u8>) {
        if self.next_notice.is_none_or(|due| due > now) {
            return;
        }
        let interval = self.service.limits.progress_interval;
        let newest = self.service.node.view().revision();
        let term = self.service.term();
        for (id, watch) in &mut self.watches {
            if has_room
                && watch.progress_notify
                && now.duration_since(watch.last_sent) >= interval
                && let Some(below) = self.service.hub.done_below(watch.hub_key)
            {
                let header = self.service.header(newest.min(below - 1), term);
                encode_watch(out, *id, &header, &WatchResponse::Progress);
                watch.last_sent = now;
            }
        }
        // A tenth of jitter, so that the watches of many connections do not all fall due at once.
        let part = (Arc::as_ptr(&self.inbox) as usize / 64 % 100) as f64;
        let jitter = interval.mul_f64(part / 1000.0);
        self.next_notice = (self.notified > 0).then(|| now + interval + jitter);
    }
}

impl Drop for WatchSet {
    fn drop(&mut self) {
        for watch in self.watches.values() {
            self.service.hub.remove(watch.hub_key);
        }
        subtract(&self.service.metrics.watch_streams, 1);
    }
}

/// Event frames of one turn of a watch.
struct Frames<'a, 'o> {
    writer: EventsWriter<'o>,
    watch: &'a Watch,
    allowance: usize,
    /// Revision of the last event written.
    revision: i64,
    spent: usize,
    events: u64,
}

impl<'a, 'o> Frames<'a, 'o> {
    fn new(out: &'o mut Vec<u8>, id: u64, header: &ResponseHeader, watch: &'a Watch) -> Self {
        Self {
            writer: EventsWriter::new(out, id, header),
            watch,
            allowance: watch.allowance(),
            revision: 0,
            spent: 0,
            events: 0,
        }
    }

    /// Whether the turn should end before an event of `revision`. Never before
    /// the first: a watch with any credit left must get on.
    fn full(&self, revision: i64) -> bool {
        self.events > 0
            && revision != self.revision
            && self.spent + self.writer.body_bytes() >= self.allowance
    }

    fn push(&mut self, event: EventRef<'_>) {
        if !self.watch.wants(&event) {
            return;
        }
        let revision = event.kv.mod_revision;
        if revision == self.revision && self.writer.body_bytes() >= REPLY_CHUNK {
            self.spent += self.writer.cut();
        }
        self.revision = revision;
        self.events += 1;
        if self.watch.prev_kv {
            self.writer.push(&event);
        } else {
            self.writer.push(&EventRef {
                prev_kv: None,
                ..event
            });
        }
    }

    /// Ends the last frame; what all cost.
    fn finish(self, service: &Service) -> usize {
        if self.events == 0 {
            self.writer.abandon();
            return 0;
        }
        add(&service.metrics.events_sent, self.events);
        self.spent + self.writer.finish(false)
    }
}
