//! `varve-sim`: runs the simulation of a cluster, seed after seed.
//!
//! ```text
//! varve-sim --seeds N [--seed FIRST] [--steps K] [--jobs J] [--profile NAME]
//!           [--mutation NAME|all] [--verbose]
//! ```
//!
//! It ends with code 1 at the first seed that fails, and says how to run it again.
//! With `--mutation`, in a build with the feature `mutations`, it runs seeds until
//! the deliberate bug is found, and fails if it is not.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use varve_raft::simulation::mutations::Mutation;
use varve_raft::simulation::{DEFAULT_STEPS, Options, Profile, Report, run};

const USAGE: &str = "usage: varve-sim [--seeds N] [--seed FIRST] [--steps K] [--jobs J] \
[--profile NAME] [--mutation NAME|all] [--verbose]";

/// How often it is told how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Arguments {
    first: u64,
    seeds: u64,
    steps: u64,
    jobs: u64,
    profile: Option<Profile>,
    mutation: Option<String>,
    verbose: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments {
        first: 0,
        seeds: 100,
        steps: DEFAULT_STEPS,
        jobs: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        profile: None,
        mutation: None,
        verbose: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--verbose" {
            found.verbose = true;
            continue;
        }
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        let number = || {
            let parsed = value.parse();
            parsed.map_err(|_| format!("{name}: {value:?} is not a number"))
        };
        match name.as_str() {
            "--seeds" => found.seeds = number()?,
            "--seed" => found.first = number()?,
            "--steps" => found.steps = number()?,
            "--jobs" => found.jobs = number()?.max(1),
            "--profile" => found.profile = Some(profile(&value)?),
            "--mutation" => found.mutation = Some(value),
            _ => return Err(format!("unknown flag {name}")),
        }
    }
    Ok(found)
}

fn profile(name: &str) -> Result<Profile, String> {
    let all = Profile::ALL;
    let named = |profile: &&Profile| format!("{profile:?}").eq_ignore_ascii_case(name);
    let names: Vec<String> = all.iter().map(|profile| format!("{profile:?}")).collect();
    let profile = all.iter().find(named);
    profile
        .copied()
        .ok_or(format!("--profile is one of {}", names.join(", ")))
}

fn main() -> ExitCode {
    // A run's panic is told once, with its seed.
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = arguments().and_then(|arguments| match arguments.mutation.clone() {
        None => Ok(campaign(&arguments)),
        Some(name) => hunt(&arguments, &name),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// What all runs came to together.
#[derive(Default)]
struct Totals {
    seeds: u64,
    steps: u64,
    simulated_us: u64,
    faults: BTreeMap<String, u64>,
    operations: BTreeMap<String, u64>,
    failed: Option<(u64, String)>,
}

impl Totals {
    fn add(&mut self, seed: u64, report: Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.simulated_us += report.simulated_us;
        for (sums, more) in [
            (&mut self.faults, report.faults),
            (&mut self.operations, report.operations),
        ] {
            for (name, times) in more {
                *sums.entry(name).or_default() += times;
            }
        }
        if let Some(violation) = report.violation
            && self
                .failed
                .as_ref()
                .is_none_or(|(failed, _)| seed < *failed)
        {
            self.failed = Some((seed, violation));
        }
    }
}

/// Runs seeds on several threads until one fails.
fn all_seeds(
    arguments: &Arguments,
    mutation: Option<Mutation>,
    is_told: bool,
) -> (Totals, Duration) {
    let started = Instant::now();
    let totals = Mutex::new(Totals::default());
    let next = AtomicU64::new(arguments.first);
    let stop = AtomicBool::new(false);
    let last_told = Mutex::new(Instant::now());
    let work = || {
        switch_on(mutation);
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= arguments.first.saturating_add(arguments.seeds) {
                break;
            }
            let report = run(Options {
                seed,
                steps: arguments.steps,
                profile: arguments.profile,
                verbose: arguments.verbose,
                members_compare: false,
            });
            if report.violation.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
            if arguments.verbose || arguments.seeds == 1 {
                println!("seed {seed}: digest {:016x}", report.digest);
            }
            let Ok(mut totals) = totals.lock() else { break };
            totals.add(seed, report);
            let seeds = totals.seeds;
            drop(totals);
            if let Ok(mut told) = last_told.lock()
                && is_told
                && told.elapsed() >= PROGRESS
            {
                *told = Instant::now();
                let rate = seeds as f64 / started.elapsed().as_secs_f64();
                eprintln!("{seeds} runs, {rate:.1} a second");
            }
        }
        switch_on(None);
    };
    let jobs = if arguments.verbose { 1 } else { arguments.jobs };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    (totals.into_inner().unwrap_or_default(), started.elapsed())
}

#[cfg(feature = "mutations")]
fn switch_on(mutation: Option<Mutation>) {
    varve_raft::simulation::mutations::switch_on(mutation);
}

#[cfg(not(feature = "mutations"))]
fn switch_on(_mutation: Option<Mutation>) {}

/// Whether no seed failed.
fn campaign(arguments: &Arguments) -> bool {
    let (totals, took) = all_seeds(arguments, None, true);
    let seconds = took.as_secs_f64();
    println!(
        "{} runs of {} steps and their ends in {seconds:.1} s on {} threads: {:.1} runs a second, \
         {} steps, {:.1} simulated hours",
        totals.seeds,
        arguments.steps,
        arguments.jobs,
        totals.seeds as f64 / seconds,
        totals.steps,
        totals.simulated_us as f64 / 3.6e9,
    );
    for (title, counts) in [
        ("faults", &totals.faults),
        ("operations", &totals.operations),
    ] {
        println!("{title}:");
        for (name, times) in counts {
            println!("  {times:>10} {name}");
        }
    }
    match totals.failed {
        None => {
            println!("no violation");
            true
        }
        Some((seed, violation)) => {
            let profile = arguments.profile;
            let profile = profile.map_or(String::new(), |p| format!(" --profile {p:?}"));
            println!(
                "seed {seed} FAILED: {violation}\nagain: varve-sim --seed {seed} --seeds 1 \
                 --steps {}{profile} --verbose",
                arguments.steps
            );
            false
        }
    }
}

/// Whether the deliberate bugs are found.
fn hunt(arguments: &Arguments, name: &str) -> Result<bool, String> {
    if !cfg!(feature = "mutations") {
        return Err("this build has no mutations: build with --features mutations".to_owned());
    }
    let names: Vec<&str> = Mutation::ALL.iter().map(|(name, _)| *name).collect();
    if name != "all" && !names.contains(&name) {
        return Err(format!("--mutation is all or one of {}", names.join(", ")));
    }
    let mut all_found = true;
    for (known, mutation) in Mutation::ALL {
        if name != "all" && name != known {
            continue;
        }
        // It shows only where members leave, and seldom.
        let profile = match mutation {
            Mutation::UnsettledCommit => arguments.profile.or(Some(Profile::Membership)),
            _ => arguments.profile,
        };
        let arguments = &Arguments {
            profile,
            ..arguments.clone()
        };
        let (totals, took) = all_seeds(arguments, Some(mutation), false);
        let seconds = took.as_secs_f64();
        match totals.failed {
            Some((seed, violation)) => {
                let count = seed - arguments.first + 1;
                let line = violation.lines().next().unwrap_or_default();
                let line: String = line.chars().take(160).collect();
                println!("{known}: found by seed {seed}, the {count}., in {seconds:.1} s: {line}");
            }
            None => {
                all_found = false;
                println!(
                    "{known}: NOT found by {} seeds in {seconds:.1} s",
                    totals.seeds
                );
            }
        }
    }
    Ok(all_found)
}
