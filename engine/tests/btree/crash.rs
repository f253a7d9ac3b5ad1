//! Crash enumeration: a store that is opened after a power loss at any point is
//! whole and as of a checkpoint: the last one that was acknowledged, or the one
//! that was on its way.
//!
//! `VARVE_CRASH_STATES` sets how many states are visited, `VARVE_CRASH_SEED`
//! the workload and the crashes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use varve_engine::backend::conformance::{
    KeyShape, Model, Operation, Random, Session, compare_all, operations,
};
use varve_engine::backend::{Applied, Backend, BackendError, TreeId};
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::SimDisk;

use crate::hooked::HookedDisk;
use crate::{TRAITS, check, new_disk, open};

fn variable(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// What was checkpointed, and after which operation of the disk that was known.
pub(crate) struct Acknowledged {
    pub(crate) operations: usize,
    pub(crate) model: Model,
}

/// Runs a workload with checkpoints on a recording disk. The first entry is the
/// empty disk that it starts from.
fn record(seed: u64, shape: KeyShape, count: usize, keys: usize) -> (SimDisk, Vec<Acknowledged>) {
    let disk = new_disk(true);
    let mut steps = operations(seed, count, shape, keys, false);
    // The model is copied at each checkpoint: some, but not too many.
    for (index, step) in steps.iter_mut().enumerate() {
        if index % 97 == 96 {
            *step = Operation::Publish;
        } else if index % 97 == 0 {
            *step = Operation::Checkpoint;
        }
    }
    let mut acknowledged = vec![Acknowledged {
        operations: disk.op_count(),
        model: Model::default(),
    }];
    let mut opener = || open(&disk).map(|store| Arc::new(store) as Arc<dyn Backend>);
    let mut session = Session::new(&mut opener, TRAITS).expect("the store opens");
    session.observe(|_, durable| {
        let last = acknowledged.last().expect("the first");
        if last.model.applied != durable.applied {
            acknowledged.push(Acknowledged {
                operations: disk.op_count(),
                model: durable.clone(),
            });
        }
    });
    session.run(&steps).expect("engine and model agree");
    drop(session);
    (disk, acknowledged)
}

/// Opens the disk as a crash left it and compares it with what it may be.
pub(crate) fn visit(
    disk: &SimDisk,
    acknowledged: &[Acknowledged],
    prefix: usize,
    seed: u64,
) -> Result<(), String> {
    let crashed = disk.crash(prefix, seed);
    let place = format!("prefix {prefix}, seed {seed}");
    let failed = |error: BackendError| format!("{place}: {error}");
    let known = acknowledged.partition_point(|known| known.operations <= prefix);
    let allowed = &acknowledged[known - 1..acknowledged.len().min(known + 1)];
    let store = open(&crashed).map_err(failed)?;
    store.check().map_err(failed)?;
    let snapshot = store.snapshot().map_err(failed)?;
    assert_eq!(snapshot.applied(), store.durable(), "{place}");
    let found = allowed
        .iter()
        .find(|known| known.model.applied == snapshot.applied());
    let found = found.ok_or_else(|| format!("{place}: applied {:?}", snapshot.applied()))?;
    compare_all(&*snapshot, &found.model).map_err(|what| format!("{place}: {what}"))?;
    drop(snapshot);
    go_on(&store, &crashed, &found.model);
    Ok(())
}

/// A store that came back takes writes and checkpoints as before.
fn go_on(store: &dyn Backend, disk: &SimDisk, model: &Model) {
    let mut model = model.clone();
    let mut batch = store.begin().expect("a batch");
    for number in 0..20_u32 {
        let key = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
        let value = vec![number as u8; if number == 7 { 9000 } else { 300 }];
        batch.put(TreeId(1), &key, &value).expect("put");
        model.tree(1).insert(key.to_vec(), value);
    }
    let applied = Applied {
        term: 99,
        index: model.applied.index + 1,
    };
    batch.publish(applied).expect("publish");
    store.checkpoint().expect("checkpoint");
    check(store);
    let again = disk.crash_now(0);
    let store = open(&again).expect("the store opens again");
    check(&store);
    let snapshot = store.snapshot().expect("a snapshot");
    assert_eq!(snapshot.applied(), applied);
    compare_all(&*snapshot, &model).expect("the checkpointed model");
}

fn enumerate(shape: KeyShape, count: usize, keys: usize) {
    let budget = variable("VARVE_CRASH_STATES", 200);
    let seed = variable("VARVE_CRASH_SEED", 1);
    let (disk, acknowledged) = record(seed, shape, count, keys);
    let start = acknowledged[0].operations;
    let total = disk.op_count() - start;
    assert!(acknowledged.len() > 5, "the workload makes checkpoints");
    let mut random = Random::new(seed);
    let mut visited = 0;
    // All lost, all kept, and sector by sector; prefixes rising, evenly spread
    // if they are too many.
    let seeds = 3 + budget / 3 / total.max(1) as u64;
    let prefixes = (budget / seeds).clamp(1, total as u64 + 1);
    for step in 0..prefixes {
        let spread = total as u64 + 1;
        let prefix = step * spread / prefixes + random.number() % spread.div_ceil(prefixes);
        let prefix = start + (prefix as usize).min(total);
        for number in 0..seeds {
            let seed = if number < 2 {
                number
            } else {
                2 + random.number() % 1_000_000
            };
            visit(&disk, &acknowledged, prefix, seed).unwrap_or_else(|what| panic!("{what}"));
            visited += 1;
        }
    }
    println!(
        "{shape:?}: {visited} crash states of {total} disk operations, {} checkpoints, seed {seed}",
        acknowledged.len() - 1
    );
}

#[test]
fn every_crash_state_is_a_checkpoint_with_short_keys() {
    enumerate(KeyShape::Path, 2500, 600);
}

#[test]
fn every_crash_state_is_a_checkpoint_with_all_kinds_of_keys_and_values() {
    enumerate(KeyShape::Mixed { max: 1920 }, 2500, 300);
}

/// The checker is worth nothing if it passes what is broken: with a disk that
/// skips the sync before each meta page, it must find a bad state.
#[test]
fn a_checkpoint_without_its_first_sync_is_caught() {
    let disk = new_disk(true);
    let mut forgetful = HookedDisk::new(disk.clone(), "store");
    let syncs = AtomicUsize::new(0);
    forgetful.sync = Arc::new(move || {
        // Two are the making of the store; then each checkpoint has two.
        let number = syncs.fetch_add(1, Ordering::Relaxed);
        number < 2 || !number.is_multiple_of(2)
    });
    let mut acknowledged = vec![Acknowledged {
        operations: disk.op_count(),
        model: Model::default(),
    }];
    let options = Options { map_bytes: 1 << 28 };
    let store = Btree::open(&forgetful, crate::path(), options).expect("a new store");
    for round in 1..=6_u64 {
        let mut model = acknowledged.last().expect("the first").model.clone();
        let mut batch = store.begin().expect("a batch");
        for number in 0..60_u32 {
            let key = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
            batch
                .put(TreeId(1), &key, &[round as u8; 200])
                .expect("put");
            model.tree(1).insert(key.to_vec(), vec![round as u8; 200]);
        }
        model.applied = Applied {
            term: 1,
            index: round,
        };
        batch.publish(model.applied).expect("publish");
        store.checkpoint().expect("checkpoint");
        acknowledged.push(Acknowledged {
            operations: disk.op_count(),
            model,
        });
    }
    check(&store);
    let mut states = (acknowledged[1].operations..=disk.op_count())
        .flat_map(|prefix| (0..6).map(move |seed| (prefix, seed)));
    let caught = states.find_map(|(prefix, seed)| visit(&disk, &acknowledged, prefix, seed).err());
    println!("caught: {}", caught.expect("the missing sync shows"));
}
