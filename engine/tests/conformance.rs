//! The conformance suite on every engine that is built in.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use varve_engine::backend::conformance::{
    KeyShape, Operation, Session, Traits, operations, run_cases,
};
use varve_engine::backend::{self, Backend, NAMES, Options};
use varve_engine::btree;
use varve_engine::disk::psync::PsyncDisk;
use varve_engine::disk::{Disk, SimDisk};

fn options() -> Options {
    // A small reservation: tests hold many stores at a time.
    Options {
        btree: btree::Options { map_bytes: 1 << 30 },
        ..Options::default()
    }
}

fn traits(name: &str) -> Traits {
    match name {
        btree::NAME => Traits {
            durable: true,
            max_key_bytes: btree::page::MAX_KEY_BYTES,
        },
        #[cfg(feature = "lmdb")]
        backend::lmdb::NAME => Traits {
            durable: true,
            max_key_bytes: backend::lmdb::MAX_KEY_BYTES,
        },
        #[cfg(feature = "redb")]
        backend::redb::NAME => Traits {
            durable: true,
            max_key_bytes: backend::redb::MAX_KEY_BYTES,
        },
        #[cfg(feature = "fjall")]
        backend::fjall::NAME => Traits {
            durable: true,
            max_key_bytes: backend::fjall::MAX_KEY_BYTES,
        },
        _ => Traits {
            durable: false,
            max_key_bytes: usize::MAX,
        },
    }
}

fn open(name: &str, disk: &dyn Disk, dir: &Path) -> backend::Result<Arc<dyn Backend>> {
    disk.create_dir(dir).expect("a directory can be made");
    backend::open(name, disk, dir, &options())
}

/// A run on a new store. The B+tree's is on a simulated disk; engines from other
/// crates know no `Disk` and keep theirs in a temporary directory.
fn run_new(name: &str, operations: &[Operation]) -> Result<(), String> {
    let temp = tempfile::tempdir().expect("a temporary directory");
    run(name, &SimDisk::new(), temp.path(), operations)
}

fn run(name: &str, disk: &dyn Disk, dir: &Path, operations: &[Operation]) -> Result<(), String> {
    let mut opener = || open(name, disk, dir);
    Session::new(&mut opener, traits(name))?.run(operations)
}

#[test]
fn named_cases_hold_on_every_engine() {
    for name in NAMES {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let mut count = 0;
        let mut opener = || {
            count += 1;
            let dir = temp.path().join(format!("store-{count}"));
            open(name, &SimDisk::new(), &dir)
        };
        run_cases(&mut opener, traits(name)).unwrap_or_else(|what| panic!("{name}: {what}"));
    }
}

/// Runs per shape of keys; `VARVE_CONFORMANCE_ROUNDS` sets more for a campaign.
fn rounds() -> u64 {
    let rounds = std::env::var("VARVE_CONFORMANCE_ROUNDS").ok();
    rounds.map_or(3, |rounds| rounds.parse().expect("a number"))
}

#[test]
fn random_runs_agree_with_the_model_on_every_engine() {
    let shapes = [
        (KeyShape::Short, 3000, 4000),
        (KeyShape::Path, 4000, 3000),
        (KeyShape::Long { max: 1920 }, 2000, 600),
        (KeyShape::Mixed { max: 1920 }, 3000, 1500),
    ];
    for name in NAMES {
        for (index, (shape, count, keys)) in shapes.into_iter().enumerate() {
            for round in 0..rounds() {
                let seed = (index as u64) << 32 | round;
                let operations = operations(seed, count, shape, keys, true);
                run_new(name, &operations)
                    .unwrap_or_else(|what| panic!("{name}, {shape:?}, seed {seed}: {what}"));
            }
        }
    }
}

#[test]
fn a_random_run_agrees_with_the_model_on_a_real_disk() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let operations = operations(77, 4000, KeyShape::Mixed { max: 1920 }, 2000, true);
    run(btree::NAME, &PsyncDisk::new(), dir.path(), &operations).expect("engine and model agree");
}

#[test]
fn an_unknown_engine_is_refused_by_name() {
    let refused = open("lsm", &SimDisk::new(), Path::new("/store"));
    let error = refused.err().expect("refused");
    assert_eq!(
        error.to_string(),
        format!(
            "there is no engine \"lsm\": the engines are {}",
            NAMES.join(", ")
        )
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Seeds shrink badly, so that proptest shrinks the list of operations.
    #[test]
    fn shrinkable_runs_agree_with_the_model(
        seed in any::<u64>(),
        keep in prop::collection::vec(any::<bool>(), 700),
        shape in 0..4_usize,
    ) {
        let max = 1920;
        let shapes = [
            KeyShape::Short,
            KeyShape::Path,
            KeyShape::Long { max },
            KeyShape::Mixed { max },
        ];
        let all = operations(seed, keep.len(), shapes[shape], 200, true).into_iter();
        let chosen: Vec<_> = all.zip(keep).filter_map(|(op, keep)| keep.then_some(op)).collect();
        for name in NAMES {
            let outcome = run_new(name, &chosen);
            prop_assert!(outcome.is_ok(), "{name}: {outcome:?}");
        }
    }
}
