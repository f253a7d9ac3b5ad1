//! Failing disks under store and log, at every single call.
//!
//! What must hold: no panic; the call that meets the error says what was done to
//! which file and where; what was published stays readable; nothing
//! acknowledged is lost; after an error log or store take no more writes, but
//! after a full disk they go on in the same process once there is room.

use std::sync::atomic::Ordering::Relaxed;

use varve_engine::backend::BackendError;
use varve_engine::backend::conformance::Random;
use varve_engine::disk::SimDisk;
use varve_engine::disk::sim::{Fault, FaultOn};
use varve_engine::mvcc::MvccError;
use varve_engine::wal::WalError;

use crate::system::{Failed, Logged, Model, STORE, System, WAL_DIR, new_disk, random_command};

const ENTRIES: u64 = 60;

/// Batches of commands, the same for every run.
fn workload(seed: u64) -> (Vec<Vec<Logged>>, Model) {
    let mut random = Random::new(seed);
    let mut model = Model::new();
    let batches = (0..ENTRIES).map(|index| {
        let commands: Vec<Logged> = (0..1 + random.below(3))
            .map(|_| {
                let revision = model.at(index).expect("the last").revision();
                random_command(&mut random, revision)
            })
            .collect();
        model.apply(&commands);
        commands
    });
    (batches.collect(), model)
}

/// How far a run came.
#[derive(Debug, Default)]
struct Progress {
    logged: u64,
    applied: u64,
    checkpoint: u64,
}

impl Progress {
    /// Goes on where the last attempt ended.
    fn run(&mut self, system: &mut System, batches: &[Vec<Logged>]) -> Result<(), Failed> {
        while self.applied < batches.len() as u64 {
            let index = self.applied + 1;
            let commands = &batches[index as usize - 1];
            if self.logged < index {
                system.log(index, commands)?;
                self.logged = index;
            }
            system.apply(index, commands)?;
            self.applied = index;
            if index.is_multiple_of(3) {
                system.compact_step()?;
            }
            if index.is_multiple_of(10) {
                self.checkpoint(system)?;
            }
        }
        self.checkpoint(system)
    }

    fn checkpoint(&mut self, system: &mut System) -> Result<(), Failed> {
        self.checkpoint = system.backend.checkpoint()?.index;
        // Not every time, so that the log needs new segments.
        if self.checkpoint.is_multiple_of(40) {
            system.release(self.checkpoint);
        }
        Ok(())
    }
}

fn fault(on: FaultOn, after: u64, errno: i32, forever: bool) -> Fault {
    Fault {
        on,
        after,
        forever,
        path_contains: "/data/".to_owned(),
        errno,
    }
}

fn is_no_space(error: &Failed) -> bool {
    if let Some(error) = error.downcast_ref::<WalError>() {
        return matches!(error, WalError::NoSpace(_));
    }
    let backend = match error.downcast_ref::<MvccError>() {
        Some(MvccError::Backend(error)) => Some(error),
        _ => error.downcast_ref::<BackendError>(),
    };
    backend.is_some_and(BackendError::is_no_space)
}

/// What is published is there, and whole.
fn readable(system: &System, model: &Model, progress: &Progress) {
    let view = system.store.view();
    assert_eq!(view.applied().index, progress.applied);
    model.compare(&view).expect("the published state");
    system.store.check().expect("the integrity check");
}

/// The machine starts again, whatever the disk lost.
fn comes_back(disk: &SimDisk, model: &Model, progress: &Progress) {
    for seed in 0..3 {
        let disk = disk.crash_now(seed);
        let (system, found) = System::open(&disk).expect("opens after the fault");
        assert!(found.applied().index >= progress.checkpoint);
        let last = system.index();
        assert!(
            (progress.logged..=progress.logged + 1).contains(&last),
            "entry {last} is the last, {} was acknowledged",
            progress.logged
        );
        model
            .compare(&system.store.view())
            .expect("an entry's state");
        system.store.check().expect("the integrity check");
    }
}

/// Runs into an EIO from the call `after` on; whether there was none left to hit.
fn run_into_an_error(
    (batches, model): &(Vec<Vec<Logged>>, Model),
    on: FaultOn,
    after: u64,
    forever: bool,
    hits: &mut [u32; 2],
) -> bool {
    let disk = new_disk(false);
    let (mut system, _) = System::open(&disk).expect("a new store");
    disk.inject(fault(on, after, libc::EIO, forever));
    let mut progress = Progress::default();
    let outcome = progress.run(&mut system, batches);
    let stats = system.wal.stats();
    disk.clear_faults();
    let Err(error) = outcome else {
        // That the next segment could not be prepared yet is a warning only.
        return stats.prepare_failed.load(Relaxed) == 0;
    };
    let text = error.to_string();
    let place = [STORE, WAL_DIR].iter().position(|path| text.contains(path));
    hits[place.unwrap_or_else(|| panic!("{on:?} {after}: no file is named: {text}"))] += 1;
    assert!(
        text.contains(" at offset ") && text.contains("os error 5"),
        "{on:?} {after}: {text}"
    );
    readable(&system, model, &progress);
    // The disk works again, but nobody knows what it lost.
    for _ in 0..2 {
        let again = progress.run(&mut system, batches).expect_err("latched");
        let again = again.to_string();
        assert!(
            again.contains("stopped taking writes") && again.contains("os error 5"),
            "{on:?} {after}: {again}"
        );
        readable(&system, model, &progress);
    }
    drop(system);
    comes_back(&disk, model, &progress);
    false
}

#[test]
fn an_error_at_any_call_is_named_and_stops_what_it_hit() {
    let work = workload(3);
    for on in [FaultOn::Write, FaultOn::Sync, FaultOn::Allocate] {
        let mut hits = [0; 2];
        for after in 0.. {
            run_into_an_error(&work, on, after, false, &mut hits);
            if run_into_an_error(&work, on, after, true, &mut hits) {
                println!(
                    "{on:?}: {after} calls, stopped the store {}, the log {}",
                    hits[0], hits[1]
                );
                break;
            }
        }
        assert!(hits[0] > 0 && hits[1] > 0, "{on:?}: {hits:?}");
    }
}

#[test]
fn a_disk_that_is_full_from_any_call_on_is_waited_for_without_a_restart() {
    let (batches, model) = workload(4);
    let mut hits = [0; 2];
    for after in 0.. {
        let disk = new_disk(false);
        let (mut system, _) = System::open(&disk).expect("a new store");
        disk.inject(fault(FaultOn::Allocate, after, libc::ENOSPC, true));
        let mut progress = Progress::default();
        let outcome = progress.run(&mut system, &batches);
        let Err(error) = outcome else {
            if system.wal.stats().prepare_failed.load(Relaxed) == 0 {
                println!(
                    "{after} calls, the store waited {}, the log {}",
                    hits[0], hits[1]
                );
                break;
            }
            continue;
        };
        let text = error.to_string();
        hits[usize::from(text.contains(WAL_DIR))] += 1;
        assert!(
            text.contains(" at offset ") && text.contains("No space left"),
            "{text}"
        );
        for _ in 0..3 {
            let still = progress.run(&mut system, &batches).expect_err("still full");
            assert!(is_no_space(&still), "{still}");
            readable(&system, &model, &progress);
        }
        comes_back(&disk, &model, &progress);
        disk.clear_faults();
        progress
            .run(&mut system, &batches)
            .expect("there is room again");
        assert_eq!((progress.applied, progress.checkpoint), (ENTRIES, ENTRIES));
        readable(&system, &model, &progress);
        drop(system);
        comes_back(&disk, &model, &progress);
    }
    assert!(hits[0] > 0 && hits[1] > 0, "{hits:?}");
}

/// Opening, making, renaming and removing of segments, and what makes that durable.
/// Most of it is preparation for later, which is only warned of, and tried again.
#[test]
fn an_error_at_any_call_on_names_loses_nothing() {
    let (batches, model) = workload(5);
    for on in [
        FaultOn::Open,
        FaultOn::Rename,
        FaultOn::Remove,
        FaultOn::SyncDir,
        FaultOn::Truncate,
    ] {
        let (mut hits, mut stopped) = (0, 0);
        for after in 0.. {
            let disk = new_disk(false);
            let (mut system, _) = System::open(&disk).expect("a new store");
            disk.inject(fault(on, after, libc::EIO, false));
            let mut progress = Progress::default();
            let outcome = progress.run(&mut system, &batches);
            if disk.fault_count() > 0 {
                assert!(outcome.is_ok(), "{on:?} {after}: without a fault");
                break;
            }
            hits += 1;
            if let Err(error) = outcome {
                stopped += 1;
                let text = error.to_string();
                let is_named = text.contains(WAL_DIR) || text.contains(STORE);
                assert!(
                    is_named && text.contains("os error 5"),
                    "{on:?} {after}: {text}"
                );
            }
            readable(&system, &model, &progress);
            drop(system);
            comes_back(&disk, &model, &progress);
            // A new process goes on where the old one ended.
            let (mut system, _) = System::open(&disk).expect("opens");
            progress.applied = system.index();
            progress.logged = progress.applied;
            progress.run(&mut system, &batches).expect("the disk works");
            readable(&system, &model, &progress);
        }
        println!("{on:?}: {hits} calls, {stopped} of them stopped the log");
        let is_used = on != FaultOn::Truncate;
        assert!(hits > 0 || !is_used, "{on:?} is never called");
    }
}
