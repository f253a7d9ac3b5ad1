//! Looking at a store's file: what it says is what is there, and any bytes give
//! an answer.

use varve_engine::backend::conformance::Random;
use varve_engine::btree::inspect::{Inspector, MetaPage, Payload};
use varve_engine::btree::page::PAGE_BYTES;
use varve_engine::disk::{Disk, OpenMode, SimDisk};

use crate::damage::{build, bytes_of, is_used};
use crate::{new_disk, path};

fn inspector(disk: &SimDisk) -> Inspector {
    Inspector::open(disk, path()).expect("the file opens")
}

#[test]
fn what_it_says_is_what_is_there() {
    let (disk, model) = build();
    let before = bytes_of(&disk);
    let inspector = inspector(&disk);
    let meta = inspector.meta().expect("meta pages");
    let sequences = meta.map(|page| match page {
        MetaPage::Valid(fields) => (fields.sequence, fields.applied.index, fields.roots[1].0),
        other => panic!("{other:?}"),
    });
    let newest = *sequences.iter().max().expect("two");
    assert_eq!((newest.0, newest.1), (3, 3));
    assert_eq!(sequences[(newest.0 % 2) as usize], newest);

    let tree = inspector.tree(1).expect("the tree");
    assert_eq!(tree.root, newest.2);
    assert_eq!(tree.found.entries, model.trees[1].len() as u64);
    assert_eq!(tree.found, tree.booked);
    let bytes = model.trees[1]
        .iter()
        .map(|(key, value)| key.len() + value.len());
    assert_eq!(tree.found.bytes, bytes.sum::<usize>() as u64);
    let long = model.trees[1]
        .values()
        .filter(|value| value.len() > 1000)
        .count();
    assert_eq!((tree.runs, tree.run_pages), (long as u64, 3 * long as u64));
    assert_eq!((tree.fault_count, tree.depth), (0, 2));
    assert!(
        tree.leaf_fill() > 0.4 && tree.leaf_fill() <= 1.0,
        "{}",
        tree.leaf_fill()
    );
    assert_eq!(inspector.tree(2).expect("empty").found.entries, 0);
    assert!(inspector.tree(8).is_err());

    // The pages, one by one, hold the same.
    let (mut free, mut found) = (0, 0);
    for number in 2..inspector.pages() {
        let page = inspector.page(number).expect("a page");
        match page.is_used {
            Some(false) => free += 1,
            used => assert_eq!(used, Some(true)),
        }
        if page.is_used == Some(true) && page.header.kind == Some("leaf") {
            assert_eq!(page.fault, None);
            assert_eq!(page.header.checksums.0, page.header.checksums.1);
            for (key, payload) in page.slots {
                let value = &model.trees[1][&key];
                match payload {
                    Payload::Inline(bytes) => assert_eq!(&bytes, value),
                    Payload::Run { length, .. } => assert_eq!(length as usize, value.len()),
                    Payload::Child { .. } => panic!("a child in a leaf"),
                }
                found += 1;
            }
        }
    }
    assert_eq!(found, model.trees[1].len());
    assert_eq!(inspector.free_pages().expect("the free map"), free);
    assert!(inspector.page(0).is_err() && inspector.page(inspector.pages()).is_err());
    assert_eq!(bytes_of(&disk), before, "nothing is written");
}

#[test]
fn a_flipped_bit_in_a_page_of_a_tree_is_listed_with_its_number() {
    let (disk, model) = build();
    let bytes = bytes_of(&disk);
    let mut random = Random::new(11);
    let mut found = 0;
    for page in 2..bytes.len() / PAGE_BYTES {
        if !(1..=3).contains(&bytes[page * PAGE_BYTES + 4]) || !is_used(&disk, &model, page) {
            continue;
        }
        let damaged = disk.crash_now(1);
        let at = page * PAGE_BYTES + random.below(PAGE_BYTES);
        damaged
            .corrupt(path(), at as u64, 1 << random.below(8))
            .expect("flipped");
        let tree = inspector(&damaged).tree(1).expect("the tree");
        let named = format!("page {page} ");
        assert!(
            tree.faults.iter().any(|fault| fault.contains(&named)),
            "{tree:?}"
        );
        let view = inspector(&damaged).page(page as u64).expect("a page");
        assert!(view.fault.is_some());
        found += 1;
    }
    assert!(found > 20, "{found}");
}

#[test]
fn any_bytes_give_an_answer() {
    let (disk, _) = build();
    let whole = bytes_of(&disk);
    let mut random = Random::new(13);
    let mut faults = 0;
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(30) {
            let page = random.below(bytes.len() / PAGE_BYTES);
            let limit = [64, 300, PAGE_BYTES][random.below(3)];
            bytes[page * PAGE_BYTES + random.below(limit)] = random.number() as u8;
            // A right checksum lets it through to what comes after.
            let range = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
            let (crc, at) = match page {
                0 | 1 => (crc32c::crc32c(&bytes[range.start..range.start + 508]), 508),
                _ => (crc32c::crc32c(&bytes[range.start + 4..range.end]), 0),
            };
            bytes[range.start + at..range.start + at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        bytes.truncate(bytes.len() - [0, 0, 5000, bytes.len() / 2][random.below(4)]);
        let disk = new_disk(false);
        let file = disk.open(path(), OpenMode::Create).expect("a file");
        file.write_at(&bytes, 0).expect("written");
        let inspector = inspector(&disk);
        inspector.meta().expect("readable");
        for tree in 0..8 {
            faults += inspector.tree(tree).map_or(1, |tree| tree.fault_count);
        }
        let _ = inspector.free_pages();
        for page in 0..inspector.pages() {
            let _ = inspector.page(page);
        }
    }
    assert!(faults > 300, "{faults}");
    // Files of nothing, and of little.
    for length in [0, 1, 4096, 8191] {
        let disk = new_disk(false);
        let file = disk.open(path(), OpenMode::Create).expect("a file");
        file.write_at(&vec![7; length], 0).expect("written");
        let inspector = inspector(&disk);
        assert!(inspector.tree(0).is_err() && inspector.free_pages().is_err());
        assert!(!matches!(
            inspector.meta().expect("readable")[0],
            MetaPage::Valid(_)
        ));
    }
}
