//! Readers and checkpoints in other threads while the writer goes on.

use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{Applied, Backend, Direction, Snapshot, TreeId};
use varve_engine::btree::{Btree, Options};

use crate::{check, new_disk, open};

const KEYS: u32 = 1500;
const TREE: TreeId = TreeId(1);
const ALL: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);

fn key(number: u32) -> [u8; 4] {
    number.wrapping_mul(0x9e37_79b9).to_be_bytes()
}

/// Every batch sets each key to its own number, some values being long: a state
/// whose values are not all of its own number is torn.
fn write(store: &dyn Backend, round: u64) {
    let mut batch = store.begin().expect("a batch");
    for number in 0..KEYS {
        let mut value = vec![0; if number % 100 == 0 { 5000 } else { 40 }];
        value[..8].copy_from_slice(&round.to_le_bytes());
        batch.put(TREE, &key(number), &value).expect("put");
    }
    batch
        .publish(Applied {
            term: 1,
            index: round,
        })
        .expect("publish");
}

fn verify(snapshot: &dyn Snapshot) {
    let round = snapshot.applied().index;
    let mut count = 0;
    let visit = &mut |_: &[u8], value: &[u8]| {
        count += 1;
        assert_eq!(value[..8], round.to_le_bytes(), "a value of another state");
        ControlFlow::Continue(())
    };
    snapshot
        .scan(TREE, ALL, Direction::Forward, visit)
        .expect("scan");
    let expected = if round == 0 { 0 } else { KEYS };
    assert_eq!(count, expected);
    let sums = snapshot.sums(TREE, ALL).expect("sums");
    assert_eq!(sums.entries, u64::from(expected));
    let value = snapshot.get(TREE, &key(7)).expect("get");
    assert_eq!(value.is_some(), round > 0);
}

#[test]
fn snapshots_are_whole_while_the_writer_and_checkpoints_go_on() {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..3 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut held = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    held.push(store.snapshot().expect("a snapshot"));
                    verify(&**held.last().expect("just pushed"));
                    if held.len() > 5 {
                        let old = held.swap_remove(random.below(held.len()));
                        verify(&*old);
                    }
                }
                held.iter().for_each(|snapshot| verify(&**snapshot));
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let applied = store.checkpoint().expect("checkpoint");
                assert!(store.durable().index >= applied.index);
                thread::yield_now();
            }
        });
        for round in 1..=150 {
            write(&store, round);
            if round % 40 == 0 {
                check(&store);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    check(&store);
    assert_eq!(store.stats().readers, 0);
    store.checkpoint().expect("checkpoint");
    drop(store);
    let store = open(&disk.crash_now(0)).expect("opens");
    check(&store);
    verify(&*store.snapshot().expect("a snapshot"));
    assert_eq!(store.durable().index, 150);
}

#[test]
fn space_is_recycled_while_no_reader_holds_on() {
    let store = open(&new_disk(false)).expect("a new store");
    for round in 1..=10 {
        write(&store, round);
    }
    let settled = store.stats().file_bytes;
    for round in 11..=60 {
        write(&store, round);
        if round % 10 == 0 {
            store.checkpoint().expect("checkpoint");
        }
    }
    // Twice the size for what a checkpoint still needs, and some more.
    assert!(
        store.stats().file_bytes <= 3 * settled,
        "the file grows for ever"
    );
    check(&store);
}

#[test]
fn a_long_reader_only_delays_recycling() {
    let store = open(&new_disk(false)).expect("a new store");
    write(&store, 1);
    let old = store.snapshot().expect("a snapshot");
    for round in 2..=20 {
        write(&store, round);
    }
    // The reader's state, and what the last batch replaced.
    let used = store.stats().used_bytes;
    let pinned = store.stats().pinned_bytes;
    assert!(pinned > used / 4, "{pinned} bytes pinned, {used} in use");
    assert_eq!(store.stats().oldest_reader_states, 19);
    verify(&*old);
    drop(old);
    assert_eq!(store.stats().oldest_reader_states, 0);
    write(&store, 21);
    store.checkpoint().expect("checkpoint");
    // An empty batch replaces nothing, but lets go of what nobody holds.
    for _ in 0..2 {
        let batch = store.begin().expect("a batch");
        let applied = store.snapshot().expect("a snapshot").applied();
        batch.publish(applied).expect("publish");
    }
    let pinned = store.stats().pinned_bytes;
    assert!(pinned < used / 8, "{pinned} bytes pinned");
    check(&store);
}

#[test]
fn long_values_fill_a_file_of_several_bitmap_pages() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store");
    let disk = varve_engine::disk::psync::PsyncDisk::new();
    let open = || Btree::open(&disk, &path, Options::default()).expect("opens");
    let value = |number: u8| vec![number; 8_000_000 + usize::from(number)];
    let store = open();
    for number in 0..20 {
        let mut batch = store.begin().expect("a batch");
        batch.put(TREE, &[number], &value(number)).expect("put");
        batch
            .publish(Applied {
                term: 1,
                index: 1 + u64::from(number),
            })
            .expect("publish");
    }
    store.checkpoint().expect("checkpoint");
    check(&store);
    drop(store);
    let store = open();
    check(&store);
    let mut batch = store.begin().expect("a batch");
    let bounds = (Bound::Excluded(&[3][..]), Bound::Included(&[15][..]));
    assert_eq!(batch.delete_range(TREE, bounds).expect("delete_range"), 12);
    batch
        .publish(Applied { term: 1, index: 21 })
        .expect("publish");
    store.checkpoint().expect("checkpoint");
    check(&store);
    assert!(store.stats().used_bytes < 70_000_000);
    drop(store);
    let store = open();
    check(&store);
    let snapshot = store.snapshot().expect("a snapshot");
    for number in [0, 3, 16, 19] {
        let found = snapshot.get(TREE, &[number]).expect("get");
        assert_eq!(found.as_deref(), Some(&value(number)[..]));
    }
}

#[test]
fn many_snapshots_are_held_at_the_same_time() {
    let store = open(&new_disk(false)).expect("a new store");
    let mut held = Vec::new();
    for round in 1..=200 {
        let mut batch = store.begin().expect("a batch");
        batch
            .put(TREE, b"round", &u64::to_le_bytes(round))
            .expect("put");
        batch
            .publish(Applied {
                term: 1,
                index: round,
            })
            .expect("publish");
        held.push(store.snapshot().expect("a snapshot"));
    }
    assert_eq!(store.stats().readers, 200);
    for (round, snapshot) in (1_u64..).zip(&held) {
        let value = snapshot.get(TREE, b"round").expect("get");
        assert_eq!(value.as_deref(), Some(&round.to_le_bytes()[..]));
    }
    check(&store);
}

/// A reader keeps the pages of its state, not those that came and went since.
#[test]
fn a_long_reader_does_not_make_the_file_grow() {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    write(&store, 1);
    store.checkpoint().expect("checkpoint");
    let used = store.stats().used_bytes;
    let (first, mut second) = (store.snapshot().expect("a snapshot"), None);
    for round in 2..100 {
        write(&store, round);
        if round == 50 {
            second = store.snapshot().ok();
            store.checkpoint().expect("checkpoint");
        }
    }
    verify(&*first);
    verify(&*second.expect("a snapshot"));
    verify(&*store.snapshot().expect("a snapshot"));
    // Two states held, the newest, the batch's copy, and what two checkpoints
    // have, some of it twice: not a hundred states.
    let file = store.stats().file_bytes;
    assert!(file < 10 * used, "{file} bytes for {used} in use");
    drop(first);
    write(&store, 100);
    assert_eq!(store.stats().readers, 0);
    assert!(store.stats().pinned_bytes < 3 * used, "{:?}", store.stats());
    check(&store);
}
