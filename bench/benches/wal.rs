//! One group commit of 1, 64 and 1,000 records of a put's size, through io_uring
//! and through pwrite and fdatasync.

mod support;

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{Random, folder, value};
use varve_engine::disk;
use varve_engine::wal::{Group, Identity, Wal, WalConfig};

const KIND: u8 = 1;
const KEY: &[u8; 19] = b"k/00000000000000000";
/// The log is let go of when it has grown by this much, so that segments are recycled.
const KEEP_BYTES: u64 = 256 << 20;

fn bench_commit(criterion: &mut Criterion) {
    for name in disk::NAMES {
        let opened = disk::by_name(name).expect("one of the names");
        if let Some(reason) = opened.fallback {
            eprintln!("{name} is not measured: {reason}");
            continue;
        }
        let folder = folder();
        let identity = Identity {
            cluster_id: 1,
            member_id: 2,
        };
        let config = WalConfig::default();
        let disk = Arc::clone(&opened.disk);
        let (mut wal, _) = Wal::open(disk, folder.path(), config, identity, &mut |_, _, _| {})
            .expect("open a new log");
        let value = value(&mut Random(1));
        for records in [1, 64, 1000] {
            let mut group = criterion.benchmark_group(format!("wal/commit-{records}"));
            group.throughput(Throughput::Elements(records));
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                let mut batch = Group::new();
                let mut released = wal.next_lsn();
                bencher.iter(|| {
                    batch.clear();
                    for _ in 0..records {
                        batch.push(KIND, &[KEY, &value]).expect("a small record");
                    }
                    let committed = wal.commit(&mut batch).expect("commit");
                    if committed.first_lsn - released > KEEP_BYTES {
                        released = committed.first_lsn;
                        wal.release(released);
                    }
                });
            });
        }
    }
}

criterion_group!(benches, bench_commit);
criterion_main!(benches);
