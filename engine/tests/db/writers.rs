//! Writers that run at the same time share syncs, and nothing of theirs is lost.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

use varve_engine::db::{Db, Options, WriteBatch};
use varve_engine::disk::SimDisk;
use varve_types::{
    Compare, CompareResult, CompareTarget, KeyRange, PutRequest, RequestOp, TxnRequest,
};

use crate::{db_on, value};

#[test]
fn concurrent_writers_share_syncs() {
    const THREADS: usize = 16;
    const PUTS: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let db = Arc::new(Db::open(folder.path().join("store"), Options::default()).unwrap());
    let stats = Arc::clone(db.wal_stats());
    let before = stats.syncs.load(Ordering::Relaxed);
    let start = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (db, start) = (Arc::clone(&db), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let mut last = 0;
                for number in 0..PUTS {
                    let key = format!("{thread:02}/{number:03}");
                    let revision = db.put(key.as_bytes(), b"value").unwrap();
                    assert!(revision > last, "revisions of one thread rise");
                    last = revision;
                    // What is acknowledged can be read.
                    assert!(value(&db, key.as_bytes()).is_some());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let puts = (THREADS * PUTS) as u64;
    let syncs = stats.syncs.load(Ordering::Relaxed) - before;
    assert_eq!(stats.groups.load(Ordering::Relaxed), puts);
    assert!(syncs < puts / 2, "{syncs} syncs for {puts} puts");
    assert_eq!(db.revision(), 1 + puts as i64);
    let live = db.view().count(KeyRange::From(b"0"), 0).unwrap();
    assert_eq!(live as u64, puts);
    db.check().unwrap();
}

#[test]
fn a_batch_is_one_sync() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    db.put(b"first", b"").unwrap();
    let before = disk.sync_count();
    let mut batch = WriteBatch::new();
    for number in 0..20u8 {
        batch.put(&[number], &[0; 100]).unwrap();
    }
    assert_eq!(db.write(&batch).unwrap(), 22);
    assert_eq!(disk.sync_count() - before, 1);
    // A batch can be written again.
    assert_eq!(db.write(&batch).unwrap(), 42);
    assert_eq!(db.get(&[7]).unwrap().unwrap().version, 2);
}

#[test]
fn an_empty_batch_is_written_like_any_other() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    db.put(b"a", b"1").unwrap();
    assert_eq!(db.write(&WriteBatch::new()).unwrap(), 2);
    drop(db);
    assert_eq!(db_on(&disk).unwrap().revision(), 2);
}

#[test]
fn transactions_compare_and_set() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 25;
    let folder = tempfile::tempdir().unwrap();
    let db = Arc::new(Db::open(folder.path().join("store"), Options::default()).unwrap());
    db.put(b"counter", b"0").unwrap();
    let increment = |db: &Db| loop {
        let now = db.get(b"counter").unwrap().unwrap();
        let number: u64 = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
        let next = (number + 1).to_string();
        let txn = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal,
                target: CompareTarget::Mod(now.mod_revision),
                key: b"counter",
                range_end: b"",
            }],
            success: vec![RequestOp::Put(PutRequest {
                key: b"counter",
                value: next.as_bytes(),
                ..PutRequest::default()
            })],
            failure: vec![],
        };
        if db.txn(&txn).unwrap().succeeded {
            return;
        }
    };
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let db = Arc::clone(&db);
            std::thread::spawn(move || (0..ROUNDS).for_each(|_| increment(&db)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let expected = (THREADS * ROUNDS).to_string();
    assert_eq!(value(&db, b"counter"), Some(expected.into_bytes()));
    db.check().unwrap();
}
