//! Damaged members that come back without an operator, with real processes.

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::damage::{
    assert_three_started_voters, damage_log, files, ids, known, members, says, set_aside,
    wait_healed,
};
use common::load::{Load, assert_nothing_lost};
use common::{Cluster, client, put, run_to_end, wait_until};

/// All lose power, the log of one is damaged, and all start with the lines that they always
/// had. Which one it was, and how long it took until it voted again.
async fn power_loss_and_damage(cluster: &mut Cluster, patience: Duration) -> (usize, Duration) {
    // Whoever it is: the leader has acknowledged, and so has the follower.
    let index = cluster.leader().await;
    let former = known(cluster, index).await.id;
    for member in &mut cluster.members {
        member.kill();
    }
    damage_log(cluster, index);
    for index in 0..3 {
        cluster.spawn(index);
    }
    let healed = wait_healed(cluster, index, former, patience).await;
    cluster.wait_healthy();
    (index, healed)
}

/// The story that this is for: three members lose power under load, the log of one of
/// them is damaged, and all three are started with the lines that they always had.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_heals_without_an_operator() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::start(&cluster, 8);
    load.more(600).await;
    let (index, healed) = power_loss_and_damage(&mut cluster, common::PATIENCE).await;
    println!("a voter again {healed:?} after the start");
    load.more(300).await;
    let outcome = load.end().await;
    assert_nothing_lost(&cluster, &outcome.written).await;
    assert_three_started_voters(&cluster);
    assert_eq!(set_aside(&cluster, index), 1);
    let log = cluster.members[index].log();
    for part in [
        "is damaged: log: ",
        "of segment ",
        "the damaged files are in ",
        "is replaced by ",
        "healed: member ",
    ] {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    let member = &cluster.members[index];
    assert_eq!(member.metric("varve_healing"), 0.0);
    assert_eq!(member.metric("varve_damaged_file_sets"), 1.0);

    // It starts again with the same line, as whom it became.
    let fresh = known(&cluster, index).await.id;
    cluster.members[index].kill();
    cluster.spawn(index);
    cluster.wait_healthy();
    assert_eq!(known(&cluster, index).await.id, fresh);
    assert_nothing_lost(&cluster, &outcome.written).await;
}

/// A value that a page of its own holds.
fn large_value(number: u32) -> String {
    format!("{number:05}").repeat(200)
}

/// Writes enough that most of it is not read at a start.
async fn fill(cluster: &Cluster) {
    let client = cluster.client();
    for number in 0..4000 {
        let key = format!("k/{number:05}");
        // It is the data that counts here, however slow the disk is.
        while put(&client, &key, &large_value(number)).await.is_err() {}
    }
}

/// Flips a bit of a value in the store of a member that does not run.
fn damage_value(cluster: &Cluster, index: usize, number: u32) {
    let store = &files(&cluster.members[index].data_dir, ".db")[0];
    let mut bytes = fs::read(store).unwrap();
    let wanted = large_value(number).into_bytes();
    let at = bytes.windows(wanted.len()).position(|part| part == wanted);
    bytes[at.expect("the value is in the store") + 500] ^= 1;
    fs::write(store, bytes).unwrap();
}

/// `varvectl get` at one member alone.
fn read_at(cluster: &Cluster, index: usize, key: &str) -> Command {
    let mut read = Command::new(env!("CARGO_BIN_EXE_varvectl"));
    read.args(["--endpoints", &cluster.members[index].endpoint()])
        .args(["get", key, "--consistency=s"]);
    read
}

/// A page that nobody reads at the start is damaged, and found while the member serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_found_damaged_while_serving_heals() {
    let mut cluster = Cluster::start(3, &[]);
    fill(&cluster).await;
    let index = (cluster.leader().await + 1) % 3;
    let former = known(&cluster, index).await.id;
    let _ = cluster.members[index].signal("TERM");
    damage_value(&cluster, index, 2000);
    cluster.spawn(index);
    cluster.wait_healthy();
    assert_eq!(known(&cluster, index).await.id, former);
    let third = (index + 1) % 3;
    let third = match third == cluster.leader().await {
        true => (index + 2) % 3,
        false => third,
    };
    cluster.members[third].kill();
    let refused = read_at(&cluster, index, "k/02000").output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "what is damaged was served");
    assert!(text.contains("is damaged"), "{text}");
    // Without it the leader would be on its own: it stays, for all that is whole.
    wait_until("it says why it stays", || {
        let log = cluster.members[index].log();
        log.contains("damage was found, and this member stays: 2 of the other voters are needed")
    });
    let endpoint = [cluster.members[index].endpoint()];
    let whole = client(&endpoint).get(b"k/00001").await.unwrap();
    assert!(whole.is_some());
    assert!(says(&cluster, index).0.contains("ALARM CORRUPT"));
    assert_eq!(known(&cluster, index).await.id, former);
    cluster.spawn(third);
    let healed = wait_healed(&cluster, index, former, common::PATIENCE).await;
    println!("a voter again {healed:?} after the third member came back");
    cluster.wait_healthy();
    let found = read_at(&cluster, index, "k/02000").output().unwrap();
    assert_eq!(
        String::from_utf8(found.stdout).unwrap(),
        format!("k/02000\n{}\n", large_value(2000))
    );
    cluster.assert_same_state().await;
    assert_three_started_voters(&cluster);
}

/// Two of three find damage at the same time. If both left, the third could not go on, nor
/// any of them come back.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_find_damage_while_serving_leave_one_after_the_other() {
    let mut cluster = Cluster::start(3, &[]);
    fill(&cluster).await;
    let damaged = [0, 1];
    let former = [known(&cluster, 0).await.id, known(&cluster, 1).await.id];
    for member in &mut cluster.members {
        let _ = member.signal("TERM");
    }
    for index in damaged {
        damage_value(&cluster, index, 2000);
    }
    for index in 0..3 {
        cluster.spawn(index);
    }
    cluster.wait_healthy();
    let load = Load::start(&cluster, 4);
    load.more(50).await;
    let reads = damaged.map(|index| read_at(&cluster, index, "k/02000").spawn().unwrap());
    for mut read in reads {
        assert!(
            !read.wait().unwrap().success(),
            "what is damaged was served"
        );
    }
    for index in damaged {
        wait_healed(&cluster, index, former[index], 4 * common::PATIENCE).await;
    }
    load.more(50).await;
    let written = load.end().await.written;
    cluster.wait_healthy();
    assert_nothing_lost(&cluster, &written).await;
    assert_three_started_voters(&cluster);
    assert_eq!(damaged.map(|index| set_aside(&cluster, index)), [1, 1]);
}

/// A member heals, and the leader finds that it is damaged itself when it reads its store
/// to send it. Another one leads then, and sends what is whole; then the former one heals.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_damaged_lets_a_whole_member_lead() {
    let mut cluster = Cluster::start(3, &[]);
    fill(&cluster).await;
    for member in &mut cluster.members {
        let _ = member.signal("TERM");
    }
    for index in [0, 1] {
        damage_value(&cluster, index, 2000);
    }
    for index in 0..3 {
        cluster.spawn(index);
    }
    cluster.wait_healthy();
    let former = [known(&cluster, 0).await.id, known(&cluster, 1).await.id];
    let leader = match cluster.leader().await {
        2 => {
            let mut moving = Command::new(env!("CARGO_BIN_EXE_varvectl"));
            moving.args(["--endpoints", &cluster.members[2].endpoint()]);
            let moved = moving.args(["move-leader", &format!("{:x}", former[0])]);
            assert!(moved.status().unwrap().success());
            0
        }
        leader => leader,
    };
    let load = Load::start(&cluster, 4);
    load.more(50).await;
    let follower = 1 - leader;
    let refused = read_at(&cluster, follower, "k/02000").output().unwrap();
    assert!(!refused.status.success(), "what is damaged was served");
    for index in [follower, leader] {
        wait_healed(&cluster, index, former[index], 4 * common::PATIENCE).await;
    }
    let log = cluster.members[leader].log();
    assert!(log.contains("this member is damaged: member "), "{log}");
    load.more(50).await;
    let written = load.end().await.written;
    cluster.wait_healthy();
    assert_nothing_lost(&cluster, &written).await;
    assert_three_started_voters(&cluster);
}

/// Two of three are damaged: what is left cannot know what was committed. Nobody may
/// make it up; and when one of the logs is brought back, everything is there.
#[tokio::test(flavor = "multi_thread")]
async fn with_two_of_three_damaged_they_wait_and_say_so() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::start(&cluster, 4);
    load.more(300).await;
    let before = members(&cluster).await;
    for member in &mut cluster.members {
        member.kill();
    }
    let written = load.end().await.written;
    let kept = cluster.path().join("kept");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(&cluster.members[1].data_dir)
        .arg(&kept)
        .status();
    assert!(copied.unwrap().success());
    damage_log(&cluster, 1);
    damage_log(&cluster, 2);
    for index in 0..3 {
        cluster.spawn(index);
    }
    for index in [1, 2] {
        wait_until("it says what it waits for", || {
            let (health, status) = says(&cluster, index);
            let waits = "2 of 3 voters are needed for that, 1 answer; damaged as well: ";
            health.contains(" 503 ") && health.contains(waits) && status.contains(waits)
        });
        let (health, _) = says(&cluster, index);
        assert!(health.contains("HEALING: member "), "{health}");
        assert!(health.contains(" of segment 1 is damaged"), "{health}");
        let (alive, _) = cluster.members[index].get("/livez");
        assert!(alive.contains(" 200 "), "{alive}");
        let (ready, _) = cluster.members[index].get("/readyz");
        assert!(ready.contains(" 503 "), "{ready}");
        let (_, page) = cluster.members[index].get("/metrics");
        let line = page.lines().find(|line| line.starts_with("varve_healing{"));
        let line = line.unwrap();
        assert!(line.ends_with("waits_for=\"replacement\"} 1"), "{line}");
    }
    // Several election timeouts later nobody leads, and the members are who they were.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let healthy = client(&[cluster.members[0].endpoint()]);
    let status = healthy
        .status(&cluster.members[0].endpoint())
        .await
        .unwrap();
    assert_eq!(status.body.leader, 0);
    let list = healthy.member_list(false).await.unwrap().body.members;
    assert_eq!(ids(&list), ids(&before));

    // One that heals and is killed goes on as the same.
    let fresh_id = |cluster: &Cluster| {
        let file = cluster.members[2].data_dir.join("healing");
        let text = fs::read_to_string(file).unwrap();
        text.lines()
            .find(|line| line.starts_with("fresh "))
            .unwrap()
            .to_owned()
    };
    let fresh = fresh_id(&cluster);
    cluster.members[2].kill();
    cluster.spawn(2);
    wait_until("it waits again", || says(&cluster, 2).0.contains("HEALING"));
    assert_eq!(fresh_id(&cluster), fresh);

    cluster.members[1].kill();
    fs::remove_dir_all(&cluster.members[1].data_dir).unwrap();
    fs::rename(&kept, &cluster.members[1].data_dir).unwrap();
    cluster.spawn(1);
    let former = before
        .iter()
        .find(|member| member.peer_urls == [cluster.members[2].peer_url()]);
    wait_healed(&cluster, 2, former.unwrap().id, common::PATIENCE).await;
    cluster.wait_healthy();
    assert_nothing_lost(&cluster, &written).await;
    assert_three_started_voters(&cluster);
    let id = format!("fresh {:016x}", known(&cluster, 2).await.id);
    assert_eq!(id, fresh);
}

/// The other one of two is no quorum: an operator has to decide. The member says how, and
/// what it says is enough to get all back.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_a_damaged_member_says_what_to_do() {
    let mut cluster = Cluster::start(2, &[]);
    let load = Load::start(&cluster, 4);
    load.more(300).await;
    let written = load.end().await.written;
    for member in &mut cluster.members {
        member.kill();
    }
    damage_log(&cluster, 0);
    for index in 0..2 {
        cluster.spawn(index);
    }
    wait_until("it says what to do", || {
        let (health, status) = says(&cluster, 0);
        [
            "2 of 2 voters are needed for that, 1 answer, and without this member there never",
            "stop it and start it once with --force-new-cluster",
            "add this member again with `varvectl member add`",
            "`varvectl snapshot restore`",
        ]
        .iter()
        .all(|part| health.contains(part) && status.contains(part))
    });
    let whole = &mut cluster.members[1];
    assert!(whole.signal("TERM").success());
    whole.extra = vec!["--force-new-cluster".to_owned()];
    cluster.spawn(1);
    // It hears that it is out, and says what is next.
    assert!(!cluster.members[0].ended().success());
    let log = cluster.members[0].log();
    for part in [
        "has been removed from the cluster: it is not put in its place again",
        "Add it with `varvectl member add`, move everything but what was set aside out of the \
         data directory, and start it with --initial-cluster-state existing",
    ] {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }
    cluster.wait_healthy();
    let url = cluster.members[0].peer_url();
    let client = cluster.members[1].client();
    client.member_add(&[url], false).await.unwrap();
    let data_dir = &cluster.members[0].data_dir;
    for entry in fs::read_dir(data_dir).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().contains("/damaged-") {
            let name = path.file_name().unwrap().to_owned();
            fs::rename(&path, cluster.path().join(name)).unwrap();
        }
    }
    let list = cluster.members.iter();
    let list: Vec<_> = list
        .map(|member| format!("{}={}", member.name, member.peer_url()))
        .collect();
    cluster.members[0].joins = Some(list.join(","));
    cluster.spawn(0);
    cluster.wait_healthy();
    assert_nothing_lost(&cluster, &written).await;
    assert_eq!(set_aside(&cluster, 0), 1);
}

/// Killed again and again on its way, it comes through, and as one member only.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_heals_it_goes_on() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::start(&cluster, 4);
    load.more(300).await;
    let index = (cluster.leader().await + 1) % 3;
    let former = known(&cluster, index).await.id;
    cluster.members[index].kill();
    damage_log(&cluster, index);
    for round in 1..=12 {
        cluster.spawn(index);
        tokio::time::sleep(Duration::from_millis(round * 60)).await;
        cluster.members[index].kill();
    }
    cluster.spawn(index);
    wait_healed(&cluster, index, former, common::PATIENCE).await;
    cluster.wait_healthy();
    load.more(100).await;
    let written = load.end().await.written;
    assert_nothing_lost(&cluster, &written).await;
    assert_three_started_voters(&cluster);
    assert_eq!(set_aside(&cluster, index), 1);
    // The others have seen one replacement, and no other new member.
    let log = cluster.members[(index + 1) % 3].log();
    let changes = log.matches("membership changed at entry").count();
    assert_eq!(changes, 2, "replaced and promoted");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auto_heal_it_ends_and_says_what_to_do() {
    let mut cluster = Cluster::start(3, &["--auto-heal=false"]);
    let load = Load::start(&cluster, 4);
    load.more(300).await;
    drop(load.end().await);
    cluster.members[0].kill();
    damage_log(&cluster, 0);
    let arguments = cluster.arguments(0);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (code, text) = run_to_end(&arguments, cluster.path());
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "this member is damaged: log: ",
        "0000000000000001.wal: record at offset ",
        "Nothing was changed. It does not heal by itself (--auto-heal=false)",
        "`varvectl member remove` its id",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(set_aside(&cluster, 0), 0);
}

/// There is nobody to get the data from.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_on_its_own_does_not_heal() {
    let mut cluster = Cluster::start(1, &[]);
    let load = Load::start(&cluster, 4);
    load.more(300).await;
    drop(load.end().await);
    cluster.members[0].kill();
    damage_log(&cluster, 0);
    let arguments = cluster.arguments(0);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    for _ in 0..2 {
        let (code, text) = run_to_end(&arguments, cluster.path());
        assert_eq!(code, Some(1), "{text}");
        let expected = "There is no other member from which it could be healed";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("varvectl snapshot restore"), "{text}");
    }
    assert_eq!(set_aside(&cluster, 0), 0);
}

/// Sends what a damaged member would; status line and body.
fn ask_to_replace(port: u16, body: &str) -> (String, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    let request = format!(
        "POST /members/replace HTTP/1.0\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// Nobody gets another one's place: not with other ids, names or URLs, and not while
/// the one who has it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_given_to_nobody_else() {
    let mut cluster = Cluster::start(3, &[]);
    let list = cluster.client().member_list(true).await.unwrap();
    let id = list.header.cluster_id;
    let before = members(&cluster).await;
    let port = cluster.members[0].peer_port;
    let own = known(&cluster, 1).await;
    let body = |cluster: u64, damaged: u64, name: &str, url: &str| {
        format!(
            "{{\"clusterId\":\"{cluster:x}\",\"damagedId\":\"{damaged:x}\",\
             \"freshId\":\"77\",\"name\":\"{name}\",\"peerURLs\":[\"{url}\"]}}"
        )
    };
    let url = cluster.members[1].peer_url();
    let other = cluster.members[2].peer_url();
    let asks_itself = "nobody who heals as 77 answers at ";
    for (body, status, text) in [
        (
            body(id + 1, own.id, "n2", &url),
            " 409 ",
            "cluster ID mismatch",
        ),
        (
            body(id, 5, "n2", &url),
            " 409 ",
            "5 is no member of this cluster",
        ),
        (body(id, own.id, "n3", &url), " 409 ", "is known as"),
        (body(id, own.id, "n2", &other), " 409 ", "is known at"),
        (body(id, own.id, "n2", &url), " 409 ", asks_itself),
        ("{".to_owned(), " 400 ", ""),
        ("x".repeat(100_000), " 400 ", ""),
    ] {
        let (found, answer) = ask_to_replace(port, &body);
        assert!(
            found.contains(status) && answer.contains(text),
            "{found} {answer}"
        );
    }
    // Nor when it is down: whoever has its place must answer at its URL.
    cluster.members[1].kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (found, answer) = ask_to_replace(port, &body(id, own.id, "n2", &url));
    assert!(
        found.contains(" 409 ") && answer.contains(asks_itself),
        "{found} {answer}"
    );
    assert_eq!(ids(&members(&cluster).await), ids(&before));
}

/// The story with a store of `VARVE_HEAL_MIB` MiB; by hand, with 1024. Says how long it
/// takes from the start until the damaged member votes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_store_heals() {
    let mib = std::env::var("VARVE_HEAL_MIB");
    let mib: u64 = mib.map_or(16, |mib| mib.parse().unwrap());
    let mut cluster = Cluster::start(3, &[]);
    let client = cluster.client();
    let value = "v".repeat(16 << 10);
    let mut writers = Vec::new();
    for writer in 0..8 {
        let (client, value) = (client.clone(), value.clone());
        writers.push(tokio::spawn(async move {
            for number in 0..mib * 64 / 8 {
                let key = format!("large/{writer}/{number:08}");
                // It is the data that counts here, however slow the disk is.
                while put(&client, &key, &value).await.is_err() {}
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let load = Load::start(&cluster, 4);
    load.more(200).await;
    let (_, healed) = power_loss_and_damage(&mut cluster, 10 * common::PATIENCE).await;
    println!("{mib} MiB: a voter again {healed:?} after the start, under load");
    let written = load.end().await.written;
    assert_nothing_lost(&cluster, &written).await;
    assert_three_started_voters(&cluster);
}
