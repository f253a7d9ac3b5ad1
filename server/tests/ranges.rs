//! Reads of a real node, up to answers of many frames.

mod common;

use common::{Cluster, put};
use varve_client::Client;
use varve_types::{
    KeyRange, PutRequest, RangeRequest, RequestOp, SortOrder, SortTarget, TxnRequest,
};

const KEYS: usize = 3_000;

/// 6 MiB in keys of which every third is long.
async fn fill(client: &Client) -> i64 {
    let pairs: Vec<_> = (0..KEYS)
        .map(|number| {
            let times = if number % 3 == 0 { 1500 } else { 10 };
            (format!("r/{number:05}"), format!("{number}").repeat(times))
        })
        .collect();
    let mut revision = 0;
    for pairs in pairs.chunks(100) {
        let puts = pairs.iter().map(|(key, value)| {
            RequestOp::Put(PutRequest {
                key: key.as_bytes(),
                value: value.as_bytes(),
                ..PutRequest::default()
            })
        });
        let txn = TxnRequest {
            success: puts.collect(),
            ..TxnRequest::default()
        };
        revision = client.txn(txn).await.unwrap().header.revision;
    }
    revision
}

#[tokio::test]
async fn long_answers_come_whole_in_every_order() {
    let node = Cluster::start(1, &[]);
    let client = node.client();
    let revision = fill(&client).await;
    put(&client, "r/00001", "changed").await.unwrap();
    let end = KeyRange::prefix_end(b"r/");
    let all = RangeRequest {
        key: b"r/",
        range_end: &end,
        ..RangeRequest::default()
    };
    let names = |from: usize, count: usize| -> Vec<String> {
        (from..from + count)
            .map(|number| format!("r/{number:05}"))
            .collect()
    };
    let reversed = |mut names: Vec<String>| {
        names.reverse();
        names
    };
    for (request, expected, more) in [
        (all, names(0, KEYS), false),
        (
            RangeRequest {
                serializable: true,
                ..all
            },
            names(0, KEYS),
            false,
        ),
        (
            RangeRequest {
                limit: 2_500,
                ..all
            },
            names(0, 2_500),
            true,
        ),
        (
            RangeRequest {
                limit: KEYS as i64,
                ..all
            },
            names(0, KEYS),
            false,
        ),
        (
            RangeRequest {
                sort_order: SortOrder::Descend,
                ..all
            },
            reversed(names(0, KEYS)),
            false,
        ),
        (
            RangeRequest {
                sort_order: SortOrder::Descend,
                limit: 2_500,
                ..all
            },
            reversed(names(KEYS - 2_500, 2_500)),
            true,
        ),
        (
            RangeRequest {
                range_end: b"\0",
                sort_order: SortOrder::Descend,
                ..all
            },
            reversed(names(0, KEYS)),
            false,
        ),
        (
            RangeRequest {
                sort_order: SortOrder::Ascend,
                sort_target: SortTarget::Create,
                ..all
            },
            names(0, KEYS),
            false,
        ),
        (RangeRequest { revision, ..all }, names(0, KEYS), false),
        (
            RangeRequest {
                keys_only: true,
                ..all
            },
            names(0, KEYS),
            false,
        ),
    ] {
        let answer = client.range(&request).await.unwrap();
        let found: Vec<_> = answer
            .body
            .kvs
            .iter()
            .map(|kv| String::from_utf8(kv.key.clone()).unwrap())
            .collect();
        assert_eq!(found, expected, "{request:?}");
        assert_eq!(
            (answer.body.count, answer.body.more),
            (KEYS as i64, more),
            "{request:?}"
        );
        assert_eq!(answer.header.revision, revision + 1);
        let value = &answer.body.kvs[0].value;
        assert_eq!(value.is_empty(), request.keys_only);
        if request.revision == revision {
            assert_eq!(answer.body.kvs[1].value, "1".repeat(10).into_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_long_answers_at_once_stay_bounded() {
    let node = Cluster::start(1, &[]);
    let client = node.client();
    fill(&client).await;
    let end = KeyRange::prefix_end(b"r/");
    let before = node.members[0].anonymous_bytes();
    // 64 answers of 2.3 MiB on one connection, asked for at once.
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (client, end) = (client.clone(), end.clone());
            tokio::spawn(async move {
                let request = RangeRequest {
                    key: b"r/",
                    range_end: &end,
                    ..RangeRequest::default()
                };
                client.range(&request).await.unwrap().body.kvs.len()
            })
        })
        .collect();
    let mut most = before;
    for task in tasks {
        assert_eq!(task.await.unwrap(), KEYS);
        most = most.max(node.members[0].anonymous_bytes());
    }
    let grown = (most - before) >> 20;
    assert!(grown < 32, "{grown} MiB more in memory");
}
