//! A cluster in which every member runs another storage engine: they must agree.
//!
//! With `--features lmdb,redb,fjall` these are five members with five engines.

mod common;

use common::load::{Load, assert_nothing_lost};
use common::{Cluster, put};
use varve_engine::backend::NAMES;
use varve_protocol::WatchRequest;
use varve_types::{CompactionRequest, DeleteRangeRequest, RangeRequest};

/// Acknowledged writes before anything else is looked at.
const WRITES: u64 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn members_with_different_engines_agree() {
    let count = NAMES.len().max(3);
    let mut cluster = Cluster::prepare(count, &[]);
    for index in 0..count {
        spawn(&mut cluster, index);
    }
    cluster.wait_healthy();
    let load = Load::start(&cluster, 8);
    load.more(WRITES).await;
    // Old versions, deletions and a compaction among the writes.
    let client = cluster.client();
    for round in 0..20 {
        for key in ["changed/a", "changed/b", "changed/c"] {
            put(&client, key, &format!("round {round}")).await.unwrap();
        }
        let delete = DeleteRangeRequest {
            key: b"changed/b",
            range_end: b"changed/c",
            ..DeleteRangeRequest::default()
        };
        client.delete_range(&delete).await.unwrap();
    }
    let revision = put(&client, "changed/d", "last").await.unwrap();
    let compaction = CompactionRequest {
        revision,
        physical: false,
    };
    client.compact(&compaction).await.unwrap();
    load.more(WRITES).await;
    // One that is not the leader goes and comes back.
    let leader = cluster.leader().await;
    let gone = (leader + 1) % count;
    cluster.members[gone].kill();
    load.more(WRITES).await;
    spawn(&mut cluster, gone);
    cluster.wait_healthy();
    load.more(WRITES).await;
    let outcome = load.end().await;
    assert_nothing_lost(&cluster, &outcome.written).await;
    println!(
        "{} writes on {:?}: all members agree",
        outcome.written.len(),
        (0..count).map(engine).collect::<Vec<_>>()
    );
}

/// A snapshot of one engine's member becomes a cluster of others; and whoever saw what is not
/// in it is told so, instead of being shown something else at the same revision.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_restored_on_other_engines_and_stale_watchers_are_told() {
    let mut former = Cluster::start(1, &[]);
    let client = former.members[0].client();
    let mut saved = 0;
    for round in 0..5 {
        for number in 0..40 {
            let value = format!("{round}");
            saved = put(&client, &format!("k{number}"), &value).await.unwrap();
        }
    }
    client
        .delete_range(&DeleteRangeRequest {
            key: b"k39",
            ..DeleteRangeRequest::default()
        })
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db").display().to_string();
    varvectl(&[
        "--endpoints",
        &former.members[0].endpoint(),
        "snapshot",
        "save",
        &file,
    ]);
    let mut stale = 0;
    for number in 0..10 {
        stale = put(&client, &format!("k{number}"), "lost").await.unwrap();
    }
    former.members[0].kill();
    drop(former);

    let kept: Vec<_> = NAMES.iter().filter(|name| **name != "memory").collect();
    let mut cluster = Cluster::prepare(3, &[]);
    for index in 0..3 {
        let engine = kept[(index + 1) % kept.len()];
        let arguments = cluster.arguments(index);
        let mut all = vec!["snapshot", "restore", &file, "--engine", engine];
        for flag in [
            "--name",
            "--initial-cluster",
            "--initial-advertise-peer-urls",
            "--data-dir",
        ] {
            let at = arguments.iter().position(|text| text == flag).unwrap();
            all.extend([flag, &arguments[at + 1]]);
        }
        varvectl(&all);
        cluster.flags = vec!["--engine".to_owned(), (*engine).to_owned()];
        cluster.spawn(index);
    }
    cluster.wait_healthy();
    cluster.assert_same_state().await;
    for member in &cluster.members {
        let all = common::all(&member.client(), "k").await;
        assert_eq!(all.len(), 39);
        assert!(all.iter().all(|(_, value)| value == "4"), "{all:?}");
    }
    let client = cluster.client();
    let status = client.get(b"k1").await.unwrap().unwrap();
    assert_eq!(status.version, 5);
    let revision = client.member_list(true).await.unwrap().header.revision;
    assert_eq!(revision, saved + 1 + 1_000_000_000);
    for from in [
        1,
        2,
        saved - 20,
        saved + 1,
        saved + 2,
        stale,
        stale + 1,
        revision - 1,
    ] {
        let mut watch = client.watch(&WatchRequest {
            key: b"k",
            range_end: b"l",
            start_revision: from,
            ..WatchRequest::default()
        });
        let news = tokio::time::timeout(common::PATIENCE, watch.next()).await;
        let error = news.unwrap().unwrap().unwrap_err();
        assert_eq!(error.compact_revision(), Some(revision), "from {from}");
    }
    let old = client
        .range(&RangeRequest {
            key: b"k1",
            revision: stale,
            ..RangeRequest::default()
        })
        .await;
    assert_eq!(
        old.unwrap_err().to_string(),
        "etcdserver: mvcc: required revision has been compacted"
    );
    // It goes on from there, and members stay the same.
    assert_eq!(put(&client, "k1", "new").await.unwrap(), revision + 1);
    cluster.assert_same_state().await;
    let before = client
        .hash_kv(&cluster.members[0].endpoint(), revision)
        .await;
    for member in &cluster.members {
        let hash = client.hash_kv(&member.endpoint(), revision).await.unwrap();
        assert_eq!(hash.body.hash, before.as_ref().unwrap().body.hash);
    }
}

fn varvectl(arguments: &[&str]) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn engine(index: usize) -> &'static str {
    NAMES[index % NAMES.len()]
}

fn spawn(cluster: &mut Cluster, index: usize) {
    cluster.flags = ["--engine", engine(index)].map(str::to_owned).to_vec();
    cluster.spawn(index);
}
