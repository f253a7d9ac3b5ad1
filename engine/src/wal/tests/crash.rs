//! Power losses at every operation of a recorded workload.
//!
//! `VARVE_CRASH_STATES` is how many states are tried (default 2,000);
//! `VARVE_SEED` is where the seeds start.

use super::*;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// What the workload did: each group's records, and after how many operations it
/// was acknowledged.
struct Told {
    acknowledged: usize,
    records: Vec<Record>,
}

/// A release and after how many operations it was asked for.
struct Released {
    asked: usize,
    lsn: Lsn,
}

struct Workload {
    disk: SimDisk,
    told: Vec<Told>,
    released: Vec<Released>,
}

fn workload(seed: u64, commits: usize) -> Workload {
    let disk = SimDisk::recording();
    let mut rng = Rng::new(seed);
    let (mut wal, ..) = open(&disk).unwrap();
    let (mut told, mut released) = (Vec::<Told>::new(), Vec::new());
    let mut group = Group::new();
    while told.len() < commits {
        match rng.below(20) {
            0 => wal.sync_mark().unwrap(),
            1 if told.len() > 4 => {
                let lsn = told[told.len() - 4].records[0].0;
                released.push(Released {
                    asked: disk.op_count(),
                    lsn,
                });
                wal.release(lsn);
            }
            2 => {
                drop(wal);
                (wal, ..) = open(&disk).unwrap();
            }
            _ => {
                group.clear();
                let mut records = Vec::new();
                for _ in 0..=rng.below(4) {
                    let kind = 1 + rng.below(3) as u8;
                    let payload = vec![rng.below(256) as u8; rng.below(5000) as usize];
                    records.push((group.push(kind, &[&payload]).unwrap(), kind, payload));
                }
                let first = wal.commit(&mut group).unwrap().first_lsn;
                for record in &mut records {
                    record.0 += first;
                }
                told.push(Told {
                    acknowledged: disk.op_count(),
                    records,
                });
            }
        }
    }
    Workload {
        disk,
        told,
        released,
    }
}

impl Workload {
    /// Reopens the state: everything acknowledged by then and not released is
    /// there, and nothing that was never committed.
    fn check(&self, prefix: usize, seed: u64) {
        let disk = self.disk.crash(prefix, seed);
        let context = format!("VARVE_SEED={seed} at operation {prefix}");
        let opened = open(&disk);
        let (mut wal, recovered, records) = opened.unwrap_or_else(|e| panic!("{context}: {e}"));
        let kept_from = self
            .released
            .iter()
            .filter(|release| release.asked <= prefix);
        let kept_from = kept_from.map(|release| release.lsn).max().unwrap_or(0);
        let mut expected = self
            .told
            .iter()
            .flat_map(|told| {
                told.records
                    .iter()
                    .map(|record| (told.acknowledged, record))
            })
            .filter(|(_, record)| record.0 >= recovered.start_lsn);
        for found in &records {
            let (_, record) = expected
                .next()
                .unwrap_or_else(|| panic!("{context}: a new record"));
            assert_eq!(
                found, record,
                "{context}: another record than was committed"
            );
        }
        for (acknowledged, record) in expected {
            assert!(
                acknowledged > prefix,
                "{context}: record at lsn {} is lost",
                record.0
            );
        }
        let start = recovered.start_lsn;
        assert!(
            start <= kept_from.max(FIRST_LSN),
            "{context}: {start} is over {kept_from}"
        );
        check_reader(&wal, &records);
        // And it goes on from there.
        let mut after = records;
        let payload = vec![0xAB; 6000];
        after.push((commit(&mut wal, &[&payload]).first_lsn, 1, payload));
        drop(wal);
        let (_, recovered, records) =
            open(&disk).unwrap_or_else(|e| panic!("{context}, second opening: {e}"));
        assert_eq!(records, after, "{context}, second opening");
        assert_eq!(recovered.truncated_bytes, 0, "{context}");
    }
}

#[test]
fn every_acknowledged_record_survives_a_power_loss_at_every_operation() {
    let budget = number("VARVE_CRASH_STATES", 2000);
    let first_seed = number("VARVE_SEED", 0);
    let work = workload(first_seed, 120);
    let operations = work.disk.op_count();
    let seeds = (budget / operations as u64).max(3);
    println!("{operations} operations x {seeds} seeds from VARVE_SEED={first_seed}");
    for prefix in 0..=operations {
        for seed in first_seed..first_seed + seeds {
            work.check(prefix, seed);
        }
    }
}

#[test]
fn a_second_power_loss_during_recovery_loses_nothing() {
    let first_seed = number("VARVE_SEED", 0);
    let work = workload(first_seed + 77, 30);
    let operations = work.disk.op_count();
    let states = number("VARVE_CRASH_STATES", 2000) / 100;
    let mut rng = Rng::new(first_seed);
    for _ in 0..states.max(10) {
        let (prefix, seed) = (rng.below(operations as u64 + 1) as usize, rng.next_u64());
        let disk = work.disk.crash(prefix, seed).fork_recording();
        let (wal, _, records) = open(&disk).unwrap();
        drop(wal);
        for again in 0..=disk.op_count() {
            let (_, _, second) = open(&disk.crash(again, seed ^ 5))
                .unwrap_or_else(|e| panic!("seed {seed} at {prefix}, then at {again}: {e}"));
            // What the first recovery showed stays.
            assert_eq!(second, records, "seed {seed} at {prefix}, then at {again}");
        }
    }
}
