//! `varvectl defrag`: free space goes back to the file system while the node serves.

mod common;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Cluster, PATIENCE};
use varve_client::{Client, ClientConfig};
use varve_types::{CompactionRequest, DeleteRangeRequest, PutRequest};

const KEYS: usize = 400;
const MIB: i64 = 1 << 20;

fn key(number: usize) -> String {
    format!(
        "{}/{number:04}",
        if number.is_multiple_of(2) {
            "go"
        } else {
            "stay"
        }
    )
}

fn value(number: usize) -> Vec<u8> {
    vec![number as u8; 16 << 10]
}

/// A client that waits for a slow disk.
fn patient(endpoint: &str) -> Client {
    let config = ClientConfig {
        command_timeout: 2 * PATIENCE,
        ..ClientConfig::default()
    };
    Client::new(&[endpoint], config).unwrap()
}

async fn put(client: &Client, key: &str, value: &[u8]) -> i64 {
    let request = PutRequest {
        key: key.as_bytes(),
        value,
        ..PutRequest::default()
    };
    client.put(&request).await.unwrap().header.revision
}

/// Bytes of the file, and those that hold nothing.
async fn sizes(client: &Client, endpoint: &str) -> (i64, i64) {
    let status = client.status(endpoint).await.unwrap().body;
    (status.db_size, status.db_size - status.db_size_in_use)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_shrinks_and_the_data_stays() {
    let cluster = Cluster::start(1, &[]);
    let endpoint = cluster.members[0].endpoint();
    let client = patient(&endpoint);
    for number in 0..KEYS {
        put(&client, &key(number), &value(number)).await;
    }
    let delete = DeleteRangeRequest {
        key: b"go/",
        range_end: b"go0",
        ..DeleteRangeRequest::default()
    };
    let deleted = client.delete_range(&delete).await.unwrap();
    assert_eq!(deleted.body.deleted, KEYS as i64 / 2);
    // The history need not be gone: what it frees is given back as well. It is too
    // little for the node to begin by itself.
    let compaction = CompactionRequest {
        revision: deleted.header.revision,
        physical: false,
    };
    client.compact(&compaction).await.unwrap();
    let (before, _) = sizes(&client, &endpoint).await;
    let vacuums = || cluster.members[0].metric("varve_store_vacuum_in_progress");
    assert_eq!(vacuums(), 0.0);

    let is_over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let traffic = tokio::spawn({
        let (client, is_over, served) = (client.clone(), is_over.clone(), served.clone());
        async move {
            while !is_over.load(Ordering::Relaxed) {
                let number = served.fetch_add(1, Ordering::Relaxed);
                put(&client, "busy", &number.to_le_bytes()).await;
                let found = client.get(b"busy").await.unwrap().unwrap();
                assert_eq!(found.value[..], number.to_le_bytes());
            }
        }
    });
    let mut seen_vacuum = false;
    let watch = async {
        while !is_over.load(Ordering::Relaxed) {
            seen_vacuum |= vacuums() == 1.0;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let both = async {
        let both = tokio::join!(client.defragment(&endpoint), client.defragment(&endpoint));
        is_over.store(true, Ordering::Relaxed);
        both
    };
    let ((first, second), ()) = tokio::join!(both, watch);
    assert!(seen_vacuum);
    assert!(first.unwrap().header.revision >= deleted.header.revision);
    second.unwrap();
    traffic.await.unwrap();
    for name in [
        "readers",
        "oldest_reader_states",
        "pinned_bytes",
        "checkpoint_pending_bytes",
    ] {
        let figure = cluster.members[0].metric(&format!("varve_store_{name}"));
        assert!((0.0..before as f64).contains(&figure), "{name}: {figure}");
    }
    assert!(served.load(Ordering::Relaxed) > 1);
    let (after, spare) = sizes(&client, &endpoint).await;
    assert!(
        after < before - 2 * MIB && spare < 2 * MIB,
        "{before} bytes before, {after} after, {spare} spare"
    );

    // Nothing is left to give back, and it is said in etcd's words.
    let done = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(["--endpoints", &format!("{endpoint},127.0.0.1:1"), "defrag"])
        .args(["--command-timeout", "60s", "--dial-timeout", "200ms"])
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        format!("Finished defragmenting etcd member[{endpoint}]\n")
    );
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(
        errors.starts_with("Failed to defragment etcd member[127.0.0.1:1] (")
            && errors.lines().count() == 1,
        "{errors}"
    );

    for number in 0..KEYS {
        let found = client.get(key(number).as_bytes()).await.unwrap();
        let expected = (number % 2 == 1).then(|| value(number));
        assert_eq!(found.map(|kv| kv.value.to_vec()), expected, "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_free_space_says_so_at_once() {
    let cluster = Cluster::start(1, &["--engine", "memory"]);
    let endpoint = cluster.members[0].endpoint();
    let client = patient(&endpoint);
    put(&client, "k", b"v").await;
    client.defragment(&endpoint).await.unwrap();
    assert!(client.get(b"k").await.unwrap().is_some());
}
