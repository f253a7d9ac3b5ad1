//! A member far behind gets the store: transfers that break and go on, what they
//! need of memory, and what clients notice of them.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, Member, free_port, put, wait_until};

/// The log is let go behind each checkpoint, so that whoever was away needs a snapshot.
const FLAGS: [&str; 4] = ["--snapshot-count", "50", "--snapshot-catchup-entries", "5"];
const CHECKPOINTS: &str = "etcd_disk_backend_commit_duration_seconds_count";
const RECEIVED: &str = "varve_snapshot_received_bytes_total";
const RESUMED: &str = "varve_snapshots_resumed_total";
const MIB: f64 = (1 << 20) as f64;

/// Most that a transfer may add to what a process has in memory, whatever the store's
/// size: 16 chunks of 1 MiB on their way and what the allocator makes of them.
const MOST_MEMORY: usize = 64 << 20;

/// Puts so many MiB into the store, in values that are not alike.
async fn fill(member: &Member, mebibytes: usize) {
    const WRITERS: usize = 8;
    let each = mebibytes * 16 / WRITERS;
    let writers = (0..WRITERS).map(|writer| {
        let client = member.client();
        tokio::spawn(async move {
            for number in 0..each {
                let value: String = (0_u32..8192)
                    .map(|i| {
                        let mixed =
                            (i ^ ((writer * each + number) as u32) << 13).wrapping_mul(0x9E37_79B9);
                        format!("{mixed:08x}")
                    })
                    .collect();
                let key = format!("fill/{writer}/{number:06}");
                put(&client, &key, &value).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// A cluster of which one member, by its index, lacks so many MiB; and the leader.
async fn one_behind(mut cluster: Cluster, behind: usize, mebibytes: usize) -> (Cluster, usize) {
    cluster.members[behind].kill();
    let leader = cluster.leader().await;
    fill(&cluster.members[leader], mebibytes).await;
    let checkpoints = cluster.members[leader].metric(CHECKPOINTS);
    put(&cluster.client(), "last", "v").await.unwrap();
    wait_until("the leader makes a checkpoint", || {
        cluster.members[leader].metric(CHECKPOINTS) > checkpoints
    });
    (cluster, leader)
}

/// The 99th percentile of small puts by eight clients, for as long as `run` says.
async fn put_p99(member: &Member, mut run: impl FnMut() -> bool) -> (usize, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (client, stop) = (member.client(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    put(&client, &format!("small/{writer}"), "v").await.unwrap();
                    times.push(started.elapsed());
                }
                times
            })
        })
        .collect();
    while run() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await.unwrap());
    }
    all.sort_unstable();
    (all.len(), all[all.len() * 99 / 100])
}

/// The numbers of chunks that were there each time a member went on.
fn resumed_at(member: &Member) -> Vec<u64> {
    let log = member.log();
    log.lines()
        .filter(|line| line.contains("going on with a snapshot"))
        .map(|line| {
            let (before, _) = line.split_once(" chunks are there").unwrap();
            before.rsplit(' ').next().unwrap().parse().unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_killed_goes_on_and_memory_is_bounded() {
    let mut flags = FLAGS.to_vec();
    flags.extend(["--snapshot-rate-limit-mib", "40"]);
    let cluster = Cluster::start(3, &flags);
    let behind = (cluster.leader().await + 1) % 3;
    let (mut cluster, leader) = one_behind(cluster, behind, 256).await;
    let end = Instant::now() + Duration::from_secs(3);
    let (_, quiet) = put_p99(&cluster.members[leader], || Instant::now() < end).await;

    let before = cluster.members[leader].anonymous_bytes();
    cluster.spawn(behind);
    wait_until("it serves", || {
        cluster.members[behind].get("/metrics").0.contains(" 200 ")
    });
    let fresh = cluster.members[behind].anonymous_bytes();
    let (mut most, mut most_behind) = (0, 0);
    let (count, busy) = put_p99(&cluster.members[leader], || {
        most = most.max(cluster.members[leader].anonymous_bytes());
        most_behind = most_behind.max(cluster.members[behind].anonymous_bytes());
        cluster.members[behind].metric(RECEIVED) < 160.0 * MIB
    })
    .await;
    println!(
        "put p99 {quiet:?} before, {busy:?} during the transfer ({count} puts); memory: leader \
         {} + {} MiB, receiver {} + {} MiB",
        before >> 20,
        most.saturating_sub(before) >> 20,
        fresh >> 20,
        most_behind.saturating_sub(fresh) >> 20,
    );
    assert!(most < before + MOST_MEMORY, "{before} to {most}");
    assert!(
        most_behind < fresh + MOST_MEMORY,
        "{fresh} to {most_behind}"
    );

    cluster.members[behind].kill();
    cluster.spawn(behind);
    cluster.wait_healthy();
    cluster.assert_same_state().await;
    let resumed = resumed_at(&cluster.members[behind]);
    // The store was made durable at 64 and 128 MiB.
    assert!(matches!(resumed[..], [at] if at >= 120), "{resumed:?}");
    assert_eq!(cluster.members[behind].metric(RESUMED), 1.0);
    let received = cluster.members[behind].metric(RECEIVED) / MIB;
    assert!(received < 150.0, "{received} MiB after the restart");
    let log = cluster.members[leader].log();
    let said = format!("has {} chunks of the snapshot", resumed[0]);
    assert!(log.contains(&said), "{log}");
    // What is in use afterwards is the whole store, also for the next start.
    cluster.members[behind].kill();
    cluster.spawn(behind);
    cluster.wait_healthy();
    cluster.assert_same_state().await;
}

/// Passes connections on to a port, and cuts each that has brought so many bytes.
fn cutting_proxy(from: TcpListener, to: u16, after: usize) -> Arc<AtomicUsize> {
    let cuts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&cuts);
    std::thread::spawn(move || {
        for near in from.incoming() {
            let Ok(near) = near else { return };
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
                continue;
            };
            let (mut back_from, mut back_to) =
                (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(Shutdown::Both);
            });
            let counter = Arc::clone(&counter);
            std::thread::spawn(move || {
                let (mut near, mut far) = (near, far);
                let mut buffer = vec![0; 64 << 10];
                let mut passed = 0;
                while let Ok(count @ 1..) = near.read(&mut buffer) {
                    passed += count;
                    if passed > after {
                        counter.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    if far.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
            });
        }
    });
    cuts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_cut_goes_on_from_the_last_chunk() {
    let mut cluster = Cluster::prepare(3, &FLAGS);
    // The others reach it through the proxy.
    let proxy = TcpListener::bind(("127.0.0.1", cluster.members[2].peer_port)).unwrap();
    let port = free_port();
    let cuts = cutting_proxy(proxy, port, 24 << 20);
    cluster.members[2].extra = vec![
        "--listen-peer-urls".to_owned(),
        format!("http://127.0.0.1:{port}"),
    ];
    for index in 0..3 {
        cluster.spawn(index);
    }
    cluster.wait_healthy();
    let (mut cluster, leader) = one_behind(cluster, 2, 80).await;
    cuts.store(0, Ordering::Relaxed);
    cluster.spawn(2);
    cluster.wait_healthy();
    cluster.assert_same_state().await;
    let resumed = resumed_at(&cluster.members[2]);
    let cuts = cuts.load(Ordering::Relaxed);
    println!("{cuts} cuts, gone on with after {resumed:?} chunks");
    assert!(cuts >= 3 && resumed.len() >= 3, "{cuts} {resumed:?}");
    assert!(resumed.is_sorted_by(|a, b| a + 10 < *b), "{resumed:?}");
    assert_eq!(cluster.members[2].metric(RESUMED), resumed.len() as f64);
    let sent = cluster.members[leader].metric("varve_snapshot_sent_bytes_total") / MIB;
    let whole = 80.0 + cuts as f64 * 17.0;
    assert!(sent < whole + 8.0, "{sent} MiB were sent");
}
