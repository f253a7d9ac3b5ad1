//! A deterministic simulation of a cluster, in the manner of FoundationDB's and of
//! TigerBeetle's VOPR.
//!
//! The replica, the applier, the log and the stores are those of production. What
//! is simulated is around them: time, the network, disks, crashes, clients and the
//! operator. A seed decides everything, so that it gives the same run again, to the
//! byte; [`Report::digest`] tells.
//!
//! After every step: one leader per term, with every committed entry; logs match;
//! what is committed stays; only what is durable is applied; equal states at equal
//! indexes; one sequence of events on all members, and each watcher sees all of its
//! own once and in order. A leader whose disk hangs leads no longer than three election
//! timeouts. At the end everything is healed: the cluster must answer
//! again and agree, the stores must be whole, and the history of all clients must be
//! linearizable, by the order of revisions and, for each key, by a search that knows
//! nothing of them.

mod agenda;
mod clients;
mod ending;
mod faults;
pub mod history;
mod host;
mod invariants;
mod lives;
mod load;
mod network;
mod node;
mod operator;
mod plan;
pub mod single_key;
mod stuck_disks;
#[cfg(test)]
mod tests;
mod traffic;
mod watchers;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use plan::Profile;
pub use varve_engine::mutations;

use world::World;

/// Steps of a run, without those after the faults have ended.
pub const DEFAULT_STEPS: u64 = 20_000;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Steps until the faults end.
    pub steps: u64,
    /// What to look into; none for what the seed says.
    pub profile: Option<Profile>,
    /// Whether everything that happens is told on standard error.
    pub verbose: bool,
    /// Whether it is left to the members' own comparison to find states that differ.
    pub members_compare: bool,
}

impl Options {
    /// The run of a seed.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            seed,
            steps: DEFAULT_STEPS,
            profile: None,
            verbose: false,
            members_compare: false,
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Stands for everything that happened.
    pub digest: u64,
    /// Steps that were done.
    pub steps: u64,
    /// Virtual time that passed.
    pub simulated_us: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<String, u64>,
    /// What clients, operators and watchers did, by kind.
    pub operations: BTreeMap<String, u64>,
    /// What must not be, if anything was found.
    pub violation: Option<String>,
}

/// Runs a seed. A panic anywhere is a violation.
pub fn run(options: Options) -> Report {
    let profile = options.profile.unwrap_or(Profile::of(options.seed));
    let mut world = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(options.seed, profile, options.verbose));
        world.members_compare = options.members_compare;
        while world.steps < options.steps {
            world.step();
        }
        world.finish();
    }));
    let mut report = world.as_ref().map_or_else(Report::default, World::report);
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        report.violation = Some(text.unwrap_or_else(|| "a panic".to_owned()));
    }
    // What is half done after a panic may panic again when it is dropped.
    if report.violation.is_some() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(world)));
    }
    report
}
