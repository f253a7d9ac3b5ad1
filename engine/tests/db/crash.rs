//! Power losses at every point of a recorded workload: what was acknowledged is
//! there, batches are whole or not there at all, and the store goes on.
//!
//! `VARVE_CRASH_STATES` sets how many states are visited, `VARVE_CRASH_SEED`
//! the workload and the crashes.

use varve_engine::backend::conformance::Random;
use varve_engine::db::{Db, WriteBatch};
use varve_engine::disk::{Disk, SimDisk};
use varve_types::KeyRange;

use crate::{db_on, db_with, options, wal_dir};

fn variable(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// Keys of one batch. All of a batch's values are its number, so that a part of
/// one shows.
const BATCH_KEYS: u64 = 7;

/// A batch was acknowledged when the disk had done this many operations.
struct Told {
    operations: usize,
    revision: i64,
}

fn write(db: &Db, number: u64, random: &mut Random) -> i64 {
    let mut batch = WriteBatch::new();
    for key in 0..BATCH_KEYS {
        let value = vec![number as u8; 1 + random.below(900)];
        batch.put(&[b'k', key as u8], &value).unwrap();
    }
    let own = number.to_be_bytes();
    batch.put(&own, &own).unwrap();
    db.write(&batch).unwrap()
}

/// Many batches, with checkpoints, compactions and opens between them.
fn record(seed: u64, batches: u64) -> (SimDisk, Vec<Told>) {
    let disk = SimDisk::recording();
    let mut random = Random::new(seed);
    let mut told = Vec::new();
    let mut db = db_on(&disk).unwrap();
    for number in 0..batches {
        match random.below(12) {
            0 => db.checkpoint().unwrap(),
            1 if number > 10 => {
                let _ = db.compact(db.revision() - 20);
            }
            2 => {
                drop(db);
                db = db_on(&disk).unwrap();
            }
            3 => {
                db.close().unwrap();
                db = db_on(&disk).unwrap();
            }
            _ => {}
        }
        let revision = write(&db, number, &mut random);
        told.push(Told {
            operations: disk.op_count(),
            revision,
        });
    }
    (disk, told)
}

/// Opens what a crash left.
fn visit(disk: &SimDisk, told: &[Told], prefix: usize, seed: u64) {
    let place = format!("prefix {prefix}, seed {seed}");
    let crashed = disk.crash(prefix, seed);
    let db = db_on(&crashed).unwrap_or_else(|error| panic!("{place}: {error}"));
    let acknowledged = told.partition_point(|told| told.operations <= prefix);
    let found = db.iter(KeyRange::Between(b"\0", b"\x01"), 0);
    let found = found.map(Result::unwrap).filter(|kv| kv.key.len() == 8);
    let count = found.count();
    // One batch is in flight at a time: none is lost, and no more than one
    // came through without having been told.
    assert!(count >= acknowledged, "{place}: {count} of {acknowledged}");
    assert!(count <= acknowledged + 1, "{place}: {count}");
    for key in 0..BATCH_KEYS {
        let kv = db.get(&[b'k', key as u8]).unwrap();
        match (kv, count.checked_sub(1)) {
            (None, None) => {}
            (Some(kv), Some(last)) => {
                assert!(kv.value.iter().all(|byte| *byte == last as u8), "{place}");
            }
            (kv, last) => panic!("{place}: {kv:?} after batch {last:?}"),
        }
    }
    if count > 0 && count == acknowledged {
        let revision = told[count - 1].revision;
        assert_eq!(db.revision(), revision, "{place}");
    }
    db.check()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    // It goes on as if nothing had been.
    write(&db, count as u64, &mut Random::new(seed));
    db.close().unwrap();
    let db = db_on(&crashed.crash_now(0)).unwrap();
    assert!(db.get(&(count as u64).to_be_bytes()).unwrap().is_some());
    db.check()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
}

#[test]
fn acknowledged_batches_survive_a_power_loss_at_any_point() {
    let budget = variable("VARVE_CRASH_STATES", 300);
    let seed = variable("VARVE_CRASH_SEED", 1);
    let (disk, told) = record(seed, 120);
    let total = disk.op_count();
    let mut random = Random::new(seed);
    for step in 0..budget {
        let prefix = (step as usize * total / budget as usize).min(total);
        // All lost, all kept, sector by sector.
        let crash = match step % 3 {
            kind @ (0 | 1) => kind,
            _ => 2 + random.number() % 1_000_000,
        };
        visit(&disk, &told, prefix, crash);
    }
}

/// With checkpoints of their own choice, on their own thread.
#[test]
fn acknowledged_batches_survive_checkpoints_in_the_background() {
    let disk = SimDisk::recording();
    let options = || varve_engine::db::Options {
        checkpoint_log_bytes: 64 << 10,
        ..options()
    };
    let mut random = Random::new(variable("VARVE_CRASH_SEED", 2));
    let db = db_with(&disk, options()).unwrap();
    let mut told = Vec::new();
    for number in 0..150 {
        let revision = write(&db, number, &mut random);
        told.push(Told {
            operations: disk.op_count(),
            revision,
        });
    }
    drop(db);
    let log = disk.list(wal_dir()).unwrap();
    assert!(!log.contains(&"0000000000000001.wal".to_owned()), "{log:?}");
    let total = disk.op_count();
    for step in 0..100usize {
        let seed = 2 + random.number() % 1_000_000;
        visit(&disk, &told, step * total / 100, seed);
    }
}
