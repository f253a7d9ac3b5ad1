//! Runs of the simulation. A failure names its seed.

use super::{Simulation, Weather};

const FAIR: Weather = Weather {
    members: 3,
    loss_percent: 0,
    trouble_every: 0,
    catchup_entries: 1000,
    change_every: 0,
    strict: true,
};

/// Names the seed when a run panics anywhere.
struct Named(u64, Weather);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the run that failed: seed {}, {:?}", self.0, self.1);
        }
    }
}

fn run(seed: u64, weather: Weather, steps: usize) -> Simulation {
    let _named = Named(seed, weather);
    let mut simulation = Simulation::new(seed, weather);
    for _ in 0..steps {
        simulation.step();
    }
    simulation.settle();
    simulation
}

/// The seeds of a test, `VARVE_SIM_SEEDS` times as many where that is set.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("VARVE_SIM_SEEDS")
        .ok()
        .and_then(|times| times.parse().ok());
    first..first + count * times.unwrap_or(1)
}

#[test]
fn in_fair_weather_everything_is_acknowledged() {
    for members in [1, 3, 5] {
        let simulation = run(members as u64, Weather { members, ..FAIR }, 20_000);
        let (writes, reads, _) = simulation.figures();
        assert!(writes > 1000, "{members} members: only {writes} writes");
        assert!(reads > 500, "{members} members: only {reads} reads");
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_foul_weather() {
    let mut total = (0, 0, 0, 0);
    for seed in seeds(0, 30) {
        let members = [1, 3, 3, 5][seed as usize % 4];
        let weather = Weather {
            members,
            loss_percent: 5,
            trouble_every: 300,
            ..FAIR
        };
        let simulation = run(seed, weather, 10_000);
        let (writes, reads, _) = simulation.figures();
        total = (
            total.0 + writes,
            total.1 + reads,
            total.2 + simulation.crashes,
            total.3 + 1,
        );
    }
    assert!(
        total.0 > 5000 && total.1 > 1000 && total.2 > 200,
        "{total:?}"
    );
}

#[test]
fn members_left_behind_come_back_through_snapshots() {
    let mut installed = 0;
    for seed in seeds(1_000_000, 15) {
        let weather = Weather {
            loss_percent: 2,
            trouble_every: 400,
            catchup_entries: 3,
            ..FAIR
        };
        installed += run(seed, weather, 12_000).figures().2;
    }
    assert!(installed > 5, "only {installed} snapshots were taken in");
}

#[test]
fn power_loss_of_all_at_once() {
    for seed in seeds(2_000_000, 10) {
        let weather = Weather {
            loss_percent: 2,
            trouble_every: 0,
            ..FAIR
        };
        let _named = Named(seed, weather);
        let mut simulation = Simulation::new(seed, weather);
        for round in 0..5 {
            for _ in 0..2000 {
                simulation.step();
            }
            if round % 2 == 0 {
                simulation.crash_all();
            }
        }
        simulation.settle();
    }
}

#[test]
fn the_membership_changes_in_fair_weather() {
    let weather = Weather {
        members: 1,
        change_every: 400,
        ..FAIR
    };
    let mut total = (0, 0, 0);
    for seed in seeds(3_000_000, 6) {
        let simulation = run(seed, weather, 20_000);
        assert!(simulation.figures().0 > 200, "{:?}", simulation.figures());
        total.0 += simulation.joined;
        total.1 += simulation.changes("changed");
        total.2 += simulation.changes("moved");
    }
    assert!(total.0 > 20 && total.1 > 50 && total.2 > 5, "{total:?}");
}

#[test]
fn the_membership_changes_in_foul_weather() {
    let (mut total, mut removed) = ((0, 0, 0, 0), 0);
    for seed in seeds(4_000_000, 40) {
        let weather = Weather {
            members: [1, 3, 3, 5][seed as usize % 4],
            loss_percent: 3,
            trouble_every: 500,
            catchup_entries: [3, 1000][seed as usize % 2],
            change_every: 300,
            strict: seed % 3 > 0,
        };
        let simulation = run(seed, weather, 15_000);
        total.0 += simulation.figures().0;
        total.1 += simulation.joined;
        total.2 += simulation.changes("changed");
        total.3 += simulation.crashes;
        removed += simulation.removed();
    }
    assert!(
        total.0 > 5000 && total.1 > 60 && total.2 > 200 && total.3 > 200 && removed > 40,
        "{total:?}, {removed} removed"
    );
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let weather = Weather {
        loss_percent: 5,
        trouble_every: 300,
        ..FAIR
    };
    for change_every in [0, 300] {
        let weather = Weather {
            change_every,
            ..weather
        };
        assert_eq!(
            run(7, weather, 8000).fingerprint(),
            run(7, weather, 8000).fingerprint()
        );
    }
}
