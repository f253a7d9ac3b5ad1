//! Old versions of keys with many of them.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use varve_types::{KeyRange, RangeRequest};

use super::super::LOG;
use super::super::history::version_at;
use super::super::keys::Revision;
use super::{ALL, Bench, all, put, show};
use crate::backend::{Bounds, Direction, Read, Result, Snapshot, TreeId, Visitor};

/// Counts reads of LOG.
struct Counting {
    snapshot: Arc<dyn Snapshot>,
    reads: Cell<usize>,
}

impl Read for Counting {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        self.reads.set(self.reads.get() + usize::from(tree == LOG));
        self.snapshot.get(tree, key)
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.snapshot.scan(tree, bounds, direction, visit)
    }
}

#[test]
fn an_old_read_takes_few_steps_however_many_versions() {
    let mut bench = Bench::new();
    let applied = bench.next();
    let mut txn = bench.store.begin(Default::default()).unwrap();
    for number in 2..=5000 {
        let value = number.to_string();
        txn.apply(&varve_types::Command::Put(put("k", &value)))
            .unwrap();
    }
    txn.publish(applied).unwrap();
    let counting = Counting {
        snapshot: bench.store.backend().snapshot().unwrap(),
        reads: Cell::new(0),
    };
    let (mut most, mut total) = (0, 0);
    for revision in 2..=5000 {
        counting.reads.set(0);
        let version = version_at(&counting, b"k", Revision::last_of(revision)).unwrap();
        let version = version.unwrap();
        assert_eq!(
            version.record().unwrap().value,
            revision.to_string().as_bytes()
        );
        most = most.max(counting.reads.get());
        total += counting.reads.get();
    }
    println!("steps: at most {most}, {} in total", total);
    // 5,000 is below 8^5: at most 8 steps for each of 5 levels.
    assert!(most <= 40, "{most}");
    assert!(total / 5000 <= 20, "{}", total / 5000);
}

#[test]
fn many_versions_and_deletions_of_a_few_keys() {
    let mut bench = Bench::new();
    let mut dumps = vec![String::new(), String::new()];
    let mut number = 1u64;
    while dumps.len() < 700 {
        number = number
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let key = ["a", "b"][(number >> 40) as usize % 2];
        if (number >> 50).is_multiple_of(7) {
            bench.delete(key);
        } else {
            bench.put(key, &number.to_string());
        }
        if bench.revision() as usize == dumps.len() {
            dumps.push(bench.dump(0));
        }
    }
    let verify = |bench: &Bench, from: usize| {
        for (revision, dump) in dumps.iter().enumerate().skip(from) {
            assert_eq!(&bench.dump(revision as i64), dump);
            let count = bench.view().count(ALL, revision as i64).unwrap();
            assert_eq!(count as usize, dump.split_whitespace().count());
        }
    };
    verify(&bench, 1);
    for compacted in [300, 301, 690] {
        bench.compact(compacted).unwrap();
        verify(&bench, compacted as usize);
        while bench.compact_step(50) {
            verify(&bench, compacted as usize);
        }
        verify(&bench, compacted as usize);
    }
}

#[test]
fn a_wide_range_at_an_old_revision_merges_live_and_dead() {
    let mut bench = Bench::new();
    for number in 0..1000 {
        bench.put(&format!("k{number:03}"), "v");
    }
    let before = bench.revision();
    // Many more dead keys than are held at a time, some of them back to life.
    for number in (0..1000).filter(|number| number % 3 != 0) {
        bench.delete(&format!("k{number:03}"));
    }
    for number in (0..1000).step_by(5) {
        bench.put(&format!("k{number:03}"), "new");
    }
    for _ in 0..3000 {
        bench.put("busy", "v");
    }
    let (mut forward, mut backward) = (all(), all());
    (forward.revision, backward.revision) = (before, before);
    backward.sort_order = varve_types::SortOrder::Descend;
    let mut expected: Vec<_> = (0..1000).map(|number| format!("k{number:03}=v")).collect();
    let answer = bench.range(&forward).unwrap();
    assert_eq!(show(&answer.kvs), expected.join(" "));
    expected.reverse();
    let answer = bench.range(&backward).unwrap();
    assert_eq!(show(&answer.kvs), expected.join(" "));
    // A page of it, both ways; more changes than keys, so the keys are counted.
    for mut request in [forward, backward] {
        request.limit = 300;
        (request.key, request.range_end) = (b"k100", b"k900");
        let answer = bench.range(&request).unwrap();
        assert_eq!(
            (answer.kvs.len(), answer.count, answer.more),
            (300, 800, true)
        );
    }
    let one = RangeRequest {
        key: b"k001",
        revision: before,
        ..RangeRequest::default()
    };
    assert_eq!(show(&bench.range(&one).unwrap().kvs), "k001=v");
    assert_eq!(
        bench.view().count(KeyRange::One(b"k001"), before).unwrap(),
        1
    );
    assert_eq!(bench.view().count(KeyRange::One(b"k001"), 0).unwrap(), 0);
}
