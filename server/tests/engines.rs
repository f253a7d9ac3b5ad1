//! A cluster in which every member runs another storage engine: they must agree.
//!
//! With `--features lmdb,redb,fjall` these are five members with five engines.

mod common;

use common::load::{Load, assert_nothing_lost};
use common::{Cluster, put};
use varve_engine::backend::NAMES;
use varve_types::{CompactionRequest, DeleteRangeRequest};

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

fn engine(index: usize) -> &'static str {
    NAMES[index % NAMES.len()]
}

fn spawn(cluster: &mut Cluster, index: usize) {
    cluster.flags = ["--engine", engine(index)].map(str::to_owned).to_vec();
    cluster.spawn(index);
}
