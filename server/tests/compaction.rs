//! A compaction that is answered once its history is gone. The node runs in this
//! process, so that its state can be looked at.

mod common;

use std::time::Duration;

use common::free_port;
use varve::config::{self, Config, Invocation};
use varve::node::RunningNode;
use varve_client::{Client, ClientConfig, RawConnection};
use varve_protocol::{Flags, Request, WireError};
use varve_types::{ApiError, CompactionRequest, PutRequest, Reader, RequestOp, TxnRequest};

fn config_in(directory: &std::path::Path, client: u16) -> Box<Config> {
    let peer = free_port();
    let arguments = [
        ("--data-dir", directory.join("data").display().to_string()),
        ("--listen-client-urls", format!("http://127.0.0.1:{client}")),
        (
            "--advertise-client-urls",
            format!("http://127.0.0.1:{client}"),
        ),
        ("--listen-peer-urls", format!("http://127.0.0.1:{peer}")),
        (
            "--initial-advertise-peer-urls",
            format!("http://127.0.0.1:{peer}"),
        ),
        (
            "--initial-cluster",
            format!("default=http://127.0.0.1:{peer}"),
        ),
        ("--max-txn-ops", "1000".to_owned()),
    ];
    let arguments: Vec<_> = arguments
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
    match config::load(&arguments, std::iter::empty::<(String, String)>()).unwrap() {
        Invocation::Run(config) => config,
        Invocation::Print(text) => panic!("{text}"),
    }
}

/// Overwrites the same keys; the last revision.
async fn overwrite(client: &Client, times: usize) -> i64 {
    let keys: Vec<_> = (0..500).map(|number| format!("k{number:03}")).collect();
    let mut revision = 0;
    for _ in 0..times {
        let success = keys.iter().map(|key| {
            RequestOp::Put(PutRequest {
                key: key.as_bytes(),
                value: b"some value",
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

#[tokio::test(flavor = "multi_thread")]
async fn physical_means_that_the_history_is_gone() {
    varve_engine::disk::sigbus::install().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let node = RunningNode::start(&config_in(directory.path(), port))
        .await
        .unwrap();
    let endpoint = format!("127.0.0.1:{port}");
    let config = ClientConfig {
        command_timeout: Duration::from_secs(60),
        ..ClientConfig::default()
    };
    let client = Client::connect(&[&endpoint], config).await.unwrap();
    let pending = || node.handle().view().compaction_pending();

    let mut seen_pending = 0;
    for round in 0..4 {
        let revision = overwrite(&client, 200).await;
        let compaction = |physical: bool| CompactionRequest {
            revision: revision - i64::from(!physical),
            physical,
        };
        // Without the word it is answered at once, as far as that can be seen from here.
        client.compact(&compaction(false)).await.unwrap();
        seen_pending += u32::from(pending());
        let answer = client.compact(&compaction(true)).await.unwrap();
        assert!(!pending(), "round {round}");
        assert_eq!(answer.header.revision, revision);
        assert_eq!(node.handle().view().compacted(), revision);
        let error = client.compact(&compaction(true)).await.unwrap_err();
        assert_eq!(error.api(), Some(ApiError::Compacted));
    }
    assert!(seen_pending > 0, "nothing was ever left to remove");

    // Among other requests of one read of the socket, and on a connection that goes
    // away without waiting for the answer.
    let revision = overwrite(&client, 40).await;
    let put = Request::Put(PutRequest {
        key: b"k",
        ..PutRequest::default()
    });
    for (first, kept) in [(1, true), (11, false)] {
        let mut raw = RawConnection::connect(&endpoint, Duration::from_secs(5))
            .await
            .unwrap();
        raw.queue(first, &put);
        for (id, revision) in [(1, revision + i64::from(!kept)), (2, 1)] {
            let request = CompactionRequest {
                revision,
                physical: true,
            };
            raw.queue(first + id, &Request::Compaction(request));
        }
        raw.queue(first + 3, &put);
        raw.flush().await.unwrap();
        let mut answered = Vec::new();
        while kept && answered.len() < 4 {
            let received = raw.receive(|frame| {
                let id = frame.header.request_id;
                if frame.header.flags.has(Flags::ERROR) {
                    let error = WireError::decode(&mut Reader::new(frame.body)).unwrap();
                    assert_eq!((id, error.api()), (3, Some(ApiError::Compacted)));
                }
                if id == 2 {
                    assert!(!pending());
                }
                answered.push(id);
            });
            tokio::time::timeout(Duration::from_secs(20), received)
                .await
                .unwrap()
                .unwrap();
        }
        answered.sort_unstable();
        assert_eq!(answered, if kept { vec![1, 2, 3, 4] } else { vec![] });
    }
    client.get(b"k").await.unwrap();
    node.stop().await.unwrap();
}
