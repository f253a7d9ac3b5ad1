//! Compression of values changes what is stored, and nothing that anybody sees:
//! stores with and without it agree on every answer, hash and snapshot.

use std::path::Path;
use std::sync::Arc;

use varve_engine::backend::compressed::wrap;
use varve_engine::backend::conformance::Random;
use varve_engine::backend::{self, Applied, Compression, TreeId};
use varve_engine::db::{Db, Options};
use varve_engine::disk::{Disk, SimDisk};
use varve_engine::mvcc::{SnapshotSink, SnapshotSource, Store};
use varve_types::{KeyRange, RangeRequest};

fn options(engine: &str, compression: Compression) -> Options {
    Options {
        engine: engine.to_owned(),
        backend: backend::Options {
            compression,
            btree: varve_engine::btree::Options { map_bytes: 1 << 28 },
        },
        ..Options::default()
    }
}

fn open(disk: &Arc<dyn Disk>, dir: &str, engine: &str, compression: Compression) -> Db {
    Db::open_on(disk, Path::new(dir), options(engine, compression)).expect("opens")
}

/// A value as Kubernetes has them, noise, or something short.
fn value(random: &mut Random) -> Vec<u8> {
    let number = random.number();
    match random.below(6) {
        0 => (0..2000).map(|_| random.number() as u8).collect(),
        1 => vec![b'x'; random.below(1100)],
        2 => vec![200; 1000 + random.below(100)],
        3 => vec![0; 100_000],
        _ => format!("{{\"kind\":\"Pod\",\"uid\":\"{number:x}\",\"labels\":{{\"app\":\"web\"}}}}")
            .repeat(1 + random.below(60))
            .into_bytes(),
    }
}

fn all(db: &Db, revision: i64) -> Vec<(Vec<u8>, Vec<u8>, i64)> {
    db.iter(KeyRange::From(b"\0"), revision)
        .map(|entry| entry.expect("readable"))
        .map(|entry| (entry.key, entry.value, entry.mod_revision))
        .collect()
}

#[test]
fn stores_with_and_without_agree_on_everything() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let (none, lz4) = (Compression::None, Compression::Lz4);
    let mut kinds = [
        ("/plain", "btree", none),
        ("/lz4", "btree", lz4),
        ("/memory", "memory", lz4),
    ];
    let mut random = Random::new(31);
    for round in 0..4 {
        let stores: Vec<Db> = kinds
            .iter()
            .map(|(dir, engine, compression)| open(&disk, dir, engine, *compression))
            .collect();
        for step in 0..150 {
            let key = format!("/registry/{:03}", random.below(80)).into_bytes();
            let value = value(&mut random);
            let choice = random.below(10);
            for db in &stores {
                match choice {
                    0 => drop(db.delete(&key).expect("deleted")),
                    1 if step % 30 == 29 => {
                        db.compact(db.revision() - 20).expect("compacted");
                    }
                    _ => drop(db.put(&key, &value).expect("put")),
                }
            }
            let hashes: Vec<u128> = stores.iter().map(|db| db.view().hash()).collect();
            assert!(
                hashes.iter().all(|hash| *hash == hashes[0]),
                "{round}/{step}"
            );
        }
        for revision in [0, stores[0].revision() - 15] {
            let plain = all(&stores[0], revision);
            assert!(plain.len() > 20);
            assert!(stores.iter().all(|db| all(db, revision) == plain));
        }
        let request = RangeRequest {
            key: b"/registry/01",
            range_end: b"/registry/05",
            ..RangeRequest::default()
        };
        let answer = stores[0].range(&request).expect("a range");
        for db in &stores {
            assert_eq!(db.range(&request).expect("a range"), answer);
            db.check().expect("whole");
        }
        exchange(&stores[0], &stores[1]);
        let sizes: Vec<u64> = stores.iter().map(|db| db.stats().used_bytes).collect();
        if round == 0 {
            assert!(sizes[1] < sizes[0], "{sizes:?}");
        }
        for db in stores {
            db.close().expect("closed");
        }
        // From now on the other way round: what is stored is read either way.
        (kinds[0].2, kinds[1].2) = (kinds[1].2, kinds[0].2);
    }
}

/// A snapshot of either loads into the other kind, and says the same.
fn exchange(plain: &Db, compressed: &Db) {
    let stream = |db: &Db| {
        let mut source = SnapshotSource::new(db.view());
        let mut chunks = Vec::new();
        while let Some(chunk) = source.next_chunk(64 << 10).expect("a chunk") {
            chunks.push(chunk);
        }
        chunks
    };
    let hash = plain.view().hash();
    let mut used = Vec::new();
    for (db, compression) in [
        (compressed, Compression::None),
        (plain, Compression::Lz4),
        (compressed, Compression::Lz4),
    ] {
        let disk = SimDisk::new();
        disk.create_dir(Path::new("/new")).expect("a directory");
        let options = options("btree", compression).backend;
        let backend = backend::open("btree", &disk, Path::new("/new"), &options).expect("opens");
        let mut sink = SnapshotSink::new(backend.clone()).expect("empty");
        for chunk in stream(db) {
            sink.push(&chunk).expect("a good chunk");
        }
        sink.finish().expect("complete");
        backend.checkpoint().expect("checkpoint");
        backend.check().expect("whole");
        let store = Store::open(backend.clone()).expect("opens");
        store.view().check().expect("whole");
        assert_eq!(store.view().hash(), hash);
        used.push(backend.stats().used_bytes);
    }
    assert!(used[1] < used[0] && used[2] < used[0], "{used:?}");
}

#[test]
fn any_values_come_back_from_any_tree_and_damage_is_named() {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/data")).expect("a directory");
    let plain_options = options("btree", Compression::None).backend;
    let inner = backend::open("btree", &disk, Path::new("/data"), &plain_options).expect("opens");
    assert!(Arc::ptr_eq(
        &wrap(inner.clone(), Compression::None).expect("as it is"),
        &inner
    ));
    let store = wrap(inner.clone(), Compression::Lz4).expect("wrapped");
    let mut random = Random::new(9);
    let mut values = vec![
        vec![],
        vec![128],
        vec![129, 1],
        vec![255; 3000],
        vec![0; 3000],
    ];
    values.extend((0..50).map(|_| value(&mut random)));
    let mut batch = store.begin().expect("a batch");
    for tree in 0..7 {
        let keys: Vec<String> = (0..values.len())
            .map(|number| format!("{number:04}"))
            .collect();
        let pairs = keys.iter().zip(&values);
        let entries: Vec<_> = pairs
            .map(|(key, value)| (key.as_bytes(), &value[..]))
            .collect();
        match tree % 3 {
            0 => batch.append(TreeId(tree), &entries).expect("appended"),
            1 => batch.put_all(TreeId(tree), &entries).expect("put"),
            _ => entries
                .iter()
                .for_each(|(key, value)| batch.put(TreeId(tree), key, value).expect("put")),
        }
        for (key, value) in &entries {
            let found = batch.get(TreeId(tree), key).expect("readable");
            assert_eq!(found.as_deref(), Some(*value));
        }
    }
    batch
        .publish(Applied { term: 1, index: 1 })
        .expect("publish");
    // Opened without the wish, what is there is read all the same.
    let again = wrap(inner.clone(), Compression::None).expect("wrapped");
    let snapshot = again.snapshot().expect("a snapshot");
    for tree in 0..7 {
        let mut number = 0;
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let visit = &mut |_: &[u8], value: &[u8]| {
            assert_eq!(value, values[number]);
            number += 1;
            std::ops::ControlFlow::Continue(())
        };
        let forward = backend::Direction::Forward;
        snapshot
            .scan(TreeId(tree), all, forward, visit)
            .expect("readable");
        assert_eq!(number, values.len());
    }
    // Bytes that were never written so are an error with tree and key.
    let mut batch = inner.begin().expect("a batch");
    batch
        .put(TreeId(1), b"0001", &[128, 0xff, 0xff, 3, 9])
        .expect("put");
    batch
        .publish(Applied { term: 1, index: 2 })
        .expect("publish");
    let error = again
        .snapshot()
        .expect("a snapshot")
        .get(TreeId(1), b"0001")
        .expect_err("damage");
    assert!(
        error.to_string().contains("tree 1, key \"0001\""),
        "{error}"
    );
}
