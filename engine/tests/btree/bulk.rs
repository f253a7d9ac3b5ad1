//! Sorted bulk load: what is appended is there, in full pages, whatever was in
//! the tree before and wherever the power goes.

use std::collections::BTreeMap;

use varve_engine::backend::conformance::{Model, Random, compare_all};
use varve_engine::backend::{Applied, Backend, BackendError, Batch, Entry, Result, TreeId};
use varve_engine::btree::inspect::Inspector;
use varve_engine::btree::page::MAX_KEY_BYTES;
use varve_engine::disk::sim::{Fault, FaultOn};

use crate::crash::{Acknowledged, visit};
use crate::{check, new_disk, open, path};

const TREE: TreeId = TreeId(1);

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// A way to put several entries.
type Way = fn(&mut dyn Batch, &[Entry<'_>]) -> Result<()>;

const WAYS: [Way; 2] = [
    |batch, entries| batch.append(TREE, entries),
    |batch, entries| batch.put_all(TREE, entries),
];

/// Sorted entries of a shape: short keys, long ones, ones that share much.
fn entries(random: &mut Random, count: usize, after: &str) -> Entries {
    let shape = random.below(4);
    let entry = |random: &mut Random| {
        let number = random.number();
        let key = match shape {
            0 => format!("{after}/{number:020}"),
            1 => format!("{after}/{}/{number:08x}", "x".repeat(random.below(700))),
            2 => format!(
                "{after}/{:04}/{}",
                number % 50,
                "y".repeat(random.below(1800))
            ),
            _ => format!(
                "{after}/registry/pods/namespace-{:02}/{number:x}",
                number % 20
            ),
        };
        let value = match random.below(20) {
            0 => 1000 + random.below(9000),
            1 => random.below(2100),
            _ => random.below(120),
        };
        (key.into_bytes(), vec![number as u8; value])
    };
    (0..count).map(|_| entry(random)).collect()
}

fn slices(entries: &Entries) -> Vec<Entry<'_>> {
    entries
        .iter()
        .map(|(key, value)| (&key[..], &value[..]))
        .collect()
}

#[test]
fn appended_entries_are_those_that_puts_would_make() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let disk = new_disk(false);
        let store = open(&disk).expect("a new store");
        let mut model = Model::default();
        for round in 1..=4 + random.below(4) as u64 {
            let mut batch = store.begin().expect("a batch");
            for _ in 0..1 + random.below(3) {
                // Mostly behind all others; sometimes before, among, or over them.
                let after = match random.below(4) {
                    0 => "b".to_owned(),
                    _ => format!("c{round:03}{:03}", model.trees[1].len()),
                };
                let count = random.below(400);
                let part = entries(&mut random, count, &after);
                let mut part_slices = slices(&part);
                if random.below(6) == 0 {
                    part_slices.reverse(); // not sorted at all
                }
                let size = 1 + random.below(part.len() + 1);
                for chunk in part_slices.chunks(size) {
                    batch.append(TREE, chunk).expect("appended");
                }
                model.tree(1).extend(part.clone());
                if random.below(3) == 0
                    && let Some(key) = part.keys().next_back()
                {
                    assert!(batch.delete(TREE, key).expect("deleted"));
                    model.tree(1).remove(key);
                }
            }
            model.applied = Applied {
                term: 1,
                index: round,
            };
            batch.publish(model.applied).expect("publish");
            if random.below(2) == 0 {
                store.checkpoint().expect("checkpoint");
            }
            check(&store);
        }
        compare_all(&*store.snapshot().expect("a snapshot"), &model).expect("as put");
        store.checkpoint().expect("checkpoint");
        drop(store);
        let store = open(&disk).expect("opens again");
        check(&store);
        compare_all(&*store.snapshot().expect("a snapshot"), &model).expect("as put");
    }
}

#[test]
fn what_is_too_long_is_refused_before_anything_is_changed() {
    for way in WAYS {
        too_long(way);
    }
}

fn too_long(way: Way) {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let mut batch = store.begin().expect("a batch");
    let long = vec![b'z'; MAX_KEY_BYTES + 1];
    let entries: [Entry<'_>; 3] = [(b"a", b"1"), (b"b", b"2"), (&long, b"3")];
    let error = way(&mut *batch, &entries).expect_err("refused");
    assert!(matches!(error, BackendError::KeyTooLong { .. }), "{error}");
    assert!(batch.get(TREE, b"a").expect("usable").is_none());
    way(&mut *batch, &entries[..2]).expect("the rest");
    way(&mut *batch, &[]).expect("nothing");
    batch
        .publish(Applied { term: 1, index: 1 })
        .expect("publish");
    check(&store);
}

#[test]
fn the_leaves_are_full() {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let mut random = Random::new(1);
    let all: Entries = (0..20_000)
        .map(|_| {
            let key = format!("{:019}", random.number() % 1_000_000_000_000);
            (key.into_bytes(), vec![1; 256])
        })
        .collect();
    for (round, chunk) in slices(&all).chunks(700).enumerate() {
        let mut batch = store.begin().expect("a batch");
        batch.append(TREE, chunk).expect("appended");
        let index = round as u64 + 1;
        batch.publish(Applied { term: 1, index }).expect("publish");
    }
    store.checkpoint().expect("checkpoint");
    check(&store);
    let tree = Inspector::open(&disk, path())
        .expect("opens")
        .tree(1)
        .expect("the tree");
    assert_eq!(tree.found.entries, all.len() as u64);
    // Of cells of 270 bytes 14 or 15 fit.
    assert!(tree.leaf_fill() > 0.95, "{}", tree.leaf_fill());
    assert!(tree.branch_fill() > 0.7, "{}", tree.branch_fill());
}

#[test]
fn a_power_loss_during_a_load_leaves_a_checkpoint() {
    power_loss(WAYS[0], 12, 150, 40);
    // So many that the tree is parted.
    power_loss(WAYS[1], 4, 260, 260);
}

fn power_loss(way: Way, rounds: u64, count: usize, at_a_time: usize) {
    let disk = new_disk(true);
    let store = open(&disk).expect("a new store");
    let mut random = Random::new(21);
    let mut model = Model::default();
    let mut acknowledged = vec![Acknowledged {
        operations: disk.op_count(),
        model: model.clone(),
    }];
    for round in 1..=rounds {
        let part = entries(&mut random, count, &format!("k{round:04}"));
        let mut batch = store.begin().expect("a batch");
        for chunk in slices(&part).chunks(at_a_time) {
            way(&mut *batch, chunk).expect("put");
        }
        model.tree(1).extend(part);
        model.applied = Applied {
            term: 1,
            index: round,
        };
        batch.publish(model.applied).expect("publish");
        if round.is_multiple_of(rounds / 4) {
            store.checkpoint().expect("checkpoint");
            acknowledged.push(Acknowledged {
                operations: disk.op_count(),
                model: model.clone(),
            });
        }
    }
    drop(store);
    let operations = disk.op_count();
    let inspector = Inspector::open(&disk, path()).expect("opens");
    let depth = inspector.tree(1).expect("a tree").depth;
    assert!(
        at_a_time < 256 || depth >= 3,
        "{depth}: there is no parting"
    );
    let first = acknowledged[0].operations;
    let mut states = 0;
    for prefix in first..=operations {
        for seed in [0, 1, 2 + prefix as u64] {
            visit(&disk, &acknowledged, prefix, seed).expect("whole");
            states += 1;
        }
    }
    assert!(states > 60, "{states}");
}

/// A load goes on after a full disk, and not after any other error; what was there
/// before stays.
#[test]
fn an_error_at_any_call_of_a_load_loses_nothing() {
    errors(WAYS[0], 6000, 100);
    errors(WAYS[1], 3000, 600);
}

fn errors(way: Way, count: usize, at_a_time: usize) {
    let load = |store: &dyn Backend, model: &mut Model, entries: &Entries| {
        load(way, at_a_time, store, model, entries)
    };
    let mut random = Random::new(22);
    // The second makes the file grow.
    let [first, second] =
        [("a", 800), ("b", count)].map(|(after, count)| entries(&mut random, count, after));
    for (on, errno) in [
        (FaultOn::Allocate, libc::ENOSPC),
        (FaultOn::Allocate, libc::EIO),
        (FaultOn::Write, libc::EIO),
        (FaultOn::Sync, libc::EIO),
    ] {
        let mut hits = 0;
        for after in 0.. {
            let disk = new_disk(false);
            let store = open(&disk).expect("a new store");
            let mut model = Model::default();
            load(&store, &mut model, &first).expect("the disk works");
            disk.inject(Fault {
                on,
                after,
                // A full disk stays full: a smaller piece may fit else.
                forever: errno == libc::ENOSPC,
                path_contains: String::new(),
                errno,
            });
            let mut loaded = model.clone();
            let outcome = load(&store, &mut loaded, &second);
            let Err(error) = outcome else {
                assert!(
                    disk.fault_count() > 0,
                    "{on:?} {after}: the error is not told"
                );
                break;
            };
            hits += 1;
            disk.clear_faults();
            assert!(
                error.to_string().contains("os error"),
                "{on:?} {after}: {error}"
            );
            check(&store);
            let snapshot = store.snapshot().expect("a snapshot");
            let either = [&model, &loaded];
            let of = |model: &&&Model| model.applied == snapshot.applied();
            let found = either.iter().find(of).expect("before the load or after it");
            compare_all(&*snapshot, found).expect("all of it or nothing");
            drop(snapshot);
            let crashed = disk.crash_now(0);
            if errno == libc::ENOSPC {
                load(&store, &mut loaded, &second).expect("there is room again");
                compare_all(&*store.snapshot().expect("a snapshot"), &loaded).expect("loaded");
            } else {
                assert!(store.begin().is_err(), "{on:?} {after}: not latched");
            }
            let store = open(&crashed).expect("opens after the fault");
            check(&store);
            let snapshot = store.snapshot().expect("a snapshot");
            assert!(snapshot.applied().index >= model.applied.index);
        }
        println!("{on:?}, errno {errno}: {hits} calls");
        assert!(hits > 0, "{on:?} is never called");
    }
}

/// Puts entries in one batch, and makes that durable.
fn load(
    way: Way,
    at_a_time: usize,
    store: &dyn Backend,
    model: &mut Model,
    entries: &Entries,
) -> Result<()> {
    let mut next = model.clone();
    next.applied = Applied {
        term: 1,
        index: model.applied.index + 1,
    };
    let mut batch = store.begin()?;
    for chunk in slices(entries).chunks(at_a_time) {
        way(&mut *batch, chunk)?;
    }
    batch.publish(next.applied)?;
    next.tree(1).extend(entries.clone());
    *model = next;
    store.checkpoint().map(drop)
}
