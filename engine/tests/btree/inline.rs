//! Values that stay in their leaf, up to half a page with their key, and those just
//! above that, which have pages of their own.

use std::collections::BTreeMap;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{Applied, Backend, TreeId};
use varve_engine::btree::inspect::{Inspector, TreeView};
use varve_engine::btree::page::{
    HEADER_BYTES, MAX_INLINE_ENTRY_BYTES, MAX_KEY_BYTES, PAGE_BYTES, SLOT_BYTES,
};
use varve_engine::disk::{Disk, OpenMode, SimDisk};

use crate::damage::bytes_of;
use crate::{check, new_disk, open, path};

const TREE: TreeId = TreeId(1);

fn report(disk: &SimDisk) -> TreeView {
    let inspector = Inspector::open(disk, path()).expect("the file opens");
    inspector.tree(TREE.0.into()).expect("the tree")
}

fn applied(index: u64) -> Applied {
    Applied { term: 1, index }
}

/// A checkpointed store of these entries.
fn build<'e>(entries: impl Iterator<Item = (&'e [u8], &'e [u8])>) -> SimDisk {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let mut batch = store.begin().expect("a batch");
    for (key, value) in entries {
        batch.put(TREE, key, value).expect("put");
    }
    batch.publish(applied(1)).expect("publish");
    store.checkpoint().expect("checkpoint");
    check(&store);
    disk
}

#[test]
fn what_fits_half_a_page_with_its_key_has_no_pages_of_its_own() {
    for key_bytes in [1, 2, 19, 900, MAX_KEY_BYTES] {
        let longest = MAX_INLINE_ENTRY_BYTES - key_bytes;
        for (value_bytes, runs) in [(longest - 1, 0), (longest, 0), (longest + 1, 1)] {
            let (key, value) = (vec![b'k'; key_bytes], vec![b'v'; value_bytes]);
            let report = report(&build([(&key[..], &value[..])].into_iter()));
            assert_eq!(report.runs, runs, "key {key_bytes}, value {value_bytes}");
            assert_eq!(report.found.bytes, (key_bytes + value_bytes) as u64);
        }
    }
}

/// Pages per entry of a store of `count` entries of 19 and `value_bytes` bytes.
fn bytes_an_entry(value_bytes: usize, is_sorted: bool) -> f64 {
    const COUNT: u64 = 3000;
    let mut random = Random::new(5);
    let mut keys: Vec<_> = (0..COUNT)
        .map(|_| format!("key{:016x}", random.number()).into_bytes())
        .collect();
    if is_sorted {
        keys.sort_unstable();
    }
    let value = vec![b'v'; value_bytes];
    let report = report(&build(keys.iter().map(|key| (&key[..], &value[..]))));
    assert_eq!(report.found.entries, COUNT);
    ((report.leaves + report.branches + report.run_pages) * PAGE_BYTES as u64) as f64 / COUNT as f64
}

#[test]
fn values_of_a_kibibyte_share_pages() {
    // What a page holds at most: three of 1 KiB, two of 1.5 KiB.
    for (value_bytes, sorted, random) in [(1024, 1400.0, 1700.0), (1536, 2100.0, 2600.0)] {
        let (in_order, in_any) = (
            bytes_an_entry(value_bytes, true),
            bytes_an_entry(value_bytes, false),
        );
        println!("{value_bytes} bytes: {in_order:.0} of the file in order, {in_any:.0} at random");
        assert!(in_order < sorted, "{value_bytes}: {in_order}");
        assert!(in_any < random, "{value_bytes}: {in_any}");
    }
}

/// Cells of up to half a page, small ones among them, under keys with long and short
/// common prefixes: whatever is split, shared, merged or written over, the store is
/// what a map is.
#[test]
fn leaves_of_large_cells_hold_what_a_map_holds() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let disk = new_disk(false);
        let store = open(&disk).expect("a new store");
        let mut model = BTreeMap::new();
        let prefix = vec![b'p'; [0, 3, 600, 1700][seed as usize % 4]];
        for index in 1..=60 {
            let mut batch = store.begin().expect("a batch");
            for _ in 0..30 {
                let mut key = match random.below(8) {
                    // Shares nothing with most of its leaf.
                    0 => vec![random.number() as u8],
                    _ => prefix.clone(),
                };
                key.extend_from_slice(&(random.below(400) as u16).to_be_bytes());
                let most = MAX_INLINE_ENTRY_BYTES - key.len();
                let length = match random.below(10) {
                    0 => most,
                    1 => most + 1,
                    2 => most.saturating_sub(random.below(40)),
                    3 => 1001.min(most),
                    4 => 1024.min(most),
                    5 => random.below(60),
                    6 => 3 * PAGE_BYTES,
                    _ => random.below(most + 1),
                };
                if random.below(100) < 30 {
                    let there = model.remove(&key).is_some();
                    assert_eq!(batch.delete(TREE, &key).expect("delete"), there);
                } else {
                    let value = vec![random.number() as u8; length];
                    batch.put(TREE, &key, &value).expect("put");
                    model.insert(key, value);
                }
            }
            batch.publish(applied(index)).expect("publish");
            if index % 10 == 0 {
                store.checkpoint().expect("checkpoint");
                check(&store);
            }
        }
        let snapshot = store.snapshot().expect("a snapshot");
        for (key, value) in &model {
            let found = snapshot.get(TREE, key).expect("readable");
            assert_eq!(found.expect("there")[..], value[..], "seed {seed}");
        }
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let sums = snapshot.sums(TREE, all).expect("sums");
        assert_eq!(sums.entries, model.len() as u64, "seed {seed}");
    }
}

/// What made the store's file up to the first release kept no value above 1,000 bytes
/// in a leaf. Such a file is this one's with shorter values in the runs.
#[test]
fn runs_of_values_that_would_fit_a_leaf_now_are_read_and_replaced() {
    const LONG: usize = 3000;
    const SHORT: usize = 1500;
    let keys: [&[u8]; 2] = [b"a", b"b"];
    let disk = build(keys.iter().map(|key| (*key, &[7_u8; LONG][..])));
    let mut bytes = bytes_of(&disk);
    let put = |bytes: &mut [u8], at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    let crc_at = |bytes: &mut [u8], from: usize, to: usize, at: usize| {
        let crc = crc32c::crc32c(&bytes[from..to]).to_le_bytes();
        bytes[at..at + 4].copy_from_slice(&crc);
    };
    let mut seen = [0; 3];
    for start in (2 * PAGE_BYTES..bytes.len()).step_by(PAGE_BYTES) {
        match bytes[start + 4] {
            1 => {
                // Two slots behind a prefix; a reference is a cell's last 12 bytes.
                let prefix = usize::from(bytes[start + 12]);
                for slot in 0..2 {
                    let slot = start + HEADER_BYTES + prefix + slot * SLOT_BYTES;
                    let cell = u16::from_le_bytes([bytes[slot + 4], bytes[slot + 5]]);
                    let suffix = u16::from_le_bytes([bytes[slot + 6], bytes[slot + 7]]);
                    let length = start + usize::from(cell) + 2 + usize::from(suffix) + 8;
                    assert_eq!(bytes[length..length + 4], (LONG as u32).to_le_bytes());
                    put(&mut bytes, length, &(SHORT as u32).to_le_bytes());
                }
                crc_at(&mut bytes, start + 4, start + PAGE_BYTES, start);
                seen[1] += 1;
            }
            3 => {
                put(&mut bytes, start + 8, &(SHORT as u32).to_le_bytes());
                crc_at(&mut bytes, start + 4, start + HEADER_BYTES + SHORT, start);
                seen[2] += 1;
            }
            _ => {}
        }
    }
    let sums = 2 * (1 + SHORT as u64);
    for start in [0, PAGE_BYTES] {
        let root = start + 64 + 24 * usize::from(TREE.0);
        if bytes[root] != 0 {
            put(&mut bytes, root + 16, &sums.to_le_bytes());
            crc_at(&mut bytes, start, start + 508, start + 508);
            seen[0] += 1;
        }
    }
    assert_eq!(seen, [1, 1, 2], "meta pages, leaves, runs");
    let file = disk.open(path(), OpenMode::Existing).expect("the file");
    file.write_at(&bytes, 0).expect("written");

    let store = open(&disk).expect("the older file opens");
    check(&store);
    let snapshot = store.snapshot().expect("a snapshot");
    for key in keys {
        let found = snapshot.get(TREE, key).expect("readable").expect("there");
        assert_eq!(found[..], [7; SHORT]);
    }
    drop(snapshot);
    assert_eq!(report(&disk).runs, 2);
    let mut batch = store.begin().expect("a batch");
    batch.put(TREE, b"b", &[8; SHORT]).expect("put");
    batch.publish(applied(2)).expect("publish");
    store.checkpoint().expect("checkpoint");
    check(&store);
    let report = report(&disk);
    assert_eq!((report.runs, report.found.bytes), (1, sums));
    let snapshot = store.snapshot().expect("a snapshot");
    let found = snapshot.get(TREE, b"b").expect("readable").expect("there");
    assert_eq!(found[..], [8; SHORT]);
}
