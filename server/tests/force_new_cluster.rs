//! One member goes on alone after the others are lost.

mod common;

use common::{Cluster, all, get, put, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn one_member_goes_on_alone_with_what_it_has() {
    let mut cluster = Cluster::start(3, &[]);
    let client = cluster.client();
    let mut revision = 0;
    for number in 0..50 {
        revision = put(&client, &format!("k{number:02}"), "v").await.unwrap();
    }
    cluster.assert_same_state().await;
    let former = client.member_list(true).await.unwrap();
    for member in &mut cluster.members {
        member.kill();
    }
    // Alone it has no quorum.
    cluster.spawn(1);
    wait_until("it has no leader", || {
        let (_, body) = cluster.members[1].get("/health");
        body.contains("RAFT NO LEADER")
    });
    cluster.members[1].kill();

    cluster.members[1].extra = vec!["--force-new-cluster".to_owned()];
    cluster.spawn(1);
    cluster.wait_healthy();
    let member = &cluster.members[1];
    let log = member.log();
    assert!(log.contains("forcing a new cluster: member"), "{log}");
    let list = member.client().member_list(true).await.unwrap();
    assert_eq!(list.header.cluster_id, former.header.cluster_id);
    let ids: Vec<_> = list.body.members.iter().map(|member| member.id).collect();
    assert_eq!(ids, [list.header.member_id]);
    assert_eq!(list.header.revision, revision);
    assert_eq!(all(&member.client(), "k").await.len(), 50);
    let next = put(&member.client(), "after", "alone").await.unwrap();
    assert_eq!(next, revision + 1);

    // With the flag once more, and without it.
    cluster.members[1].kill();
    cluster.spawn(1);
    cluster.wait_healthy();
    assert!(cluster.members[1].log().contains("is alone already"));
    cluster.members[1].kill();
    cluster.members[1].extra.clear();
    cluster.spawn(1);
    cluster.wait_healthy();
    let found = get(&cluster.members[1].client(), "after").await;
    assert_eq!(found.as_deref(), Some("alone"));

    // A former member is told that it is none any more.
    cluster.spawn(0);
    cluster.members[0].ended();
    let log = cluster.members[0].log();
    assert!(
        log.contains("permanently removed from the cluster"),
        "{log}"
    );

    // The cluster grows again.
    let client = cluster.members[1].client();
    let url = cluster.members[2].peer_url();
    client.member_add(&[url], false).await.unwrap();
    std::fs::remove_dir_all(&cluster.members[2].data_dir).unwrap();
    let (own, joining) = (&cluster.members[1], &cluster.members[2]);
    let list = [own, joining].map(|member| format!("{}={}", member.name, member.peer_url()));
    cluster.members[2].joins = Some(list.join(","));
    cluster.spawn(2);
    cluster.wait_healthy();
    cluster.assert_same_state().await;
    assert_eq!(all(&cluster.members[2].client(), "k").await.len(), 50);
}
