//! Errors of the disk, at every single call.
//!
//! What must hold: no panic; the call that meets the error returns one; the
//! published state stays readable; after a failed write or sync the store takes
//! no more writes, after a full disk it goes on when there is room; and what
//! comes back after a power loss is a checkpoint.

use varve_engine::backend::conformance::{Model, compare_all};
use varve_engine::backend::{Applied, Backend, BackendError, Result, TreeId};
use varve_engine::btree::Btree;
use varve_engine::disk::SimDisk;
use varve_engine::disk::sim::{Fault, FaultOn};

use crate::{check, new_disk, open};

const ROUNDS: u32 = 8;

fn inject(disk: &SimDisk, on: FaultOn, after: u64, errno: i32, forever: bool) {
    disk.inject(Fault {
        on,
        after,
        forever,
        path_contains: String::new(),
        errno,
    });
}

/// One batch that makes the file grow, as a function of its number.
fn batch(store: &Btree, model: &mut Model, round: u32) -> Result<()> {
    let mut next = model.clone();
    let mut batch = store.begin()?;
    for number in 0..150_u32 {
        let key = (number * 7 + round).wrapping_mul(0x9e37_79b9).to_be_bytes();
        let value = vec![round as u8; if number % 40 == 0 { 12_000 } else { 900 }];
        batch.put(TreeId(1), &key, &value)?;
        next.tree(1).insert(key.to_vec(), value);
    }
    next.applied = Applied {
        term: 1,
        index: u64::from(round),
    };
    batch.publish(next.applied)?;
    *model = next;
    Ok(())
}

/// What is known when a run ended.
struct Known {
    published: Model,
    /// The last acknowledged checkpoint, and the one that was on its way.
    durable: Vec<Model>,
}

/// Batches and checkpoints until an error.
fn run(store: &Btree) -> (Known, Result<()>) {
    let mut known = Known {
        published: Model::default(),
        durable: vec![Model::default()],
    };
    for round in 1..=ROUNDS {
        if let Err(error) = batch(store, &mut known.published, round) {
            return (known, Err(error));
        }
        known.durable.push(known.published.clone());
        if let Err(error) = store.checkpoint() {
            return (known, Err(error));
        }
        known.durable = vec![known.published.clone()];
    }
    (known, Ok(()))
}

fn is_io(error: &BackendError) -> bool {
    matches!(error, BackendError::Io { .. })
}

fn readable(store: &Btree, known: &Known) {
    check(store);
    let snapshot = store.snapshot().expect("snapshots still work");
    assert_eq!(snapshot.applied(), known.published.applied);
    compare_all(&*snapshot, &known.published).expect("what was published is readable");
}

fn comes_back(disk: &SimDisk, known: &Known) {
    for seed in 0..6 {
        let crashed = disk.crash_now(seed);
        let store = open(&crashed).expect("opens after the fault");
        check(&store);
        let snapshot = store.snapshot().expect("a snapshot");
        let of = |model: &&Model| model.applied == snapshot.applied();
        let model = known.durable.iter().find(of).expect("a checkpoint");
        compare_all(&*snapshot, model).expect("the checkpoint's content");
    }
}

#[test]
fn a_failed_write_or_sync_latches_at_every_call() {
    for on in [FaultOn::Write, FaultOn::Sync, FaultOn::Allocate] {
        let mut hits = 0;
        for after in 0.. {
            let disk = new_disk(false);
            let store = open(&disk).expect("a new store");
            inject(&disk, on, after, libc::EIO, false);
            let (known, outcome) = run(&store);
            let Err(error) = outcome else { break };
            hits += 1;
            assert!(is_io(&error), "{on:?} {after}: {error}");
            // What, which file, and where in it.
            let where_it_was = format!(" {} at offset ", crate::path().display());
            let text = error.to_string();
            let (action, _) = text.split_once(&where_it_was).expect(&text);
            let is_write_back = on == FaultOn::Sync && action == "write back";
            assert!(
                is_write_back || action == format!("{on:?}").to_lowercase(),
                "{text}"
            );
            readable(&store, &known);
            // The disk works again, but nobody knows what it lost.
            disk.clear_faults();
            let refused = store.begin().map(drop).expect_err("no more batches");
            assert!(matches!(&refused, BackendError::Latched(text) if text.contains("os error 5")));
            let refused = store.checkpoint().expect_err("no more checkpoints");
            assert!(matches!(refused, BackendError::Latched(_)));
            readable(&store, &known);
            comes_back(&disk, &known);
        }
        assert!(hits >= 2, "{on:?} was hit {hits} times only");
    }
}

/// After a failed sync the cache still shows a meta page that the disk does not
/// have, and no later sync writes it. Once a store says how far it is durable,
/// the log behind that may go: so it must be true.
#[test]
fn what_a_store_opened_after_a_failed_sync_promises_survives_a_power_loss() {
    let mut promised_more = 0;
    for after in 0.. {
        let disk = new_disk(false);
        let store = open(&disk).expect("a new store");
        inject(&disk, FaultOn::Sync, after, libc::EIO, false);
        let (known, outcome) = run(&store);
        if outcome.is_ok() {
            break;
        }
        drop(store);
        // The process starts again, the machine does not.
        let promised = open(&disk).expect("opens again").durable();
        promised_more += u32::from(promised != known.durable[0].applied);
        for seed in 0..6 {
            let store = open(&disk.crash_now(seed)).expect("opens after the power loss");
            assert_eq!(store.durable(), promised, "sync {after}, seed {seed}");
            check(&store);
        }
    }
    assert!(promised_more > 0, "no meta page was in the cache alone");
}

/// A checkpoint that failed gives the pages of its free map back, though the disk
/// may refer to them: a batch that is open meanwhile must not take them.
#[test]
fn an_open_batch_takes_no_pages_after_a_failed_checkpoint() {
    for length in [900, 12_000] {
        let disk = new_disk(false);
        let store = open(&disk).expect("a new store");
        let mut known = Known {
            published: Model::default(),
            durable: vec![Model::default()],
        };
        batch(&store, &mut known.published, 1).expect("a batch");
        known.durable.push(known.published.clone());
        let mut batch = store.begin().expect("a batch");
        batch.put(TreeId(1), b"before", b"").expect("a page");
        inject(&disk, FaultOn::Sync, 1, libc::EIO, false);
        let error = store.checkpoint().expect_err("the meta page is not synced");
        assert!(is_io(&error), "{error}");
        // The batch may use up what it has taken.
        let refused = (0..200_u32)
            .find_map(|number| {
                let key = number.to_be_bytes();
                batch.put(TreeId(1), &key, &vec![1; length]).err()
            })
            .expect("no more pages");
        assert!(matches!(refused, BackendError::Latched(_)), "{refused}");
        drop(batch);
        readable(&store, &known);
        comes_back(&disk, &known);
    }
}

#[test]
fn a_full_disk_fails_the_batch_and_no_more() {
    let mut hits = 0;
    for after in 0.. {
        let disk = new_disk(false);
        let store = open(&disk).expect("a new store");
        inject(&disk, FaultOn::Allocate, after, libc::ENOSPC, true);
        let (mut known, outcome) = run(&store);
        let Err(error) = outcome else { break };
        hits += 1;
        assert!(is_io(&error), "{after}: {error}");
        readable(&store, &known);
        disk.clear_faults();
        batch(&store, &mut known.published, ROUNDS + 1).expect("there is room again");
        known.durable.push(known.published.clone());
        store.checkpoint().expect("checkpoints work again");
        known.durable = vec![known.published.clone()];
        readable(&store, &known);
        comes_back(&disk, &known);
    }
    assert!(hits >= 2, "ENOSPC was hit {hits} times only");
}

/// What it did not write is far from what the next batch makes.
#[test]
fn a_checkpoint_after_one_on_a_full_disk_writes_what_that_could_not() {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let mut published = Model::default();
    let mut put = |tree: u8, keys: u32, length: usize| -> Result<Model> {
        let mut next = published.clone();
        let mut batch = store.begin()?;
        for number in 0..keys {
            let (key, value) = (number.to_be_bytes(), vec![number as u8; length]);
            batch.put(TreeId(tree), &key, &value)?;
            next.tree(tree).insert(key.to_vec(), value);
        }
        next.applied.index += 1;
        batch.publish(next.applied)?;
        published = next.clone();
        Ok(next)
    };
    put(1, 2000, 3000).expect("room");
    inject(&disk, FaultOn::Allocate, 0, libc::ENOSPC, true);
    // A page each, as no former one is free while it is looked at.
    let mut snapshots = Vec::new();
    let full = (0..1000).find_map(|_| {
        snapshots.push(store.snapshot().expect("a snapshot"));
        put(2, 1, 10).err()
    });
    assert!(full.expect("the disk is full").is_no_space());
    let error = store.checkpoint().expect_err("no page for the free map");
    assert!(error.is_no_space(), "{error}");
    drop(snapshots);
    disk.clear_faults();
    let last = put(2, 1, 20).expect("there is room again");
    store.checkpoint().expect("checkpoints work again");
    let known = Known {
        published: last.clone(),
        durable: vec![last],
    };
    readable(&store, &known);
    comes_back(&disk, &known);
}

#[test]
fn a_batch_that_failed_half_way_can_only_be_dropped() {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    inject(&disk, FaultOn::Allocate, 0, libc::ENOSPC, true);
    let mut batch = store.begin().expect("a batch");
    let failed = (0..10_000_u32)
        .find_map(|number| batch.put(TreeId(1), &number.to_be_bytes(), &[1; 900]).err());
    assert!(is_io(&failed.expect("the disk is full")));
    assert!(matches!(
        batch.get(TreeId(1), b"a"),
        Err(BackendError::BrokenBatch(_))
    ));
    let refused = batch.publish(Applied::default()).expect_err("refused");
    assert!(matches!(refused, BackendError::BrokenBatch(_)));
    assert!(store.begin().is_ok(), "the next batch starts afresh");
    check(&store);
}

#[test]
fn an_error_while_opening_is_returned() {
    for on in [
        FaultOn::Read,
        FaultOn::Write,
        FaultOn::Sync,
        FaultOn::Allocate,
        FaultOn::SyncDir,
    ] {
        let mut hits = 0;
        for after in 0..20 {
            let disk = new_disk(false);
            inject(&disk, on, after, libc::EIO, false);
            let Err(error) = open(&disk) else { continue };
            hits += 1;
            assert!(is_io(&error), "{on:?} {after}: {error}");
            disk.clear_faults();
            // What was begun is finished, or begun anew.
            let store = open(&disk.crash_now(after)).expect("the next try");
            check(&store);
        }
        assert!(hits > 0, "{on:?} was never hit");
    }
}

#[test]
fn a_store_reaches_the_end_of_its_reservation_with_an_error() {
    let disk = new_disk(false);
    let options = varve_engine::btree::Options { map_bytes: 1 << 20 };
    let store = Btree::open(&disk, crate::path(), options).expect("a new store");
    let (known, outcome) = run(&store);
    let error = outcome.expect_err("a megabyte is soon full");
    assert!(
        error.to_string().contains("limited to 256 pages"),
        "{error}"
    );
    readable(&store, &known);
    assert!(store.begin().is_ok(), "not latched");
    comes_back(&disk, &known);
}
