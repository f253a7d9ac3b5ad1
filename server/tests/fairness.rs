//! One connection's long scans against the others of the same socket worker, and
//! against the store's space.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, put};
use varve_client::{Client, ClientConfig, RawConnection};
use varve_protocol::{Request, WatchRequest, decode_reply};
use varve_types::{
    CompactionRequest, KeyRange, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};

const SOON: Duration = Duration::from_secs(60);
const FLAGS: [&str; 4] = ["--workers", "1", "--max-txn-ops", "1000"];

/// Puts the keys `prefix/number`, 500 in each transaction.
async fn fill(client: &Client, prefix: &str, numbers: std::ops::Range<usize>, value: &[u8]) -> i64 {
    let mut revision = 0;
    let numbers: Vec<_> = numbers.collect();
    for numbers in numbers.chunks(500) {
        let keys: Vec<_> = numbers
            .iter()
            .map(|number| format!("{prefix}/{number:06}"))
            .collect();
        let success = keys.iter().map(|key| {
            RequestOp::Put(PutRequest {
                key: key.as_bytes(),
                value,
                ..PutRequest::default()
            })
        });
        let txn = TxnRequest {
            success: success.collect(),
            ..TxnRequest::default()
        };
        revision = client.txn(txn).await.unwrap().header.revision;
    }
    revision
}

/// A client that waits for long: disks of test machines have their pauses.
fn patient(node: &Cluster) -> Client {
    let config = ClientConfig {
        command_timeout: SOON,
        ..ClientConfig::default()
    };
    Client::new(&[node.members[0].endpoint()], config).unwrap()
}

async fn raw(node: &Cluster) -> RawConnection {
    let endpoint = node.members[0].endpoint();
    RawConnection::connect(endpoint, SOON).await.unwrap()
}

/// Gets from another connection for as long as `load` goes on: how often one was
/// answered, and the longest that one took.
async fn gets_beside(
    node: &Cluster,
    load: impl Future<Output = ()> + Send + 'static,
) -> (u32, Duration) {
    let other = patient(node);
    other.get(b"warm").await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    let load = tokio::spawn(async move {
        load.await;
        flag.store(true, Ordering::Relaxed);
    });
    let (mut gets, mut longest) = (0, Duration::ZERO);
    while !ended.load(Ordering::Relaxed) {
        let started = Instant::now();
        other.get(b"warm").await.unwrap();
        if !ended.load(Ordering::Relaxed) {
            gets += 1;
            longest = longest.max(started.elapsed());
        }
    }
    load.await.unwrap();
    (gets, longest)
}

/// The scans take long in all; in between the others must get on.
fn assert_fair(what: &str, took: Duration, (gets, longest): (u32, Duration)) {
    println!("{what}: {took:?}, meanwhile {gets} gets, the longest {longest:?}");
    assert!(
        took > Duration::from_millis(100),
        "{what} took only {took:?}"
    );
    assert!(gets >= 10, "{what}: {gets} gets in {took:?}");
    assert!(
        longest < took / 4,
        "{what}: a get took {longest:?} of {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_of_one_connection_do_not_hold_the_others_up() {
    const KEYS: usize = 100_000;
    let node = Cluster::start(1, &FLAGS);
    let client = patient(&node);
    let old = fill(&client, "k", 0..KEYS, b"v1").await;
    let new = fill(&client, "k", 0..KEYS, b"v2").await;
    let end = KeyRange::prefix_end(b"k/");
    let all = RangeRequest {
        key: b"k/",
        range_end: Box::leak(end.into_boxed_slice()),
        ..RangeRequest::default()
    };
    let nothing = RangeRequest {
        min_mod_revision: new + 1,
        ..all
    };
    let old_count = RangeRequest {
        count_only: true,
        revision: old - 10,
        ..all
    };
    let old_nothing = RangeRequest {
        revision: old,
        ..nothing
    };
    for (what, request, times) in [
        ("ranges that find nothing", nothing, 60),
        ("counts at an old revision", old_count, 20),
        (
            "ranges that find nothing at an old revision",
            old_nothing,
            10,
        ),
    ] {
        let mut scanner = raw(&node).await;
        let started = Instant::now();
        let beside = gets_beside(&node, async move {
            for id in 0..times {
                scanner.queue(id, &Request::Range(request));
            }
            let mut left = times;
            while left > 0 {
                let received = scanner.receive(|frame| {
                    let (_, reply) = decode_reply::<RangeResponse>(frame.body).unwrap();
                    let expected = match request.count_only {
                        true => KEYS - 10 * 500,
                        false => KEYS,
                    };
                    assert_eq!((reply.kvs.len(), reply.count), (0, expected as i64));
                    left -= 1;
                });
                tokio::time::timeout(SOON, received).await.unwrap().unwrap();
            }
        });
        let beside = beside.await;
        assert_fair(what, started.elapsed(), beside);
    }

    // Watches that read all the past for one key.
    const WATCHES: u64 = 150;
    let mut watcher = raw(&node).await;
    let started = Instant::now();
    let beside = gets_beside(&node, async move {
        for id in 0..WATCHES {
            let watch = WatchRequest {
                key: b"k/000000",
                start_revision: 2,
                ..WatchRequest::default()
            };
            watcher.queue(id, &Request::Watch(watch));
        }
        let progress = varve_protocol::WatchProgressRequest;
        watcher.queue(WATCHES, &Request::WatchProgress(progress));
        let mut done = false;
        while !done {
            let received = watcher.receive(|frame| done |= frame.header.request_id == WATCHES);
            tokio::time::timeout(SOON, received).await.unwrap().unwrap();
        }
    });
    let beside = beside.await;
    assert_fair("watches that read the past", started.elapsed(), beside);
}

/// A connection that asked for a long range and takes nothing of it yet.
async fn stalled(node: &Cluster) -> (RawConnection, RangeRequest<'static>) {
    let mut stalled = raw(node).await;
    let request = RangeRequest {
        key: b"long/",
        range_end: b"long0",
        ..RangeRequest::default()
    };
    stalled.queue(1, &Request::Range(request));
    stalled.flush().await.unwrap();
    // The node sends what the sockets take, and stops.
    let sent = || node.members[0].metric("etcd_network_client_grpc_sent_bytes_total");
    let mut before = -1.0;
    while sent() > before {
        before = sent();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    (stalled, request)
}

/// The parts of an answer, up to its end.
async fn answer_of(
    raw: &mut RawConnection,
) -> Result<Vec<RangeResponse>, varve_protocol::WireError> {
    use varve_protocol::{Flags, WireError};
    let mut parts = Vec::new();
    let mut end = None;
    while end.is_none() {
        let received = raw.receive(|frame| {
            if frame.header.flags.has(Flags::ERROR) {
                let mut reader = varve_types::Reader::new(frame.body);
                end = Some(Err(WireError::decode(&mut reader).unwrap()));
                return;
            }
            let (_, reply) = decode_reply::<RangeResponse>(frame.body).unwrap();
            parts.push(reply);
            if !frame.header.flags.has(Flags::MORE) {
                end = Some(Ok(()));
            }
        });
        tokio::time::timeout(SOON, received).await.unwrap().unwrap();
    }
    end.unwrap().map(|()| parts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_keeps_no_old_state() {
    // Far more than the sockets hold.
    const KEYS: usize = 2_000;
    let value = vec![b'x'; 20_000];
    let node = Cluster::start(1, &FLAGS);
    let client = patient(&node);
    for first in (0..KEYS).step_by(50) {
        fill(&client, "long", first..first + 50, &value).await;
    }
    let (mut slow, _) = stalled(&node).await;
    // Everything changes, some of it is gone, and there is more than before.
    for first in (0..KEYS).step_by(50) {
        fill(&client, "long", first..first + 50, b"changed").await;
    }
    let deleted = varve_types::DeleteRangeRequest {
        key: b"long/001500",
        range_end: b"long/001800",
        ..Default::default()
    };
    client.delete_range(&deleted).await.unwrap();
    put(&client, "long/001700/more", "new").await.unwrap();
    // All the same it gets what was there.
    let parts = answer_of(&mut slow).await.unwrap();
    assert!(parts.len() > 10);
    let last = parts.last().unwrap();
    assert_eq!((last.count, last.more), (KEYS as i64, false));
    let kvs = parts.iter().flat_map(|part| &part.kvs);
    let names: Vec<_> = kvs.clone().map(|kv| kv.key.clone()).collect();
    let expected = (0..KEYS).map(|number| format!("long/{number:06}").into_bytes());
    assert_eq!(names, expected.collect::<Vec<_>>());
    assert!(kvs.clone().all(|kv| kv.value == value));

    // Once the revision is gone, the rest of the answer is an error.
    for first in (0..KEYS).step_by(50) {
        fill(&client, "long", first..first + 50, &value).await;
    }
    let (mut slow, _) = stalled(&node).await;
    let revision = put(&client, "other", "v").await.unwrap();
    let compaction = CompactionRequest {
        revision,
        physical: false,
    };
    client.compact(&compaction).await.unwrap();
    // Not the answer itself, were it one: that is long.
    let answer = answer_of(&mut slow).await.map(|parts| parts.len());
    let error = answer.unwrap_err();
    assert_eq!(error.api(), Some(varve_types::ApiError::Compacted));
    assert_eq!(error.detail, revision);
    // The connection goes on.
    slow.queue_get(2, b"other", false);
    assert_eq!(answer_of(&mut slow).await.unwrap()[0].count, 1);
}
