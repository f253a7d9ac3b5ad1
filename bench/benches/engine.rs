//! The storage engines behind the backend trait, side by side: load and update
//! by 1,000 a batch, random gets in one snapshot, scans of 100.

mod support;

use std::hint::black_box;
use std::ops::{Bound, ControlFlow};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{BATCH, ENGINES, Random, TREE, applied, folder, keys, open, random_keys, value};
use varve_engine::backend::{Backend, Direction};

fn put_batch(store: &dyn Backend, keys: &[[u8; 19]], random: &mut Random, index: u64) {
    let mut batch = store.begin().expect("begin");
    for key in keys {
        batch.put(TREE, key, &value(random)).expect("put");
    }
    batch.publish(applied(index)).expect("publish");
}

fn load(store: &dyn Backend, keys: &[[u8; 19]]) {
    let mut random = Random(1);
    for (index, batch) in keys.chunks(BATCH).enumerate() {
        put_batch(store, batch, &mut random, index as u64 + 1);
    }
}

fn bench_load(criterion: &mut Criterion) {
    let keys = random_keys(keys());
    let mut group = criterion.benchmark_group("engine/load");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(keys.len() as u64));
    for engine in ENGINES {
        group.bench_function(BenchmarkId::from_parameter(engine), |bencher| {
            bencher.iter_batched(
                || {
                    let folder = folder();
                    (open(engine, folder.path()), folder)
                },
                |(store, folder)| {
                    load(&*store, &keys);
                    (store, folder)
                },
                BatchSize::PerIteration,
            );
        });
    }
}

fn bench_loaded(criterion: &mut Criterion) {
    let keys = random_keys(keys());
    for engine in ENGINES {
        let folder = folder();
        let store = open(engine, folder.path());
        load(&*store, &keys);
        store.checkpoint().expect("checkpoint");
        bench_get(criterion, engine, &*store, &keys);
        bench_scan(criterion, engine, &*store, &keys);
        bench_update(criterion, engine, &*store, &keys);
        store.check().expect("whole after the measurement");
    }
}

/// Updates without a log: what the tree alone costs, a checkpoint every 100 batches.
fn bench_update(criterion: &mut Criterion, name: &str, store: &dyn Backend, keys: &[[u8; 19]]) {
    let mut group = criterion.benchmark_group("engine/update");
    group.throughput(Throughput::Elements(BATCH as u64));
    let (mut random, mut index) = (Random(2), 1_000_000);
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| {
            let mut batch = store.begin().expect("begin");
            for _ in 0..BATCH {
                let key = &keys[random.below(keys.len())];
                batch.put(TREE, key, &value(&mut random)).expect("put");
            }
            index += 1;
            batch.publish(applied(index)).expect("publish");
            if index % 100 == 0 {
                store.checkpoint().expect("checkpoint");
            }
        });
    });
}

fn bench_get(criterion: &mut Criterion, name: &str, store: &dyn Backend, keys: &[[u8; 19]]) {
    let mut group = criterion.benchmark_group("engine/get");
    group.throughput(Throughput::Elements(BATCH as u64));
    let snapshot = store.snapshot().expect("snapshot");
    let mut random = Random(3);
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                let key = &keys[random.below(keys.len())];
                let value = snapshot.get(TREE, key).expect("get");
                black_box(value.expect("every key is there"));
            }
        });
    });
}

fn bench_scan(criterion: &mut Criterion, name: &str, store: &dyn Backend, keys: &[[u8; 19]]) {
    const LENGTH: usize = 100;
    let mut group = criterion.benchmark_group("engine/scan-100");
    group.throughput(Throughput::Elements(LENGTH as u64));
    let snapshot = store.snapshot().expect("snapshot");
    // Any of these has 100 keys after it.
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    sorted.truncate(keys.len() - LENGTH);
    let mut random = Random(4);
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter(|| {
            let from = &sorted[random.below(sorted.len())];
            let mut left = LENGTH;
            let bounds = (Bound::Included(&from[..]), Bound::Unbounded);
            snapshot
                .scan(TREE, bounds, Direction::Forward, &mut |key, value| {
                    black_box((key, value));
                    left -= 1;
                    if left == 0 {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
                .expect("scan");
            assert_eq!(left, 0);
        });
    });
}

criterion_group!(benches, bench_load, bench_loaded);
criterion_main!(benches);
