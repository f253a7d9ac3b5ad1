//! The revisioned store on each engine: batches of puts, reads of the newest and
//! of an old revision, scans, counts, replay of events.

mod support;

use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{BATCH, ENGINES, Random, applied, folder, keys, open, random_keys, value};
use varve_engine::mvcc::{BatchOptions, EventLimits, Store, View};
use varve_types::{Command, KeyRange, PutRequest, RangeRequest};

/// Every key is written this often, so that there is history.
const VERSIONS: usize = 3;

fn put_batch<'k>(
    store: &mut Store,
    keys: impl Iterator<Item = &'k [u8; 19]>,
    random: &mut Random,
    index: u64,
) {
    let mut batch = store.begin(BatchOptions::default()).expect("begin");
    for key in keys {
        let put = PutRequest {
            key,
            value: &value(random),
            ..PutRequest::default()
        };
        let reply = batch.apply(&Command::Put(put)).expect("apply");
        black_box(reply.result.expect("a put is never refused"));
    }
    black_box(batch.publish(applied(index)).expect("publish"));
}

fn bench_store(criterion: &mut Criterion) {
    let keys = random_keys(keys());
    for engine in ENGINES {
        let folder = folder();
        let mut store = Store::open(open(engine, folder.path())).expect("open");
        let (mut random, mut index) = (Random(1), 0);
        for _ in 0..VERSIONS {
            for batch in keys.chunks(BATCH) {
                index += 1;
                put_batch(&mut store, batch.iter(), &mut random, index);
            }
        }
        store.backend().checkpoint().expect("checkpoint");
        let view = store.view();
        bench_reads(criterion, engine, &view, &keys);
        drop(view);

        let mut group = criterion.benchmark_group("mvcc/put-1000");
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(BenchmarkId::from_parameter(engine), |bencher| {
            bencher.iter(|| {
                index += 1;
                let mut choice = Random(index);
                let chosen = (0..BATCH).map(|_| &keys[choice.below(keys.len())]);
                put_batch(&mut store, chosen, &mut random, index);
                if index.is_multiple_of(100) {
                    store.backend().checkpoint().expect("checkpoint");
                }
            });
        });
        group.finish();
        store.check().expect("whole after the measurement");
    }
}

fn bench_reads(criterion: &mut Criterion, name: &str, view: &View, keys: &[[u8; 19]]) {
    let mut random = Random(2);
    let mut measure = |what: &str, elements: u64, body: &mut dyn FnMut(&[u8; 19])| {
        let mut group = criterion.benchmark_group(format!("mvcc/{what}"));
        group.throughput(Throughput::Elements(elements));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| body(&keys[random.below(keys.len())]));
        });
    };
    measure("get-latest", 1, &mut |key| {
        let length = view.get(key, |kv| kv.value.len()).expect("get");
        black_box(length.expect("every key is there"));
    });
    // Half way through the first round of overwriting.
    let old = view.revision() / VERSIONS as i64 * 3 / 2;
    measure("get-old", 1, &mut |key| {
        assert_eq!(visit(view, key, b"", old, 1), 1);
    });
    measure("scan-100", 100, &mut |key| {
        black_box(visit(view, key, b"\0", 0, 100));
    });
    measure("scan-100-old", 100, &mut |key| {
        black_box(visit(view, key, b"\0", old, 100));
    });
    measure("count", 1, &mut |key| {
        black_box(view.count(KeyRange::From(key), 0).expect("count"));
    });
    let mut from = Random(3);
    measure("replay-1000", 1000, &mut |_| {
        let limits = EventLimits {
            events: 1000,
            bytes: usize::MAX,
            scanned: usize::MAX,
        };
        let from = 2 + from.below(view.revision() as usize - 1001) as i64;
        let mut seen = 0;
        view.events(KeyRange::From(b""), from, limits, false, &mut |event| {
            black_box(event.kv.value.len());
            seen += 1;
        })
        .expect("replay");
        assert_eq!(seen, 1000);
    });
}

/// Visits up to `limit` keys; how many there were.
fn visit(view: &View, key: &[u8], range_end: &[u8], revision: i64, limit: i64) -> usize {
    let request = RangeRequest {
        key,
        range_end,
        revision,
        limit,
        ..RangeRequest::default()
    };
    let mut seen = 0;
    view.range_with(&request, &mut |kv| {
        black_box(kv.value.len());
        seen += 1;
        ControlFlow::Continue(())
    })
    .expect("range");
    seen
}

criterion_group!(benches, bench_store);
criterion_main!(benches);
