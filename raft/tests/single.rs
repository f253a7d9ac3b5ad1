//! A cluster of one.

mod common;

use common::{Cluster, command, propose, put, read, value, wait};
use std::path::Path;
use std::sync::Arc;

use varve_engine::backend::memory::Memory;
use varve_engine::disk::sim::{Fault, FaultOn};
use varve_engine::mvcc::CommandResponse;
use varve_raft::{InitialCluster, NoTransport, Node};
use varve_types::{ApiError, Command, MemberAttributes};

#[test]
fn writes_are_answered_and_read_back() {
    let cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    let reply = put(&node, b"foo", b"bar").unwrap();
    assert_eq!(reply.revision, 2);
    assert!(matches!(reply.result, Ok(CommandResponse::Put(_))));
    let view = read(&node).unwrap();
    assert_eq!(value(&view, b"foo").unwrap(), b"bar");
    let status = node.status();
    assert_eq!(status.leader, status.member_id);
    assert_eq!(status.errors, Vec::<String>::new());
    assert!(status.applied_index >= 3);
}

#[test]
fn a_proposal_of_many_commands_gets_as_many_answers() {
    let cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    let keys: Vec<String> = (0..1000).map(|i| format!("key{i}")).collect();
    let commands: Vec<_> = keys
        .iter()
        .map(|key| command(key.as_bytes(), b"v"))
        .collect();
    let completion = propose(&node, &commands).recv().unwrap().unwrap();
    let revisions: Vec<i64> = completion
        .replies
        .iter()
        .map(|reply| reply.revision)
        .collect();
    assert_eq!(revisions, (2..1002).collect::<Vec<_>>());
}

#[test]
fn acknowledged_writes_survive_power_loss_with_and_without_a_checkpoint() {
    for with_checkpoint in [false, true] {
        for seed in 0..4 {
            let mut cluster = Cluster::start(1, |_| {});
            let node = cluster.handle("n0");
            for i in 0..50 {
                put(&node, format!("a{i}").as_bytes(), b"1").unwrap();
            }
            if with_checkpoint {
                node.checkpoint().unwrap();
            }
            for i in 0..50 {
                put(&node, format!("b{i}").as_bytes(), b"2").unwrap();
            }
            let hash = node.view().hash();
            cluster.crash("n0", seed);
            cluster.boot("n0");
            let node = cluster.handle("n0");
            let view = read(&node).unwrap();
            assert_eq!(view.hash(), hash);
            assert_eq!(view.revision(), 101);
        }
    }
}

#[test]
fn the_log_is_let_go_behind_checkpoints() {
    let mut cluster = Cluster::start(1, |config| {
        config.snapshot_catchup_entries = 10;
        config.wal_segment_bytes = 1 << 20;
    });
    let node = cluster.handle("n0");
    let segments = |node: &varve_raft::NodeHandle| {
        node.wal_stats()
            .segments
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    let large = vec![7; 100 << 10];
    let mut most = 0;
    for round in 0..5 {
        for i in 0..20 {
            put(&node, format!("k{i}").as_bytes(), &large).unwrap();
        }
        most = most.max(segments(&node));
        assert!(node.checkpoint().unwrap() > round * 20);
        put(&node, b"nudge", b"").unwrap();
    }
    wait("segments to go", || (segments(&node) <= 4).then_some(()));
    assert!(most >= 2);
    let hash = node.view().hash();
    cluster.crash("n0", 0);
    cluster.boot("n0");
    assert_eq!(read(&cluster.handle("n0")).unwrap().hash(), hash);
}

#[test]
fn a_member_publishes_itself() {
    let mut cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    let attributes = MemberAttributes {
        member_id: node.member_id(),
        name: "n0".into(),
        client_urls: vec!["http://10.0.0.1:2379".into()],
    };
    propose(&node, &[Command::MemberAttributes(attributes)])
        .recv()
        .unwrap()
        .unwrap();
    cluster.crash("n0", 1);
    cluster.boot("n0");
    let node = cluster.handle("n0");
    read(&node).unwrap();
    let members = node.members();
    let member = members.get(node.member_id()).unwrap();
    assert_eq!(member.client_urls, ["http://10.0.0.1:2379"]);
    assert_eq!(member.peer_urls, ["http://10.0.0.1:2380"]);
}

#[test]
fn too_large_and_too_many_are_refused() {
    let cluster = Cluster::start(1, |config| config.max_pending_bytes = 8 << 20);
    let node = cluster.handle("n0");
    let huge = vec![0; 4 << 20];
    assert_eq!(
        put(&node, b"k", &huge).unwrap_err(),
        ApiError::RequestTooLarge
    );
    let large = vec![0; 3 << 20];
    let answers: Vec<_> = (0..30)
        .map(|_| propose(&node, &[command(b"k", &large)]))
        .collect();
    let answers: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.recv().unwrap())
        .collect();
    assert!(answers.iter().any(|answer| answer.is_ok()));
    assert!(
        answers
            .iter()
            .any(|a| a.as_ref().err() == Some(&ApiError::TooManyRequests))
    );
    put(&node, b"k", b"goes on").unwrap();
}

#[test]
fn a_stopped_node_refuses() {
    let mut cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    cluster
        .members
        .get_mut("n0")
        .unwrap()
        .node
        .take()
        .unwrap()
        .shutdown()
        .unwrap();
    assert_eq!(put(&node, b"k", b"v").unwrap_err(), ApiError::Stopped);
    assert_eq!(read(&node).map(|_| ()).unwrap_err(), ApiError::Stopped);
}

#[test]
fn a_directory_of_another_cluster_is_refused() {
    let mut cluster = Cluster::start(1, |_| {});
    let mut config = cluster.members["n0"].config.clone();
    drop(cluster.members.get_mut("n0").unwrap().node.take());
    config.initial_cluster_token = "another".into();
    let error = Node::start(config.clone(), Box::new(NoTransport), Box::new(())).unwrap_err();
    assert!(error.to_string().contains("belongs to member"), "{error}");
    config.initial_cluster = InitialCluster::parse("other=http://10.0.0.9:2380").unwrap();
    config.data_dir = "/fresh".into();
    let error = Node::start(config, Box::new(NoTransport), Box::new(())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "couldn't find local name \"n0\" in the initial cluster configuration"
    );
}

#[test]
fn a_lost_log_is_noticed() {
    let mut cluster = Cluster::start(1, |_| {});
    let config = cluster.members["n0"].config.clone();
    drop(cluster.members.get_mut("n0").unwrap().node.take());
    let wal = config.data_dir.join("wal");
    for name in config.disk.list(&wal).unwrap() {
        config.disk.remove(&wal.join(name)).unwrap();
    }
    let error = Node::start(config, Box::new(NoTransport), Box::new(())).unwrap_err();
    assert!(
        error.to_string().contains("the log was removed or lost"),
        "{error}"
    );
}

#[test]
fn a_damaged_middle_of_the_log_refuses_to_start_and_says_where() {
    let mut cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    for i in 0..20 {
        put(&node, format!("k{i}").as_bytes(), b"v").unwrap();
    }
    let config = cluster.members["n0"].config.clone();
    drop(cluster.members.get_mut("n0").unwrap().node.take());
    let wal = Path::new("/data/wal");
    let first = config.disk.list(wal).unwrap().remove(0);
    let disk = &cluster.members["n0"].disk;
    disk.corrupt(&wal.join(first), 5 * 4096 + 50, 1).unwrap();
    let error = Node::start(config, Box::new(NoTransport), Box::new(())).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, varve_raft::RaftError::Log(_)), "{text}");
    assert!(
        text.contains("/data/wal") && text.contains("damage"),
        "{text}"
    );
}

#[test]
fn a_failed_sync_stops_the_node_for_good() {
    let cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    put(&node, b"k", b"v").unwrap();
    cluster.members["n0"].disk.inject(Fault {
        on: FaultOn::Sync,
        after: 0,
        forever: false,
        path_contains: "0000000000000001.wal".into(), // not the next one's, made beside it
        errno: 5,
    });
    assert_eq!(put(&node, b"k", b"w").unwrap_err(), ApiError::Stopped);
    assert_eq!(
        put(&node, b"k", b"x").unwrap_err(),
        ApiError::Stopped,
        "also later"
    );
    let failure = node.failure().unwrap();
    assert!(failure.contains("wal"), "{failure}");
    assert_eq!(
        value(&node.view(), b"k").unwrap(),
        b"v",
        "what was acknowledged can be read"
    );
    let errors = node.status().errors;
    assert_eq!(errors, ["etcdserver: no leader".to_owned(), failure]);
}

#[test]
fn an_engine_that_keeps_nothing_gets_the_whole_log_again() {
    let mut cluster = Cluster::start(1, |config| {
        config.open_store = Arc::new(|_| Ok(Arc::new(Memory::new())));
        config.snapshot_catchup_entries = 0;
    });
    let node = cluster.handle("n0");
    for i in 0..30 {
        put(&node, format!("k{i}").as_bytes(), b"v").unwrap();
        node.checkpoint().unwrap();
    }
    let hash = node.view().hash();
    let config = cluster.members["n0"].config.clone();
    drop(cluster.members.get_mut("n0").unwrap().node.take());
    let node = Node::start(config, Box::new(NoTransport), Box::new(())).unwrap();
    let view = wait("the log to be applied", || read(node.handle()).ok());
    assert_eq!(view.hash(), hash);
}

#[test]
fn a_store_ahead_of_the_log_is_refused() {
    let mut cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    put(&node, b"a", b"v").unwrap();
    cluster.crash("n0", 0);
    let early = cluster.members["n0"].disk.crash_now(1);
    cluster.boot("n0");
    let node = cluster.handle("n0");
    put(&node, b"b", b"v").unwrap();
    node.checkpoint().unwrap();
    let mut config = cluster.members["n0"].config.clone();
    drop(cluster.members.get_mut("n0").unwrap().node.take());
    config.disk = Arc::new(early);
    let error = Node::start(config, Box::new(NoTransport), Box::new(())).unwrap_err();
    assert!(error.to_string().contains("it has lost entries"), "{error}");
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room_without_a_restart() {
    let cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    put(&node, b"first", b"").unwrap();
    let disk = &cluster.members["n0"].disk;
    disk.set_capacity(Some(disk.used_bytes()));
    let payload = vec![7; 20_000];
    let mut acknowledged = 0;
    let refused = loop {
        let key = format!("key{acknowledged:03}");
        match put(&node, key.as_bytes(), &payload) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, ApiError::NoSpace);
    let errors = node.status().errors;
    assert_eq!(errors, ["the disk is full: log or store wait for space"]);
    assert!(acknowledged > 10, "{acknowledged} entries");
    assert_eq!(node.failure(), None);
    let view = read(&node).unwrap();
    assert_eq!(common::keys(&view), acknowledged + 1);
    assert_eq!(put(&node, b"again", b""), Err(ApiError::NoSpace));
    disk.set_capacity(None);
    wait("space", || put(&node, b"last", b"here").ok());
    let view = read(&node).unwrap();
    assert_eq!(value(&view, b"last").unwrap(), b"here");
    assert_eq!(common::keys(&view), acknowledged + 2);
    assert_eq!(node.failure(), None);
    assert_eq!(node.status().errors, [""; 0]);
}
