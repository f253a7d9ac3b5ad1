//! What a node does for its store without being told to, while it serves: space
//! that is free goes back to the file system, and compacted history goes.
//!
//! Sizes are asserted, times are printed: what they are on a busy machine says
//! little. `varve-bench upkeep` measures them.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Cluster;
use common::fill::{VALUE_BYTES, fill, insist, patient_client};
use varve_client::Client;
use varve_types::{CompactionRequest, DeleteRangeRequest, RangeRequest};

const MIB: u64 = 1 << 20;
/// A compaction that is asked for again may have been made.
async fn compact(client: &Client, compaction: &CompactionRequest) {
    insist(|| async {
        match client.compact(compaction).await {
            Err(error) if error.to_string().contains("has been compacted") => Ok(()),
            outcome => outcome.map(drop),
        }
    })
    .await;
}

/// The store's file.
fn store(cluster: &Cluster) -> PathBuf {
    let files = std::fs::read_dir(&cluster.members[0].data_dir).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    let store = files.find(|path| path.extension().is_some_and(|end| end == "db"));
    store.expect("a store")
}

/// Bytes that the file system has allocated for a file.
fn allocated(path: &PathBuf) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Reads a key a thousand times a second until it is told to end; the longest time
/// between two answers.
async fn probe(client: Client, key: String, end: Arc<AtomicBool>) -> (Duration, usize) {
    let (mut longest, mut answers, mut last) = (Duration::ZERO, 0, Instant::now());
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while !end.load(Ordering::Relaxed) {
        ticks.tick().await;
        let request = RangeRequest {
            key: key.as_bytes(),
            serializable: true,
            ..RangeRequest::default()
        };
        let answer = insist(|| client.range(&request)).await;
        assert_eq!(answer.body.kvs.len(), 1);
        longest = longest.max(last.elapsed());
        last = Instant::now();
        answers += 1;
    }
    (longest, answers)
}

/// One of four is there to stay.
fn quarter(number: usize) -> String {
    format!("{}/{:06}", number % 4, number / 4)
}

#[tokio::test(flavor = "multi_thread")]
async fn free_space_goes_back_without_a_command_while_reads_are_answered() {
    const KEYS: usize = 280_000;
    let cluster = Cluster::start(1, &[]);
    let endpoint = cluster.members[0].endpoint();
    fill(&endpoint, KEYS, quarter).await;
    let client = patient_client(&endpoint);
    let mut revision = 0;
    for part in 1..4 {
        for first in (0..KEYS / 4).step_by(1000) {
            let (key, range_end) = (
                format!("{part}/{first:06}"),
                format!("{part}/{:06}", first + 1000),
            );
            let delete = DeleteRangeRequest {
                key: key.as_bytes(),
                range_end: range_end.as_bytes(),
                ..DeleteRangeRequest::default()
            };
            let answer = insist(|| client.delete_range(&delete)).await;
            revision = answer.header.revision;
        }
    }
    let path = store(&cluster);
    let full = allocated(&path);
    assert!(full > 256 * MIB, "{full} bytes");
    let end = Arc::new(AtomicBool::new(false));
    let probing = tokio::spawn(probe(client.clone(), quarter(0), Arc::clone(&end)));
    let started = Instant::now();
    let compaction = CompactionRequest {
        revision,
        physical: false,
    };
    compact(&client, &compaction).await;
    let live = (KEYS / 4 * (VALUE_BYTES + quarter(0).len())) as f64;
    let mut most = full;
    // Nothing is asked for from here on.
    while allocated(&path) as f64 > 1.3 * live {
        most = most.max(allocated(&path));
        let now = allocated(&path) / MIB;
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "still {now} MiB"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = started.elapsed();
    end.store(true, Ordering::Relaxed);
    let (longest, answers) = probing.await.unwrap();
    println!(
        "from {} to {} MiB for {:.0} MiB of live data in {took:.1?}; at most {:.1} % more than \
         before; {answers} reads, at most {longest:.1?} between two",
        full / MIB,
        allocated(&path) / MIB,
        live / MIB as f64,
        (most - full) as f64 / full as f64 * 100.0
    );
    assert!(
        most - full < full / 20 + 4 * MIB,
        "{most} bytes, before {full}"
    );
    // The promise is 10 ms on a machine of its own; a busy one may stop for seconds.
    assert!(longest < common::PATIENCE, "no answer for {longest:?}");
    assert!(answers > 100);
}

/// Few keys, written over and over.
fn again(number: usize) -> String {
    format!("again/{:03}", number % 500)
}

/// Puts for so long; how many a second, and the slowest of hundred.
async fn measure(endpoint: &str, time: Duration) -> (f64, Duration) {
    let started = Instant::now();
    let tasks: Vec<_> = (0..16)
        .map(|writer| {
            let client = patient_client(endpoint);
            tokio::spawn(async move {
                let mut times = Vec::new();
                while started.elapsed() < time {
                    let asked = Instant::now();
                    let key = format!("put/{writer}");
                    insist(|| common::put(&client, &key, "value")).await;
                    times.push(asked.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times.sort_unstable();
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    (rate, times[times.len() * 99 / 100])
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_go_on_beside_a_compaction() {
    const REVISIONS: usize = 100_000;
    const TIME: Duration = Duration::from_secs(3);
    let cluster = Cluster::start(1, &[]);
    let endpoint = cluster.members[0].endpoint();
    // A transaction is one revision of each key.
    fill(&endpoint, REVISIONS, again).await;
    let client = patient_client(&endpoint);
    let (rate, slow) = measure(&endpoint, TIME).await;
    let status = insist(|| client.status(&endpoint)).await;
    let revision = status.header.revision;
    let compaction = CompactionRequest {
        revision,
        physical: true,
    };
    let started = Instant::now();
    let compacting = async {
        compact(&client, &compaction).await;
        started.elapsed()
    };
    let ((rate_during, slow_during), took) = tokio::join!(measure(&endpoint, TIME), compacting);
    println!(
        "{rate:.0} puts/s with a p99 of {slow:.1?}; beside a compaction, which took {took:.1?}, \
         {rate_during:.0} ({:.2} times) with {slow_during:.1?} ({:.2} times)",
        rate_during / rate,
        slow_during.as_secs_f64() / slow.as_secs_f64()
    );
    // The promise is 0.95 on a machine of its own.
    assert!(
        rate_during > rate / 4.0,
        "{rate_during} puts/s beside it, {rate} before"
    );
    let older = RangeRequest {
        key: b"again/000",
        revision: revision - 1,
        ..RangeRequest::default()
    };
    assert!(client.range(&older).await.is_err(), "it is compacted");
}
