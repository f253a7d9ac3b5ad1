//! Measures the B+tree by hand: load, update, random get, scan, delete.
//!
//! `cargo run --release -p varve-engine --example btree_speed -- [keys] [directory]`
//!
//! One thread, 19-byte keys in random order, 256-byte values, 1,000 per batch.
//! Nothing is synced but by the checkpoints that are named: the log makes
//! batches durable. What is read is compared with what was written.

use std::hint::black_box;
use std::ops::{Bound, ControlFlow};
use std::path::PathBuf;
use std::time::Instant;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{Applied, Backend, Direction, TreeId};
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::psync::PsyncDisk;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const TREE: TreeId = TreeId(1);
const BATCH: usize = 1000;
const PREFETCH: usize = 16;
const VALUE_BYTES: usize = 256;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let keys: usize = arguments
        .next()
        .map_or(Ok(1_000_000), |keys| keys.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments
        .next()
        .map_or(temporary.path().to_owned(), PathBuf::from);
    let store = Btree::open(
        &PsyncDisk::new(),
        &dir.join("speed.btree"),
        Options::default(),
    )?;
    let mut random = Random::new(1);
    let keys: Vec<[u8; 19]> = (0..keys).map(|_| key(random.number())).collect();
    let mut applied = Applied::default();

    write(&store, &mut applied, "load", &keys, 0)?;
    print_size(&store, "after load");
    checkpoint(&store)?;
    print_size(&store, "after checkpoint");
    let shuffled = shuffle(&keys, &mut random);
    write(&store, &mut applied, "update, get first", &shuffled, 1)?;
    print_size(&store, "after update");
    checkpoint(&store)?;
    let shuffled = shuffle(&keys, &mut random);
    write(&store, &mut applied, "update", &shuffled, 2)?;
    checkpoint(&store)?;
    print_size(&store, "after second update and checkpoint");
    get(&store, &shuffle(&keys, &mut random))?;
    scan(&store, &keys, &mut random)?;
    sums(&store, &keys, &mut random)?;
    delete(&store, &mut applied, &shuffle(&keys, &mut random))?;
    print_size(&store, "after delete");
    append(&store, &mut applied, keys.len())?;
    checkpoint(&store)?;
    let report = store.check()?;
    println!("check: {} pages, {} entries", report.pages, report.entries);
    Ok(())
}

fn key(number: u64) -> [u8; 19] {
    let mut key = *b"k000000000000000000";
    let text = format!("{:018}", number % 1_000_000_000_000_000_000);
    key[1..].copy_from_slice(text.as_bytes());
    key
}

fn value(key: &[u8], round: u8) -> [u8; VALUE_BYTES] {
    let mut value = [round; VALUE_BYTES];
    value[..key.len()].copy_from_slice(key);
    value
}

fn shuffle(keys: &[[u8; 19]], random: &mut Random) -> Vec<[u8; 19]> {
    let mut keys = keys.to_vec();
    for index in (1..keys.len()).rev() {
        keys.swap(index, random.below(index + 1));
    }
    keys
}

/// Wall and processor time: the second is what counts on a busy machine.
struct Clock {
    start: Instant,
    processor_ns: u64,
}

fn processor_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().and_then(|first| first.parse().ok());
    first.unwrap_or(0)
}

fn clock() -> Clock {
    Clock {
        start: Instant::now(),
        processor_ns: processor_ns(),
    }
}

fn report(what: &str, count: usize, clock: Clock) {
    let seconds = clock.start.elapsed().as_secs_f64();
    let busy = (processor_ns() - clock.processor_ns) as f64 / 1e9;
    let (rate, busy_rate) = (count as f64 / seconds, count as f64 / busy);
    println!("{what:<24} {rate:>12.0} /s   {busy_rate:>12.0} per processor second");
}

fn print_size(store: &Btree, when: &str) {
    let stats = store.stats();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "  {when}: file {:.0} MB, used {:.0} MB, pinned {:.0} MB",
        mb(stats.file_bytes),
        mb(stats.used_bytes),
        mb(stats.pinned_bytes)
    );
}

fn checkpoint(store: &Btree) -> Outcome<()> {
    let start = clock();
    store.checkpoint()?;
    report("checkpoint", 1, start);
    Ok(())
}

fn next(applied: &mut Applied) -> Applied {
    applied.index += 1;
    *applied
}

fn write(
    store: &Btree,
    applied: &mut Applied,
    what: &str,
    keys: &[[u8; 19]],
    round: u8,
) -> Outcome<()> {
    let start = clock();
    for part in keys.chunks(BATCH) {
        let mut batch = store.begin()?;
        for group in part.chunks(PREFETCH) {
            let soon: Vec<&[u8]> = group.iter().map(|key| &key[..]).collect();
            batch.prefetch(TREE, &soon);
            for key in group {
                if round == 1 {
                    black_box(batch.get(TREE, key)?);
                }
                batch.put(TREE, key, &value(key, round))?;
            }
        }
        batch.publish(next(applied))?;
    }
    report(what, keys.len(), start);
    Ok(())
}

fn get(store: &Btree, keys: &[[u8; 19]]) -> Outcome<()> {
    let snapshot = store.snapshot()?;
    let start = clock();
    for key in keys {
        let found = snapshot
            .get(TREE, key)?
            .is_some_and(|value| value.starts_with(key));
        assert!(found, "key {key:?} has a wrong value");
    }
    report("random get", keys.len(), start);
    Ok(())
}

fn scan(store: &Btree, keys: &[[u8; 19]], random: &mut Random) -> Outcome<()> {
    let snapshot = store.snapshot()?;
    let (mut count, mut bytes) = (0, 0);
    let start = clock();
    for _ in 0..100_000 {
        let from = &keys[random.below(keys.len())];
        let mut left = 100;
        let bounds = (Bound::Included(&from[..]), Bound::Unbounded);
        snapshot.scan(TREE, bounds, Direction::Forward, &mut |key, value| {
            bytes += key.len() + value.len() + usize::from(value[0]);
            count += 1;
            left -= 1;
            if left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
    }
    report("scan of 100, entries", count, start);
    black_box(bytes);
    Ok(())
}

fn sums(store: &Btree, keys: &[[u8; 19]], random: &mut Random) -> Outcome<()> {
    let snapshot = store.snapshot()?;
    let start = clock();
    for _ in 0..100_000 {
        let (a, b) = (
            &keys[random.below(keys.len())],
            &keys[random.below(keys.len())],
        );
        let bounds = (
            Bound::Included(&a.min(b)[..]),
            Bound::Excluded(&a.max(b)[..]),
        );
        black_box(snapshot.sums(TREE, bounds)?);
    }
    report("sums of a range", 100_000, start);
    Ok(())
}

fn delete(store: &Btree, applied: &mut Applied, keys: &[[u8; 19]]) -> Outcome<()> {
    let start = clock();
    for part in keys.chunks(BATCH) {
        let mut batch = store.begin()?;
        for key in part {
            assert!(batch.delete(TREE, key)?, "key {key:?} is missing");
        }
        batch.publish(next(applied))?;
    }
    report("delete", keys.len(), start);
    Ok(())
}

fn append(store: &Btree, applied: &mut Applied, count: usize) -> Outcome<()> {
    let tree = TreeId(2);
    let start = clock();
    for from in (0..count).step_by(BATCH) {
        let mut batch = store.begin()?;
        for number in from..from + BATCH {
            let mut key = [0; 12];
            key[..8].copy_from_slice(&(number as u64).to_be_bytes());
            batch.put(tree, &key, &[7; 100])?;
        }
        batch.publish(next(applied))?;
    }
    report("append 100-byte values", count, start);
    print_size(store, "after append");
    let start = clock();
    let half = (count as u64 / 2).to_be_bytes();
    let mut batch = store.begin()?;
    let deleted = batch.delete_range(tree, (Bound::Unbounded, Bound::Excluded(&half)))?;
    batch.publish(next(applied))?;
    report("delete_range of half", deleted as usize, start);
    Ok(())
}
