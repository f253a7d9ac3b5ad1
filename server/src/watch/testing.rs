//! Real event batches for tests.

use std::sync::Arc;

use varve_engine::backend::Applied;
use varve_engine::backend::memory::Memory;
use varve_engine::mvcc::{BatchOptions, EventBatch, LiveEvents, Store, View};
use varve_types::{Command, PutRequest};

/// A store in memory whose batches are looked at.
pub(super) struct TestStore {
    store: Store,
    index: u64,
}

impl TestStore {
    pub(super) fn new() -> Self {
        Self {
            store: Store::open(Arc::new(Memory::new())).unwrap(),
            index: 0,
        }
    }

    /// Puts each key, one revision each, in one batch.
    pub(super) fn put_all(&mut self, keys: &[&str]) -> Arc<EventBatch> {
        let options = BatchOptions {
            collect_events: true,
            ..BatchOptions::default()
        };
        self.index += 1;
        let mut txn = self.store.begin(options).unwrap();
        for key in keys {
            let put = PutRequest {
                key: key.as_bytes(),
                value: b"v",
                ..PutRequest::default()
            };
            txn.apply(&Command::Put(put)).unwrap().result.unwrap();
        }
        let applied = Applied {
            term: 1,
            index: self.index,
        };
        match txn.publish(applied).unwrap().events {
            LiveEvents::Batch(batch) => batch,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.store.view()
    }
}
