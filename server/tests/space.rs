//! `varvectl space`: keys and bytes by path component, against a count of every key.

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::{Cluster, PATIENCE};
use varve_client::{Client, ClientConfig};
use varve_protocol::{SpaceLine, SpaceRequest};
use varve_types::{PutRequest, RequestOp, TxnRequest};

/// All pages of an answer.
async fn space(client: &Client, request: SpaceRequest<'_>) -> Vec<SpaceLine> {
    let mut lines: Vec<SpaceLine> = Vec::new();
    loop {
        let last = lines.last().cloned();
        let request = SpaceRequest {
            after: last
                .as_ref()
                .map(|line| (&line.name[..], line.is_directory)),
            ..request
        };
        let mut answer = client.space(&request).await.unwrap().body;
        assert!(request.limit == 0 || answer.lines.len() <= request.limit as usize);
        assert!(!answer.more || !answer.lines.is_empty());
        lines.append(&mut answer.lines);
        if !answer.more {
            return lines;
        }
    }
}

/// The same from each key: name, whether it is a directory, and how many keys.
fn counted(keys: &[String], prefix: &str, depth: usize) -> Vec<(Vec<u8>, bool, u64)> {
    // A directory comes before the key of the same name.
    let mut counts: BTreeMap<(Vec<u8>, bool), u64> = BTreeMap::new();
    for key in keys {
        let Some(rest) = key.strip_prefix(prefix) else {
            continue;
        };
        let ends: Vec<_> = rest.match_indices('/').map(|(at, _)| at + 1).collect();
        for end in ends.iter().take(depth) {
            let name = key.as_bytes()[..prefix.len() + end].to_vec();
            *counts.entry((name, false)).or_default() += 1;
        }
        if ends.len() < depth {
            *counts.entry((key.clone().into_bytes(), true)).or_default() += 1;
        }
    }
    let lines = counts.into_iter();
    lines
        .map(|((name, is_key), keys)| (name, !is_key, keys))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn as_a_count_of_every_key_says() {
    let cluster = Cluster::start(1, &["--max-txn-ops", "1000"]);
    let endpoint = cluster.members[0].endpoint();
    let config = ClientConfig {
        command_timeout: 2 * PATIENCE,
        ..ClientConfig::default()
    };
    let client = Client::new(&[&endpoint], config).unwrap();
    let mut keys: Vec<String> = [
        "/", "/a", "/a/", "/a//", "/a!", "/a0", "/b/c", "plain", "/b",
    ]
    .map(str::to_owned)
    .to_vec();
    for number in 0..1500 {
        let (first, second) = (number % 7, number % 31);
        keys.push(format!("/registry/kind{first}/space{second}/name{number}"));
        if number % 5 == 0 {
            keys.push(format!("/registry/kind{first}/flat{number}"));
        }
    }
    for chunk in keys.chunks(500) {
        let puts = chunk.iter().map(|key| {
            RequestOp::Put(PutRequest {
                key: key.as_bytes(),
                value: &[7; 100],
                ..PutRequest::default()
            })
        });
        let txn = TxnRequest {
            success: puts.collect(),
            ..TxnRequest::default()
        };
        client.txn(txn).await.unwrap();
    }
    for prefix in [
        "",
        "/",
        "/a",
        "/a/",
        "/registry/",
        "/registry/kind1/space2",
        "plain",
        "none",
    ] {
        for (depth, limit) in [(1, 0), (2, 0), (3, 7), (5, 0)] {
            let request = SpaceRequest {
                prefix: prefix.as_bytes(),
                separator: b"/",
                depth,
                limit,
                after: None,
            };
            let lines = space(&client, request).await;
            let found: Vec<_> = lines
                .iter()
                .map(|line| (line.name.clone(), line.is_directory, line.keys))
                .collect();
            assert_eq!(
                found,
                counted(&keys, prefix, depth as usize),
                "{prefix} {depth}"
            );
            for line in &lines {
                // Each of its keys has 100 bytes of value, a name and a few marks.
                let range = line.keys * 100..line.keys * (100 + 50 + 30);
                assert!(range.contains(&line.bytes), "{line:?}");
            }
        }
    }
    // Without a separator each key is a line.
    let flat = SpaceRequest {
        prefix: b"/registry/",
        depth: 1,
        ..SpaceRequest::default()
    };
    let lines = space(&client, flat).await;
    let expected = keys.iter().filter(|key| key.starts_with("/registry/"));
    assert_eq!(lines.len(), expected.count());

    let varvectl = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
            .args([
                "--endpoints",
                &endpoint,
                "--command-timeout",
                "60s",
                "space",
            ])
            .args(args)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let bytes = |name: &str| {
        let client = client.clone();
        let request_name = name.to_owned();
        async move {
            let request = SpaceRequest {
                prefix: b"/b",
                separator: b"/",
                depth: 1,
                ..SpaceRequest::default()
            };
            let lines = space(&client, request).await;
            let line = lines
                .iter()
                .find(|line| line.name == request_name.as_bytes());
            line.unwrap().bytes
        }
    };
    let (key, directory) = (bytes("/b").await, bytes("/b/").await);
    assert_eq!(
        varvectl(&["/b"]),
        (Some(0), format!("/b, 1, {key}\n/b/, 1, {directory}\n"))
    );
    let (code, table) = varvectl(&["/b", "--depth", "2", "-w", "table"]);
    assert_eq!(code, Some(0));
    assert!(table.contains("| NAME | KEYS | BYTES |"), "{table}");
    assert_eq!(table.lines().count(), 4 + 3, "{table}");
    let (code, json) = varvectl(&["/b", "--separator", "!", "-w", "json"]);
    assert_eq!(code, Some(0));
    assert!(
        json.ends_with(&format!(
            "\"lines\":[{{\"name\":\"L2I=\",\"keys\":1,\"bytes\":{key}}},\
             {{\"name\":\"L2IvYw==\",\"keys\":1,\"bytes\":{directory}}}]}}\n"
        )),
        "{json}"
    );
    assert_eq!(varvectl(&[]).0, Some(128));
    assert_eq!(varvectl(&["/", "--depth", "0"]).0, Some(128));
}
