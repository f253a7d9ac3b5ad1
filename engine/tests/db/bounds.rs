//! Bounds: the log's length, and what is on its way.

use std::sync::atomic::Ordering;

use varve_engine::db::{Options, WriteBatch};
use varve_engine::disk::SimDisk;
use varve_engine::disk::sim::{Fault, FaultOn};

use crate::{db_with, options, value};

#[test]
fn checkpoints_bound_the_log() {
    let disk = SimDisk::new();
    let most = 128 << 10;
    let options = Options {
        checkpoint_log_bytes: most,
        max_log_bytes: most,
        max_in_flight_bytes: 16 << 10,
        ..options()
    };
    let segment = options.wal.segment_bytes;
    let db = db_with(&disk, options).unwrap();
    let stats = db.wal_stats().clone();
    let mut longest = 0;
    for number in 0..4000u32 {
        let mut batch = WriteBatch::new();
        // All over the tree, so that a checkpoint has something to do.
        let key = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
        batch.put(&key, &[0; 2000]).unwrap();
        drop(db.submit(&batch).unwrap());
        let start = stats.start_lsn.load(Ordering::Relaxed);
        longest = longest.max(stats.end_lsn.load(Ordering::Relaxed) - start);
    }
    assert!(stats.end_lsn.load(Ordering::Relaxed) > 4 << 20);
    // Whole segments are let go; what is on its way comes on top.
    assert!(longest <= most + 4 * segment, "{longest}");
    db.check().unwrap();
}

#[test]
fn writers_wait_while_the_log_is_too_long_and_learn_that_it_stays_so() {
    let disk = SimDisk::new();
    let options = Options {
        checkpoint_log_bytes: 64 << 10,
        max_log_bytes: 64 << 10,
        ..options()
    };
    let db = db_with(&disk, options).unwrap();
    db.put(b"first", b"1").unwrap();
    disk.inject(Fault {
        on: FaultOn::Sync,
        after: 0,
        forever: true,
        path_contains: "tree.btree".to_owned(),
        errno: 5,
    });
    let failed = (0..1000u32).find_map(|number| db.put(&number.to_be_bytes(), &[0; 500]).err());
    let error = failed.expect("the log can't grow for ever").to_string();
    assert!(error.contains("tree.btree"), "{error}");
    // Reads go on, and every later write is refused with the reason.
    assert!(value(&db, b"first").is_some());
    for error in [db.put(b"x", b"y").unwrap_err(), db.close().unwrap_err()] {
        assert!(error.to_string().contains("tree.btree"), "{error}");
    }
}

#[test]
fn a_failed_log_stops_the_store_and_loses_nothing_acknowledged() {
    let disk = SimDisk::new();
    let db = db_with(&disk, options()).unwrap();
    for number in 0..10u8 {
        db.put(&[number], &[number; 100]).unwrap();
    }
    disk.inject(Fault {
        on: FaultOn::Sync,
        after: 0,
        forever: false,
        path_contains: "wal".to_owned(),
        errno: 5,
    });
    assert!(db.put(b"lost", b"").is_err());
    assert!(db.put(b"refused", b"").is_err());
    assert!(
        value(&db, b"lost").is_none(),
        "what is not durable is not shown"
    );
    assert_eq!(value(&db, &[9]), Some(vec![9; 100]));
    drop(db);
    let db = db_with(&disk.crash_now(0), options()).unwrap();
    for number in 0..10u8 {
        assert_eq!(value(&db, &[number]), Some(vec![number; 100]));
    }
    assert!(value(&db, b"refused").is_none());
    db.put(b"again", b"").unwrap();
    db.check().unwrap();
}

#[test]
fn what_is_on_its_way_is_bounded() {
    let disk = SimDisk::new();
    let most = 64 << 10;
    let options = Options {
        max_in_flight_bytes: most,
        ..options()
    };
    let db = db_with(&disk, options).unwrap();
    let mut batch = WriteBatch::new();
    for number in 0..20u8 {
        batch.put(&[number], &[0; 1000]).unwrap();
    }
    let mut pending = std::collections::VecDeque::new();
    for _ in 0..100 {
        pending.push_back(db.submit(&batch).unwrap());
        let waiting = pending.iter().filter(|one| !one.is_done()).count();
        assert!(waiting * batch.bytes() <= most, "{waiting} on their way");
    }
    for one in pending {
        one.wait().unwrap();
    }
    // One that is larger than the bound still goes, alone.
    let mut large = WriteBatch::new();
    large.put(b"large", &vec![1; 2 * most]).unwrap();
    db.write(&large).unwrap();
    db.check().unwrap();
}
