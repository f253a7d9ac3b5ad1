//! Loading sorted entries: what is there after it, and after a power loss during it.

use std::ops::ControlFlow;

use varve_engine::backend::Direction;
use varve_engine::backend::conformance::Random;
use varve_engine::db::{DbError, Kv, Options, WriteBatch};
use varve_engine::disk::{Disk, SimDisk};
use varve_types::KeyRange;

use crate::{kv_on, options};

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

fn entry(number: u32) -> ([u8; 8], Vec<u8>) {
    let mut key = *b"load....";
    key[4..].copy_from_slice(&number.to_be_bytes());
    (key, vec![number as u8; 200 + number as usize % 900])
}

/// All entries of the map whose keys begin with `load`, and how many others there are.
fn content(kv: &Kv) -> (Entries, usize) {
    let (mut loaded, mut others) = (Vec::new(), 0);
    let visit = &mut |key: &[u8], value: &[u8]| {
        match key.starts_with(b"load") {
            true => loaded.push((key.to_vec(), value.to_vec())),
            false => others += 1,
        }
        ControlFlow::Continue(())
    };
    let snapshot = kv.snapshot().unwrap();
    snapshot
        .scan(KeyRange::From(b""), Direction::Forward, visit)
        .unwrap();
    (loaded, others)
}

fn assert_first(loaded: &[(Vec<u8>, Vec<u8>)], place: &str) {
    for (number, (key, value)) in loaded.iter().enumerate() {
        let (expected_key, expected) = entry(number as u32);
        assert_eq!((&key[..], value), (&expected_key[..], &expected), "{place}");
    }
}

#[test]
fn what_is_loaded_is_there_with_what_was_and_what_comes() {
    for engine in ["btree", "memory"] {
        let disk = SimDisk::new();
        let disk: std::sync::Arc<dyn Disk> = std::sync::Arc::new(disk);
        let options = || Options {
            engine: engine.to_owned(),
            ..options()
        };
        let open = || Kv::open_on(&disk, crate::dir(), options()).unwrap();
        let kv = open();
        kv.put(b"a", b"before").unwrap();
        kv.put(&entry(7).0, b"is overwritten").unwrap();
        assert_eq!(kv.load_sorted((0..9000).map(entry)).unwrap(), 9000);
        kv.put(b"z", b"after").unwrap();
        for kv in [kv, open()] {
            let (loaded, others) = content(&kv);
            assert_eq!((loaded.len(), others), (9000, 2), "{engine}");
            assert_first(&loaded, engine);
            kv.check().unwrap();
            drop(kv);
        }
    }
}

#[test]
fn a_load_fills_pages() {
    let disk = SimDisk::new();
    let kv = kv_on(&disk).unwrap();
    let value = [1; 256];
    let sorted = (0..20_000_u32).map(|number| (number.to_be_bytes(), value));
    kv.load_sorted(sorted).unwrap();
    let bytes = 20_000 * (4 + 256);
    let used = kv.stats().used_bytes;
    assert!(used < bytes * 11 / 10, "{used} bytes for {bytes}");
}

#[test]
fn what_does_not_ascend_is_refused() {
    let kv = kv_on(&SimDisk::new()).unwrap();
    for (keys, wrong) in [
        (&[&b"a"[..], b"b", b"b"][..], 2),
        (&[b"b", b"a"], 1),
        (&[b"ab", b"a"], 1),
    ] {
        let refused = kv.load_sorted(keys.iter().map(|key| (key, b"v")));
        let error = refused.unwrap_err();
        assert!(
            matches!(error, DbError::NotSorted { entry } if entry == wrong),
            "{error}"
        );
    }
    assert!(kv.load_sorted([(b"", b"v")]).unwrap_err().api().is_some());
    let long = vec![0; 5 << 20];
    let error = kv.load_sorted([(b"k", &long)]).unwrap_err();
    assert!(matches!(error, DbError::BatchTooLarge { .. }), "{error}");
    assert_eq!(kv.load_sorted([(b"k", b"v"); 0]).unwrap(), 0);
    kv.put(b"k", b"it goes on").unwrap();
    assert_eq!(kv.get(b"k").unwrap().unwrap(), b"it goes on");
}

/// Whenever the power goes: the first entries up to some one, all of them once the load
/// has returned, and every batch that was acknowledged meanwhile.
#[test]
fn a_power_loss_leaves_the_first_entries_and_all_acknowledged_batches() {
    const ENTRIES: u32 = 300;
    const PART: u32 = 60;
    let disk = SimDisk::recording();
    let kv = kv_on(&disk).unwrap();
    let mut batches = Vec::new();
    let mut put = |kv: &Kv| {
        let mut batch = WriteBatch::new();
        let number = batches.len() as u32;
        batch.put(&number.to_be_bytes(), b"v").unwrap();
        kv.write(&batch).unwrap();
        batches.push(disk.op_count());
    };
    put(&kv);
    // Parts of a load as small as these would not be made apart; a checkpoint ends each.
    let mut loads = Vec::new();
    for first in (0..ENTRIES).step_by(PART as usize) {
        let mut number = first;
        let entries = std::iter::from_fn(|| {
            (number < first + PART).then(|| {
                if number == first + PART / 2 {
                    put(&kv);
                }
                number += 1;
                entry(number - 1)
            })
        });
        kv.load_sorted(entries).unwrap();
        loads.push((disk.op_count(), (first + PART) as usize));
        put(&kv);
    }
    drop(kv);
    let mut random = Random::new(5);
    let total = disk.op_count();
    for prefix in 0..=total {
        for seed in [0, 1, 2 + random.number() % 1_000_000] {
            let place = format!("prefix {prefix}, seed {seed}");
            let crashed = disk.crash(prefix, seed);
            let kv = kv_on(&crashed).unwrap_or_else(|error| panic!("{place}: {error}"));
            let (loaded, others) = content(&kv);
            assert_first(&loaded, &place);
            let least = loads.iter().rev().find(|(known, _)| *known <= prefix);
            let least = least.map_or(0, |(_, count)| *count);
            assert!(loaded.len() >= least, "{place}: {} loaded", loaded.len());
            let known = batches.partition_point(|known| *known <= prefix);
            assert!((known..=known + 1).contains(&others), "{place}: {others}");
            kv.check()
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            kv.put(b"z", b"goes on").unwrap();
            kv.load_sorted((0..400).map(entry)).unwrap();
            assert_eq!(content(&kv).0.len(), 400, "{place}");
        }
    }
}
