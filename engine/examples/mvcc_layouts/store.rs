//! The store itself: (c) with anchors, state hash, tombstones, checks and answers.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_engine::backend::Backend;
use varve_engine::mvcc::{BatchOptions, CompactBudget, EventLimits, Store};
use varve_types::{Command, CompactionRequest, KeyRange, PutRequest, RangeRequest};

use crate::{BATCH, Result, Row, VALUE_BYTES, Work, applied, value};

pub(crate) fn measure(backend: Arc<dyn Backend>, work: &Work) -> Result<()> {
    let mut row = Row::start("the store");
    let mut store = Store::open(backend)?;
    let mut puts = work.puts();
    let mut revision = 1;
    let mut put = |store: &mut Store, count: usize| -> Result<()> {
        let mut left = count;
        while left > 0 {
            let mut txn = store.begin(BatchOptions::default())?;
            for key in puts.by_ref().take(left.min(BATCH)) {
                revision += 1;
                let reply = txn.apply(&Command::Put(PutRequest {
                    key,
                    value: &value(revision),
                    ..PutRequest::default()
                }))?;
                reply.result?;
            }
            txn.publish(applied(revision))?;
            left -= left.min(BATCH);
        }
        Ok(())
    };
    put(&mut store, work.keys.len())?;
    row.rate(work.keys.len());
    put(&mut store, work.keys.len() * work.updates)?;
    row.rate(work.keys.len() * work.updates);
    row.size(&**store.backend());
    let view = store.view();
    let mut gets = 0;
    for (key, _) in work.picks() {
        assert_eq!(view.get(key, |kv| kv.value.len())?, Some(VALUE_BYTES));
        gets += 1;
    }
    row.rate(gets);
    for (key, revision) in work.picks() {
        let mut bytes = 0;
        let request = RangeRequest {
            key,
            revision: revision as i64,
            ..RangeRequest::default()
        };
        view.range_with(&request, &mut |kv| {
            bytes += kv.value.len();
            ControlFlow::Continue(())
        })?;
        assert_eq!(bytes, VALUE_BYTES);
    }
    row.rate(gets);
    let mut scanned = 0;
    for (key, _) in work.picks().take(gets / 20) {
        let request = RangeRequest {
            key,
            range_end: b"\0",
            limit: 100,
            ..RangeRequest::default()
        };
        view.range_with(&request, &mut |_| {
            scanned += 1;
            ControlFlow::Continue(())
        })?;
    }
    row.rate(scanned);
    let (mut events, mut next) = (0, work.last_revision() as i64 / 2);
    loop {
        let limits = EventLimits::default();
        let end = view.events(KeyRange::From(b"\0"), next, limits, false, &mut |_| {
            events += 1
        })?;
        next = end.next_revision;
        if end.done {
            break;
        }
    }
    row.rate(events);
    drop(view);
    let last = applied(work.last_revision());
    let mut txn = store.begin(BatchOptions::default())?;
    let request = CompactionRequest {
        revision: work.compacted() as i64,
        physical: false,
    };
    txn.apply(&Command::Compaction(request))?.result?;
    txn.publish(last)?;
    while store.compaction_pending() {
        let mut txn = store.begin(BatchOptions::default())?;
        txn.compact_step(CompactBudget {
            entries: BATCH,
            bytes: usize::MAX,
        })?;
        txn.publish(last)?;
    }
    row.rate(work.compacted() as usize - 2);
    row.end();
    store.check()?;
    Ok(())
}
