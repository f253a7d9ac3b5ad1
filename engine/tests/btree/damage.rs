//! Rot: a flipped bit is found and named, whatever page it is in, and never
//! becomes a wrong answer or a panic.

use varve_engine::backend::conformance::{KeyShape, Model, Random, compare_all, operations};
use varve_engine::backend::conformance::{Operation, Session};
use varve_engine::backend::{Applied, Backend, BackendError, TreeId};
use varve_engine::btree::page::{PAGE_BYTES, decode};
use varve_engine::disk::{Disk, OpenMode, SimDisk};

use crate::{TRAITS, check, new_disk, open, path};

const KINDS: [(u8, &str); 5] = [
    (1, "leaf"),
    (2, "branch"),
    (3, "overflow"),
    (4, "bitmap"),
    (5, "directory"),
];

/// A store with pages of all kinds, checkpointed and closed.
pub(crate) fn build() -> (SimDisk, Model) {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let mut model = Model::default();
    for round in 1..4_u64 {
        let mut batch = store.begin().expect("a batch");
        for number in 0..400_u32 {
            let key = format!(
                "/registry/pods/{:05}",
                number.wrapping_mul(round as u32 * 7919) % 1000
            );
            // Bytes that are no page's kind, so that the inside of a run is told apart.
            let value = vec![round as u8 + 100; if number % 50 == 0 { 9000 } else { 120 }];
            batch.put(TreeId(1), key.as_bytes(), &value).expect("put");
            model.tree(1).insert(key.into_bytes(), value);
        }
        model.applied = Applied {
            term: 1,
            index: round,
        };
        batch.publish(model.applied).expect("publish");
        store.checkpoint().expect("checkpoint");
    }
    check(&store);
    (disk, model)
}

pub(crate) fn bytes_of(disk: &SimDisk) -> Vec<u8> {
    let file = disk.open(path(), OpenMode::Existing).expect("the file");
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    file.read_exact_at(&mut bytes, 0).expect("readable");
    bytes
}

/// What happened to a damaged store.
enum Verdict {
    /// The damage was named.
    Found(BackendError),
    /// It was where nothing is: the content is as it was.
    Harmless,
}

fn judge(disk: &SimDisk, model: &Model) -> Verdict {
    let store = match open(disk) {
        Ok(store) => store,
        Err(error) => return Verdict::Found(error),
    };
    let snapshot = store.snapshot().expect("a snapshot");
    // Reading meets it, or does not; it never gives a wrong value.
    for (key, value) in &model.trees[1] {
        match snapshot.get(TreeId(1), key) {
            Ok(found) if snapshot.applied() == model.applied => {
                assert_eq!(found.as_deref(), Some(value.as_slice()), "a wrong answer");
            }
            Ok(_) => {}
            Err(error) => assert!(is_damage(&error), "{error}"),
        }
    }
    if let Err(error) = store.check() {
        return Verdict::Found(error);
    }
    if snapshot.applied() == model.applied {
        compare_all(&*snapshot, model).expect("undamaged content");
    }
    Verdict::Harmless
}

pub(crate) fn is_damage(error: &BackendError) -> bool {
    matches!(
        error,
        BackendError::Damaged { .. } | BackendError::Foreign { .. }
    )
}

#[test]
fn a_flipped_bit_in_any_kind_of_page_is_found_and_named() {
    let (disk, model) = build();
    let bytes = bytes_of(&disk);
    let mut random = Random::new(5);
    let mut found = [0; 6];
    for page in 2..bytes.len() / PAGE_BYTES {
        let content = &bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES];
        let kind = usize::from(content[4]);
        for _ in 0..2 {
            let offset = page * PAGE_BYTES + random.below(PAGE_BYTES);
            let damaged = disk.crash_now(1);
            damaged
                .corrupt(path(), offset as u64, 1 << random.below(8))
                .expect("flipped");
            if let Verdict::Found(error) = judge(&damaged, &model) {
                assert!(is_damage(&error), "{error}");
                found[kind.min(5)] += usize::from((1..=5).contains(&kind));
                let named = format!("page {page} ");
                // Inside a run it is the run's first page that is named.
                let inside_run = !(1..=5).contains(&kind) || kind == 3;
                assert!(
                    inside_run || error.to_string().contains(&named),
                    "{page}: {error}"
                );
            }
        }
    }
    for (kind, name) in KINDS {
        assert!(
            found[usize::from(kind)] > 0,
            "no damage was found in a {name} page: {found:?}"
        );
    }
}

/// Whether anything is read from a page: without its bytes it is missed.
pub(crate) fn is_used(disk: &SimDisk, model: &Model, page: usize) -> bool {
    let without = disk.crash_now(1);
    let file = without.open(path(), OpenMode::Existing).expect("the file");
    file.write_at(&[0; PAGE_BYTES], (page * PAGE_BYTES) as u64)
        .expect("blanked");
    matches!(judge(&without, model), Verdict::Found(_))
}

#[test]
fn every_flipped_bit_of_a_page_in_use_is_found_and_its_page_named() {
    let (disk, model) = build();
    let bytes = bytes_of(&disk);
    let mut random = Random::new(8);
    let mut flips = [0; 6];
    for page in 2..bytes.len() / PAGE_BYTES {
        if !is_used(&disk, &model, page) {
            continue;
        }
        let kind = usize::from(bytes[page * PAGE_BYTES + 4]);
        // The inside of a run; its length is in the run's first page.
        let inside = !(1..=5).contains(&kind);
        let first = (2..=page)
            .rev()
            .find(|page| bytes[page * PAGE_BYTES + 4] == 3);
        for _ in 0..6 {
            let at = random.below(PAGE_BYTES);
            let damaged = disk.crash_now(1);
            damaged
                .corrupt(
                    path(),
                    (page * PAGE_BYTES + at) as u64,
                    1 << random.below(8),
                )
                .expect("flipped");
            let Verdict::Found(error) = judge(&damaged, &model) else {
                // Behind the value's end there is nothing.
                assert!(inside, "byte {at} of page {page}, kind {kind}: not found");
                continue;
            };
            let named = match (inside, first) {
                (true, Some(first)) => first,
                _ => page,
            };
            assert!(
                error.to_string().contains(&format!("page {named} ")),
                "byte {at} of page {page}, kind {kind}: {error}"
            );
            flips[if inside { 0 } else { kind }] += 1;
        }
    }
    assert!(flips.iter().all(|count| *count >= 6), "{flips:?}");
}

#[test]
fn a_meta_page_that_rots_while_the_store_is_open_is_found_and_named() {
    let (disk, _) = build();
    let mut named = [0; 2];
    let mut random = Random::new(9);
    for _ in 0..60 {
        let disk = disk.crash_now(1);
        let store = open(&disk).expect("undamaged so far");
        let page = random.below(2);
        let at = page * PAGE_BYTES + random.below(PAGE_BYTES);
        disk.corrupt(path(), at as u64, 1 << random.below(8))
            .expect("flipped");
        // The other one is of no use any more, and the next checkpoint writes it.
        if let Err(error) = store.check() {
            assert!(
                error
                    .to_string()
                    .contains(&format!("page {page} is damaged")),
                "{error}"
            );
            named[page] += 1;
        }
    }
    assert!(
        named == [0, named[1]] || named == [named[0], 0],
        "{named:?}"
    );
    assert!(named[0] + named[1] > 15, "{named:?}");
}

#[test]
fn a_damaged_meta_page_gives_the_other_state_or_an_error() {
    let (disk, model) = build();
    let mut random = Random::new(6);
    for _ in 0..40 {
        for page in 0..2 {
            let damaged = disk.crash_now(1);
            let offset = page * PAGE_BYTES as u64 + random.below(512) as u64;
            damaged
                .corrupt(path(), offset, 1 << random.below(8))
                .expect("flipped");
            if let Verdict::Found(error) = judge(&damaged, &model) {
                assert!(is_damage(&error), "{error}");
            }
        }
    }
    // Both of them: an error, never an empty store.
    for offset in [8, 20, 100] {
        let damaged = disk.crash_now(1);
        for page in 0..2 {
            damaged
                .corrupt(path(), page * PAGE_BYTES as u64 + offset, 4)
                .expect("flipped");
        }
        assert!(matches!(open(&damaged), Err(BackendError::Damaged { .. })));
    }
}

#[test]
fn blanked_meta_pages_do_not_make_an_empty_store() {
    let (disk, _) = build();
    let file = disk.open(path(), OpenMode::Existing).expect("the file");
    file.write_at(&[0; 2 * PAGE_BYTES], 0).expect("blanked");
    let error = open(&disk).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("is blank, but the file has data"),
        "{error}"
    );
}

#[test]
fn a_foreign_file_is_called_foreign_and_a_cut_one_damaged() {
    let disk = new_disk(false);
    let file = disk.open(path(), OpenMode::Create).expect("a file");
    file.write_at(&[b'x'; 3 * PAGE_BYTES], 0).expect("written");
    assert!(matches!(open(&disk), Err(BackendError::Foreign { .. })));
    let (disk, _) = build();
    let file = disk.open(path(), OpenMode::Existing).expect("the file");
    file.truncate(20 * PAGE_BYTES as u64).expect("cut");
    let error = open(&disk).expect_err("refused");
    assert!(error.to_string().contains("its file only 20"), "{error}");
}

#[test]
fn decoding_mutated_pages_never_panics() {
    let (disk, _) = build();
    let bytes = bytes_of(&disk);
    let mut random = Random::new(7);
    let (mut accepted, mut refused) = (0, 0);
    for page in 2..bytes.len() / PAGE_BYTES {
        for _ in 0..50 {
            let mut mutated = bytes[page * PAGE_BYTES..].to_vec();
            mutated.truncate(3 * PAGE_BYTES);
            for _ in 0..=random.below(4) {
                // Mostly the header and the slots, where the structure is.
                let limit = [32, 200, PAGE_BYTES][random.below(3)];
                mutated[random.below(limit)] = random.number() as u8;
            }
            if random.below(20) == 0 {
                mutated.truncate(random.below(mutated.len() + 1));
            }
            // A right checksum lets the mutation through to the structure.
            if mutated.len() >= PAGE_BYTES {
                let crc = crc32c::crc32c(&mutated[4..PAGE_BYTES]);
                mutated[..4].copy_from_slice(&crc.to_le_bytes());
            }
            match decode(&mutated, page as u64) {
                Ok(()) => accepted += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(
        accepted > 0 && refused > accepted,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn an_undamaged_store_passes_after_a_random_run() {
    let disk = new_disk(false);
    let steps: Vec<Operation> = operations(9, 1500, KeyShape::Mixed { max: 1920 }, 400, true);
    let mut opener = || open(&disk).map(|store| std::sync::Arc::new(store) as _);
    let mut session = Session::new(&mut opener, TRAITS).expect("opens");
    session.run(&steps).expect("engine and model agree");
}
