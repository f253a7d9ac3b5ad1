//! Changes of the membership and clean hand-overs, with real processes.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::load::{Load, assert_nothing_lost};
use common::{Cluster, client, put, run_to_end, wait_until};
use varve_protocol::{Member, WatchRequest};
use varve_types::ApiError;

const REMOVED: &str = "the member has been permanently removed from the cluster";

/// varvectl at these endpoints; standard output, standard error and exit code.
fn varvectl(endpoints: &[String], arguments: &[&str]) -> (String, String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(["--endpoints", &endpoints.join(",")])
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

/// The error that varvectl ends with, without the line break.
fn refusal(endpoints: &[String], arguments: &[&str]) -> String {
    let (output, errors, code) = varvectl(endpoints, arguments);
    assert_eq!(
        (output.as_str(), code),
        ("", Some(1)),
        "{arguments:?}: {errors}"
    );
    errors.trim_end().to_owned()
}

/// The endpoints of those that serve.
fn serving(cluster: &Cluster) -> Vec<String> {
    let running = cluster.members.iter().filter(|member| member.is_running());
    running.map(common::Member::endpoint).collect()
}

/// The member of this peer URL, as the cluster has it.
async fn known(cluster: &Cluster, index: usize) -> Member {
    let list = client(&serving(cluster)).member_list(true).await.unwrap();
    let url = cluster.members[index].peer_url();
    let mut members = list.body.members.into_iter();
    members
        .find(|member| member.peer_urls == [url.clone()])
        .unwrap()
}

/// Adds a member with varvectl, and starts it with the lines that this prints.
fn add(cluster: &mut Cluster, index: usize, learner: bool) {
    let endpoints = serving(cluster);
    let (name, url) = (
        cluster.members[index].name.clone(),
        cluster.members[index].peer_url(),
    );
    let urls = format!("--peer-urls={url}");
    let mut arguments = vec!["member", "add", &name, &urls];
    if learner {
        arguments.push("--learner=keep");
    }
    // A member that has just joined is not counted before it was heard of.
    let mut said = (String::new(), String::new(), None);
    wait_until("the member is added", || {
        said = varvectl(&endpoints, &arguments);
        said.2 == Some(0)
    });
    let line = |name: &str| {
        let lines = said.0.lines();
        let value = lines
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .next();
        value
            .unwrap_or_else(|| panic!("{said:?}"))
            .trim_matches('"')
            .to_owned()
    };
    assert_eq!(line("VARVE_NAME"), name);
    assert_eq!(line("VARVE_INITIAL_ADVERTISE_PEER_URLS"), url);
    assert_eq!(line("VARVE_INITIAL_CLUSTER_STATE"), "existing");
    cluster.members[index].joins = Some(line("VARVE_INITIAL_CLUSTER"));
    cluster.spawn(index);
}

async fn promote(cluster: &Cluster, index: usize) {
    let id = format!("{:x}", known(cluster, index).await.id);
    let endpoints = serving(cluster);
    wait_until("the learner is promoted", || {
        let (_, errors, code) = varvectl(&endpoints, &["member", "promote", &id]);
        let not_yet = "can only promote a learner member which is in sync with leader";
        assert!(code == Some(0) || errors.contains(not_yet), "{errors}");
        code == Some(0)
    });
    cluster.wait_healthy();
}

/// Removes a member; it ends by itself, as etcd does.
async fn remove(cluster: &mut Cluster, index: usize) {
    let id = known(cluster, index).await.id;
    let endpoints = serving(cluster);
    let mut said = (String::new(), String::new(), None);
    wait_until("the member is removed", || {
        said = varvectl(&endpoints, &["member", "remove", &format!("{id:x}")]);
        said.2 == Some(0)
    });
    assert!(
        said.0
            .starts_with(&format!("Member {id:>16x} removed from cluster ")),
        "{said:?}"
    );
    let member = &mut cluster.members[index];
    assert_eq!(member.ended().code(), Some(0), "as in etcd");
    let log = member.log();
    assert!(log.contains(REMOVED), "{log}");
    assert!(
        log.contains("the data-dir used by this member must be removed"),
        "{log}"
    );
    assert_stays_removed(cluster, index, id);
}

/// The data directory of a removed member is refused, and the text says why.
fn assert_stays_removed(cluster: &Cluster, index: usize, id: u64) {
    let arguments = cluster.arguments(index);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (code, text) = run_to_end(&arguments, cluster.path());
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "has been permanently removed from",
        "the data-dir used by this member must be removed",
        &format!("{id:x}"),
        &cluster.members[index].data_dir.display().to_string(),
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// From one to three (or `VARVE_TEST_MEMBERS`) and back to one, under load.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_and_shrinks_under_load() {
    let count = std::env::var("VARVE_TEST_MEMBERS");
    let count: usize = count.map_or(3, |count| count.parse().unwrap());
    let mut cluster = Cluster::found(1, count, &[]);
    let load = Load::start(&cluster, 4);
    load.more(200).await;
    for index in 1..count {
        add(&mut cluster, index, true);
        promote(&cluster, index).await;
        load.more(100).await;
    }
    let list = cluster
        .client()
        .member_list(true)
        .await
        .unwrap()
        .body
        .members;
    assert_eq!(list.len(), count);
    wait_until("all members have published themselves", || {
        let endpoints = serving(&cluster);
        let (list, _, _) = varvectl(&endpoints, &["member", "list", "--consistency=s"]);
        !list.contains("unstarted") && list.lines().count() == count
    });
    cluster.assert_same_state().await;
    // One that has joined starts again with the same flags.
    cluster.members[count - 1].kill();
    cluster.spawn(count - 1);
    cluster.wait_healthy();
    for left in (1..count).rev() {
        // The leader first, then whoever comes: the first member stays.
        let leader = cluster.leader().await;
        let index = match leader {
            0 => (1..count)
                .find(|index| cluster.members[*index].is_running())
                .unwrap(),
            leader => leader,
        };
        remove(&mut cluster, index).await;
        load.more(100).await;
        assert_eq!(serving(&cluster).len(), left);
    }
    let outcome = load.end().await;
    println!(
        "{} writes, the slowest took {:?}; failed: {:?}",
        outcome.written.len(),
        outcome.slowest,
        outcome.failed
    );
    assert_nothing_lost(&cluster, &outcome.written).await;
    // What is left works on its own, also after a restart.
    cluster.members[0].kill();
    cluster.spawn(0);
    cluster.wait_healthy();
    assert_nothing_lost(&cluster, &outcome.written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_refused_in_etcds_words() {
    let mut cluster = Cluster::found(3, 5, &[]);
    let endpoints = serving(&cluster);
    let leader = cluster.leader().await;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = |member: &Member| format!("{:x}", member.id);
    let leader_id = id(&known(&cluster, leader).await);
    let other_id = id(&known(&cluster, other).await);
    let taken = format!("--peer-urls={}", cluster.members[0].peer_url());
    let fresh = format!("--peer-urls={}", cluster.members[3].peer_url());
    let no_url = cluster
        .client()
        .member_add(&["ftp://x".to_owned()], false)
        .await;
    let no_url = no_url.unwrap_err().to_string();
    assert_eq!(no_url, "etcdserver: given member URLs are invalid");
    let at_follower = [cluster.members[follower].endpoint()];
    for (arguments, text) in [
        (
            &["member", "remove", "1f"][..],
            "etcdserver: member not found",
        ),
        (&["member", "promote", "1f"], "etcdserver: member not found"),
        (
            &["member", "promote", &other_id],
            "etcdserver: can only promote a learner member",
        ),
        (
            &["member", "update", "1f", &fresh],
            "etcdserver: member not found",
        ),
        (
            &["member", "add", "n4", &taken],
            "etcdserver: Peer URLs already exists",
        ),
        (
            &[
                "member",
                "add",
                "n4",
                &fresh,
                &format!("{taken},{}", &fresh[12..]),
            ],
            "etcdserver: Peer URLs already exists",
        ),
    ] {
        // The leader decides, whoever is asked.
        assert_eq!(
            refusal(&at_follower, arguments),
            format!("Error: {text}"),
            "{arguments:?}"
        );
    }
    let no_leader = varvectl(&at_follower, &["move-leader", &other_id]);
    assert_eq!(
        no_leader.1,
        format!("Error: no leader endpoint given at [{}]\n", at_follower[0])
    );
    assert_eq!(no_leader.2, Some(128));
    let moved = varvectl(&endpoints, &["move-leader", &other_id]);
    assert_eq!(
        moved.0,
        format!("Leadership transferred from {leader_id} to {other_id}\n")
    );
    assert_eq!(cluster.leader().await, other);

    // A learner that has not started, and one that has.
    let (name, url) = (
        cluster.members[3].name.clone(),
        cluster.members[3].peer_url(),
    );
    let added = cluster.client().member_add(&[url], true).await.unwrap();
    assert!(added.body.member.is_learner && added.body.members.len() == 4);
    let learner_id = id(&added.body.member);
    let second = format!("--peer-urls={}", cluster.members[4].peer_url());
    for (arguments, text) in [
        (
            &["member", "promote", &learner_id][..],
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        (
            &["member", "add", "n5", "--learner", &second],
            "etcdserver: too many learner members in cluster",
        ),
        (
            &["move-leader", &learner_id],
            "etcdserver: bad leader transferee",
        ),
    ] {
        assert_eq!(
            refusal(&endpoints, arguments),
            format!("Error: {text}"),
            "{arguments:?}"
        );
    }
    let listed: Vec<_> = [0, 1, 2, 3]
        .map(|index| format!("n{}={}", index + 1, cluster.members[index].peer_url()))
        .to_vec();
    assert_eq!(name, "n4");
    cluster.members[3].joins = Some(listed.join(","));
    cluster.spawn(3);
    let member = &cluster.members[3];
    let status = |member: &common::Member| {
        let (table, _, _) = varvectl(&[member.endpoint()], &["endpoint", "status"]);
        table
    };
    wait_until("the learner knows the leader", || {
        let row = status(member);
        row.contains(", false, true, ") && !row.contains("no leader")
    });
    let at_learner = [member.endpoint()];
    for arguments in [
        &["put", "k", "v"][..],
        &["get", "k"],
        &["member", "list"],
        &["member", "remove", &leader_id],
        &["compact", "2"],
    ] {
        assert_eq!(
            refusal(&at_learner, arguments),
            "Error: etcdserver: rpc not supported for learner",
            "{arguments:?}"
        );
    }
    // A watch goes on at a member that serves it; where none does, it says so.
    let watched = WatchRequest {
        key: b"k",
        ..WatchRequest::default()
    };
    let both = [at_learner[0].clone(), endpoints[0].clone()];
    client(&both).watch(&watched).opened().await.unwrap();
    let refused = client(&at_learner).watch(&watched).opened().await;
    let refused = refused.unwrap_err().api();
    assert_eq!(refused, Some(ApiError::NotSupportedForLearner));
    put(&cluster.client(), "k", "v").await.unwrap();
    wait_until("the learner has it", || {
        varvectl(&at_learner, &["get", "k", "--consistency=s"]).0 == "k\nv\n"
    });
    promote(&cluster, 3).await;
    assert_eq!(varvectl(&at_learner, &["get", "k"]).0, "k\nv\n");

    // With members down: what costs the quorum is refused, what helps is not.
    cluster.members[0].kill();
    let endpoints = serving(&cluster);
    let add_voter = ["member", "add", "n5", &second];
    wait_until("the cluster is not healthy", || {
        let (_, errors, code) = varvectl(&endpoints, &add_voter);
        assert_ne!(code, Some(0));
        errors == "Error: etcdserver: unhealthy cluster\n"
    });
    let down = id(&known(&cluster, 0).await);
    assert_eq!(
        varvectl(&endpoints, &["member", "remove", &down]).2,
        Some(0)
    );
    // Three are left; two of them unstarted would be too many.
    let list = client(&endpoints)
        .member_list(true)
        .await
        .unwrap()
        .body
        .members;
    assert_eq!(list.len(), 3);

    // Told while it was down: its peers say so when it comes back.
    let removed_id = u64::from_str_radix(&down, 16).unwrap();
    cluster.spawn(0);
    assert_eq!(cluster.members[0].ended().code(), Some(0));
    let log = cluster.members[0].log();
    assert!(log.contains(REMOVED), "{log}");
    assert_stays_removed(&cluster, 0, removed_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn unstarted_members_count_against_the_quorum() {
    let mut cluster = Cluster::found(1, 3, &[]);
    let endpoints = serving(&cluster);
    let own = format!("{:x}", known(&cluster, 0).await.id);
    let not_enough = "Error: etcdserver: re-configuration failed due to not enough started members";
    assert_eq!(refusal(&endpoints, &["member", "remove", &own]), not_enough);
    // The second one may come; it must start before the third.
    add(&mut cluster, 1, false);
    cluster.wait_healthy();
    let urls = format!("--peer-urls={}", cluster.members[2].peer_url());
    let third = ["member", "add", "n3", &urls];
    wait_until("the third is added", || {
        varvectl(&endpoints, &third).2 == Some(0)
    });
    // Two of three have started: neither may go, and no fourth may come.
    let second = format!("{:x}", known(&cluster, 1).await.id);
    assert_eq!(
        refusal(&endpoints, &["member", "remove", &second]),
        not_enough
    );
    let fourth = ["member", "add", "n4", "--peer-urls=http://127.0.0.1:9"];
    assert_eq!(refusal(&endpoints, &fourth), not_enough);
    let unstarted = format!("{:x}", known(&cluster, 2).await.id);
    assert_eq!(
        varvectl(&endpoints, &["member", "remove", &unstarted]).2,
        Some(0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_does_not_start() {
    let mut cluster = Cluster::found(3, 5, &[]);
    for index in 0..3 {
        let published = known(&cluster, index).await;
        assert_eq!(published.name, cluster.members[index].name);
    }
    let run = |cluster: &Cluster, index: usize| {
        let arguments = cluster.arguments(index);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (code, text) = run_to_end(&arguments, cluster.path());
        assert_eq!(code, Some(1), "{text}");
        text
    };
    let url = |index: usize| format!("n{}={}", index + 1, cluster.members[index].peer_url());
    let urls: Vec<_> = (0..5).map(url).collect();
    let cluster_id = cluster
        .client()
        .member_list(true)
        .await
        .unwrap()
        .header
        .cluster_id;

    // It was not added.
    cluster.members[3].joins = Some(urls[..4].join(","));
    let text = run(&cluster, 3);
    assert!(text.contains(&format!(
        "error validating peerURLs {{ClusterID:{cluster_id:x} "
    )));
    assert!(text.contains("}: member count is unequal"), "{text}");
    // Another one was.
    let other = cluster.members[4].peer_url();
    let added = cluster
        .client()
        .member_add(std::slice::from_ref(&other), true)
        .await
        .unwrap();
    let id = added.body.member.id;
    let text = run(&cluster, 3);
    let expected = format!("PeerURLs: no match found for existing member ({id:x}, {other})");
    assert!(text.contains(&expected), "{text}");
    // Nobody is there to ask.
    cluster.members[3].joins = Some(format!(
        "n1=http://127.0.0.1:{},{}",
        common::free_port(),
        urls[3]
    ));
    let text = run(&cluster, 3);
    let expected = "cannot fetch cluster info from peer urls: could not retrieve cluster \
                    information from the given URLs";
    assert!(text.contains(expected), "{text}");
    // It would form a cluster of its own beside the one that is there.
    cluster.members[3].joins = None;
    cluster.flags = vec!["--initial-cluster".to_owned(), urls[..4].join(",")];
    let text = run(&cluster, 3);
    assert!(text.contains("cluster ID mismatch"), "{text}");
    assert!(
        text.contains(&format!("belongs to cluster {cluster_id:x}")),
        "{text}"
    );
    cluster.flags.clear();

    // One that has lost its data directory must not come back as if it had it.
    let wiped = known(&cluster, 1).await.id;
    wait_until("all have published themselves", || {
        let (list, _, _) = varvectl(&serving(&cluster), &["member", "list"]);
        list.matches("http://").count() == 7
    });
    cluster.members[1].kill();
    std::fs::remove_dir_all(&cluster.members[1].data_dir).unwrap();
    cluster.flags = vec!["--auto-heal=false".to_owned()];
    for joins in [None, Some([&urls[..3], &urls[4..]].concat().join(","))] {
        cluster.members[1].joins = joins;
        let text = run(&cluster, 1);
        let expected =
            format!("member {wiped:x} of cluster {cluster_id:x} has already been bootstrapped");
        assert!(text.contains(&expected), "{text}");
    }
    cluster.flags.clear();
    // Replaced, it comes back under another id.
    let endpoints = serving(&cluster);
    for member in [id, wiped] {
        let removed = varvectl(&endpoints, &["member", "remove", &format!("{member:x}")]);
        assert_eq!(removed.2, Some(0), "{removed:?}");
    }
    add(&mut cluster, 1, true);
    promote(&cluster, 1).await;
    assert_ne!(known(&cluster, 1).await.id, wiped);
    cluster.assert_same_state().await;
}

/// Learners get their vote by themselves, also under load, and in the order of
/// `--learner` and `--learner=keep`: the one does, the other does not.
#[tokio::test(flavor = "multi_thread")]
async fn learners_are_promoted_once_they_have_caught_up() {
    let mut cluster = Cluster::found(1, 3, &["--max-learners", "2"]);
    let load = Load::start(&cluster, 4);
    load.more(200).await;
    add(&mut cluster, 2, true);
    // Whose list of the members lacks one that is added meanwhile does not join.
    cluster.wait_healthy();
    let (name, url) = (
        cluster.members[1].name.clone(),
        cluster.members[1].peer_url(),
    );
    let endpoints = serving(&cluster)[..1].to_vec();
    let urls = format!("--peer-urls={url}");
    let said = varvectl(&endpoints, &["member", "add", &name, "--learner", &urls]);
    assert_eq!(said.2, Some(0), "{said:?}");
    // Not before it has started.
    load.more(200).await;
    assert!(known(&cluster, 1).await.is_learner);
    let listed: Vec<_> = [0, 1, 2]
        .map(|index| format!("n{}={}", index + 1, cluster.members[index].peer_url()))
        .to_vec();
    cluster.members[1].joins = Some(listed.join(","));
    cluster.spawn(1);
    let started = Instant::now();
    while known(&cluster, 1).await.is_learner {
        assert!(started.elapsed() < common::PATIENCE, "it is not promoted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("a voter {:?} after its start", started.elapsed());
    load.more(200).await;
    assert!(known(&cluster, 2).await.is_learner, "it was to be kept one");
    promote(&cluster, 2).await;
    let outcome = load.end().await;
    assert_eq!(outcome.failed, Vec::<String>::new());
    assert_nothing_lost(&cluster, &outcome.written).await;
}

/// A member is found at another port after an update, and starts with the new flags.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_moves() {
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.leader().await;
    let index = (leader + 1) % 3;
    let member = known(&cluster, index).await;
    cluster.members[index].kill();
    let port = common::free_port();
    let url = format!("http://127.0.0.1:{port}");
    let updated = varvectl(
        &serving(&cluster),
        &[
            "member",
            "update",
            &format!("{:x}", member.id),
            &format!("--peer-urls={url}"),
        ],
    );
    assert!(
        updated
            .0
            .starts_with(&format!("Member {:>16x} updated in cluster ", member.id))
    );
    cluster.members[index].peer_port = port;
    cluster.spawn(index);
    cluster.wait_healthy();
    put(&cluster.members[index].client(), "k", "v")
        .await
        .unwrap();
    cluster.assert_same_state().await;
    assert_eq!(known(&cluster, index).await.id, member.id);
}
