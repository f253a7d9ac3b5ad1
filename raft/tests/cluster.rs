//! Clusters of three and five.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, keys, put, put_for_sure, read, value, wait};
use varve_raft::{ChangeSink, Membership, NodeHandle};
use varve_types::ApiError;

struct Done(std::sync::mpsc::Sender<Result<(), ApiError>>);

impl ChangeSink for Done {
    fn done(self: Box<Self>, outcome: Result<Arc<Membership>, ApiError>) {
        self.0.send(outcome.map(drop)).unwrap();
    }
}

fn move_leader(node: &NodeHandle, to: u64) -> Result<(), ApiError> {
    let (sender, outcome) = std::sync::mpsc::channel();
    node.move_leader(to, Box::new(Done(sender)));
    outcome.recv().unwrap()
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.members.keys().cloned().collect()
}

#[test]
fn a_write_at_one_is_read_at_all() {
    for size in [3, 5] {
        let cluster = Cluster::start(size, |_| {});
        cluster.leader();
        for (i, name) in names(&cluster).iter().enumerate() {
            let key = format!("k{i}");
            put_for_sure(&cluster.handle(name), key.as_bytes(), b"v");
            for reader in names(&cluster) {
                let view = read(&cluster.handle(&reader)).unwrap();
                assert_eq!(value(&view, key.as_bytes()).unwrap(), b"v", "{reader}");
            }
        }
        cluster.settle();
    }
}

#[test]
fn the_leaders_death_is_survived_and_the_dead_catches_up() {
    let mut cluster = Cluster::start(3, |_| {});
    let leader = cluster.leader();
    for i in 0..100 {
        put_for_sure(&cluster.handle(&leader), format!("a{i}").as_bytes(), b"v");
    }
    cluster.crash(&leader, 0);
    let other = names(&cluster)
        .into_iter()
        .find(|name| *name != leader)
        .unwrap();
    for i in 0..100 {
        put_for_sure(&cluster.handle(&other), format!("b{i}").as_bytes(), b"v");
    }
    cluster.boot(&leader);
    cluster.settle();
    assert_eq!(keys(&read(&cluster.handle(&leader)).unwrap()), 200);
}

#[test]
fn power_loss_of_all_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start(3, |_| {});
    let leader = cluster.leader();
    for i in 0..100 {
        put_for_sure(&cluster.handle(&leader), format!("k{i}").as_bytes(), b"v");
    }
    for (seed, name) in names(&cluster).iter().enumerate() {
        cluster.crash(name, seed as u64);
    }
    for name in names(&cluster) {
        cluster.boot(&name);
    }
    cluster.leader();
    let view = wait("a read", || read(&cluster.handle("n1")).ok());
    assert_eq!(keys(&view), 100);
    cluster.settle();
}

#[test]
fn a_member_past_the_logs_length_comes_back_through_a_snapshot() {
    let mut cluster = Cluster::start(3, |config| {
        config.snapshot_catchup_entries = 5;
        config.checkpoint_interval = Duration::from_millis(100);
    });
    let leader = cluster.leader();
    let late = names(&cluster)
        .into_iter()
        .find(|name| *name != leader)
        .unwrap();
    put_for_sure(&cluster.handle(&leader), b"before", b"v");
    cluster.crash(&late, 0);
    for round in 0..3 {
        for i in 0..50 {
            put_for_sure(
                &cluster.handle(&leader),
                format!("k{round}-{i}").as_bytes(),
                b"v",
            );
        }
        cluster.handle(&leader).checkpoint().unwrap();
    }
    cluster.boot(&late);
    cluster.settle();
    let node = cluster.handle(&late);
    let received = || {
        node.metrics()
            .snapshots_received
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(received(), 1);
    assert_eq!(keys(&read(&node).unwrap()), 151);
    // It goes on from there, also after a power loss.
    put_for_sure(&cluster.handle(&leader), b"after", b"v");
    cluster.settle();
    cluster.crash(&late, 3);
    cluster.boot(&late);
    put_for_sure(&cluster.handle(&late), b"last", b"v");
    cluster.settle();
    assert_eq!(keys(&read(&cluster.handle(&late)).unwrap()), 153);
}

#[test]
fn a_leader_cut_off_steps_down_and_does_not_answer() {
    let cluster = Cluster::start(3, |_| {});
    let leader = cluster.leader();
    let node = cluster.handle(&leader);
    put_for_sure(&node, b"k", b"1");
    cluster.network.cut(node.member_id());
    let others: Vec<_> = names(&cluster)
        .into_iter()
        .filter(|name| *name != leader)
        .collect();
    wait("a new leader", || {
        let status = cluster.handle(&others[0]).status();
        (status.leader != 0 && status.leader != node.member_id()).then_some(())
    });
    put_for_sure(&cluster.handle(&others[0]), b"k", b"2");
    wait("the old leader to step down", || {
        (node.status().leader == 0).then_some(())
    });
    assert_eq!(
        value(&node.view(), b"k").unwrap(),
        b"1",
        "serializable reads still work"
    );
    cluster.network.heal(node.member_id());
    cluster.settle();
    assert_eq!(value(&read(&node).unwrap(), b"k").unwrap(), b"2");
}

#[test]
fn leadership_is_handed_over() {
    let mut cluster = Cluster::start(3, |_| {});
    let leader = cluster.leader();
    let node = cluster.handle(&leader);
    put_for_sure(&node, b"k", b"1");
    let to = names(&cluster)
        .into_iter()
        .find(|name| *name != leader)
        .unwrap();
    let to_id = cluster.handle(&to).member_id();
    assert_eq!(move_leader(&node, 1), Err(ApiError::BadLeaderTransferee));
    move_leader(&node, to_id).unwrap();
    // The answer may be there a moment before the status.
    wait("the status", || {
        (node.status().leader == to_id).then_some(())
    });
    assert_eq!(move_leader(&node, to_id), Err(ApiError::NotLeader));
    // A clean shutdown hands over as well.
    let node = cluster.members.get_mut(&to).unwrap().node.take().unwrap();
    wait("leadership", || move_leader(node.handle(), to_id).ok());
    node.shutdown().unwrap();
    put(&cluster.handle(&leader), b"k", b"2").unwrap();
}

#[test]
fn writes_go_on_within_one_and_a_half_election_timeouts() {
    let mut fastest = Duration::MAX;
    for seed in 0..3 {
        let mut cluster = Cluster::start(3, |config| {
            config.heartbeat_interval = Duration::from_millis(100);
            config.election_timeout = Duration::from_millis(1000);
        });
        let leader = cluster.leader();
        put_for_sure(&cluster.handle(&leader), b"k", b"1");
        let other = names(&cluster)
            .into_iter()
            .find(|name| *name != leader)
            .unwrap();
        let killed = std::time::Instant::now();
        cluster.crash(&leader, seed);
        put_for_sure(&cluster.handle(&other), b"k", b"2");
        let without = killed.elapsed();
        println!("{without:?} without a leader");
        fastest = fastest.min(without);
    }
    // A loaded machine, or two candidates at one moment, can make one run slow.
    assert!(fastest < Duration::from_millis(1500), "{fastest:?} at best");
}
