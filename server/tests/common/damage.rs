//! What is done to the files of members, and how their healing is watched.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Cluster, Member, client, wait_until};

/// The files of a directory whose names end like this, sorted.
pub fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    found.sort();
    found
}

/// Flips bytes in the middle of what is written of a file, as a bad disk does.
pub fn flip(path: &Path, from: u64, count: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, from).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&bytes, from).unwrap();
    file.sync_all().unwrap();
}

/// Bytes of a file up to the last that is not zero.
pub fn written(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at as u64 + 1)
}

/// Flips bytes in the middle of a member's log, where other records follow.
pub fn damage_log(cluster: &Cluster, index: usize) {
    let segments = files(&cluster.members[index].data_dir.join("wal"), ".wal");
    // The oldest: later ones may have been used before, and end with records of then.
    let segment = &segments[0];
    let end = written(segment);
    assert!(end > 64 << 10, "{} holds {end} bytes", segment.display());
    // Past the beginning of a block, where a record is; at the end of one may be nothing.
    flip(segment, end / 2 / 4096 * 4096 + 16, 64);
}

pub async fn members(cluster: &Cluster) -> Vec<varve_protocol::Member> {
    let running = cluster.members.iter().filter(|member| member.is_running());
    let endpoints: Vec<_> = running.map(Member::endpoint).collect();
    let list = client(&endpoints).member_list(true).await.unwrap();
    list.body.members
}

pub fn ids(members: &[varve_protocol::Member]) -> Vec<u64> {
    members.iter().map(|member| member.id).collect()
}

/// Who the cluster says is at the peer URL of a member.
pub async fn known(cluster: &Cluster, index: usize) -> varve_protocol::Member {
    let url = cluster.members[index].peer_url();
    let mut members = members(cluster).await.into_iter();
    members
        .find(|member| member.peer_urls == [url.clone()])
        .unwrap()
}

/// Waits until a member votes in the place of another one; how long that took.
pub async fn wait_healed(
    cluster: &Cluster,
    index: usize,
    former: u64,
    patience: Duration,
) -> Duration {
    let started = Instant::now();
    loop {
        if let Some(member) = known_if_any(cluster, index).await
            && member.id != former
            && !member.is_learner
            && !member.client_urls.is_empty()
        {
            return started.elapsed();
        }
        if started.elapsed() >= patience {
            let logs: Vec<_> = cluster.members.iter().map(|member| member.log()).collect();
            panic!("it does not heal; the logs:\n{}", logs.join("\n\n"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn known_if_any(cluster: &Cluster, index: usize) -> Option<varve_protocol::Member> {
    let url = cluster.members[index].peer_url();
    let endpoint = cluster.members[(index + 1) % cluster.members.len()].endpoint();
    let list = client(&[endpoint]).member_list(false).await.ok()?;
    let mut members = list.body.members.into_iter();
    members.find(|member| member.peer_urls == [url.clone()])
}

/// Waits until the cluster knows that all have run: a member that has lost everything
/// before that is taken for new.
pub async fn wait_published(cluster: &Cluster) {
    let started = Instant::now();
    let is_published = |member: &varve_protocol::Member| !member.client_urls.is_empty();
    while !members(cluster).await.iter().all(is_published) {
        assert!(started.elapsed() < super::PATIENCE, "it is not published");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Three started voters, as `varvectl member list` prints them.
pub fn assert_three_started_voters(cluster: &Cluster) {
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
pub fn set_aside(cluster: &Cluster, index: usize) -> usize {
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

/// The text of `/health`, and the status line with its errors.
pub fn says(cluster: &Cluster, index: usize) -> (String, String) {
    let (status, health) = cluster.members[index].get("/health");
    let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(["--endpoints", &cluster.members[index].endpoint()])
        .args(["endpoint", "status"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    (format!("{status} {health}"), line)
}
