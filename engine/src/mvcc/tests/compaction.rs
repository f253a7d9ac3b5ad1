//! Compaction: what it refuses, what it frees, and in what steps.

use std::ops::Bound;
use std::time::Instant;

use varve_types::{ApiError, Command, DeleteRangeRequest};

use super::super::{BatchOptions, DEAD, LOG};
use super::engines::Engine;
use super::{ALL, Bench, put};
use crate::backend::{TreeId, Upkeep};

fn entries(bench: &Bench, tree: TreeId) -> u64 {
    let snapshot = bench.store.backend().snapshot().unwrap();
    let sums = snapshot.sums(tree, (Bound::Unbounded, Bound::Unbounded));
    sums.unwrap().entries
}

fn bytes(bench: &Bench, tree: TreeId) -> u64 {
    let snapshot = bench.store.backend().snapshot().unwrap();
    let sums = snapshot.sums(tree, (Bound::Unbounded, Bound::Unbounded));
    sums.unwrap().bytes
}

#[test]
fn compacted_and_future_revisions_are_refused() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    assert_eq!(bench.compact(4), Err(ApiError::FutureRevision));
    assert_eq!(bench.compact(-1), Err(ApiError::Compacted));
    assert_eq!(bench.compact(2), Ok(()));
    assert_eq!(bench.compact(2), Err(ApiError::Compacted));
    assert_eq!(bench.compact(1), Err(ApiError::Compacted));
    assert_eq!(bench.compact(3), Ok(()));
    assert_eq!(bench.revision(), 3, "a compaction is no revision");
}

/// Long values: a step of the usual size is less than a batch adds.
#[test]
fn history_is_removed_faster_than_it_grows() {
    const BATCH: usize = 40;
    let value = "v".repeat(100_000);
    let mut bench = Bench::new();
    let mut upkeep = Upkeep::default();
    for round in 0..12 {
        let applied = bench.next();
        let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
        for key in 0..BATCH {
            let key = format!("k{key}");
            txn.apply(&Command::Put(put(&key, &value))).unwrap();
        }
        txn.publish(applied).unwrap();
        bench
            .store
            .tidy(&mut upkeep, Instant::now(), false)
            .unwrap();
        bench.compact(bench.revision()).unwrap();
        let left = entries(&bench, LOG);
        assert!(left <= 3 * BATCH as u64, "round {round}: {left} entries");
    }
}

#[test]
fn an_empty_store_can_be_compacted() {
    let mut bench = Bench::new();
    assert_eq!(bench.compact(0), Ok(()));
    assert_eq!(bench.compact(1), Ok(()));
    assert!(!bench.compact_step(10));
    assert_eq!(bench.put("a", "1"), 2);
    assert_eq!(bench.view().hash_at(1).unwrap(), 0);
}

#[test]
fn the_newest_version_of_a_live_key_stays() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("b", "1");
    bench.put("a", "2");
    bench.compact(4).unwrap();
    bench.compact_fully();
    assert_eq!(bench.dump(4), "a=2 b=1");
    assert_eq!(bench.dump(0), "a=2 b=1");
    assert_eq!(entries(&bench, LOG), 1);
}

#[test]
fn keys_deleted_at_or_before_it_vanish() {
    let mut bench = Bench::new();
    for key in ["a", "b", "c"] {
        bench.put(key, "v");
    }
    for key in ["a", "b", "c"] {
        bench.delete(key);
    }
    bench.compact(6).unwrap();
    bench.compact_fully();
    assert_eq!(entries(&bench, DEAD), 1);
    assert_eq!(bench.dump(6), "c=v");
    bench.put("a", "again");
    assert_eq!(bench.dump(0), "a=again");
    assert_eq!(bench.dump(7), "");
}

#[test]
fn emptying_and_compacting_frees_what_was_there() {
    let mut bench = Bench::new();
    for number in 0..100 {
        bench.put(&format!("k{number}"), &"v".repeat(1000));
    }
    bench.delete_with(DeleteRangeRequest {
        key: b"k",
        range_end: b"l",
        prev_kv: false,
    });
    assert!(bytes(&bench, LOG) > 100_000);
    bench.compact(bench.revision()).unwrap();
    bench.compact_fully();
    assert!(bytes(&bench, LOG) < 6_000, "{}", bytes(&bench, LOG));
    assert_eq!(entries(&bench, DEAD), 0);
    assert_eq!(bench.events_from(102, true).unwrap().len(), 100);
}

#[test]
fn steps_are_as_small_as_asked() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.put("a", "v");
    }
    bench.compact(21).unwrap();
    assert_eq!(entries(&bench, LOG), 20);
    let mut steps = 0;
    while bench.compact_step(5) {
        steps += 1;
        assert_eq!(entries(&bench, LOG), (20 - 5 * steps).max(1));
        assert_eq!(bench.dump(21), "a=v");
        assert_eq!(bench.events_from(21, false).unwrap().len(), 1);
    }
    assert_eq!(entries(&bench, LOG), 1);
    assert!(!bench.compact_step(5));
}

#[test]
fn removal_goes_on_after_a_restart() {
    let mut engine = Engine::new(crate::btree::NAME);
    let mut bench = Bench::on(engine.backend());
    for number in 0..30 {
        bench.put("a", "v");
        bench.put(&format!("k{number}"), "v");
    }
    bench.delete_with(DeleteRangeRequest {
        key: b"k",
        range_end: b"l",
        prev_kv: false,
    });
    let last = bench.revision();
    bench.compact(last).unwrap();
    let mut restarts = 0;
    loop {
        let more = bench.compact_step(7);
        drop(bench);
        engine = engine.reopen();
        bench = Bench::on(engine.backend());
        assert_eq!(bench.view().compaction_pending(), more);
        if !more {
            break;
        }
        restarts += 1;
    }
    assert_eq!(restarts, (60 + 30) / 7);
    assert_eq!((entries(&bench, LOG), entries(&bench, DEAD)), (30, 0));
    assert_eq!(bench.dump(0), "a=v");
}

#[test]
fn a_second_compaction_overtakes_the_removal_of_the_first() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        bench.put("a", "v");
        bench.delete("a");
    }
    bench.compact(10).unwrap();
    while bench.view().compaction_pending() && entries(&bench, LOG) > 12 {
        bench.compact_step(2);
    }
    bench.compact(15).unwrap();
    bench.compact_fully();
    assert_eq!(entries(&bench, LOG), 7);
    assert_eq!(bench.view().count(ALL, 20).unwrap(), 1);
}

#[test]
fn members_that_removed_more_and_less_answer_the_same() {
    let mut benches = [Bench::new(), Bench::new()];
    for (number, bench) in benches.iter_mut().enumerate() {
        for _ in 0..3 {
            bench.put("a", "1");
            bench.delete("a");
        }
        bench.compact(7).unwrap();
        if number == 0 {
            bench.compact_fully();
        }
        bench.put("a", "2");
        bench.put("a", "3");
    }
    let [removed, kept] = &benches;
    assert_eq!(entries(removed, LOG) + 5, entries(kept, LOG));
    assert_eq!(removed.view().hash(), kept.view().hash());
    for revision in 7..=9 {
        assert_eq!(removed.dump(revision), kept.dump(revision));
        let hash = |bench: &Bench| bench.view().hash_at(revision).unwrap();
        assert_eq!(hash(removed), hash(kept));
        for prev_kv in [false, true] {
            let events = |bench: &Bench| bench.events_from(revision, prev_kv).unwrap();
            assert_eq!(events(removed), events(kept));
        }
    }
}

#[test]
fn the_hash_at_an_old_revision_is_what_it_was() {
    let mut bench = Bench::new();
    let mut hashes = vec![0, bench.view().hash()];
    for number in 0..20 {
        bench.put(["a", "b", "c"][number % 3], &number.to_string());
        hashes.push(bench.view().hash());
    }
    bench.compact(9).unwrap();
    bench.compact_fully();
    for revision in 9..=21 {
        assert_eq!(
            bench.view().hash_at(revision).unwrap(),
            hashes[revision as usize]
        );
    }
    let refused = |revision| bench.view().hash_at(revision).unwrap_err().api();
    assert_eq!(refused(8), Some(ApiError::Compacted));
    assert_eq!(refused(22), Some(ApiError::FutureRevision));
    assert_eq!(bench.view().hash_at(0).unwrap(), hashes[21]);
}
