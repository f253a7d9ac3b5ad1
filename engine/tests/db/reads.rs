//! Readers keep the revision that they began at, whatever is written meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use varve_engine::db::{Db, WriteBatch};
use varve_engine::disk::SimDisk;
use varve_types::{KeyRange, RangeRequest};

use crate::db_on;

const KEYS: u32 = 1000;

fn key(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn fill(db: &Db, round: u8) -> i64 {
    let mut batch = WriteBatch::new();
    for number in 0..KEYS {
        batch.put(&key(number), &[round; 40]).unwrap();
    }
    db.write(&batch).unwrap()
}

#[test]
fn a_view_and_its_iterator_do_not_see_later_writes() {
    let disk = SimDisk::new();
    let db = Arc::new(db_on(&disk).unwrap());
    fill(&db, 0);
    let view = db.view();
    let mut iter = db.iter(KeyRange::From(b""), 0);
    let first = iter.next().unwrap().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (db, stop) = (Arc::clone(&db), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut round = 1;
            while !stop.load(Ordering::Relaxed) {
                fill(&db, round);
                db.delete(&key(u32::from(round))).unwrap();
                db.checkpoint().unwrap();
                round = round.wrapping_add(1).max(1);
            }
        })
    };
    while db.revision() < view.revision() + 3 * i64::from(KEYS) {
        std::thread::yield_now();
    }
    let rest: Vec<_> = iter.map(Result::unwrap).collect();
    assert_eq!(rest.len() + 1, KEYS as usize);
    for (kv, number) in std::iter::once(&first).chain(&rest).zip(0..) {
        assert_eq!(
            (&kv.key[..], &kv.value[..]),
            (&key(number)[..], &[0; 40][..])
        );
    }
    assert_eq!(
        view.count(KeyRange::From(b"\0"), 0).unwrap(),
        i64::from(KEYS)
    );
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    drop(view);
    db.check().unwrap();
}

#[test]
fn iterators_go_both_ways_at_any_revision() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    let first = fill(&db, 1);
    for number in (0..KEYS).step_by(3) {
        db.delete(&key(number)).unwrap();
    }
    fill(&db, 2);
    for number in (0..KEYS).step_by(2) {
        db.delete(&key(number)).unwrap();
    }
    let (from, to) = (key(100), key(900));
    let range = KeyRange::Between(&from, &to);
    for (revision, expected) in [(first, 800), (first + 100, 734), (0, 400)] {
        let forward: Vec<_> = db.iter(range, revision).map(Result::unwrap).collect();
        let answer = db.range(&RangeRequest {
            key: &from,
            range_end: &to,
            revision,
            ..RangeRequest::default()
        });
        assert_eq!(answer.unwrap().kvs, forward);
        assert!(forward.is_sorted_by(|a, b| a.key < b.key));
        let mut backward: Vec<_> = db
            .iter_backward(range, revision)
            .map(Result::unwrap)
            .collect();
        backward.reverse();
        assert_eq!(backward, forward);
        assert_eq!(forward.len(), expected, "revision {revision}");
        for kv in &forward {
            let one = db.get_at(&kv.key, revision).unwrap();
            assert_eq!(one.as_ref(), Some(kv));
        }
    }
    let one: Vec<_> = db.iter(KeyRange::One(&key(1)), 0).collect();
    assert_eq!(one.len(), 1);
    assert_eq!(db.iter(KeyRange::Between(&to, &from), 0).count(), 0);
    assert_eq!(db.iter_backward(KeyRange::From(b"zzzz"), 0).count(), 0);
}

#[test]
fn revisions_that_are_not_there_are_told() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    fill(&db, 1);
    db.compact(500).unwrap();
    for revision in [499, 100_000] {
        let error = db.get_at(&key(1), revision).unwrap_err();
        assert!(error.api().is_some(), "{error}");
        let mut iter = db.iter(KeyRange::From(b""), revision);
        assert!(iter.next().unwrap().unwrap_err().api().is_some());
        assert!(iter.next().is_none(), "an iterator ends after an error");
    }
}
