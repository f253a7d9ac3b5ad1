//! Crash enumeration: whenever the power goes, log and store come back as the
//! state after some entry, with every acknowledged one in it.
//!
//! `VARVE_CRASH_STATES` sets how many states are visited, `VARVE_CRASH_SEED`
//! the first workload. A campaign wants a release build.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use varve_engine::backend::conformance::Random;
use varve_engine::disk::SimDisk;

use crate::system::{Failed, Logged, Model, System, new_disk, random_command};
use crate::variable;

/// Entries of one workload.
const ENTRIES: u64 = 300;

/// Most states that are visited of one workload.
const STATES_PER_WORKLOAD: u64 = 16_000;

/// How a workload may break the rules, for the proof that that shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The log is let go behind what is applied, not behind the checkpoint.
    ReleaseEarly,
    /// Entries are applied, and made durable, before the log has them.
    ApplyEarly,
}

/// What was durable for sure once the disk had done this many operations.
#[derive(Clone, Copy, Default)]
struct Known {
    operations: usize,
    /// The last entry acknowledged.
    logged: u64,
    /// The last entry of a checkpoint acknowledged.
    checkpoint: u64,
}

struct Workload {
    disk: SimDisk,
    model: Model,
    known: Vec<Known>,
    checkpoints: usize,
    rotations: u64,
}

impl Workload {
    fn record(seed: u64, entries: u64, mistake: Mistake) -> Self {
        let mut random = Random::new(seed);
        let disk = new_disk(true);
        let (mut system, _) = System::open(&disk).expect("a new store");
        let mut work = Self {
            model: Model::new(),
            known: vec![Known {
                operations: disk.op_count(),
                ..Known::default()
            }],
            disk,
            checkpoints: 0,
            rotations: 0,
        };
        for index in 1..=entries {
            let commands: Vec<Logged> = (0..1 + random.below(4))
                .map(|_| {
                    let revision = work.model.at(index - 1).expect("the last").revision();
                    random_command(&mut random, revision)
                })
                .collect();
            work.model.apply(&commands);
            work.step(&mut system, index, &commands, &mut random, mistake);
            if mistake == Mistake::None && random.below(40) == 0 {
                work.rotations += rotations(&system);
                drop(system);
                (system, _) = System::open(&work.disk).expect("a clean restart");
            }
        }
        work.rotations += rotations(&system);
        work
    }

    fn step(
        &mut self,
        system: &mut System,
        index: u64,
        commands: &[Logged],
        random: &mut Random,
        mistake: Mistake,
    ) {
        let checkpoint = random.below(8);
        let mut durable = None;
        if mistake == Mistake::ApplyEarly {
            system.apply(index, commands).expect("applied");
            if checkpoint == 0 {
                system.backend.checkpoint().expect("a checkpoint");
            }
            system.log(index, commands).expect("logged");
            self.note(|known| known.logged = index);
        } else {
            system.log(index, commands).expect("logged");
            self.note(|known| known.logged = index);
            if checkpoint == 0 {
                durable = Some(
                    system
                        .apply_beside_checkpoint(index, commands)
                        .expect("both"),
                );
            } else {
                system.apply(index, commands).expect("applied");
            }
        }
        if random.below(3) == 0 {
            system.compact_step().expect("a step");
        }
        if checkpoint == 1 {
            durable = Some(system.backend.checkpoint().expect("a checkpoint").index);
        }
        if let Some(durable) = durable {
            self.checkpoints += 1;
            self.note(|known| known.checkpoint = durable);
            if random.below(3) > 0 {
                system.release(durable);
            }
        }
        if mistake == Mistake::ReleaseEarly {
            system.release(index);
        }
    }

    fn note(&mut self, change: impl FnOnce(&mut Known)) {
        let mut known = *self.known.last().expect("the first");
        known.operations = self.disk.op_count();
        change(&mut known);
        self.known.push(known);
    }

    /// Opens the disk as a crash left it, and holds it against what was known.
    fn visit(&self, prefix: usize, seed: u64, go_on: bool) -> Result<(), Failed> {
        let disk = self.disk.crash(prefix, seed);
        let at = self
            .known
            .partition_point(|known| known.operations <= prefix);
        let known = self.known[at - 1];
        let (system, found) = System::open(&disk)?;
        if found.applied().index < known.checkpoint {
            let found = found.applied().index;
            return Err(
                format!("checkpoint {} is lost: {found} came back", known.checkpoint).into(),
            );
        }
        self.model.compare(&found)?;
        drop(found);
        let index = system.index();
        if index < known.logged {
            return Err(format!("entry {} is lost: {index} is the last", known.logged).into());
        }
        // One entry may have been on its way.
        if index > known.logged + 1 {
            return Err(format!("entry {index} came out of nothing").into());
        }
        self.model.compare(&system.store.view())?;
        system.store.check()?;
        if go_on {
            self.go_on(&disk, system)?;
        }
        Ok(())
    }

    /// What came back takes entries and checkpoints as before, and survives again.
    fn go_on(&self, disk: &SimDisk, mut system: System) -> Result<(), Failed> {
        let mut random = Random::new(system.index());
        let before = system.store.view().revision();
        for index in system.index() + 1..system.index() + 6 {
            let commands = [random_command(&mut random, 1)];
            system.log(index, &commands)?;
            system.apply(index, &commands)?;
            system.compact_step()?;
            if index % 3 == 0 {
                let durable = system.backend.checkpoint()?.index;
                system.release(durable);
            }
        }
        let last = system.store.view();
        assert!(last.revision() >= before);
        drop(system);
        let (again, _) = System::open(&disk.crash_now(0))?;
        again.store.check()?;
        let marks = |view: &varve_engine::mvcc::View| (view.applied(), view.hash());
        if marks(&again.store.view()) != marks(&last) {
            return Err("what was done after the crash is lost by the next one".into());
        }
        Ok(())
    }
}

fn rotations(system: &System) -> u64 {
    let stats = system.wal.stats();
    stats.rotations.load(Relaxed)
}

/// Visits about `budget` states of one workload: every prefix of what the disk
/// did where the budget allows, each with everything unsynced lost, everything
/// kept, and sector by sector.
fn enumerate(seed: u64, budget: u64) -> u64 {
    let work = Workload::record(seed, ENTRIES, Mistake::None);
    let start = work.known[0].operations;
    let total = (work.disk.op_count() - start) as u64 + 1;
    let seeds = budget.div_ceil(total).max(3);
    let prefixes = budget.div_ceil(seeds).clamp(1, total);
    let mut random = Random::new(seed);
    let (mut visited, started) = (0, Instant::now());
    for step in 0..prefixes {
        // Evenly spread if they are too many for the budget.
        let (from, to) = (step * total / prefixes, (step + 1) * total / prefixes);
        let prefix = start + (from + random.number() % (to - from)) as usize;
        for number in 0..seeds {
            let crash = if number < 2 {
                number
            } else {
                2 + random.number() % 1_000_000
            };
            let go_on = visited % 16 == 15;
            work.visit(prefix, crash, go_on).unwrap_or_else(|what| {
                panic!("VARVE_CRASH_SEED={seed}, operation {prefix}, crash {crash}: {what}")
            });
            visited += 1;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "seed {seed}: {visited} crash states, {prefixes} of {total} points, {} checkpoints, {} \
         segments, {:.0} states/s",
        work.checkpoints,
        work.rotations,
        visited as f64 / seconds
    );
    assert!(work.checkpoints > 20 && work.rotations > 5);
    visited
}

#[test]
fn every_acknowledged_entry_survives_a_power_loss_at_every_operation() {
    let budget = variable("VARVE_CRASH_STATES", 300);
    let first = variable("VARVE_CRASH_SEED", 1);
    let started = Instant::now();
    let workloads = budget.div_ceil(STATES_PER_WORKLOAD);
    let (next, visited) = (AtomicU64::new(0), AtomicU64::new(0));
    let run = || {
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= workloads {
                return;
            }
            let states = STATES_PER_WORKLOAD.min(budget - number * STATES_PER_WORKLOAD);
            visited.fetch_add(enumerate(first + number, states), Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
        for _ in 0..threads {
            scope.spawn(run);
        }
    });
    let (visited, seconds) = (visited.into_inner(), started.elapsed().as_secs_f64());
    println!(
        "{visited} crash states in {seconds:.0} s, {:.0} a second",
        visited as f64 / seconds
    );
    assert!(visited >= budget);
}

/// The checker is worth nothing if it passes what is broken.
#[test]
fn an_entry_applied_before_it_is_logged_and_a_log_let_go_too_early_are_caught() {
    for mistake in [Mistake::ApplyEarly, Mistake::ReleaseEarly] {
        let work = Workload::record(5, 120, mistake);
        let start = work.known[0].operations;
        let mut states = (start..=work.disk.op_count())
            .flat_map(|prefix| (0..3).map(move |seed| (prefix, seed)));
        let caught = states.find_map(|(prefix, seed)| work.visit(prefix, seed, false).err());
        println!("caught: {}", caught.expect("the mistake shows"));
    }
}
