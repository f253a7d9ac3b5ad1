//! The embedded databases of the engine, durable through the log, beside LMDB,
//! redb and fjall with a commit synced for each batch: a batch of 1,000 updates,
//! a get, a scan of 100, a get at an old revision.
//!
//! `cargo bench -p varve-bench --features engines --bench db`; without the
//! feature only Varve's. One batch is on its way at a time: the suite measures
//! how long one takes. `varve-bench engines` measures streams of them.

// heed makes opening unsafe: see `open_lmdb`.
#![cfg_attr(feature = "engines", allow(unsafe_code))]

mod support;

use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{BATCH, Random, folder, keys, random_keys, value};
use varve_engine::backend::Direction;
use varve_engine::db::{Db, Kv, Options, WriteBatch};
use varve_types::KeyRange;

type Key = [u8; 19];

/// Entries of a scan.
const SCAN: usize = 100;

/// What the suite does with each store.
struct Subject<'s> {
    name: &'static str,
    /// Writes these keys as one durable batch.
    write: &'s mut dyn FnMut(&[&Key], &mut Random),
    /// Gets one key from the newest state.
    get: &'s dyn Fn(&Key) -> bool,
    /// Entries found from the key on, of at most [`SCAN`].
    scan: &'s dyn Fn(&Key) -> usize,
}

fn measure(criterion: &mut Criterion, keys: &[Key], subject: Subject<'_>) {
    let Subject {
        name,
        write,
        get,
        scan,
    } = subject;
    let mut random = Random(1);
    let all: Vec<&Key> = keys.iter().collect();
    for batch in all.chunks(BATCH) {
        write(batch, &mut random);
    }

    let mut group = criterion.benchmark_group("db/get");
    let mut choice = Random(3);
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                assert!(get(&keys[choice.below(keys.len())]));
            }
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("db/scan-100");
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    sorted.truncate(keys.len() - SCAN);
    let mut choice = Random(4);
    group.throughput(Throughput::Elements(SCAN as u64));
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| assert_eq!(scan(&sorted[choice.below(sorted.len())]), SCAN));
    });
    group.finish();

    let mut group = criterion.benchmark_group("db/update-1000");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| {
            let chosen: Vec<_> = (0..BATCH)
                .map(|_| &keys[random.below(keys.len())])
                .collect();
            write(&chosen, &mut random);
        });
    });
    group.finish();
}

fn fill(batch: &mut WriteBatch, keys: &[&Key], random: &mut Random) {
    batch.clear();
    for key in keys {
        batch.put(*key, &value(random)).expect("a batch has room");
    }
}

fn bench_kv(criterion: &mut Criterion, keys: &[Key]) {
    let folder = folder();
    let kv = Kv::open(folder.path().join("kv"), Options::default()).expect("open");
    let mut batch = WriteBatch::new();
    let subject = Subject {
        name: "btree",
        write: &mut |keys, random| {
            fill(&mut batch, keys, random);
            kv.write(&batch).expect("write");
        },
        get: &|key| {
            let snapshot = kv.snapshot().expect("snapshot");
            black_box(snapshot.get(key).expect("get")).is_some()
        },
        scan: &|key| {
            let mut seen = 0;
            let snapshot = kv.snapshot().expect("snapshot");
            let visit = &mut |key: &[u8], value: &[u8]| {
                black_box((key, value));
                seen += 1;
                step(seen)
            };
            let range = KeyRange::From(key);
            snapshot
                .scan(range, Direction::Forward, visit)
                .expect("scan");
            seen
        },
    };
    measure(criterion, keys, subject);
    kv.check().expect("whole after the measurement");
}

fn step(seen: usize) -> ControlFlow<()> {
    match seen {
        SCAN => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

fn bench_db(criterion: &mut Criterion, keys: &[Key]) {
    let folder = folder();
    let db = Db::open(folder.path().join("db"), Options::default()).expect("open");
    let mut batch = WriteBatch::new();
    let subject = Subject {
        name: "varve",
        write: &mut |keys, random| {
            fill(&mut batch, keys, random);
            black_box(db.write(&batch).expect("write"));
        },
        get: &|key| {
            let got = db.view().get(key, |kv| {
                black_box(kv.value);
            });
            got.expect("get").is_some()
        },
        scan: &|key| {
            let mut seen = 0;
            let visit = &mut |kv: varve_types::KeyValueRef<'_>| {
                black_box(kv);
                seen += 1;
                step(seen)
            };
            let range = KeyRange::From(key);
            db.view()
                .scan(range, 0, Direction::Forward, visit)
                .expect("scan");
            seen
        },
    };
    measure(criterion, keys, subject);

    // As of the load: most keys have changed since.
    let loaded = 1 + keys.len() as i64;
    let mut group = criterion.benchmark_group("db/old-get");
    let mut choice = Random(5);
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(BenchmarkId::from_parameter("varve"), |bencher| {
        let view = db.view();
        bencher.iter(|| {
            for _ in 0..BATCH {
                let key = &keys[choice.below(keys.len())];
                let got = view.get_at(key, loaded, |kv| kv.version);
                assert_eq!(got.expect("get"), Some(1));
            }
        });
    });
    group.finish();
    db.check().expect("whole after the measurement");
}

#[cfg(feature = "engines")]
mod peers {
    use super::*;
    use std::path::Path;

    use heed::types::Bytes;
    use redb::{ReadableDatabase, TableDefinition};

    type Lmdb = (
        heed::Env<heed::WithoutTls>,
        heed::Database<'static, Bytes, Bytes>,
    );

    fn open_lmdb(path: &Path) -> Lmdb {
        let mut options = heed::EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(1 << 36);
        // SAFETY: the folder is this suite's own, nobody else changes the file.
        let env = unsafe { options.open(path) }.expect("open");
        let txn = env.read_txn().expect("begin");
        let database = env
            .open_databases_and_commit(txn, |opener, txn| {
                opener
                    .open_database::<Bytes, Bytes>(txn, None)
                    .map(heed::CommitOrAbort::<_, ()>::Commit)
            })
            .expect("open")
            .unwrap_commit()
            .expect("the root database");
        (env, database)
    }

    pub(super) fn bench_lmdb(criterion: &mut Criterion, keys: &[Key]) {
        let folder = folder();
        let (env, database) = open_lmdb(folder.path());
        let subject = Subject {
            name: "lmdb",
            write: &mut |keys, random| {
                let mut txn = env.write_txn().expect("begin");
                for key in keys {
                    let put = database.put(&mut txn, &key[..], &value(random));
                    put.expect("put");
                }
                txn.commit().expect("commit");
            },
            get: &|key| {
                let txn = env.read_txn().expect("begin");
                black_box(database.get(&txn, &key[..]).expect("get")).is_some()
            },
            scan: &|key| {
                let txn = env.read_txn().expect("begin");
                let bounds = (
                    std::ops::Bound::Included(&key[..]),
                    std::ops::Bound::Unbounded,
                );
                let range = database.range(&txn, &bounds).expect("scan");
                let entries = range.take(SCAN).map(|entry| entry.expect("scan"));
                entries.map(black_box).count()
            },
        };
        measure(criterion, keys, subject);
    }

    const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("table");

    pub(super) fn bench_redb(criterion: &mut Criterion, keys: &[Key]) {
        let folder = folder();
        let path = folder.path().join("data.redb");
        let database = redb::Database::create(path).expect("open");
        let subject = Subject {
            name: "redb",
            write: &mut |keys, random| {
                let txn = database.begin_write().expect("begin");
                {
                    let mut table = txn.open_table(TABLE).expect("table");
                    for key in keys {
                        let put = table.insert(&key[..], &value(random)[..]);
                        put.expect("put");
                    }
                }
                txn.commit().expect("commit");
            },
            get: &|key| {
                let txn = database.begin_read().expect("begin");
                let table = txn.open_table(TABLE).expect("table");
                black_box(table.get(&key[..]).expect("get")).is_some()
            },
            scan: &|key| {
                let txn = database.begin_read().expect("begin");
                let table = txn.open_table(TABLE).expect("table");
                let range = table.range::<&[u8]>(&key[..]..).expect("scan");
                let entries = range.take(SCAN).map(|entry| entry.expect("scan"));
                entries
                    .map(|(key, value)| {
                        black_box((key.value(), value.value()));
                    })
                    .count()
            },
        };
        measure(criterion, keys, subject);
    }

    pub(super) fn bench_fjall(criterion: &mut Criterion, keys: &[Key]) {
        use fjall::Readable as _;
        let folder = folder();
        let database = fjall::Database::builder(folder.path())
            .cache_size(1 << 30)
            .open()
            .expect("open");
        let keyspace = database.keyspace("keyspace", fjall::KeyspaceCreateOptions::default);
        let keyspace = keyspace.expect("keyspace");
        let subject = Subject {
            name: "fjall",
            write: &mut |keys, random| {
                let batch = database.batch();
                let mut batch = batch.durability(Some(fjall::PersistMode::SyncData));
                for key in keys {
                    batch.insert(&keyspace, &key[..], &value(random)[..]);
                }
                batch.commit().expect("commit");
            },
            get: &|key| black_box(keyspace.get(key).expect("get")).is_some(),
            scan: &|key| {
                let snapshot = database.snapshot();
                let range = snapshot.range::<&[u8], _>(&keyspace, &key[..]..);
                let mut seen = 0;
                for entry in range.take(SCAN) {
                    black_box(entry.into_inner().expect("scan"));
                    seen += 1;
                }
                seen
            },
        };
        measure(criterion, keys, subject);
    }
}

fn bench_all(criterion: &mut Criterion) {
    let keys = random_keys(keys());
    bench_kv(criterion, &keys);
    bench_db(criterion, &keys);
    #[cfg(feature = "engines")]
    for bench in [peers::bench_lmdb, peers::bench_redb, peers::bench_fjall] {
        bench(criterion, &keys);
    }
}

criterion_group!(benches, bench_all);
criterion_main!(benches);
