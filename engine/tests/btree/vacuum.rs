//! The file gets shorter, beside readers and batches, and nothing is lost.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{
    Applied, Backend, BackendError, Direction, Read, TreeId, VacuumExtent,
};
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::SimDisk;
use varve_engine::disk::sim::{Fault, FaultOn};

use crate::hooked::HookedDisk;
use crate::{check, new_disk, open};

const TREE: TreeId = TreeId(1);
type Model = BTreeMap<Vec<u8>, Vec<u8>>;

struct Test {
    disk: SimDisk,
    store: Btree,
    model: Model,
    index: u64,
}

impl Test {
    /// A store of `keys` random keys, of which those are left that `keep` says.
    fn new(keys: u64, value_bytes: usize, keep: impl Fn(u64) -> bool) -> Self {
        Self::on(new_disk(false), keys, value_bytes, keep)
    }

    fn on(disk: SimDisk, keys: u64, value_bytes: usize, keep: impl Fn(u64) -> bool) -> Self {
        let store = open(&disk).expect("a new store");
        Self::with(disk, store, keys, value_bytes, keep)
    }

    fn with(
        disk: SimDisk,
        store: Btree,
        keys: u64,
        value_bytes: usize,
        keep: impl Fn(u64) -> bool,
    ) -> Self {
        let mut test = Self {
            disk,
            store,
            model: Model::new(),
            index: 0,
        };
        let mut random = Random::new(7);
        let keys: Vec<_> = (0..keys)
            .map(|_| random.number().to_be_bytes().to_vec())
            .collect();
        for part in keys.chunks(500) {
            test.batch(|batch, model| {
                for key in part {
                    let value = vec![key[0]; value_bytes];
                    batch.put(TREE, key, &value).expect("put");
                    model.insert(key.clone(), value);
                }
            });
        }
        test.store.checkpoint().expect("checkpoint");
        test.batch(|batch, model| {
            for (_, key) in (0..).zip(&keys).filter(|(number, _)| !keep(*number)) {
                assert!(batch.delete(TREE, key).expect("delete"));
                model.remove(key);
            }
        });
        test
    }

    fn batch(&mut self, change: impl FnOnce(&mut dyn varve_engine::backend::Batch, &mut Model)) {
        self.index += 1;
        let applied = Applied {
            term: 1,
            index: self.index,
        };
        let mut batch = self.store.begin().expect("a batch");
        change(&mut *batch, &mut self.model);
        batch.publish(applied).expect("publish");
    }

    /// Vacuums until the engine has nothing left to do; how many steps that took.
    fn vacuum(&mut self) -> usize {
        let mut steps = 0;
        while self.store.vacuums() {
            self.batch(|batch, _| {
                batch.vacuum_step().expect("a step");
            });
            steps += 1;
            assert!(steps < 10_000, "a vacuum ends");
            if self.store.wants_checkpoint(false) {
                self.store.checkpoint().expect("checkpoint");
            }
        }
        steps
    }

    fn file_bytes(&self) -> u64 {
        self.store.stats().file_bytes
    }

    fn verify(&self) {
        check(&self.store);
        compare(&*self.store.snapshot().expect("a snapshot"), &self.model);
    }

    fn reopened(self) -> Self {
        let Self {
            disk,
            store,
            model,
            index,
        } = self;
        drop(store);
        let disk = disk.crash_now(0);
        let store = open(&disk).expect("the store opens");
        Self {
            disk,
            store,
            model,
            index,
        }
    }
}

fn compare(reader: &(impl Read + ?Sized), model: &Model) {
    let mut expected = model.iter();
    let all = (Bound::Unbounded, Bound::Unbounded);
    reader
        .scan(TREE, all, Direction::Forward, &mut |key, value| {
            assert_eq!(expected.next(), Some((&key.to_vec(), &value.to_vec())));
            ControlFlow::Continue(())
        })
        .expect("a scan");
    assert_eq!(expected.next(), None);
}

/// Batches take pages while the file is cut, and what it grows by meanwhile stays.
#[test]
fn batches_go_on_while_the_file_is_cut() {
    let mut disk = HookedDisk::new(new_disk(false), "store");
    let (begun, begins) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    let (ends, has_waited) = (Mutex::new(ends), Arc::new(AtomicBool::new(false)));
    let waited = Arc::clone(&has_waited);
    disk.truncate = Arc::new(move || {
        let _ = begun.send(());
        if !waited.load(Ordering::Relaxed) {
            let told = ends.lock().unwrap().recv_timeout(Duration::from_secs(10));
            waited.store(told == Err(RecvTimeoutError::Timeout), Ordering::Relaxed);
        }
        true
    });
    let options = Options { map_bytes: 1 << 28 };
    let store = Btree::open(&disk, crate::path(), options).expect("a new store");
    let mut test = Test::with(disk.inner, store, 4_000, 1000, |number| number % 8 == 0);
    test.store.checkpoint().expect("checkpoint");
    test.store.start_vacuum(VacuumExtent::All);
    while !test.store.wants_checkpoint(false) {
        test.batch(|batch, _| {
            batch.vacuum_step().expect("a step");
        });
    }
    let (store, model, index) = (&test.store, &mut test.model, &mut test.index);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| store.checkpoint().expect("checkpoint"));
        begins
            .recv_timeout(Duration::from_secs(20))
            .expect("it is cut");
        let short = store.stats().file_bytes;
        let mut put = |keys: std::ops::Range<u64>| {
            *index += 1;
            let mut batch = store.begin().expect("a batch");
            for key in keys.map(u64::to_be_bytes) {
                batch.put(TREE, &key, &[9; 1000]).expect("put");
                model.insert(key.to_vec(), vec![9; 1000]);
            }
            let applied = Applied {
                term: 1,
                index: *index,
            };
            batch.publish(applied).expect("publish");
        };
        put(0..100);
        let grower = scope.spawn(move || put(100..20_000));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!checkpoint.is_finished());
        drop(end);
        grower.join().expect("it grows");
        assert!(store.stats().file_bytes > short, "it has grown");
        checkpoint.join().expect("it is cut");
    });
    assert!(
        !has_waited.load(Ordering::Relaxed),
        "a batch waited for the cut"
    );
    test.verify();
    test.store.checkpoint().expect("checkpoint");
    test.reopened().verify();
}

#[test]
fn a_store_that_lost_most_of_its_keys_shrinks_to_what_is_left() {
    for value_bytes in [900, 3000] {
        let mut test = Test::new(12_000, value_bytes, |number| number % 4 == 0);
        test.store.checkpoint().expect("checkpoint");
        let before = test.file_bytes();
        assert!(test.store.wants_vacuum(true));
        test.store.start_vacuum(VacuumExtent::Spare { idle: true });
        let steps = test.vacuum();
        println!("{value_bytes}-byte values: {steps} steps, from {before} bytes");
        assert!(steps > 2);
        let after = test.file_bytes();
        let used = test.store.stats().used_bytes;
        assert!(after * 2 < before, "{before} to {after} bytes");
        assert!(
            after <= used + used / 8 + (5 << 20),
            "{used} of {after} used"
        );
        assert!(!test.store.wants_vacuum(true));
        test.verify();
        // The next sync makes the new length durable.
        test.batch(|_, _| {});
        test.store.checkpoint().expect("checkpoint");
        test = test.reopened();
        assert_eq!(test.file_bytes(), after);
        test.verify();
        // It grows again.
        test.batch(|batch, model| {
            for number in 0..30_000_u64 {
                let key = number.to_be_bytes().to_vec();
                batch.put(TREE, &key, &[9; 300]).expect("put");
                model.insert(key, vec![9; 300]);
            }
        });
        test.store.checkpoint().expect("checkpoint");
        assert!(test.file_bytes() > after);
        test.reopened().verify();
    }
}

#[test]
fn a_store_that_is_written_to_keeps_the_pages_it_copies_to() {
    let mut test = Test::new(12_000, 300, |_| true);
    let keys: Vec<_> = test.model.keys().cloned().collect();
    for round in 0..6_u8 {
        for part in keys.chunks(1000) {
            test.batch(|batch, model| {
                for key in part {
                    batch.put(TREE, key, &[round; 300]).expect("put");
                    model.insert(key.clone(), vec![round; 300]);
                }
            });
            assert!(!test.store.wants_vacuum(false), "round {round}");
        }
        test.store.checkpoint().expect("checkpoint");
    }
    test.verify();
}

#[test]
fn readers_and_batches_go_on_beside_a_vacuum() {
    let mut test = Test::new(9000, 400, |number| number % 5 == 0);
    test.store.checkpoint().expect("checkpoint");
    let held = test.store.snapshot().expect("a snapshot");
    let held_model = test.model.clone();
    let before = test.file_bytes();
    test.store.start_vacuum(VacuumExtent::All);
    let mut random = Random::new(3);
    for _ in 0..40 {
        test.batch(|batch, model| {
            for _ in 0..20 {
                let key = random.number().to_be_bytes().to_vec();
                batch.put(TREE, &key, &[1; 2000]).expect("put");
                model.insert(key, vec![1; 2000]);
            }
            batch.vacuum_step().expect("a step");
        });
        if test.store.wants_checkpoint(false) {
            test.store.checkpoint().expect("checkpoint");
        }
    }
    compare(&*held, &held_model);
    test.vacuum();
    compare(&*held, &held_model);
    test.verify();
    drop(held);
    test.store.start_vacuum(VacuumExtent::All);
    test.vacuum();
    let used = test.store.stats().used_bytes;
    let slack = 2 << 20;
    assert!(
        test.file_bytes() <= used + slack,
        "{used} of {}",
        test.file_bytes()
    );
    assert!(test.file_bytes() < before);
    test.reopened().verify();
}

#[test]
fn a_file_that_lost_pages_in_use_is_refused() {
    let mut test = Test::new(3000, 400, |_| true);
    test.store.checkpoint().expect("checkpoint");
    test.store.start_vacuum(VacuumExtent::All);
    test.vacuum();
    let length = test.file_bytes();
    drop(test.store);
    use varve_engine::disk::{Disk, OpenMode};
    let file = test
        .disk
        .open(crate::path(), OpenMode::Existing)
        .expect("the file");
    file.truncate(length / 2).expect("a shorter file");
    drop(file);
    let error = open(&test.disk)
        .expect_err("half of it is missing")
        .to_string();
    assert!(error.contains("is missing"), "{error}");
}

/// Vacuums until there is nothing left to do, or an error.
fn try_vacuum(test: &mut Test) -> Result<(), BackendError> {
    test.store.start_vacuum(VacuumExtent::All);
    while test.store.vacuums() {
        test.index += 1;
        let mut batch = test.store.begin()?;
        batch.vacuum_step()?;
        batch.publish(Applied {
            term: 1,
            index: test.index,
        })?;
        if test.store.wants_checkpoint(false) {
            test.store.checkpoint()?;
        }
    }
    Ok(())
}

/// A store of two in five keys, on a disk that records.
fn sparse() -> Test {
    let mut test = Test::on(new_disk(true), 4000, 700, |number| number % 5 < 2);
    test.batch(|batch, model| {
        for number in 0..4_u64 {
            let key = number.to_be_bytes().to_vec();
            batch.put(TREE, &key, &[8; 20_000]).expect("put");
            model.insert(key, vec![8; 20_000]);
        }
    });
    test.store.checkpoint().expect("checkpoint");
    test
}

/// A vacuum changes nothing that is stored, so whatever a power loss leaves of it
/// holds the same keys.
#[test]
fn every_crash_state_of_a_vacuum_holds_all_keys() {
    let mut test = sparse();
    let (start, before) = (test.disk.op_count(), test.file_bytes());
    try_vacuum(&mut test).expect("the disk works");
    test.batch(|_, _| {});
    test.store.checkpoint().expect("checkpoint");
    let (end, after) = (test.disk.op_count(), test.file_bytes());
    assert!(after * 3 < before * 2, "{before} to {after} bytes");
    let budget = std::env::var("VARVE_CRASH_STATES").ok();
    let budget: usize = budget.map_or(300, |text| text.parse().expect("a number"));
    let mut random = Random::new(11);
    let mut cut = 0;
    for state in 0..budget {
        let prefix = start + (end - start) * state / budget;
        let seed = match state % 3 {
            kind @ (0 | 1) => kind as u64,
            _ => 2 + random.number() % 1_000_000,
        };
        let disk = test.disk.crash(prefix, seed);
        let opened = open(&disk);
        let store = opened.unwrap_or_else(|error| panic!("prefix {prefix}, seed {seed}: {error}"));
        check(&store);
        compare(&*store.snapshot().expect("a snapshot"), &test.model);
        cut += usize::from(store.stats().file_bytes < before);
    }
    println!(
        "{budget} states of {} operations, {cut} with a shorter file",
        end - start
    );
    assert!(cut > 0);
}

#[test]
fn an_error_at_any_call_of_a_vacuum_loses_nothing() {
    for (on, errno) in [
        (FaultOn::Write, libc::EIO),
        (FaultOn::Sync, libc::EIO),
        (FaultOn::Truncate, libc::EIO),
        (FaultOn::Allocate, libc::ENOSPC),
    ] {
        let mut hits = 0;
        for after in 0.. {
            let mut test = sparse();
            test.disk.inject(Fault {
                on,
                after,
                forever: false,
                path_contains: String::new(),
                errno,
            });
            let outcome = try_vacuum(&mut test);
            if test.disk.fault_count() > 0 {
                outcome.expect("without a fault");
                break;
            }
            hits += 1;
            let error = outcome.expect_err("the error is told");
            let text = error.to_string();
            assert!(text.contains("os error"), "{on:?} {after}: {text}");
            test.verify();
            for seed in 0..4 {
                let store = open(&test.disk.crash_now(seed)).expect("opens after the fault");
                check(&store);
                compare(&*store.snapshot().expect("a snapshot"), &test.model);
            }
        }
        println!("{on:?}: {hits} calls");
        assert!(
            hits > 0 || on == FaultOn::Allocate,
            "{on:?} is never called"
        );
    }
}
