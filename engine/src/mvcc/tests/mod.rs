//! The store against a naive model, and etcd's rules one by one.

mod commands;
mod compaction;
mod engines;
mod history;
mod model;
mod random;
mod replies;
mod rules;
mod snapshot_files;
mod snapshots;
mod steps;
mod txn_rules;
mod watch;

use std::sync::Arc;

use varve_types::{
    ApiError, Command, CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, Event, KeyRange,
    KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};

use self::engines::Engine;
use super::{
    BatchOptions, CommandResponse, CompactBudget, EventLimits, Reply, Result, SnapshotInfo,
    SnapshotSink, SnapshotSource, Store, View,
};
use crate::backend::{Applied, Backend};

/// Every key.
const ALL: KeyRange<'static> = KeyRange::From(b"\0");

/// A store under test, with a log index that counts batches.
struct Bench {
    store: Store,
    index: u64,
}

impl Bench {
    fn new() -> Self {
        Self::on(Engine::new(crate::btree::NAME).backend())
    }

    fn on(backend: Arc<dyn Backend>) -> Self {
        let store = Store::open(backend).unwrap();
        let index = store.view().applied().index;
        Self { store, index }
    }

    fn next(&mut self) -> Applied {
        self.index += 1;
        Applied {
            term: 1,
            index: self.index,
        }
    }

    fn apply(&mut self, command: &Command<'_>) -> Reply {
        let applied = self.next();
        let mut txn = self.store.begin(BatchOptions::default()).unwrap();
        let reply = txn.apply(command).unwrap();
        let published = txn.publish(applied).unwrap();
        assert_eq!(published.view.revision(), reply.revision);
        assert_eq!(published.view.applied(), applied);
        reply
    }

    fn done(&mut self, command: &Command<'_>) -> CommandResponse {
        self.apply(command).result.unwrap()
    }

    fn put_with(&mut self, put: PutRequest<'_>) -> std::result::Result<PutResponse, ApiError> {
        self.apply(&Command::Put(put))
            .result
            .map(|response| match response {
                CommandResponse::Put(response) => response,
                other => panic!("{other:?}"),
            })
    }

    fn put(&mut self, key: &str, value: &str) -> i64 {
        self.put_with(put(key, value)).unwrap();
        self.revision()
    }

    fn delete_with(&mut self, delete: DeleteRangeRequest<'_>) -> DeleteRangeResponse {
        match self.done(&Command::DeleteRange(delete)) {
            CommandResponse::DeleteRange(response) => response,
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, key: &str) -> i64 {
        self.delete_with(DeleteRangeRequest {
            key: key.as_bytes(),
            ..DeleteRangeRequest::default()
        });
        self.revision()
    }

    fn txn(&mut self, txn: TxnRequest<'_>) -> std::result::Result<TxnResponse, ApiError> {
        self.apply(&Command::Txn(txn))
            .result
            .map(|response| match response {
                CommandResponse::Txn(response) => response,
                other => panic!("{other:?}"),
            })
    }

    fn compact(&mut self, revision: i64) -> std::result::Result<(), ApiError> {
        let request = CompactionRequest {
            revision,
            physical: false,
        };
        self.apply(&Command::Compaction(request)).result.map(|_| ())
    }

    /// One step of removal.
    fn compact_step(&mut self, entries: usize) -> bool {
        let applied = self.next();
        let mut txn = self.store.begin(BatchOptions::default()).unwrap();
        let budget = CompactBudget {
            entries,
            ..CompactBudget::default()
        };
        let more = txn.compact_step(budget).unwrap();
        txn.publish(applied).unwrap();
        assert_eq!(self.store.compaction_pending(), more);
        more
    }

    fn compact_fully(&mut self) {
        while self.compact_step(3) {
            self.check();
        }
    }

    fn view(&self) -> Arc<View> {
        self.store.view()
    }

    fn revision(&self) -> i64 {
        self.view().revision()
    }

    fn range(&self, request: &RangeRequest<'_>) -> std::result::Result<RangeResponse, ApiError> {
        self.view()
            .range(request)
            .map_err(|error| match error.api() {
                Some(error) => error,
                None => panic!("{error}"),
            })
    }

    /// `key=value` of the whole store at `revision`.
    fn dump(&self, revision: i64) -> String {
        let response = self.range(&RangeRequest { revision, ..all() });
        response.map_or_else(|error| error.to_string(), |response| show(&response.kvs))
    }

    fn events_from(&self, from: i64, prev_kv: bool) -> std::result::Result<Vec<Event>, ApiError> {
        events(&self.view(), ALL, from, EventLimits::default(), prev_kv)
    }

    fn check(&self) {
        self.store.check().unwrap();
    }
}

impl Drop for Bench {
    /// Every test ends in the full integrity check.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}

fn all() -> RangeRequest<'static> {
    RangeRequest {
        key: b"\0",
        range_end: b"\0",
        ..RangeRequest::default()
    }
}

fn put<'a>(key: &'a str, value: &'a str) -> PutRequest<'a> {
    PutRequest {
        key: key.as_bytes(),
        value: value.as_bytes(),
        ..PutRequest::default()
    }
}

fn show(kvs: &[KeyValue]) -> String {
    let shown: Vec<_> = kvs
        .iter()
        .map(|kv| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{}={}", text(&kv.key), text(&kv.value))
        })
        .collect();
    shown.join(" ")
}

/// All events from `from` on, in as many calls as the limits make of it.
fn events(
    view: &View,
    range: KeyRange<'_>,
    from: i64,
    limits: EventLimits,
    prev_kv: bool,
) -> std::result::Result<Vec<Event>, ApiError> {
    let mut events: Vec<Event> = Vec::new();
    let mut next = from;
    loop {
        let seen = events.len();
        let end = view
            .events(range, next, limits, prev_kv, &mut |event| {
                events.push(event.to_owned());
            })
            .map_err(|error| error.api().unwrap_or_else(|| panic!("{error}")))?;
        assert_eq!(end.events, events.len() - seen);
        let whole = events[seen..]
            .iter()
            .all(|event| (next.max(0)..end.next_revision).contains(&event.kv.mod_revision));
        assert!(whole, "a revision was split");
        if end.done {
            assert_eq!(end.next_revision, from.max(view.revision() + 1));
            return Ok(events);
        }
        assert!(end.next_revision > next, "no progress");
        next = end.next_revision;
    }
}

/// Copies a view into an empty backend.
fn copy(view: Arc<View>, to: Arc<dyn Backend>, chunk_bytes: usize) -> Result<SnapshotInfo> {
    let mut source = SnapshotSource::new(view);
    let mut sink = SnapshotSink::new(to)?;
    while let Some(chunk) = source.next_chunk(chunk_bytes)? {
        sink.push(&chunk)?;
    }
    sink.finish()
}
