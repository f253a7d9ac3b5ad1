//! Values that stay in their leaf, up to half a page with their key, and those just
//! above that, which have pages of their own.

use std::collections::BTreeMap;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{Applied, Backend, Keep, TreeId};
use varve_engine::btree::inspect::{Inspector, MetaPage, Payload, TreeView};
use varve_engine::btree::page::{MAX_INLINE_ENTRY_BYTES, MAX_KEY_BYTES, PAGE_BYTES};
use varve_engine::disk::SimDisk;

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

/// Where the run of a key of tree `tree` is, and what stands before it.
fn run_of(disk: &SimDisk, tree: u8, key: &[u8]) -> (u64, Vec<u8>) {
    let inspector = Inspector::open(disk, path()).expect("the file opens");
    let metas = inspector.meta().expect("meta pages").into_iter();
    let valid = metas.filter_map(|meta| match meta {
        MetaPage::Valid(fields) => Some(fields),
        _ => None,
    });
    let newest = valid.max_by_key(|meta| meta.sequence).expect("a whole one");
    let (root, _) = newest.roots[usize::from(tree)];
    let page = inspector.page(root).expect("the root, a leaf");
    let slot = page.slots.into_iter().find(|(found, _)| found == key);
    match slot.expect("there").1 {
        Payload::Run { page, before, .. } => (page, before),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_long_value_that_is_kept_stays_where_it_is() {
    let (old, new) = (vec![1; 9000], vec![2; 9000]);
    let disk = build([(&b"key"[..], &old[..])].into_iter());
    let (run, before) = run_of(&disk, TREE.0, b"key");
    assert_eq!(before, b"");
    let store = open(&disk).expect("opens");
    let put_and_keep = |key: &[u8], head: &[u8], index| {
        let keep = Keep {
            tree: TreeId(2),
            key,
            head,
        };
        let mut batch = store.begin().expect("a batch");
        batch.put_and_keep(TREE, b"key", &new, keep).expect("put");
        batch.publish(applied(index)).expect("publish");
        store.checkpoint().expect("checkpoint");
        check(&store);
        let snapshot = store.snapshot().expect("a snapshot");
        assert_eq!(
            snapshot.get(TREE, b"key").expect("read").expect("there")[..],
            new
        );
        let kept = snapshot.get(TreeId(2), key).expect("read").expect("there");
        let peek = snapshot.peek(TreeId(2), key).expect("read").expect("there");
        assert_eq!(peek.length, kept.len());
        assert!(!peek.is_whole() && kept.starts_with(&peek.bytes));
        assert!(peek.bytes.len() >= head.len().min(64));
        assert!(kept.starts_with(head));
        kept[head.len()..].to_vec()
    };
    let before = store.stats().used_bytes;
    assert_eq!(put_and_keep(b"kept", b"head", 2), old);
    // Three pages of the new value, and the new tree's leaf.
    assert!(store.stats().used_bytes <= before + 4 * PAGE_BYTES as u64);
    assert_eq!(run_of(&disk, 2, b"kept"), (run, b"head".to_vec()));

    // Where key and head leave no room for a reference the value is copied.
    let long_key = vec![b'x'; MAX_KEY_BYTES];
    assert_eq!(put_and_keep(&long_key, &[b'h'; 100], 3), new);
    assert_eq!(run_of(&disk, 2, &long_key).1, b"");

    let mut batch = store.begin().expect("a batch");
    for key in [&b"kept"[..], &long_key] {
        assert!(batch.delete(TreeId(2), key).expect("delete"));
    }
    batch.publish(applied(4)).expect("publish");
    for index in 5..8 {
        let batch = store.begin().expect("a batch");
        batch.publish(applied(index)).expect("publish");
        store.checkpoint().expect("checkpoint");
    }
    check(&store);
    assert_eq!(store.stats().used_bytes, before);
}
