//! Members whose states differ: found by themselves, named, and not served.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Cluster, Member, get, put, wait_until};
use varve_engine::backend::{Backend, registry};
use varve_engine::disk::psync::PsyncDisk;
use varve_engine::mvcc::{BatchOptions, LATEST, Store};
use varve_types::PutRequest;

/// varvectl at these endpoints; standard output, or the error that it ends with.
fn varvectl(endpoints: &[String], arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(["--endpoints", &endpoints.join(",")])
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

/// The store of a member that is down.
fn open_store(data_dir: &Path) -> Arc<dyn Backend> {
    let store = std::fs::read_dir(data_dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "db"))
        .unwrap();
    let disk = PsyncDisk::new();
    let options = registry::Options::default();
    registry::open_store("btree", &disk, &store, &options).unwrap()
}

/// Writes a key into it, past the log and the others.
fn edit(data_dir: &Path, key: &[u8], value: &[u8]) {
    let backend = open_store(data_dir);
    let mut store = Store::open(Arc::clone(&backend)).unwrap();
    let applied = store.view().applied();
    let mut txn = store.begin(BatchOptions::default()).unwrap();
    let put = PutRequest {
        key,
        value,
        ..PutRequest::default()
    };
    txn.apply(&varve_types::Command::Put(put)).unwrap();
    txn.publish(applied).unwrap();
    backend.checkpoint().unwrap();
}

async fn id_of(member: &Member) -> u64 {
    let status = member.client().status(&member.endpoint()).await.unwrap();
    status.header.member_id
}

/// What a write comes to.
async fn refusal(member: &Member) -> String {
    let put = put(&member.client(), "k", "v").await;
    put.map_or_else(|error| error.to_string(), |_| "done".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_changed_behind_its_back_is_found_and_named() {
    let mut cluster = Cluster::start(3, &["--auto-heal=false"]);
    for number in 0..100 {
        let key = format!("k{number}");
        put(&cluster.client(), &key, "value").await.unwrap();
    }
    let leader = cluster.leader().await;
    let bad = (leader + 1) % 3;
    let bad_id = id_of(&cluster.members[bad]).await;
    assert!(cluster.members[bad].signal("TERM").success());
    edit(&cluster.members[bad].data_dir, b"k7", b"tampered");
    let started = Instant::now();
    cluster.spawn(bad);

    let endpoints = cluster.endpoints();
    let alarm = format!("memberID:{bad_id} alarm:CORRUPT \n");
    let good = [cluster.members[leader].endpoint()];
    wait_until("the alarm is on", || {
        varvectl(&good, &["alarm", "list"]).unwrap() == alarm
    });
    println!("found {:?} after the start", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(10));

    // Everybody says so; nothing is written, and what is known to be wrong is not read.
    for index in 0..3 {
        let member = &cluster.members[index];
        wait_until("it has heard of the alarm", || {
            let (status, body) = member.get("/health");
            status.contains(" 503 ") && body.contains(r#""reason":"ALARM CORRUPT""#)
        });
        let (status, body) = member.get("/readyz");
        assert!(status.contains(" 503 "), "{status}");
        assert!(body.contains("[-]data_corruption failed: alarm activated: CORRUPT\n"));
        assert!(
            member
                .get("/readyz?exclude=data_corruption")
                .0
                .contains(" 200 ")
        );
        assert!(member.get("/livez").0.contains(" 200 "));
        assert_eq!(member.get("/health?exclude=CORRUPT").0, "HTTP/1.1 200 OK");
        assert_eq!(refusal(member).await, "etcdserver: corrupt cluster");
        let read = member.client().get(b"k7").await;
        match index == bad {
            true => assert_eq!(read.unwrap_err().to_string(), "etcdserver: corrupt cluster"),
            false => assert_eq!(read.unwrap().unwrap().value, b"value"),
        }
    }
    assert!(cluster.members[leader].metric("varve_state_mismatches_total") >= 1.0);
    let log = cluster.members[leader].log();
    assert!(
        log.contains("data corruption: the members' states differ"),
        "{log}"
    );
    assert!(log.contains(&format!("alarm CORRUPT for member {bad_id:x}")));

    // It is on for as long as it is so.
    let ended = varvectl(&endpoints, &["alarm", "disarm"]).unwrap();
    assert_eq!(ended, alarm);
    wait_until("the alarm is on again", || {
        varvectl(&good, &["alarm", "list"]).unwrap() == alarm
    });
    // It goes with the member.
    varvectl(&good, &["member", "remove", &format!("{bad_id:x}")]).unwrap();
    cluster.members[bad].ended();
    assert_eq!(varvectl(&good, &["alarm", "list"]).unwrap(), "");
    assert_eq!(refusal(&cluster.members[leader]).await, "done");
    assert_eq!(cluster.members[leader].get("/readyz").1, "ok\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_differs_heals_by_itself() {
    let mut cluster = Cluster::start(3, &[]);
    for number in 0..100 {
        let key = format!("k{number}");
        put(&cluster.client(), &key, "value").await.unwrap();
    }
    let bad = (cluster.leader().await + 1) % 3;
    let bad_id = id_of(&cluster.members[bad]).await;
    assert!(cluster.members[bad].signal("TERM").success());
    edit(&cluster.members[bad].data_dir, b"k7", b"tampered");
    let started = Instant::now();
    cluster.spawn(bad);
    let endpoints = cluster.endpoints();
    wait_until("it votes again under another id", || {
        let list = varvectl(&endpoints, &["member", "list"]).unwrap_or_default();
        !list.contains(&format!("{bad_id:x}")) && list.matches(", false").count() == 3
    });
    println!("healed {:?} after the start", started.elapsed());
    cluster.wait_healthy();
    cluster.assert_same_state().await;
    assert_eq!(varvectl(&endpoints, &["alarm", "list"]).unwrap(), "");
    assert_eq!(refusal(&cluster.members[bad]).await, "done");
    let read = get(&cluster.members[bad].client(), "k7").await;
    assert_eq!(read.as_deref(), Some("value"));
    let log = cluster.members[bad].log();
    assert!(
        log.contains("its state differs from that of a majority"),
        "{log}"
    );
    // What was found is kept.
    let names = std::fs::read_dir(&cluster.members[bad].data_dir).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.any(|name| name.starts_with("damaged-")));
}

/// A change below what keeps the running hash: the pages' checksums are right, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_what_its_hash_says_is_not_served() {
    let mut cluster = Cluster::start(
        1,
        &["--experimental-initial-corrupt-check", "--auto-heal=false"],
    );
    put(&cluster.client(), "k", "value").await.unwrap();
    assert!(cluster.members[0].signal("TERM").success());
    let log = cluster.members[0].log();
    assert!(log.contains("initial corruption checking passed"), "{log}");
    let backend = open_store(&cluster.members[0].data_dir);
    let snapshot = backend.snapshot().unwrap();
    let mut record = snapshot.get(LATEST, b"k").unwrap().unwrap().into_owned();
    assert!(record.ends_with(b"value"));
    *record.last_mut().unwrap() ^= 1;
    let mut batch = backend.begin().unwrap();
    batch.put(LATEST, b"k", &record).unwrap();
    batch.publish(snapshot.applied()).unwrap();
    backend.checkpoint().unwrap();
    drop((snapshot, backend));
    cluster.spawn(0);
    assert!(!cluster.members[0].ended().success());
    let log = cluster.members[0].log();
    assert!(log.contains("do not add up to the state hash"), "{log}");
}

/// Of two nobody knows which is right.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nobody_is_named() {
    let mut cluster = Cluster::start(2, &[]);
    put(&cluster.client(), "k", "v").await.unwrap();
    assert!(cluster.members[1].signal("TERM").success());
    edit(&cluster.members[1].data_dir, b"k", b"w");
    cluster.spawn(1);
    let endpoints = cluster.endpoints();
    wait_until("the alarm is on", || {
        varvectl(&endpoints, &["alarm", "list"]).is_ok_and(|list| list == "alarm:CORRUPT \n")
    });
    wait_until("it is served", || {
        cluster.members[0]
            .get("/health?exclude=CORRUPT")
            .0
            .contains(" 200 ")
    });
    assert_eq!(
        refusal(&cluster.members[0]).await,
        "etcdserver: corrupt cluster"
    );
    assert_eq!(
        get(&cluster.members[0].client(), "k").await.as_deref(),
        Some("v")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_agree_are_compared_and_left_alone() {
    let mut cluster = Cluster::start(3, &["--corrupt-check-time", "20ms"]);
    for round in 0..3 {
        let load = common::load::Load::start(&cluster, 8);
        load.more(500).await;
        let leader = cluster.leader().await;
        cluster.members[(leader + round) % 3].kill();
        load.more(200).await;
        cluster.spawn((leader + round) % 3);
        load.more(200).await;
        common::load::assert_nothing_lost(&cluster, &load.end().await.written).await;
    }
    cluster.wait_healthy();
    let checks: f64 = cluster
        .members
        .iter()
        .map(|member| member.metric("varve_state_checks_total"))
        .sum();
    assert!(checks > 10.0, "{checks}");
    let leader = cluster.leader().await;
    assert_eq!(cluster.members[leader].metric("varve_alarms"), 0.0);
    for member in &cluster.members {
        assert_eq!(member.metric("varve_state_mismatches_total"), 0.0);
    }
}
