//! Many clients that read all of a store at the same time: the node's memory does
//! not grow with what they read, nor with how slowly they take it.
//!
//! By hand with more than the 64 MiB of CI: `VARVE_TEST_MIB=1024`.

mod common;

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::Cluster;
use common::fill::{VALUE_BYTES, fill};
use varve_client::RawConnection;
use varve_protocol::{Flags, Request};
use varve_types::RangeRequest;

const MIB: usize = 1 << 20;
const SCANS: usize = 50;
/// What all of them may add: each has some pieces of 256 KiB on their way.
const MOST_BYTES: usize = 64 * MIB;

fn mib() -> usize {
    std::env::var("VARVE_TEST_MIB").map_or(64, |text| text.parse().expect("a number"))
}

fn name(number: usize) -> String {
    format!("scan/{number:08}")
}

/// Reads all keys and throws them away; bytes that came.
async fn scan(endpoint: String, pause: Duration) -> usize {
    let connected = RawConnection::connect(endpoint, common::PATIENCE).await;
    let mut connection = connected.unwrap();
    let range = RangeRequest {
        key: b"scan/",
        range_end: b"scan0",
        ..RangeRequest::default()
    };
    connection.queue(1, &Request::Range(range));
    let (mut bytes, mut is_over) = (0, false);
    while !is_over {
        let received = connection.receive(|frame| {
            let flags = frame.header.flags;
            assert!(!flags.has(Flags::ERROR), "{frame:?}");
            bytes += frame.body.len();
            is_over = !flags.has(Flags::MORE);
        });
        received.await.unwrap();
        tokio::time::sleep(pause).await;
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn full_scans_at_one_time_add_little_memory() {
    let keys = mib() * MIB / VALUE_BYTES;
    let mut cluster = Cluster::start(1, &[]);
    let endpoint = cluster.members[0].endpoint();
    fill(&endpoint, keys, name).await;
    // A new process has nothing in store that the scans could use.
    cluster.members[0].signal("TERM");
    cluster.spawn(0);
    cluster.wait_healthy();
    let before = cluster.members[0].anonymous_bytes();
    let started = Instant::now();
    let scans: Vec<_> = (0..SCANS)
        .map(|number| {
            // Every fifth takes its time, and the node must wait for it.
            let pause = Duration::from_millis(if number % 5 == 0 { 10 } else { 0 });
            tokio::spawn(scan(endpoint.clone(), pause))
        })
        .collect();
    let mut most = 0;
    while scans.iter().any(|scan| !scan.is_finished()) {
        let now = cluster.members[0].anonymous_bytes();
        most = most.max(now.saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for scan in scans {
        let bytes = scan.await.unwrap();
        assert!(bytes > keys * VALUE_BYTES, "{bytes} bytes are not all");
    }
    let files = std::fs::read_dir(&cluster.members[0].data_dir).unwrap();
    let blocks = files.map(|file| file.unwrap().metadata().unwrap().blocks());
    println!(
        "{SCANS} scans of {} MiB ({} MiB on disk) in {:.1} s: {:.1} MiB more of memory",
        mib(),
        blocks.sum::<u64>() * 512 / MIB as u64,
        started.elapsed().as_secs_f64(),
        most as f64 / MIB as f64
    );
    assert!(most <= MOST_BYTES, "{} MiB more", most / MIB);
}
