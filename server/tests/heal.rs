//! Damaged members that come back without an operator, with real processes.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::load::{Load, assert_nothing_lost};
use common::{Cluster, client, put, run_to_end, wait_until};
use varve_protocol::Member;

/// The files of a directory whose names end like this, sorted.
fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    found.sort();
    found
}

/// Flips bytes in the middle of what is written of a file, as a bad disk does.
fn flip(path: &Path, from: u64, count: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, from).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&bytes, from).unwrap();
    file.sync_all().unwrap();
}

/// Bytes of a file up to the last that is not zero.
fn written(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at as u64 + 1)
}

/// Flips bytes in the middle of a member's log, where other records follow.
fn damage_log(cluster: &Cluster, index: usize) {
    let segments = files(&cluster.members[index].data_dir.join("wal"), ".wal");
    // The oldest: later ones may have been used before, and end with records of then.
    let segment = &segments[0];
    let end = written(segment);
    assert!(end > 64 << 10, "{} holds {end} bytes", segment.display());
    // Past the beginning of a block, where a record is; at the end of one may be nothing.
    flip(segment, end / 2 / 4096 * 4096 + 16, 64);
}

async fn members(cluster: &Cluster) -> Vec<Member> {
    let running = cluster.members.iter().filter(|member| member.is_running());
    let endpoints: Vec<_> = running.map(common::Member::endpoint).collect();
    let list = client(&endpoints).member_list(true).await.unwrap();
    list.body.members
}

fn ids(members: &[Member]) -> Vec<u64> {
    members.iter().map(|member| member.id).collect()
}

/// Who the cluster says is at the peer URL of a member.
async fn known(cluster: &Cluster, index: usize) -> Member {
    let url = cluster.members[index].peer_url();
    let mut members = members(cluster).await.into_iter();
    members
        .find(|member| member.peer_urls == [url.clone()])
        .unwrap()
}

/// Waits until a member votes in the place of another one; how long that took.
async fn wait_healed(cluster: &Cluster, index: usize, former: u64, patience: Duration) -> Duration {
    let started = Instant::now();
    loop {
        if let Some(member) = known_if_any(cluster, index).await
            && member.id != former
            && !member.is_learner
            && !member.client_urls.is_empty()
        {
            return started.elapsed();
        }
        assert!(started.elapsed() < patience, "it does not heal");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn known_if_any(cluster: &Cluster, index: usize) -> Option<Member> {
    let url = cluster.members[index].peer_url();
    let endpoint = cluster.members[(index + 1) % cluster.members.len()].endpoint();
    let list = client(&[endpoint]).member_list(false).await.ok()?;
    let mut members = list.body.members.into_iter();
    members.find(|member| member.peer_urls == [url.clone()])
}

/// Three started voters, as `varvectl member list` prints them.
fn assert_three_started_voters(cluster: &Cluster) {
    wait_until("three voters have started", || {
        let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
            .args(["--endpoints", &cluster.endpoints().join(",")])
            .args(["member", "list"])
            .output()
            .unwrap();
        let list = String::from_utf8(output.stdout).unwrap();
        let is_started = |line: &str| line.contains(", started, n") && line.ends_with(", false");
        list.lines().count() == 3 && list.lines().all(is_started)
    });
}

/// Sets of damaged files of a member; there must be files in each.
fn set_aside(cluster: &Cluster, index: usize) -> usize {
    let entries = fs::read_dir(&cluster.members[index].data_dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().path());
    let sets: Vec<_> = names
        .filter(|path| path.to_string_lossy().contains("/damaged-"))
        .collect();
    for set in &sets {
        assert!(fs::read_dir(set).unwrap().count() > 0);
    }
    sets.len()
}

/// The story that this is for: three members lose power under load, the log of one of
/// them is damaged, and all three are started with the lines that they always had.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_heals_without_an_operator() {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::start(&cluster, 8);
    load.more(600).await;
    // Whoever it is: the leader has acknowledged, and so has the follower.
    let index = cluster.leader().await;
    let former = known(&cluster, index).await.id;
    for member in &mut cluster.members {
        member.kill();
    }
    damage_log(&cluster, index);
    for index in 0..3 {
        cluster.spawn(index);
    }
    let healed = wait_healed(&cluster, index, former, common::PATIENCE).await;
    println!("a voter again {healed:?} after the start");
    cluster.wait_healthy();
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

/// Kills all, has something done to the data directory of one member, and starts all with
/// the lines that they always had. Nothing that was acknowledged may be missing.
async fn heals_after(what: impl Fn(&Path), stop: &str) {
    let mut cluster = Cluster::start(3, &[]);
    let load = Load::start(&cluster, 4);
    load.more(200).await;
    let index = (cluster.leader().await + 1) % 3;
    let former = known(&cluster, index).await.id;
    // What the third one lacks is on the other two alone.
    cluster.members[(index + 1) % 3].kill();
    load.more(60).await;
    let written = load.end().await.written;
    for member in cluster
        .members
        .iter_mut()
        .filter(|member| member.is_running())
    {
        let _ = member.signal(stop);
    }
    what(&cluster.members[index].data_dir);
    for index in 0..3 {
        cluster.spawn(index);
    }
    let healed = wait_healed(&cluster, index, former, common::PATIENCE).await;
    println!("a voter again {healed:?} after the start");
    cluster.wait_healthy();
    assert_nothing_lost(&cluster, &written).await;
    assert_three_started_voters(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_heals() {
    heals_after(|data| fs::remove_dir_all(data.join("wal")).unwrap(), "KILL").await;
}

/// The member votes for nobody before it knows that it has never run, although the
/// others know as little as it does while all of them start.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_data_directory_heals() {
    heals_after(|data| fs::remove_dir_all(data).unwrap(), "KILL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_store_lost_heal() {
    let lose = |data: &Path| {
        fs::remove_dir_all(data.join("wal")).unwrap();
        for store in files(data, ".db") {
            fs::remove_file(store).unwrap();
        }
    };
    heals_after(lose, "KILL").await;
}

/// The file that says whose data directory it is: the others know that as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_file_that_cannot_be_read_heals() {
    heals_after(|data| flip(&data.join("member"), 20, 4), "KILL").await;
}

/// Both meta pages, so that it looks like no store at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_its_beginning_heals() {
    // A clean end makes a checkpoint.
    heals_after(|data| flip(&files(data, ".db")[0], 0, 16 << 10), "TERM").await;
}

/// A page that nobody reads at the start is damaged, and found while the member serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_found_damaged_while_serving_heals() {
    let mut cluster = Cluster::start(3, &[]);
    let client = cluster.client();
    let value = |number: u32| format!("{number:05}").repeat(200);
    for number in 0..4000 {
        let key = format!("k/{number:05}");
        put(&client, &key, &value(number)).await.unwrap();
    }
    let index = (cluster.leader().await + 1) % 3;
    let former = known(&cluster, index).await.id;
    let _ = cluster.members[index].signal("TERM");
    let store = &files(&cluster.members[index].data_dir, ".db")[0];
    let mut bytes = fs::read(store).unwrap();
    let wanted = value(2000).into_bytes();
    let at = bytes.windows(wanted.len()).position(|part| part == wanted);
    bytes[at.expect("the value is in the store") + 500] ^= 1;
    fs::write(store, bytes).unwrap();
    cluster.spawn(index);
    cluster.wait_healthy();
    assert_eq!(known(&cluster, index).await.id, former);
    let third = (index + 1) % 3;
    let third = match third == cluster.leader().await {
        true => (index + 2) % 3,
        false => third,
    };
    cluster.members[third].kill();
    let endpoint = [cluster.members[index].endpoint()];
    let read = |key: &str| {
        Command::new(env!("CARGO_BIN_EXE_varvectl"))
            .args(["--endpoints", &endpoint.join(","), "get", key])
            .arg("--consistency=s")
            .output()
            .unwrap()
    };
    let refused = read("k/02000");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "what is damaged was served");
    assert!(text.contains("is damaged"), "{text}");
    // Without it the leader would be on its own: it stays, for all that is whole.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let whole = common::client(&endpoint).get(b"k/00001").await.unwrap();
    assert!(whole.is_some());
    assert!(says(&cluster, index).0.contains("ALARM CORRUPT"));
    assert_eq!(known(&cluster, index).await.id, former);
    cluster.spawn(third);
    let healed = wait_healed(&cluster, index, former, common::PATIENCE).await;
    println!("a voter again {healed:?} after the third member came back");
    cluster.wait_healthy();
    let found = read("k/02000").stdout;
    assert_eq!(
        String::from_utf8(found).unwrap(),
        format!("k/02000\n{}\n", value(2000))
    );
    cluster.assert_same_state().await;
    assert_three_started_voters(&cluster);
}

/// The text of `/health`, and the status line with its errors.
fn says(cluster: &Cluster, index: usize) -> (String, String) {
    let (status, health) = cluster.members[index].get("/health");
    let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(["--endpoints", &cluster.members[index].endpoint()])
        .args(["endpoint", "status"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    (format!("{status} {health}"), line)
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
    let index = cluster.leader().await;
    let former = known(&cluster, index).await.id;
    for member in &mut cluster.members {
        member.kill();
    }
    damage_log(&cluster, index);
    for index in 0..3 {
        cluster.spawn(index);
    }
    let healed = wait_healed(&cluster, index, former, 10 * common::PATIENCE).await;
    println!("{mib} MiB: a voter again {healed:?} after the start, under load");
    cluster.wait_healthy();
    let written = load.end().await.written;
    assert_nothing_lost(&cluster, &written).await;
    assert_three_started_voters(&cluster);
}
