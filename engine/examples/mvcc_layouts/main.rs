//! Times the ways to lay revisions out in trees (`papers/mvcc-layout.md`).
//!
//! `cargo run --release -p varve-engine --example mvcc_layouts -- DIR [KEYS] [UPDATES PER KEY] [ENGINE]`
//!
//! Puts every key, updates keys at random, then reads and compacts, in batches
//! of 1,000 with no sync. The layouts are bare: no answers, no checks. The last
//! row is the store itself, which has all of that.

mod inline;
mod split;
mod store;
mod undo;

use std::error::Error;

use varve_engine::backend::{Applied, Backend, Batch, Read, registry};
use varve_engine::btree;
use varve_engine::disk::psync::PsyncDisk;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Bytes of a key, so that composed keys need no escaping.
pub(crate) const KEY_BYTES: usize = 19;
pub(crate) type Key = [u8; KEY_BYTES];
/// Create revision, version and lease, in every layout.
pub(crate) const MARKS: [u8; 24] = [7; 24];

const USAGE: &str = "usage: mvcc_layouts DIR [KEYS] [UPDATES PER KEY] [ENGINE]";
const VALUE_BYTES: usize = 256;
const BATCH: usize = 1000;

/// A way to lay revisions out in trees.
pub(crate) trait Layout {
    fn name(&self) -> &'static str;
    fn put(&self, batch: &mut dyn Batch, key: &Key, revision: u64, value: &[u8]) -> Result<()>;
    fn get(&self, read: &dyn Read, key: &Key) -> Result<usize>;
    fn get_at(&self, read: &dyn Read, key: &Key, revision: u64) -> Result<usize>;
    /// Bytes of the values of the next `count` keys.
    fn scan(&self, read: &dyn Read, from: &Key, count: usize) -> Result<usize>;
    /// Changes from a revision on, and bytes of their values.
    fn replay(&self, read: &dyn Read, from: u64) -> Result<(usize, usize)>;
    /// Goes over at most `most` changes below `revision`; how many it went over.
    fn compact(&self, batch: &mut dyn Batch, revision: u64, most: usize) -> Result<usize>;
}

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// What is done, the same for every layout.
pub(crate) struct Work {
    pub(crate) keys: Vec<Key>,
    pub(crate) updates: usize,
}

impl Work {
    fn new(keys: usize, updates: usize) -> Self {
        let mut random = Random(42);
        let keys = (0..keys).map(|_| key(random.next())).collect();
        Self { keys, updates }
    }

    /// Keys in the order of their puts: all once, then at random.
    pub(crate) fn puts(&self) -> impl Iterator<Item = &Key> {
        let mut random = Random(1);
        let updates = self.keys.len() * self.updates;
        let at_random = (0..updates).map(move |_| &self.keys[random.below(self.keys.len())]);
        self.keys.iter().chain(at_random)
    }

    pub(crate) fn last_revision(&self) -> u64 {
        1 + (self.keys.len() * (1 + self.updates)) as u64
    }

    /// Three quarters of the revisions go in the compaction.
    pub(crate) fn compacted(&self) -> u64 {
        self.last_revision() / 4 * 3
    }

    pub(crate) fn picks(&self) -> impl Iterator<Item = (&Key, u64)> {
        let mut random = Random(2);
        let first = self.keys.len() + 2;
        let revisions = self.last_revision() as usize - first + 1;
        (0..self.keys.len().min(200_000)).map(move |_| {
            let key = &self.keys[random.below(self.keys.len())];
            (key, (first + random.below(revisions.max(1))) as u64)
        })
    }
}

fn key(number: u64) -> Key {
    let mut key = *b"k/00000000000000000";
    key[2..].copy_from_slice(format!("{number:017x}").as_bytes());
    key
}

pub(crate) fn value(seed: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    value[..8].copy_from_slice(&seed.to_be_bytes());
    value
}

/// Nanoseconds that this thread has had a processor: what others do on the
/// machine counts less than with a clock.
fn processor_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    first.expect("Linux says how long a thread ran")
}

/// Prints the figures of a layout as they come.
pub(crate) struct Row {
    started_ns: u64,
}

impl Row {
    pub(crate) fn start(name: &str) -> Self {
        print!("| {name} ");
        Self {
            started_ns: processor_ns(),
        }
    }

    /// Thousands a second since the last figure.
    pub(crate) fn rate(&mut self, count: usize) {
        let ns = processor_ns() - self.started_ns;
        print!("| {:.0} ", count as f64 * 1e6 / ns as f64);
        self.started_ns = processor_ns();
    }

    pub(crate) fn size(&mut self, backend: &dyn Backend) {
        print!("| {} ", backend.stats().used_bytes >> 20);
        self.started_ns = processor_ns();
    }

    pub(crate) fn end(self) {
        println!("|");
    }
}

pub(crate) fn applied(index: u64) -> Applied {
    Applied { term: 1, index }
}

fn measure(layout: &dyn Layout, backend: &dyn Backend, work: &Work) -> Result<()> {
    let mut row = Row::start(layout.name());
    let (mut revision, mut puts) = (1, work.puts());
    let mut put = |count: usize| -> Result<()> {
        let mut left = count;
        while left > 0 {
            let mut batch = backend.begin()?;
            for key in puts.by_ref().take(left.min(BATCH)) {
                revision += 1;
                layout.put(&mut *batch, key, revision, &value(revision))?;
            }
            batch.publish(applied(revision))?;
            left -= left.min(BATCH);
        }
        Ok(())
    };
    put(work.keys.len())?;
    row.rate(work.keys.len());
    put(work.keys.len() * work.updates)?;
    row.rate(work.keys.len() * work.updates);
    row.size(backend);
    let snapshot = backend.snapshot()?;
    let mut gets = 0;
    for (key, _) in work.picks() {
        assert_eq!(layout.get(&*snapshot, key)?, VALUE_BYTES);
        gets += 1;
    }
    row.rate(gets);
    for (key, revision) in work.picks() {
        assert_eq!(layout.get_at(&*snapshot, key, revision)?, VALUE_BYTES);
    }
    row.rate(gets);
    let mut scanned = 0;
    for (key, _) in work.picks().take(gets / 20) {
        scanned += layout.scan(&*snapshot, key, 100)? / VALUE_BYTES;
    }
    row.rate(scanned);
    let (events, bytes) = layout.replay(&*snapshot, work.last_revision() / 2)?;
    assert_eq!(bytes, events * VALUE_BYTES);
    row.rate(events);
    drop(snapshot);
    let mut compacted = 0;
    loop {
        let mut batch = backend.begin()?;
        let count = layout.compact(&mut *batch, work.compacted(), BATCH)?;
        batch.publish(applied(work.last_revision()))?;
        if count == 0 {
            break;
        }
        compacted += count;
    }
    row.rate(compacted);
    row.end();
    backend.check()?;
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or(USAGE)?;
    let keys = arguments.next().map_or(Ok(100_000), |keys| keys.parse())?;
    let updates = arguments.next().map_or(Ok(4), |updates| updates.parse())?;
    let engine = arguments.next().unwrap_or(btree::NAME.into());
    let work = Work::new(keys, updates);
    println!(
        "{engine}: {keys} keys, {updates} updates of each on average, values of {VALUE_BYTES} bytes"
    );
    println!("thousands a second of processor time; MB in use after the updates\n");
    println!("| layout | put new | update | MB | get | get old | scan of 100 | replay | compact |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let folder = tempfile::tempdir_in(dir)?;
    let disk = PsyncDisk::new();
    let open = |name: &str| -> Result<_> {
        let dir = folder.path().join(name);
        std::fs::create_dir(&dir)?;
        Ok(registry::open(
            &engine,
            &disk,
            &dir,
            &registry::Options::default(),
        )?)
    };
    let layouts: [&dyn Layout; 3] = [&inline::Inline, &split::Split, &undo::Undo];
    for (layout, name) in layouts.into_iter().zip(["a", "b", "c"]) {
        measure(layout, &*open(name)?, &work)?;
    }
    store::measure(open("store")?, &work)?;
    Ok(())
}
