//! What the suites share: engines, keys, sizes.
//!
//! `VARVE_BENCH_KEYS` sets the number of keys (default 100,000; the targets are
//! given for 1,000,000), `VARVE_BENCH_DIR` the folder for files (default: the
//! system's temporary folder; choose one on the disk that is to be measured).

// Each suite is a crate of its own and uses a part.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use varve_engine::backend::{self, Applied, Backend, TreeId};
use varve_engine::disk;

/// Bytes of a value, as in the targets.
pub(crate) const VALUE_BYTES: usize = 256;
/// Changes of one batch, as in the targets.
pub(crate) const BATCH: usize = 1000;
/// Where the engines' own suites put everything.
pub(crate) const TREE: TreeId = TreeId(1);

/// The engines to measure, side by side.
pub(crate) const ENGINES: &[&str] = backend::NAMES;

/// Opens an empty store of an engine in a folder.
pub(crate) fn open(engine: &str, folder: &Path) -> Arc<dyn Backend> {
    let disk = disk::open_default().disk;
    backend::open(engine, &*disk, folder, &backend::Options::default())
        .expect("a new store can be opened")
}

/// Number of keys.
pub(crate) fn keys() -> usize {
    std::env::var("VARVE_BENCH_KEYS")
        .ok()
        .and_then(|keys| keys.parse().ok())
        .unwrap_or(100_000)
}

/// A folder that goes when it is dropped.
pub(crate) fn folder() -> TempDir {
    let made = match std::env::var_os("VARVE_BENCH_DIR") {
        Some(dir) => TempDir::with_prefix_in("varve-bench-", dir),
        None => TempDir::with_prefix("varve-bench-"),
    };
    made.expect("a temporary folder can be made")
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// `count` different keys of 19 bytes in random order.
pub(crate) fn random_keys(count: usize) -> Vec<[u8; 19]> {
    let mut random = Random(42);
    (0..count)
        .map(|_| {
            let mut key = *b"k/00000000000000000";
            let hex = format!("{:017x}", random.next());
            key[2..].copy_from_slice(hex.as_bytes());
            key
        })
        .collect()
}

/// A value that does not compress.
pub(crate) fn value(random: &mut Random) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    for word in value.as_chunks_mut::<8>().0 {
        *word = random.next().to_le_bytes();
    }
    value
}

/// The log entry of the batch with this number.
pub(crate) fn applied(index: u64) -> Applied {
    Applied { term: 1, index }
}
