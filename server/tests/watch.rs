//! Watches of a real node: order, completeness, bounds.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Cluster, put};
use tokio::time::timeout;
use varve_client::{Client, RawConnection, Watch};
use varve_protocol::{Request, WatchCreditRequest, WatchRequest, WatchResponse, decode_reply};
use varve_types::{
    CompactionRequest, DeleteRangeRequest, Event, EventKind, KeyRange, PutRequest, RequestOp,
    TxnRequest,
};

const SOON: Duration = Duration::from_secs(60);

/// Events until there are `count`.
async fn events(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut found = Vec::new();
    while found.len() < count {
        let update = timeout(SOON, watch.next())
            .await
            .unwrap_or_else(|_| panic!("only {} of {count} events came", found.len()))
            .expect("the watch goes on")
            .unwrap();
        found.extend(update.events);
    }
    assert_eq!(found.len(), count);
    found
}

fn keys(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| String::from_utf8(event.kv.key.clone()).unwrap())
        .collect()
}

fn watch_prefix<'a>(prefix: &'a str, end: &'a [u8]) -> WatchRequest<'a> {
    WatchRequest {
        key: prefix.as_bytes(),
        range_end: end,
        ..WatchRequest::default()
    }
}

async fn opened(client: &Client, request: &WatchRequest<'_>) -> Watch {
    let mut watch = client.watch(request);
    watch.opened().await.unwrap();
    watch
}

#[tokio::test]
async fn past_and_present() {
    let node = Cluster::start(1, &[]);
    let client = node.client();
    let end = KeyRange::prefix_end(b"a/");
    let mut now = opened(&client, &watch_prefix("a/", &end)).await;
    let first = put(&client, "a/1", "one").await.unwrap();
    put(&client, "b/1", "other").await.unwrap();
    put(&client, "a/2", "two").await.unwrap();
    client
        .delete_range(&DeleteRangeRequest {
            key: b"a/1",
            ..DeleteRangeRequest::default()
        })
        .await
        .unwrap();
    let seen = events(&mut now, 3).await;
    assert_eq!(keys(&seen), ["a/1", "a/2", "a/1"]);
    assert_eq!(seen[2].kind, EventKind::Delete);
    assert_eq!(seen[2].kv.mod_revision, first + 3);
    assert_eq!(seen[2].kv.version, 0);
    assert!(seen.iter().all(|event| event.prev_kv.is_none()));

    // The same from the past, with what was there before.
    let request = WatchRequest {
        start_revision: first,
        prev_kv: true,
        ..watch_prefix("a/", &end)
    };
    let mut past = client.watch(&request);
    let again = events(&mut past, 3).await;
    assert_eq!(keys(&again), keys(&seen));
    assert_eq!(again[2].prev_kv.as_ref().unwrap().value, b"one");
    assert!(again[0].prev_kv.is_none());
    // And on, into the present.
    put(&client, "a/3", "three").await.unwrap();
    assert_eq!(keys(&events(&mut past, 1).await), ["a/3"]);
    assert_eq!(keys(&events(&mut now, 1).await), ["a/3"]);

    // From a revision that is still to come.
    let request = WatchRequest {
        start_revision: first + 6,
        ..watch_prefix("a/", &end)
    };
    let mut future = opened(&client, &request).await;
    put(&client, "a/4", "too early").await.unwrap();
    put(&client, "a/5", "just right").await.unwrap();
    assert_eq!(keys(&events(&mut future, 1).await), ["a/5"]);
}

#[tokio::test]
async fn one_revision_comes_in_one_piece_and_in_order() {
    let node = Cluster::start(1, &[]);
    let client = node.client();
    let end = KeyRange::prefix_end(b"t/");
    let mut watch = opened(&client, &watch_prefix("t/", &end)).await;
    let names: Vec<_> = (0..100).rev().map(|i| format!("t/{i:03}")).collect();
    let value = vec![b'x'; 20_000];
    let success = names
        .iter()
        .map(|name| {
            RequestOp::Put(PutRequest {
                key: name.as_bytes(),
                value: &value[..if name.ends_with('7') { value.len() } else { 1 }],
                ..PutRequest::default()
            })
        })
        .collect();
    let txn = TxnRequest {
        success,
        ..TxnRequest::default()
    };
    client.txn(txn).await.unwrap();
    let update = timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(keys(&update.events), names);
    let revision = update.events[0].kv.mod_revision;
    assert!(
        update
            .events
            .iter()
            .all(|event| event.kv.mod_revision == revision)
    );
}

#[tokio::test]
async fn filters_and_a_compacted_start() {
    let node = Cluster::start(1, &[]);
    let client = node.client();
    let request = WatchRequest {
        no_put: true,
        prev_kv: true,
        ..watch_prefix("k", b"")
    };
    let mut deletions = opened(&client, &request).await;
    let request = WatchRequest {
        no_delete: true,
        ..watch_prefix("k", b"")
    };
    let mut puts = opened(&client, &request).await;
    let delete = DeleteRangeRequest {
        key: b"k",
        ..DeleteRangeRequest::default()
    };
    for value in ["1", "2"] {
        put(&client, "k", value).await.unwrap();
        client.delete_range(&delete).await.unwrap();
    }
    let gone = events(&mut deletions, 2).await;
    assert!(gone.iter().all(|event| event.kind == EventKind::Delete));
    assert_eq!(gone[1].prev_kv.as_ref().unwrap().value, b"2");
    let written = events(&mut puts, 2).await;
    assert!(written.iter().all(|event| event.kind == EventKind::Put));

    let revision = put(&client, "k", "3").await.unwrap();
    let compaction = CompactionRequest {
        revision,
        physical: false,
    };
    client.compact(&compaction).await.unwrap();
    for (start_revision, compacted) in [
        (1, true),
        (revision - 1, true),
        (-1, true),
        (revision, false),
    ] {
        let request = WatchRequest {
            start_revision,
            ..watch_prefix("k", b"")
        };
        let mut watch = client.watch(&request);
        let news = timeout(SOON, watch.next()).await.unwrap().unwrap();
        if compacted {
            let error = news.unwrap_err();
            assert_eq!(error.compact_revision(), Some(revision), "{error}");
            assert_eq!(
                error.to_string(),
                "etcdserver: mvcc: required revision has been compacted"
            );
        } else {
            assert_eq!(news.unwrap().events[0].kv.value, b"3");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_across_a_restart() {
    let mut node = Cluster::start(1, &[]);
    let client = node.client();
    let end = KeyRange::prefix_end(b"k");
    let first = put(&client, "k", "0").await.unwrap();
    let mut watches = Vec::new();
    for _ in 0..5 {
        let request = WatchRequest {
            start_revision: first,
            ..watch_prefix("k", &end)
        };
        watches.push(opened(&node.client(), &request).await);
    }
    let followers: Vec<_> = watches
        .into_iter()
        .map(|mut watch| {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                loop {
                    let update = timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
                    for event in update.events {
                        seen.push(event.kv.mod_revision);
                        if event.kv.value == b"last" {
                            return seen;
                        }
                    }
                }
            })
        })
        .collect();
    let mut last = first;
    for round in 0..3 {
        for number in 0..200 {
            if let Ok(revision) = put(&client, &format!("k{}", number % 7), "v").await {
                last = revision;
            }
        }
        if round < 2 {
            node.members[0].kill();
            node.spawn(0);
            node.wait_healthy();
        }
    }
    assert!(last >= first + 600);
    let last = put(&client, "k", "last").await.unwrap();
    let expected: Vec<_> = (first..=last).collect();
    for follower in followers {
        assert_eq!(follower.await.unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watches_of_single_keys_on_one_connection() {
    let node = Cluster::start(1, &[]);
    let (client, writer) = (node.client(), node.client());
    let mut watches = Vec::new();
    for number in 0..10_000 {
        let key = format!("w/{number:05}");
        watches.push(client.watch(&watch_prefix(&key, b"")));
    }
    for watch in &mut watches {
        watch.opened().await.unwrap();
    }
    assert!(node.members[0].metric("etcd_debugging_mvcc_watcher_total") >= 10_000.0);
    let mut revisions = HashMap::new();
    for number in (0..10_000).step_by(97) {
        let key = format!("w/{number:05}");
        revisions.insert(number, put(&writer, &key, "v").await.unwrap());
    }
    for (number, revision) in &revisions {
        let seen = events(&mut watches[*number], 1).await;
        assert_eq!(seen[0].kv.mod_revision, *revision);
    }
    // The others heard nothing.
    let quiet = timeout(Duration::from_millis(200), watches[1].next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    drop(watches);
    common::wait_until("the watches are gone", || {
        node.members[0].metric("etcd_debugging_mvcc_watcher_total") == 0.0
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_not_read_costs_no_memory_and_misses_nothing() {
    let node = Cluster::start(1, &[]);
    let client = node.client();
    let end = KeyRange::prefix_end(b"big/");
    let mut slow = opened(&node.client(), &watch_prefix("big/", &end)).await;
    let mut quick = opened(&client, &watch_prefix("other", b"")).await;
    let value = "x".repeat(256 << 10);
    let before = node.members[0].anonymous_bytes();
    let mut expected = Vec::new();
    for number in 0..400 {
        let key = format!("big/{:03}", number % 10);
        expected.push(put(&client, &key, &value).await.unwrap());
    }
    // 100 MiB of events wait for a reader with a window of 4 MiB. The ring keeps 16 MiB of
    // them, the log 64 MiB of its newest entries.
    put(&client, "other", "v").await.unwrap();
    assert_eq!(events(&mut quick, 1).await.len(), 1);
    let grown = node.members[0].anonymous_bytes().saturating_sub(before) >> 20;
    assert!(grown < 140, "{grown} MiB more in memory");
    let seen: Vec<_> = events(&mut slow, expected.len())
        .await
        .iter()
        .map(|event| event.kv.mod_revision)
        .collect();
    assert_eq!(seen, expected);
    assert!(node.members[0].metric("varve_watch_store_reads_total") > 0.0);
}

#[tokio::test]
async fn progress() {
    let node = Cluster::start(1, &["--watch-progress-notify-interval", "200ms"]);
    let client = node.client();
    let request = WatchRequest {
        progress_notify: true,
        ..watch_prefix("k", b"")
    };
    let mut watch = opened(&client, &request).await;
    let revision = put(&client, "elsewhere", "v").await.unwrap();
    // Of its own accord, with nothing to report.
    loop {
        let update = timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
        assert!(update.events.is_empty());
        assert!(update.header.revision <= revision);
        if update.header.revision == revision {
            break;
        }
    }
    // And when asked.
    let revision = put(&client, "k", "v").await.unwrap();
    assert_eq!(events(&mut watch, 1).await[0].kv.mod_revision, revision);
    assert_eq!(client.watch_progress().await.unwrap(), revision);
}

/// Watches whose credit does not even cover a frame's marks get their first event
/// from the ring of recent ones, and nothing more until they are given credit.
#[tokio::test]
async fn the_least_credit_gets_an_event_through() {
    const LARGEST: u32 = 40;
    let node = Cluster::start(1, &[]);
    let client = node.client();
    let mut raw = RawConnection::connect(node.members[0].endpoint(), SOON)
        .await
        .unwrap();
    for credit in 1..=LARGEST {
        let watch = WatchRequest {
            credit,
            ..watch_prefix("w", b"x")
        };
        raw.queue(credit.into(), &Request::Watch(watch));
    }
    let mut frames = frames_of(&mut raw, LARGEST as usize).await;
    assert!(frames.iter().all(|(_, found)| found.is_none()));
    let store_reads = node.members[0].metric("varve_watch_store_reads_total");
    put(&client, "w1", "first").await.unwrap();
    frames = frames_of(&mut raw, LARGEST as usize).await;
    frames.sort();
    let expected: Vec<_> = (1..=LARGEST)
        .map(|credit| (u64::from(credit), Some(vec!["w1".to_owned()])))
        .collect();
    assert_eq!(frames, expected);
    // All is spent. One of them gets a little more than what it overdrew.
    put(&client, "w2", "second").await.unwrap();
    let bytes = 200;
    raw.queue(
        7,
        &Request::WatchCredit(WatchCreditRequest { watch: 7, bytes }),
    );
    assert_eq!(
        frames_of(&mut raw, 1).await,
        [(7, Some(vec!["w2".to_owned()]))]
    );
    let more = timeout(Duration::from_millis(200), frames_of(&mut raw, 1)).await;
    assert!(more.is_err(), "{more:?}");
    let now = node.members[0].metric("varve_watch_store_reads_total");
    assert_eq!(now, store_reads, "the events did not come from the ring");
}

/// The next frames of watches: of which one, and the keys of its events.
async fn frames_of(raw: &mut RawConnection, count: usize) -> Vec<(u64, Option<Vec<String>>)> {
    let mut frames = Vec::new();
    while frames.len() < count {
        let took = raw.receive(|frame| {
            let (_, response) = decode_reply::<WatchResponse>(frame.body).unwrap();
            let keys_of = match response {
                WatchResponse::Created => None,
                WatchResponse::Events(events) => Some(keys(&events)),
                other => panic!("{other:?}"),
            };
            frames.push((frame.header.request_id, keys_of));
        });
        timeout(SOON, took).await.expect("frames in time").unwrap();
    }
    frames
}
