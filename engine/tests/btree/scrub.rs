//! The scrub: what is damaged on the disk is found and named, though nobody reads
//! it; what is whole is not called damaged, whatever goes on beside.

use varve_engine::backend::conformance::{Model, Random};
use varve_engine::backend::{Applied, Backend, BackendError, TreeId};
use varve_engine::btree::Btree;
use varve_engine::btree::page::PAGE_BYTES;
use varve_engine::disk::sim::{Fault, FaultOn};
use varve_engine::disk::{Disk, OpenMode, SimDisk};

use crate::damage::{build, bytes_of, is_damage, is_used};
use crate::{check, new_disk, open, path};

/// A whole pass in steps of `budget` bytes; what it found.
fn pass(store: &Btree, budget: u64) -> Vec<BackendError> {
    let mut damage = Vec::new();
    for _ in 0..1_000_000 {
        let step = store.scrub_step(budget);
        damage.extend(step.damage);
        if step.is_finished {
            return damage;
        }
    }
    panic!("the pass does not end");
}

/// The page whose number an error names: of a run it is the first.
fn named_page(bytes: &[u8], page: usize) -> usize {
    let kind = |page: usize| bytes[page * PAGE_BYTES + 4];
    match kind(page) {
        1..=5 => page,
        _ => (2..page)
            .rev()
            .find(|page| kind(*page) == 3)
            .expect("a run"),
    }
}

/// Reads everything; errors that came up. Nothing may come back but what was put.
fn read_all(store: &Btree, model: &Model) -> Vec<BackendError> {
    let snapshot = store.snapshot().expect("a snapshot");
    let mut errors = Vec::new();
    for (key, value) in &model.trees[1] {
        match snapshot.get(TreeId(1), key) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&value[..]), "a wrong answer"),
            Err(error) => errors.push(error),
        }
    }
    errors
}

#[test]
fn two_hundred_flipped_bits_are_each_found_and_named_and_never_served() {
    let (disk, model) = build();
    let bytes = bytes_of(&disk);
    let pages = 2..bytes.len() / PAGE_BYTES;
    let used: Vec<usize> = pages.filter(|page| is_used(&disk, &model, *page)).collect();
    let mut random = Random::new(200);
    let (mut by_read, mut by_scrub, mut at_open, mut flips) = (0, 0, 0, 0);
    while flips < 200 {
        let page = used[random.below(used.len())];
        let at = page * PAGE_BYTES + random.below(PAGE_BYTES);
        let first = named_page(&bytes, page);
        let run = u32::from_le_bytes(bytes[first * PAGE_BYTES + 8..][..4].try_into().unwrap());
        if first != page && at >= first * PAGE_BYTES + 32 + run as usize {
            continue; // behind the value's end there is nothing
        }
        flips += 1;
        let named = format!("page {first} ");
        // Half of them while the store is open, half before.
        let damaged = disk.crash_now(1);
        let flip = || {
            damaged
                .corrupt(path(), at as u64, 1 << (flips % 8))
                .unwrap()
        };
        let opened = match flips % 2 {
            0 => {
                let store = open(&damaged);
                flip();
                store
            }
            _ => {
                flip();
                open(&damaged)
            }
        };
        let store = match opened {
            Ok(store) => store,
            Err(error) => {
                assert!(
                    is_damage(&error) && error.to_string().contains(&named),
                    "{error}"
                );
                at_open += 1;
                continue;
            }
        };
        let errors = read_all(&store, &model);
        by_read += usize::from(!errors.is_empty());
        for error in &errors {
            assert!(
                is_damage(error) && error.to_string().contains(&named),
                "{error}"
            );
        }
        let found = pass(&store, 1);
        assert_eq!(found.len(), 1, "byte {at}: {found:?}");
        assert!(
            is_damage(&found[0]) && found[0].to_string().contains(&named),
            "{found:?}"
        );
        by_scrub += 1;
        // It is remembered, once.
        let damage = store.damage();
        assert_eq!(damage.places, 1, "{damage:?}");
        assert!(damage.first.is_some_and(|first| first.contains(&named)));
    }
    assert_eq!(at_open + by_scrub, 200);
    assert!(
        by_read > 50 && at_open < 40,
        "{by_read} by reads, {at_open} at open"
    );
}

#[test]
fn beside_writes_checkpoints_and_a_vacuum_nothing_whole_is_called_damaged() {
    let (disk, mut model) = build();
    let store = open(&disk).expect("opens");
    let mut random = Random::new(3);
    let mut passes = 0;
    for round in 10..400 {
        let mut batch = store.begin().expect("a batch");
        for _ in 0..20 {
            let key = format!("/registry/pods/{:05}", random.below(1000)).into_bytes();
            if random.below(3) == 0 {
                batch.delete(TreeId(1), &key).expect("delete");
                model.tree(1).remove(&key);
            } else {
                let value = vec![101; [120, 5000, 20_000][random.below(3)]];
                batch.put(TreeId(1), &key, &value).expect("put");
                model.tree(1).insert(key, value);
            }
        }
        model.applied = Applied {
            term: 1,
            index: round,
        };
        batch.publish(model.applied).expect("publish");
        match round % 5 {
            0 => drop(store.checkpoint().expect("checkpoint")),
            1 => store.start_vacuum(varve_engine::backend::VacuumExtent::All),
            2 => {
                let mut batch = store.begin().expect("a batch");
                batch.vacuum_step().expect("a step");
                batch.publish(model.applied).expect("publish");
            }
            _ => {}
        }
        let step = store.scrub_step(40 * PAGE_BYTES as u64);
        assert!(step.damage.is_empty(), "{:?}", step.damage);
        // A page and a value at least, but at the end of a pass, and not much over the
        // budget.
        let pages = step.read_bytes / PAGE_BYTES as u64;
        assert!(step.is_finished || pages > 0);
        assert!(pages < 60, "{pages} pages");
        passes += u32::from(step.is_finished);
    }
    assert!(passes > 2, "{passes}");
    assert_eq!(store.damage(), Default::default());
    assert!(read_all(&store, &model).is_empty());
    check(&store);
}

#[test]
fn an_older_version_of_a_page_which_the_disk_brought_back_is_found() {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let mut images = Vec::new();
    for round in 1..30_u64 {
        let mut batch = store.begin().expect("a batch");
        for number in 0..40 {
            let key = format!("key/{:03}", (number * 7 + round * 13) % 200);
            let value = vec![b'a' + (round % 20) as u8; 50 + round as usize];
            batch.put(TreeId(0), key.as_bytes(), &value).expect("put");
        }
        let applied = Applied {
            term: 1,
            index: round,
        };
        batch.publish(applied).expect("publish");
        store.checkpoint().expect("checkpoint");
        images.push(bytes_of(&disk));
    }
    drop(store);
    let newest = images.pop().expect("images");
    let (mut found, mut tried) = (0, 0);
    for page in 2..newest.len() / PAGE_BYTES {
        let range = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
        // What was there when the page was last something else.
        let older = images
            .iter()
            .rev()
            .filter_map(|image| image.get(range.clone()));
        let Some(older) = older
            .into_iter()
            .find(|older| **older != newest[range.clone()])
        else {
            continue;
        };
        if older[4] != 1 || newest[range.start + 4] != 1 {
            continue;
        }
        let damaged = disk.crash_now(1);
        let file = damaged.open(path(), OpenMode::Existing).expect("the file");
        let blank = damaged.crash_now(1);
        let blanked = blank.open(path(), OpenMode::Existing).expect("the file");
        blanked
            .write_at(&[0; PAGE_BYTES], range.start as u64)
            .expect("blanked");
        if open(&blank).is_ok_and(|store| store.check().is_ok()) {
            continue; // a free page
        }
        tried += 1;
        file.write_at(older, range.start as u64).expect("written");
        let store = open(&damaged).expect("leaves are not read at open");
        let damage = pass(&store, 1 << 20);
        let named = format!("page {page} ");
        found += usize::from(
            damage
                .iter()
                .any(|error| error.to_string().contains(&named)),
        );
    }
    assert!(tried > 3 && found == tried, "{found} of {tried}");
}

#[test]
fn what_lies_behind_a_damaged_branch_is_still_visited_and_errors_are_damage() {
    let (disk, _) = build();
    let store = open(&disk).expect("opens");
    let bytes = bytes_of(&disk);
    let free_map: Vec<usize> = (2..bytes.len() / PAGE_BYTES)
        .filter(|page| [4, 5].contains(&bytes[page * PAGE_BYTES + 4]))
        .collect();
    // Every page of kind branch, the root among them; then the free map.
    for page in 2..bytes.len() / PAGE_BYTES {
        if bytes[page * PAGE_BYTES + 4] == 2 || free_map.contains(&page) {
            disk.corrupt(path(), (page * PAGE_BYTES + 900) as u64, 1)
                .expect("flipped");
        }
    }
    let found: Vec<String> = pass(&store, 1).iter().map(ToString::to_string).collect();
    assert!(found.len() >= 2, "{found:?}");
    let in_free_map = |text: &&String| {
        free_map
            .iter()
            .any(|page| text.contains(&format!("page {page} ")))
    };
    assert!(found.iter().any(|text| in_free_map(&text)), "{found:?}");
    let disk: SimDisk = build().0;
    let store = open(&disk).expect("opens");
    disk.inject(Fault {
        on: FaultOn::Read,
        after: 3,
        forever: true,
        path_contains: String::new(),
        errno: libc::EIO,
    });
    let found = pass(&store, 1 << 20);
    assert!(
        matches!(found[..], [BackendError::Io { .. }, ..]),
        "{found:?}"
    );
    assert!(store.damage().places > 0);
}
