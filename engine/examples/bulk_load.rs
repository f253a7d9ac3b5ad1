//! Loads sorted entries into the B+tree in three ways: put in random order, put in
//! order, appended in order. Prints rate, file size, and how full the leaves are.
//!
//! `cargo run --release -p varve-engine --example bulk_load -- [keys] [directory]`
//!
//! One thread, 19-byte keys, 256-byte values, 1,000 per batch, a checkpoint at the
//! end. Each store is checked, and its leaves are counted from its file.

use std::path::PathBuf;
use std::time::Instant;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{Applied, Backend, Batch, Entry, TreeId};
use varve_engine::btree::inspect::Inspector;
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::frozen::FrozenDisk;
use varve_engine::disk::psync::PsyncDisk;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const TREE: TreeId = TreeId(1);
const BATCH: usize = 1000;
const VALUE_BYTES: usize = 256;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments
        .next()
        .map_or(Ok(1_000_000), |count| count.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments
        .next()
        .map_or(temporary.path().to_owned(), PathBuf::from);
    let mut random = Random::new(1);
    let shuffled: Vec<[u8; 19]> = (0..count).map(|_| key(random.number())).collect();
    let mut sorted = shuffled.clone();
    sorted.sort_unstable();
    sorted.dedup();
    type Fill = fn(&mut dyn Batch, &[Entry<'_>]) -> Outcome<()>;
    let put: Fill = |batch, entries| {
        for (key, value) in entries {
            batch.put(TREE, key, value)?;
        }
        Ok(())
    };
    let append: Fill = |batch, entries| Ok(batch.append(TREE, entries)?);
    // Three rounds: the disk is not always as fast.
    for _ in 0..3 {
        for (name, keys, fill) in [
            ("put, random order", &shuffled, put),
            ("put, in order", &sorted, put),
            ("append, in order", &sorted, append),
        ] {
            load(&dir.join("bulk_load.btree"), name, keys, fill, sorted.len())?;
        }
    }
    Ok(())
}

fn load(
    path: &std::path::Path,
    name: &str,
    keys: &[[u8; 19]],
    fill: fn(&mut dyn Batch, &[Entry<'_>]) -> Outcome<()>,
    distinct: usize,
) -> Outcome<()> {
    let store = Btree::open(&PsyncDisk::new(), path, Options::default())?;
    let value = [b'v'; VALUE_BYTES];
    let started = Instant::now();
    for (number, part) in keys.chunks(BATCH).enumerate() {
        let entries: Vec<Entry<'_>> = part.iter().map(|key| (&key[..], &value[..])).collect();
        let mut batch = store.begin()?;
        fill(&mut *batch, &entries)?;
        let index = number as u64 + 1;
        batch.publish(Applied { term: 1, index })?;
    }
    let loaded = started.elapsed();
    store.checkpoint()?;
    let durable = started.elapsed();
    let report = store.check()?;
    assert_eq!(report.entries, distinct as u64, "all are there");
    drop(store);
    let tree = Inspector::open(&FrozenDisk::new(), path)?.tree(usize::from(TREE.0))?;
    let bytes = std::fs::metadata(path)?.len();
    println!(
        "{name:<20} {:>9.0}/s, {:>9.0}/s with the checkpoint, file {:>6.1} MB, leaves {:.1} % full",
        keys.len() as f64 / loaded.as_secs_f64(),
        keys.len() as f64 / durable.as_secs_f64(),
        bytes as f64 / 1e6,
        tree.leaf_fill() * 100.0
    );
    std::fs::remove_file(path)?;
    Ok(())
}

fn key(number: u64) -> [u8; 19] {
    let mut key = [0; 19];
    let text = format!("{number:019}");
    key.copy_from_slice(&text.as_bytes()[text.len() - 19..]);
    key
}
