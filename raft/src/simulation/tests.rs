//! Runs of the simulation. A failure names its seed, and how to run it again.

use super::*;

/// Steps of the runs here.
const STEPS: u64 = 8_000;

/// Seeds of a test, `VARVE_SIM_SEEDS` times as many where that is set.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("VARVE_SIM_SEEDS").ok();
    0..count * times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Runs seeds of a profile; what they came to together.
fn runs(profile: Profile, count: u64) -> Report {
    let mut sums = Report::default();
    for seed in seeds(count) {
        let report = run(Options {
            seed,
            steps: STEPS,
            profile: Some(profile),
            verbose: false,
            members_compare: false,
        });
        if let Some(violation) = report.violation {
            panic!(
                "seed {seed} of {profile:?}: {violation}\nagain: varve-sim --seed {seed} \
                 --seeds 1 --steps {STEPS} --profile {profile:?} --verbose"
            );
        }
        sums.steps += report.steps;
        for (name, times) in report.operations {
            *sums.operations.entry(name).or_default() += times;
        }
        for (name, times) in report.faults {
            *sums.faults.entry(name).or_default() += times;
        }
    }
    sums
}

/// Fails unless something happened at least so often.
fn at_least(report: &Report, least: &[(&str, u64)]) {
    for (name, least) in least {
        let counts = [&report.operations, &report.faults];
        let times: u64 = counts.iter().filter_map(|counts| counts.get(*name)).sum();
        assert!(times >= *least, "{name} only {times} times: {report:?}");
    }
}

#[test]
fn in_fair_weather_everything_is_answered() {
    let report = runs(Profile::Fair, 6);
    at_least(
        &report,
        &[("put done", 300), ("linearizable read done", 150)],
    );
    assert!(!report.operations.contains_key("put unknown"), "{report:?}");
}

#[test]
fn a_member_alone_survives_everything() {
    let report = runs(Profile::Single, 12);
    at_least(&report, &[("power loss", 10), ("put done", 300)]);
}

#[test]
fn bad_networks() {
    let report = runs(Profile::Network, 12);
    at_least(
        &report,
        &[("partition", 5), ("message lost", 100), ("put done", 300)],
    );
}

#[test]
fn bad_disks_and_crashes() {
    let report = runs(Profile::Disks, 12);
    at_least(
        &report,
        &[("power loss", 10), ("disk error", 2), ("disk full", 2)],
    );
}

#[test]
fn everything_at_once() {
    let report = runs(Profile::Everything, 20);
    let least = [
        ("power loss", 10),
        ("partition", 5),
        ("snapshots installed", 3),
        ("snapshots gone on with", 1),
        ("compaction done", 20),
        ("events watched", 1000),
        ("watches resumed", 30),
    ];
    at_least(&report, &least);
    println!("{} steps: {:?}", report.steps, report.operations);
    assert!(report.steps > 100_000, "{} steps", report.steps);
}

#[test]
fn members_come_and_go() {
    let report = runs(Profile::Membership, 20);
    at_least(&report, &[("members changed", 50), ("member joined", 20)]);
}

#[test]
fn rotten_files_are_refused_or_do_not_matter() {
    let report = runs(Profile::BitRot, 16);
    at_least(&report, &[("bit rot", 8), ("damaged member replaced", 3)]);
}

#[test]
fn slow_disks_make_no_other_leader() {
    let report = runs(Profile::SlowDisks, 8);
    at_least(&report, &[("sync of 500 ms", 8)]);
    assert_eq!(report.operations["terms led"], seeds(8).end);
}

#[test]
fn stuck_disks_make_another_leader_in_time() {
    let report = runs(Profile::StuckDisks, 24);
    at_least(&report, &[("disk stuck", 20), ("put done", 300)]);
    // More than those that were elected at the start.
    at_least(&report, &[("terms led", 24 + 15)]);
}

/// Bugs that the simulation has found, each with the run that did.
#[test]
fn seeds_that_failed_once() {
    for (seed, steps, profile) in [
        // A failed sync hid that a header of an earlier life was still on the disk.
        (62, 10_000, Profile::Single),
        // As it hid that the header of the last segment was not.
        (53, 10_000, Profile::Everything),
        // A leader that votes alone sent entries to a learner before its term was durable.
        (131, 10_000, Profile::Membership),
        // Of two members one learned that it is removed, and the other forgot it.
        (194, 5_000, Profile::Membership),
        // A leader sent entries after an entry that they do not follow.
        (3914, 10_000, Profile::Membership),
        // A client asked removed members for a minute, who could not learn of it.
        (8451, 10_000, Profile::Membership),
    ] {
        let report = run(Options {
            seed,
            steps,
            profile: Some(profile),
            verbose: false,
            members_compare: false,
        });
        assert_eq!(report.violation, None, "seed {seed}");
    }
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for profile in Profile::ALL {
        let options = Options {
            seed: 7,
            steps: STEPS,
            profile: Some(profile),
            verbose: false,
            members_compare: false,
        };
        let (first, again) = (run(options), run(options));
        assert_eq!(first, again, "{profile:?}");
        let other = run(Options { seed: 8, ..options });
        assert_ne!(first.digest, other.digest, "{profile:?}");
    }
}

/// Without what looks at all states from outside, the members' own comparison finds that one
/// of them applied something else; and it names it where there is a majority.
#[cfg(feature = "mutations")]
#[test]
fn members_find_that_they_differ() {
    use varve_engine::mutations::{Mutation, switch_on};
    switch_on(Some(Mutation::EntrySkipped));
    let (mut found, mut named) = (0, 0);
    for seed in seeds(12) {
        let report = run(Options {
            seed,
            steps: STEPS,
            profile: Some(Profile::Network),
            verbose: false,
            members_compare: true,
        });
        let violation = report.violation.unwrap_or_default();
        let is_found = violation.contains("the members found that they differ");
        found += u64::from(is_found);
        named += u64::from(is_found && !violation.contains("member_id: 0,"));
    }
    switch_on(None);
    assert!(found >= 6 && named >= 1, "{found} found, {named} named");
}
