//! Snapshots with real processes: taken from one node, looked at, and restored into
//! a cluster of three.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Cluster, Member, put};
use varve_types::{CompactionRequest, DeleteRangeRequest, KeyValue, RangeRequest};

/// varvectl; standard output, standard error and exit code.
fn varvectl(arguments: &[&str]) -> (String, String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        text(output.stdout),
        text(output.stderr),
        output.status.code(),
    )
}

/// More than a window of credit, with keys that were overwritten, deleted and compacted.
async fn fill(member: &Member) {
    let client = member.client();
    let value = "v".repeat(40_000);
    for number in 0..200 {
        let key = format!("key{number:03}");
        put(&client, &key, &format!("{number}{value}"))
            .await
            .unwrap();
        put(&client, "counter", &number.to_string()).await.unwrap();
    }
    let revision = put(&client, "last", "before the compaction").await.unwrap();
    let request = CompactionRequest {
        revision: revision - 100,
        physical: true,
    };
    client.compact(&request).await.unwrap();
    let request = DeleteRangeRequest {
        key: b"key01",
        range_end: b"key02",
        ..DeleteRangeRequest::default()
    };
    assert_eq!(
        client.delete_range(&request).await.unwrap().body.deleted,
        10
    );
}

async fn everything(member: &Member, revision: i64) -> (Vec<KeyValue>, u128) {
    let client = member.client();
    let request = RangeRequest {
        key: &[0],
        range_end: &[0],
        revision,
        serializable: true,
        ..RangeRequest::default()
    };
    let kvs = client.range(&request).await.unwrap().body.kvs;
    let hash = client.hash_kv(&member.endpoint(), revision).await.unwrap();
    (kvs, hash.body.hash)
}

/// Saves a snapshot of a filled node to a file in `directory`; what it holds, with the
/// revision.
async fn saved(file: &Path) -> (i64, [(Vec<KeyValue>, u128); 2]) {
    let cluster = Cluster::start(1, &[]);
    let member = &cluster.members[0];
    fill(member).await;
    let hash = member
        .client()
        .hash_kv(&member.endpoint(), 0)
        .await
        .unwrap();
    let revision = hash.body.hash_revision;
    let states = [
        everything(member, revision).await,
        everything(member, revision - 50).await,
    ];
    let path = file.to_str().unwrap();
    let endpoint = member.endpoint();
    let (out, error, code) = varvectl(&["--endpoints", &endpoint, "snapshot", "save", path]);
    assert_eq!(
        (out, error.as_str(), code),
        (format!("Snapshot saved at {path}\n"), "", Some(0))
    );
    assert!(!file.with_extension("db.part").exists());
    let (out, _, code) = varvectl(&["snapshot", "status", path, "-w", "json"]);
    let size = std::fs::metadata(file).unwrap().len();
    assert!(
        size > 6 << 20,
        "it takes more than a window of credit: {size}"
    );
    assert_eq!(
        (out, code),
        (
            format!(
                "{{\"hash\":{},\"revision\":{revision},\"totalKey\":192,\"totalSize\":{size}}}\n",
                hash.body.hash32()
            ),
            Some(0)
        )
    );
    (revision, states)
}

/// Restores the data directory of one member.
fn restore(cluster: &Cluster, index: usize, file: &Path) -> (String, String, Option<i32>) {
    let arguments = cluster.arguments(index);
    let value = |flag: &str| {
        let at = arguments.iter().position(|text| text == flag).unwrap();
        arguments[at + 1].clone()
    };
    let mut all = ["snapshot", "restore", "--bump-revision", "0"]
        .map(str::to_owned)
        .to_vec();
    all.push(file.display().to_string());
    for flag in [
        "--name",
        "--initial-cluster",
        "--initial-advertise-peer-urls",
        "--data-dir",
    ] {
        all.extend([flag.to_owned(), value(flag)]);
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    varvectl(&all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_becomes_a_cluster_of_three() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db");
    let (revision, states) = saved(&file).await;

    let mut cluster = Cluster::prepare(3, &[]);
    for index in 0..3 {
        let (_, error, code) = restore(&cluster, index, &file);
        assert_eq!(code, Some(0), "{error}");
    }
    let (_, error, code) = restore(&cluster, 0, &file);
    let path = cluster.members[0].data_dir.display().to_string();
    assert_eq!(
        (error, code),
        (
            format!("Error: data-dir {path:?} not empty or could not be read\n"),
            Some(1)
        )
    );
    for index in 0..3 {
        cluster.spawn(index);
    }
    cluster.wait_healthy();
    for member in &cluster.members {
        for (state, revision) in states.iter().zip([revision, revision - 50]) {
            assert!(
                everything(member, revision).await == *state,
                "{}",
                member.name
            );
        }
    }
    // It goes on as one cluster of these members, through a change of the leader.
    let client = cluster.client();
    let members = client.member_list(true).await.unwrap();
    assert_eq!(members.body.members.len(), 3);
    assert_eq!(put(&client, "new", "value").await.unwrap(), revision + 1);
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    cluster.leader().await;
    common::wait_until("the others elect", || {
        let others = cluster.members.iter().filter(|member| member.is_running());
        others.clone().count() == 2
            && others
                .clone()
                .all(|member| member.get("/health").0.contains(" 200 "))
    });
    put(&cluster.client(), "newer", "value").await.unwrap();
    cluster.spawn(leader);
    cluster.wait_healthy();
    cluster.assert_same_state().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db");
    saved(&file).await;
    let whole = std::fs::read(&file).unwrap();
    let cluster = Cluster::prepare(1, &[]);
    let data_dir = &cluster.members[0].data_dir;
    let path = file.display().to_string();
    for (bytes, says) in [
        (
            {
                let mut bytes = whole.clone();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                bytes
            },
            "damaged at offset ",
        ),
        (
            whole[..whole.len() / 2].to_vec(),
            "it is cut off: at offset ",
        ),
        (
            b"not a snapshot, whatever".to_vec(),
            "it is not a snapshot of varve",
        ),
    ] {
        std::fs::write(&file, bytes).unwrap();
        for (_, error, code) in [
            restore(&cluster, 0, &file),
            varvectl(&["snapshot", "status", &path]),
        ] {
            let begins = format!("Error: snapshot {path}: {says}");
            assert!(error.starts_with(&begins), "{error}");
            assert_eq!(code, Some(1));
        }
        let left = std::fs::read_dir(data_dir.parent().unwrap())
            .unwrap()
            .count();
        assert_eq!(left, 0, "a failed restore leaves nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn save_refuses_as_etcdctl_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x").display().to_string();
    let (_, error, code) = varvectl(&["--endpoints", "a:1,b:2", "snapshot", "save", &path]);
    assert_eq!(
        (error.as_str(), code),
        (
            "Error: snapshot must be requested to one selected node, not multiple [a:1 b:2]\n",
            Some(5)
        )
    );
    let (_, error, code) = varvectl(&["snapshot", "save"]);
    assert_eq!(
        (error.as_str(), code),
        ("Error: snapshot save expects one argument\n", Some(128))
    );
    let timeout = ["--dial-timeout", "300ms"];
    let endpoint = format!("127.0.0.1:{}", common::free_port());
    let (_, _, code) = varvectl(&[
        timeout[0],
        timeout[1],
        "--endpoints",
        &endpoint,
        "snapshot",
        "save",
        &path,
    ]);
    assert_eq!(code, Some(1));
    assert!(!Path::new(&format!("{path}.part")).exists());
}

/// Whoever asks for a snapshot and takes nothing must not keep old pages for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_holds_no_pages_for_long() {
    const BEHIND: &str = "varve_store_oldest_reader_states";
    let cluster = Cluster::start(1, &[]);
    let member = &cluster.members[0];
    let client = member.client();
    let value = "v".repeat(100_000);
    for number in 0..300 {
        put(&client, &format!("k{number}"), &value).await.unwrap();
    }
    let mut snapshot = client.snapshot(&member.endpoint()).await.unwrap();
    snapshot.next().await.unwrap().unwrap();
    let before = member.anonymous_bytes();
    let started = Instant::now();
    let mut most: f64 = 0.0;
    loop {
        // A small one: the newest entries of the log are in memory as well.
        put(&client, "k0", "v").await.unwrap();
        let behind = member.metric(BEHIND);
        most = most.max(behind);
        if most >= 20.0 && behind < 5.0 {
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(90),
            "it holds on: {behind}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("let go after {:?}, {most} states behind", started.elapsed());
    assert!(
        started.elapsed() > Duration::from_secs(10),
        "no time was given"
    );
    let grown = member.anonymous_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    let end = loop {
        match snapshot.next().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    let error = end.unwrap_err().to_string();
    assert!(error.contains("taken in too slowly"), "{error}");
}
