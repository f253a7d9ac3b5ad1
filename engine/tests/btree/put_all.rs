//! Many puts at a time, by several threads: what they leave is what single puts would.

use varve_engine::backend::conformance::{Model, Random, compare_all};
use varve_engine::backend::{Applied, Backend, Bounds, Entry, TreeId};
use varve_engine::btree::inspect::Inspector;
use varve_engine::disk::SimDisk;

use crate::{check, new_disk, open, path};

const TREE: TreeId = TreeId(1);

/// Keys that share much, keys of which two fill a page, and values of all lengths.
fn entry(random: &mut Random, keys: usize, is_long: bool) -> (Vec<u8>, Vec<u8>) {
    let number = random.below(keys);
    let key = match is_long && number.is_multiple_of(3) {
        true => format!("/registry/{}/{number:06}", "x".repeat(number % 1900)),
        false => format!("/registry/pods/{:02}/{number:06}", number % 7),
    };
    let length = match random.below(100) {
        0 => 3000 + random.below(9000),
        1..=4 => 1000 + random.below(1500),
        _ => random.below(300),
    };
    (key.into_bytes(), vec![number as u8; length])
}

fn put_all(store: &dyn Backend, model: &mut Model, entries: &[(Vec<u8>, Vec<u8>)]) {
    let mut batch = store.begin().expect("a batch");
    let slices: Vec<Entry<'_>> = entries
        .iter()
        .map(|(key, value)| (&key[..], &value[..]))
        .collect();
    batch.put_all(TREE, &slices).expect("put");
    // Of a key that comes more than once the last one stays.
    model.tree(1).extend(entries.iter().cloned());
    model.applied.index += 1;
    batch.publish(model.applied).expect("publish");
}

fn depth(disk: &SimDisk) -> usize {
    let inspector = Inspector::open(disk, path()).expect("opens");
    inspector.tree(1).expect("a tree").depth
}

#[test]
fn many_puts_leave_what_single_puts_would() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let disk = new_disk(false);
        let store = open(&disk).expect("a new store");
        let mut model = Model {
            applied: Applied { term: 1, index: 0 },
            ..Model::default()
        };
        let keys = [40, 2000, 20_000][random.below(3)];
        let is_long = random.below(2) == 0;
        for _ in 0..8 {
            let count = [1, 200, 300, 2500][random.below(4)];
            let entries: Vec<_> = (0..count)
                .map(|_| entry(&mut random, keys, is_long))
                .collect();
            put_all(&store, &mut model, &entries);
            check(&store);
            if random.below(3) == 0 {
                delete_some(&store, &mut model, &mut random);
            }
            if random.below(2) == 0 {
                store.checkpoint().expect("checkpoint");
            }
            compare_all(&*store.snapshot().expect("a snapshot"), &model)
                .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        }
        store.checkpoint().expect("checkpoint");
        drop(store);
        let store = open(&disk).expect("opens again");
        check(&store);
        compare_all(&*store.snapshot().expect("a snapshot"), &model).expect("as put");
    }
}

fn delete_some(store: &dyn Backend, model: &mut Model, random: &mut Random) {
    let mut batch = store.begin().expect("a batch");
    let from = format!("/registry/pods/{:02}/", random.below(7)).into_bytes();
    let to = [&from[..], b"01"].concat();
    let (start, end) = (from.clone(), to.clone());
    let bounds: Bounds<'_> = (
        std::ops::Bound::Included(&start),
        std::ops::Bound::Excluded(&end),
    );
    batch.delete_range(TREE, bounds).expect("deleted");
    model.tree(1).retain(|key, _| !(from <= *key && *key < to));
    model.applied.index += 1;
    batch.publish(model.applied).expect("publish");
}

/// A part of the tree that grows by several levels at once, beside one that does not.
#[test]
fn a_part_grows_into_many() {
    let disk = new_disk(false);
    let store = open(&disk).expect("a new store");
    let mut model = Model {
        applied: Applied { term: 1, index: 0 },
        ..Model::default()
    };
    // Keys of a name share half of their length, and are more than a leaf holds: their
    // separators are long, so that branches have few children, and trees many levels.
    let of = |name: String| {
        let name = name.repeat(900 / name.len());
        ('a'..='h').map(move |last| {
            let key = [&name, &last.to_string().repeat(900)[..]].concat();
            (key.into_bytes(), vec![1; 90])
        })
    };
    let first: Vec<_> = (0..60)
        .flat_map(|number| of(format!("{number:03}")))
        .collect();
    put_all(&store, &mut model, &first);
    store.checkpoint().expect("checkpoint");
    let before = depth(&disk);
    assert!(before >= 3, "{before}: there is nothing to part");
    let second: Vec<_> = (0..200)
        .flat_map(|number| of(format!("017{:04}", number * 7 % 200)))
        .chain(of("030x".to_owned()))
        .collect();
    put_all(&store, &mut model, &second);
    check(&store);
    compare_all(&*store.snapshot().expect("a snapshot"), &model).expect("as put");
    store.checkpoint().expect("checkpoint");
    assert!(depth(&disk) > before, "{before}, then {}", depth(&disk));
}
