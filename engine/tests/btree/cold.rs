//! A store of which little is in memory.
#![allow(unsafe_code)] // taking a file out of the page cache; a map to look at

use std::fs::File;
use std::ops::{Bound, ControlFlow};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use varve_engine::backend::{Applied, Backend, Direction, TreeId};
use varve_engine::btree::page::PAGE_BYTES;
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::{self, OpenMode};

use super::check;

const TREE: TreeId = TreeId(0);
const KEYS: u32 = 6000;

/// A store of a few hundred leaves on a real disk.
struct Cold {
    path: PathBuf,
    _dir: TempDir,
}

fn key(number: u32) -> [u8; 8] {
    // Any order will do that is not the keys' own.
    u64::from(number)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes()
}

fn value(number: u32, round: u8) -> Vec<u8> {
    let mut value = vec![round; 256];
    value[..4].copy_from_slice(&number.to_be_bytes());
    value
}

fn open(path: &Path) -> Btree {
    let options = Options { map_bytes: 1 << 28 };
    Btree::open(&*disk::open_default().disk, path, options).unwrap()
}

fn applied(index: u64) -> Applied {
    Applied { term: 1, index }
}

impl Cold {
    /// A checkpointed store, none of whose pages are in memory.
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("store");
        let store = open(&path);
        let mut batch = store.begin().unwrap();
        for number in 0..KEYS {
            batch.put(TREE, &key(number), &value(number, 0)).unwrap();
        }
        batch.publish(applied(1)).unwrap();
        store.checkpoint().unwrap();
        drop(store);
        let cold = Self { path, _dir: dir };
        let file = File::open(&cold.path).unwrap();
        file.sync_all().unwrap();
        // SAFETY: only the page cache is told something, of a file that is open.
        let done =
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(done, 0);
        cold
    }

    /// Pages of the file that are in memory, and all of them.
    fn resident(&self) -> (usize, usize) {
        let disk = disk::open_default().disk;
        let file = disk.open(&self.path, OpenMode::Existing).unwrap();
        let pages = file.len().unwrap() as usize / PAGE_BYTES;
        let map = file.map(pages * PAGE_BYTES).unwrap();
        let resident = (0..pages).filter(|page| map.is_resident(page * PAGE_BYTES));
        (resident.count(), pages)
    }

    /// As [`Cold::resident`], with the store open; none where the file system keeps all
    /// pages in memory, so that there is nothing to see.
    fn evicted(&self) -> Option<(usize, usize)> {
        let (resident, pages) = self.resident();
        if resident > pages / 2 {
            eprintln!("this file system keeps all pages in memory: nothing to see here");
            return None;
        }
        Some((resident, pages))
    }

    /// Waits until at least so many pages are in memory.
    fn wait_for(&self, pages: usize) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if self.resident().0 >= pages {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

#[test]
fn what_a_batch_needs_is_read_many_pages_at_a_time() {
    let cold = Cold::new();
    let store = open(&cold.path);
    let Some((_, pages)) = cold.evicted() else {
        return;
    };
    let keys: Vec<_> = (0..KEYS).map(key).collect();
    let keys: Vec<_> = keys.iter().map(|key| &key[..]).collect();
    let mut batch = store.begin().unwrap();
    batch.read_ahead(TREE, &keys, true);
    assert!(cold.wait_for(pages * 3 / 4), "{:?}", cold.resident());
    drop(batch);
}

#[test]
fn a_cold_store_wants_its_new_pages_written_soon() {
    let wants = |is_cold: bool| {
        let cold = Cold::new();
        let store = open(&cold.path);
        if !is_cold {
            store.check().unwrap(); // reads all of it
        } else if cold.resident().0 > KEYS as usize / 16 {
            return true;
        }
        for round in 1..=30 {
            let keys: Vec<_> = (0..KEYS).map(key).collect();
            let keys: Vec<_> = keys.iter().map(|key| &key[..]).collect();
            let mut batch = store.begin().unwrap();
            batch.read_ahead(TREE, &keys, true);
            for number in 0..KEYS {
                batch
                    .put(TREE, &key(number), &value(number, round))
                    .unwrap();
            }
            batch.publish(applied(u64::from(round) + 1)).unwrap();
        }
        let wants = store.wants_checkpoint(false);
        store.checkpoint().unwrap();
        assert!(!store.wants_checkpoint(false));
        check(&store);
        let snapshot = store.snapshot().unwrap();
        for number in 0..KEYS {
            let found = snapshot.get(TREE, &key(number)).unwrap();
            assert_eq!(found.unwrap()[..], value(number, 30));
        }
        wants
    };
    assert!(wants(true));
    assert!(!wants(false));
}

#[test]
fn a_long_scan_reads_ahead_and_a_short_one_does_not() {
    let cold = Cold::new();
    let store = open(&cold.path);
    let Some((before, _)) = cold.evicted() else {
        return;
    };
    let scan = |most: usize, direction| {
        let mut count = 0;
        let all = (Bound::Unbounded, Bound::Unbounded);
        let snapshot = store.snapshot().unwrap();
        let visit = &mut |_: &[u8], _: &[u8]| {
            count += 1;
            match count < most {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        snapshot.scan(TREE, all, direction, visit).unwrap();
    };
    scan(100, Direction::Forward);
    let (short, _) = cold.resident();
    assert!(short <= before + 20, "{before} pages, then {short}");
    // About 17 leaves of 11 entries or more.
    scan(190, Direction::Backward);
    assert!(
        cold.wait_for(short + 60),
        "{short} pages, then {:?}",
        cold.resident()
    );
}
