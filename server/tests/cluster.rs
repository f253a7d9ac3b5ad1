//! Three members: election, replication, crashes, catching up.

mod common;

use std::time::{Duration, Instant};

use common::load::{Load, assert_nothing_lost};
use common::{Cluster, all, get, put};

const CHECKPOINTS: &str = "etcd_disk_backend_commit_duration_seconds_count";

#[tokio::test(flavor = "multi_thread")]
async fn members_elect_replicate_and_agree() {
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    put(&cluster.members[follower].client(), "foo", "bar")
        .await
        .unwrap();
    for member in [leader, follower, other] {
        let value = get(&cluster.members[member].client(), "foo").await;
        assert_eq!(value.as_deref(), Some("bar"));
    }
    cluster.assert_same_state().await;

    // Each member publishes its URLs once there is a leader.
    for member in &cluster.members {
        let client_url = format!("http://{}", member.endpoint());
        for asked in &cluster.members {
            common::wait_until("every member knows every other", || {
                let (_, body) = common::http_get(asked.peer_port, "/members");
                body.contains(&client_url)
            });
        }
    }
    let members = cluster
        .client()
        .member_list(true)
        .await
        .unwrap()
        .body
        .members;
    let mut known: Vec<_> = members
        .iter()
        .map(|member| (member.name.clone(), member.client_urls.clone()))
        .collect();
    known.sort();
    let expected: Vec<_> = cluster
        .members
        .iter()
        .map(|member| {
            (
                member.name.clone(),
                vec![format!("http://{}", member.endpoint())],
            )
        })
        .collect();
    assert_eq!(known, expected);
    let status = cluster
        .client()
        .status(&cluster.members[other].endpoint())
        .await
        .unwrap();
    assert_ne!(status.body.leader, 0);
    assert_ne!(status.body.leader, status.header.member_id);
    assert!(status.body.errors.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_nothing() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::start(&cluster, 8);
    load.more(500).await;
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    let pause = load.more(1).await;
    load.more(500).await;
    cluster.spawn(leader);
    cluster.wait_healthy();
    load.more(500).await;
    let written = load.end().await.written;
    assert!(written.len() >= 1500);
    assert_nothing_lost(&cluster, &written).await;
    // 1.5 election timeouts are the promise; the machine of a test may be busy.
    println!("writes went on {pause:?} after the leader was killed");
    assert!(pause < Duration::from_secs(5), "{pause:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_killed_at_once_lose_nothing() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::start(&cluster, 8);
    load.more(500).await;
    for member in &mut cluster.members {
        member.kill();
    }
    for index in 0..3 {
        cluster.spawn(index);
    }
    cluster.wait_healthy();
    load.more(200).await;
    let written = load.end().await.written;
    assert_nothing_lost(&cluster, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_far_behind_comes_back_by_snapshot() {
    let flags = ["--snapshot-count", "50", "--snapshot-catchup-entries", "5"];
    let mut cluster = Cluster::start(3, &flags);
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    cluster.members[behind].kill();
    let client = cluster.members[leader].client();
    let value = "x".repeat(10_000);
    for number in 0..200 {
        put(&client, &format!("k{number:04}"), &value)
            .await
            .unwrap();
    }
    // The log behind a checkpoint goes; checkpoints are made from time to time.
    let checkpoints = cluster.members[leader].metric(CHECKPOINTS);
    common::wait_until("the leader makes a checkpoint", || {
        cluster.members[leader].metric(CHECKPOINTS) > checkpoints
    });
    cluster.spawn(behind);
    cluster.wait_healthy();
    cluster.assert_same_state().await;
    let log = cluster.members[behind].log();
    assert!(
        log.contains("is installed"),
        "no snapshot in the log:\n{log}"
    );
    // It works after, too, and after another restart.
    put(&client, "after", "snapshot").await.unwrap();
    cluster.members[behind].kill();
    cluster.spawn(behind);
    cluster.wait_healthy();
    let found = get(&cluster.members[behind].client(), "after").await;
    assert_eq!(found.as_deref(), Some("snapshot"));
    assert_eq!(all(&cluster.members[behind].client(), "k").await.len(), 200);
    cluster.assert_same_state().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_hands_leadership_over() {
    // Without a transfer the others would wait for this long.
    let mut cluster = Cluster::start(3, &["--election-timeout", "5000"]);
    let leader = cluster.leader().await;
    assert!(cluster.members[leader].signal("TERM").success());
    let started = Instant::now();
    put(&cluster.client(), "k", "v").await.unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(2500),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_quorum_is_said() {
    let mut cluster = Cluster::start(
        3,
        &["--heartbeat-interval", "20", "--election-timeout", "200"],
    );
    put(&cluster.client(), "k", "v").await.unwrap();
    cluster.members[1].kill();
    cluster.members[2].kill();
    let member = &cluster.members[0];
    common::wait_until("the leader is gone", || {
        let (status, body) = member.get("/health");
        status.contains(" 503 ") && body.contains("RAFT NO LEADER")
    });
    let (status, body) = member.get("/health?serializable=true");
    assert!(status.contains(" 200 "), "{status}");
    assert_eq!(body, "{\"health\":\"true\",\"reason\":\"\"}");
    assert!(
        member
            .get("/metrics")
            .1
            .contains("\netcd_server_has_leader 0\n")
    );
}
