//! How entries become batches of the store.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use varve_engine::backend::memory::Memory;
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::SimDisk;
use varve_engine::mvcc::{CommandResponse, Store};
use varve_types::{
    ApiError, Command, MAX_REPLY_BYTES, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
};

use super::{membership, wal};
use crate::apply::Applier;
use crate::entry;
use crate::io::{EntryData, ToApply};
use crate::sink::{Completion, ReplySink};

/// Keeps how many keys each answer holds.
struct Keys(Arc<Mutex<Vec<usize>>>);

impl ReplySink for Keys {
    fn complete(self: Box<Self>, completion: Completion) {
        for reply in completion.replies {
            if let Ok(CommandResponse::Txn(txn)) = reply.result
                && let Some(ResponseOp::Range(range)) = txn.responses.last()
            {
                self.0.lock().unwrap().push(range.kvs.len());
            }
        }
    }

    fn refuse(self: Box<Self>, error: ApiError) {
        panic!("{error}");
    }
}

fn to_apply(index: u64, command: &Command<'_>, keys: &Arc<Mutex<Vec<usize>>>) -> ToApply {
    let (mut body, mut commands) = (Vec::new(), Vec::new());
    command.encode_body(&mut body);
    entry::push_command(&mut commands, command.opcode(), &body);
    let proposals = [(&commands[..], 1)];
    let data: Bytes = entry::encode(2, index, proposals.into_iter(), commands.len());
    ToApply {
        index,
        term: 1,
        data: EntryData::Here(data),
        sinks: vec![Some(Box::new(Keys(keys.clone())))],
        change: None,
    }
}

#[test]
fn a_batch_ends_where_its_answers_get_large() {
    let store = Store::open(Arc::new(Memory::new())).unwrap();
    let reader = wal(&SimDisk::new()).reader();
    let members = Arc::new(membership());
    let mut applier = Applier::new(store, members, reader, Box::new(()), Arc::default());
    let keys = Arc::default();
    let value = vec![7; MAX_REPLY_BYTES / 64];
    let mut entries = VecDeque::new();
    let mut index = 0;
    for number in 0..12 {
        index += 1;
        let put = PutRequest {
            key: &[b'k', number],
            value: &value,
            ..PutRequest::default()
        };
        entries.push_back(to_apply(index, &Command::Put(put), &keys));
    }
    // Each answer is of three sixteenths of what one may be.
    for number in 0..10 {
        index += 1;
        let range = RangeRequest {
            key: b"k",
            range_end: b"l",
            ..RangeRequest::default()
        };
        let put = PutRequest {
            key: &[b'x', number],
            ..PutRequest::default()
        };
        let txn = TxnRequest {
            success: vec![RequestOp::Put(put), RequestOp::Range(range)],
            ..TxnRequest::default()
        };
        entries.push_back(to_apply(index, &Command::Txn(txn), &keys));
    }
    let mut batches = Vec::new();
    while !entries.is_empty() {
        let batch = applier.apply(&mut entries, 1).unwrap();
        assert_eq!(applier.view().applied().index, batch.index);
        batches.push((batch.index, keys.lock().unwrap().len()));
    }
    // Three answers are more than half of what one may be. Each batch's answers
    // are handed out before the next one is made.
    assert_eq!(batches, [(15, 3), (18, 6), (21, 9), (22, 10)]);
    assert_eq!(*keys.lock().unwrap(), [12; 10]);
}

#[test]
fn a_batch_that_finds_no_space_can_be_applied_again_and_is_answered_once() {
    let disk = SimDisk::new();
    let path = std::path::Path::new("/store");
    let options = Options { map_bytes: 1 << 26 };
    let backend = Arc::new(Btree::open(&disk, path, options).unwrap());
    let store = Store::open(backend).unwrap();
    let reader = wal(&SimDisk::new()).reader();
    let members = Arc::new(membership());
    let mut applier = Applier::new(store, members, reader, Box::new(()), Arc::default());
    let keys: Arc<Mutex<Vec<usize>>> = Arc::default();
    let mut entries = VecDeque::new();
    for index in 1..=20 {
        let key = [b'k', index as u8];
        let put = PutRequest {
            key: &key,
            value: &vec![7; 100_000],
            ..PutRequest::default()
        };
        let range = RangeRequest {
            key: &key,
            ..RangeRequest::default()
        };
        let txn = TxnRequest {
            success: vec![RequestOp::Put(put), RequestOp::Range(range)],
            ..TxnRequest::default()
        };
        entries.push_back(to_apply(index, &Command::Txn(txn), &keys));
    }
    disk.set_capacity(Some(disk.used_bytes() + (1 << 20)));
    for _ in 0..3 {
        let Err(error) = applier.apply(&mut entries, 1) else {
            panic!("two megabytes found room in one");
        };
        assert!(error.is_no_space(), "{error}");
        assert_eq!((entries.len(), applier.view().revision()), (20, 1));
        assert_eq!(*keys.lock().unwrap(), [0; 0]);
    }
    disk.set_capacity(None);
    let batch = applier.apply(&mut entries, 1).unwrap();
    assert_eq!((batch.index, entries.len()), (20, 0));
    assert_eq!(applier.view().revision(), 21);
    assert_eq!(*keys.lock().unwrap(), [1; 20]);
}
