//! What was written is there after an open: after a close, after a drop without
//! one, on every engine.

use std::sync::atomic::Ordering;

use varve_engine::backend;
use varve_engine::db::{Db, Kv, Options, WriteBatch};
use varve_engine::disk::SimDisk;
use varve_types::KeyRange;

use crate::{db_on, kv_on, options, value};

#[test]
fn on_every_engine_after_a_close_and_after_a_drop() {
    for engine in backend::NAMES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let options = || Options {
            engine: (*engine).to_owned(),
            ..options()
        };
        let mut revisions = Vec::new();
        for round in 0..4u8 {
            let db = Db::open(&path, options()).unwrap();
            assert_eq!(db.revision(), revisions.last().map_or(1, |last| *last));
            for key in 0..50u8 {
                revisions.push(db.put(&[b'k', key], &[round; 100]).unwrap());
            }
            assert!(db.delete(&[b'k', round]).unwrap());
            revisions.push(db.revision());
            if round % 2 == 0 {
                db.close().unwrap();
            }
        }
        let db = Db::open(&path, options()).unwrap();
        assert_eq!(db.revision(), 1 + 4 * 51, "{engine}");
        assert_eq!(value(&db, &[b'k', 3]), None);
        let second = db.get_at(&[b'k', 3], revisions[51 + 10]).unwrap().unwrap();
        assert_eq!((second.value, second.version), (vec![1; 100], 2));
        let live = db.view().count(KeyRange::From(b"k"), 0).unwrap();
        assert_eq!(live, 49);
        db.check().unwrap();
    }
}

#[test]
fn a_closed_store_has_nothing_to_replay() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    for number in 0..200u8 {
        db.put(&[number], &[number; 300]).unwrap();
    }
    let end = db.wal_stats().end_lsn.load(Ordering::Relaxed);
    db.close().unwrap();
    let db = db_on(&disk).unwrap();
    let start = db.wal_stats().start_lsn.load(Ordering::Relaxed);
    assert!(start > 4096, "the log was let go up to the checkpoint");
    assert!(start < end);
    assert_eq!(value(&db, &[199]), Some(vec![199; 300]));
    // The second open finds the last batch in the log although it applies none.
    db.close().unwrap();
    let db = db_on(&disk).unwrap();
    db.put(b"more", b"1").unwrap();
    db.check().unwrap();
}

/// What a checkpoint holds is not replayed: a change made twice is two revisions.
#[test]
fn no_batch_is_applied_twice() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    let mut batch = WriteBatch::new();
    batch.put(b"a", b"1").unwrap();
    let all: Vec<_> = (0..200).map(|_| db.submit(&batch).unwrap()).collect();
    all.into_iter().for_each(|one| drop(one.wait().unwrap()));
    drop(db);
    for checkpoint in [false, true, true] {
        if checkpoint {
            db_on(&disk).unwrap().checkpoint().unwrap();
        }
        let db = db_on(&disk.crash_now(0)).unwrap();
        assert_eq!(db.revision(), 201);
        assert_eq!(db.get(b"a").unwrap().unwrap().version, 200);
        db.check().unwrap();
    }
}

#[test]
fn a_map_without_revisions() {
    for engine in backend::NAMES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let options = || Options {
            engine: (*engine).to_owned(),
            ..options()
        };
        let kv = Kv::open(&path, options()).unwrap();
        let mut batch = WriteBatch::new();
        for key in 0..100u8 {
            batch.put(&[key], &[key; 50]).unwrap();
        }
        batch.delete(&[5]).unwrap();
        batch.delete_range(KeyRange::Between(&[90], &[95])).unwrap();
        batch.put(&[92], b"after").unwrap();
        kv.write(&batch).unwrap();
        kv.delete(&[200]).unwrap();
        drop(kv);
        let kv = Kv::open(&path, options()).unwrap();
        assert_eq!(kv.get(&[4]).unwrap(), Some(vec![4; 50]));
        assert_eq!(kv.get(&[5]).unwrap(), None);
        assert_eq!(kv.get(&[92]).unwrap(), Some(b"after".to_vec()));
        let sums = kv.snapshot().unwrap().sums(KeyRange::From(b"")).unwrap();
        assert_eq!(sums.entries, 95, "{engine}");
        kv.delete_range(KeyRange::From(b"")).unwrap();
        kv.close().unwrap();
        let kv = Kv::open(&path, options()).unwrap();
        let sums = kv.snapshot().unwrap().sums(KeyRange::From(b"")).unwrap();
        assert_eq!(sums.entries, 0, "{engine}");
        kv.check().unwrap();
    }
}

#[test]
fn compacted_history_goes_and_stays_gone() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    for round in 0..100u8 {
        db.put(b"a", &[round; 200]).unwrap();
    }
    db.compact(90).unwrap();
    while db.view().compaction_pending() {
        std::thread::yield_now();
    }
    assert!(db.get_at(b"a", 89).unwrap_err().api().is_some());
    drop(db);
    let db = db_on(&disk).unwrap();
    assert!(db.get_at(b"a", 89).unwrap_err().api().is_some());
    assert_eq!(db.get_at(b"a", 90).unwrap().unwrap().value, [88; 200]);
    // What the replay of the log left pending is removed again.
    while db.view().compaction_pending() {
        std::thread::yield_now();
    }
    db.check().unwrap();
}

#[test]
fn batches_that_were_never_waited_for_are_written() {
    let disk = SimDisk::new();
    let kv = kv_on(&disk).unwrap();
    for number in 0..100u8 {
        let mut batch = WriteBatch::new();
        batch.put(&[number], b"x").unwrap();
        drop(kv.submit(&batch).unwrap());
    }
    kv.close().unwrap();
    let kv = kv_on(&disk).unwrap();
    let sums = kv.snapshot().unwrap().sums(KeyRange::From(b"")).unwrap();
    assert_eq!(sums.entries, 100);
}

#[test]
fn a_vacuum_gives_space_back_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let (db, kv) = (
        Db::open(path.join("db"), options()).unwrap(),
        Kv::open(path.join("kv"), options()).unwrap(),
    );
    for number in 0..2000u32 {
        let mut batch = WriteBatch::new();
        for part in 0..10u8 {
            let key = [&number.to_be_bytes()[..], &[part]].concat();
            batch.put(&key, &[part; 200]).unwrap();
        }
        drop((db.submit(&batch).unwrap(), kv.submit(&batch).unwrap()));
    }
    let kept = 1900u32.to_be_bytes();
    let gone = KeyRange::Between(b"", &kept);
    assert_eq!(db.delete_range(gone).unwrap().deleted, 19_000);
    kv.delete_range(gone).unwrap();
    // The changes of the revision that is compacted to stay: not the deletion.
    db.put(&kept, b"last").unwrap();
    db.compact(db.revision()).unwrap();
    while db.view().compaction_pending() {
        std::thread::yield_now();
    }
    for checkpoint in [Db::checkpoint, Db::vacuum] {
        checkpoint(&db).unwrap();
    }
    kv.checkpoint().unwrap();
    let before = kv.stats().file_bytes;
    kv.vacuum().unwrap();
    assert!(
        kv.stats().file_bytes < before / 3,
        "{before} {:?}",
        kv.stats()
    );
    assert!(db.stats().file_bytes < 2 << 20, "{:?}", db.stats());
    db.check().unwrap();
    kv.check().unwrap();
    drop((db, kv));
    let db = Db::open(path.join("db"), options()).unwrap();
    let kv = Kv::open(path.join("kv"), options()).unwrap();
    assert_eq!(db.iter(KeyRange::From(b""), 0).count(), 1001);
    let sums = kv.snapshot().unwrap().sums(KeyRange::From(b"")).unwrap();
    assert_eq!(sums.entries, 1000);
}
