//! Files of a member that are gone, older or without their beginning: it comes back without
//! an operator, and says meanwhile what it has found.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::Cluster;
use common::damage::{
    assert_three_started_voters, files, flip, known, says, wait_healed, wait_published,
};
use common::load::{Load, assert_nothing_lost};
use common::{put, wait_until};

/// Three members that do not run, with damage at one of them.
struct Damaged {
    cluster: Cluster,
    /// The damaged one, and who it was.
    index: usize,
    former: u64,
    /// What was acknowledged.
    written: Vec<(String, String)>,
}

impl Damaged {
    /// Clients write to all and then to two; all end by the signal `stop`, and something is
    /// done to the data directory of one that has what the third one lacks.
    async fn by(what: impl FnOnce(&Path), stop: &str) -> Self {
        Self::in_cluster(Cluster::start(3, &[]), what, stop).await
    }

    async fn in_cluster(mut cluster: Cluster, what: impl FnOnce(&Path), stop: &str) -> Self {
        wait_published(&cluster).await;
        let load = Load::start(&cluster, 4);
        load.more(200).await;
        let index = (cluster.leader().await + 1) % 3;
        let former = known(&cluster, index).await.id;
        cluster.members[(index + 1) % 3].kill();
        load.more(60).await;
        let written = load.end().await.written;
        end_all(&mut cluster, stop);
        what(&cluster.members[index].data_dir);
        Self {
            cluster,
            index,
            former,
            written,
        }
    }

    /// The damaged member starts on its own. It cannot be replaced, and says everywhere
    /// what was found.
    fn names_it_alone(mut self, what: &str) -> Self {
        let (cluster, index) = (&mut self.cluster, self.index);
        cluster.spawn(index);
        wait_until("it says what was found, and what it waits for", || {
            let (health, status) = says(cluster, index);
            let waits = "it waits for another member of the cluster to answer";
            health.contains(" 503 ")
                && [health, status]
                    .iter()
                    .all(|said| said.contains(what) && said.contains(waits))
        });
        let (_, page) = cluster.members[index].get("/metrics");
        let heals = format!(
            "varve_healing{{damaged_id=\"{:x}\",waits_for=\"replacement\"}} 1",
            self.former
        );
        assert!(page.contains(&heals), "{heals} is not in {page}");
        self
    }

    /// All start that do not run, with the lines that they always had: all is there, and
    /// three vote.
    async fn heals(mut self, what: &str) {
        let (cluster, index) = (&mut self.cluster, self.index);
        for index in 0..3 {
            if !cluster.members[index].is_running() {
                cluster.spawn(index);
            }
        }
        let healed = wait_healed(cluster, index, self.former, common::PATIENCE).await;
        println!("a voter again {healed:?} after the others' start");
        cluster.wait_healthy();
        assert_nothing_lost(cluster, &self.written).await;
        assert_three_started_voters(cluster);
        let log = cluster.members[index].log();
        assert!(log.contains(what), "{what:?} is not in {log}");
        assert_eq!(cluster.members[index].metric("varve_healing"), 0.0);
    }
}

fn end_all(cluster: &mut Cluster, signal: &str) {
    let members = cluster.members.iter_mut();
    for member in members.filter(|member| member.is_running()) {
        let _ = member.signal(signal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_heals() {
    let lose = |data: &Path| fs::remove_dir_all(data.join("wal")).unwrap();
    let what = "it is empty, but it had been begun: the log was removed or lost";
    let damaged = Damaged::by(lose, "KILL").await;
    damaged.names_it_alone(what).heals(what).await;
}

/// Two newer segments show that it was there.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_segment_in_the_middle_of_the_log_heals() {
    let cluster = Cluster::start(3, &[]);
    let client = cluster.client();
    let value = "v".repeat(1 << 20);
    let segments = |data: &Path| files(&data.join("wal"), ".wal");
    for number in 0.. {
        // It is the data that counts here, however slow the disk is.
        while put(&client, &format!("large/{number}"), &value)
            .await
            .is_err()
        {}
        let mut members = cluster.members.iter();
        if members.all(|member| segments(&member.data_dir).len() >= 3) {
            break;
        }
        assert!(number < 1000, "the log has no three segments");
    }
    let lose = |data: &Path| fs::remove_file(&segments(data)[1]).unwrap();
    let damaged = Damaged::in_cluster(cluster, lose, "KILL").await;
    let what = "is missing, though others show that it was there";
    damaged.names_it_alone(what).heals(what).await;
}

/// The member votes for nobody before it knows that it has never run, although the
/// others know as little as it does while all of them start.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_data_directory_heals() {
    let lose = |data: &Path| fs::remove_dir_all(data).unwrap();
    let damaged = Damaged::by(lose, "KILL").await;
    let what = "has already been bootstrapped, but its data-dir is empty";
    damaged.heals(what).await;
}

fn lose_store(data: &Path) {
    for store in files(data, ".db") {
        fs::remove_file(store).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_store_lost_heal() {
    let lose = |data: &Path| {
        fs::remove_dir_all(data.join("wal")).unwrap();
        lose_store(data);
    };
    let damaged = Damaged::by(lose, "KILL").await;
    let what = "it is empty, but it had been begun: the log was removed or lost";
    damaged.names_it_alone(what).heals(what).await;
}

/// A cluster whose members' logs begin later than with the bootstrap, and beside each data
/// directory what its store was before that.
async fn with_old_stores() -> Cluster {
    let flags = ["--snapshot-count", "50", "--snapshot-catchup-entries", "10"];
    let mut cluster = Cluster::start(3, &flags);
    let load = Load::start(&cluster, 1);
    load.more(20).await;
    drop(load.end().await);
    end_all(&mut cluster, "TERM");
    for member in &cluster.members {
        let store = &files(&member.data_dir, ".db")[0];
        fs::copy(store, member.data_dir.with_extension("old")).unwrap();
    }
    for index in 0..3 {
        cluster.spawn(index);
    }
    cluster.wait_healthy();
    let client = cluster.client();
    wait_until("the logs begin later", || {
        for number in 0..20 {
            let key = format!("more/{number}");
            let _ = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(put(&client, &key, "v"))
            });
        }
        let mut members = cluster.members.iter();
        members.all(|member| begins_after(&member.data_dir) > 100)
    });
    cluster
}

/// The newest index after which a log says that it begins.
fn begins_after(data: &Path) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_varvectl"))
        .args(["inspect", "wal"])
        .arg(data)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let markers = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(" marker index ")?;
        rest.split(' ').next()?.parse().ok()
    });
    markers.max().unwrap_or(0)
}

/// As somebody does who restores a copy of the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_older_than_the_beginning_of_the_log_heals() {
    let cluster = with_old_stores().await;
    let restore = |data: &Path| {
        let store = &files(data, ".db")[0];
        fs::copy(data.with_extension("old"), store).unwrap();
    };
    let damaged = Damaged::in_cluster(cluster, restore, "TERM").await;
    let what = "but the store applies only to ";
    damaged.names_it_alone(what).heals(what).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_store_heals() {
    let cluster = with_old_stores().await;
    let damaged = Damaged::in_cluster(cluster, lose_store, "TERM").await;
    let what = "but the store applies only to 0: this member must be replaced";
    damaged.names_it_alone(what).heals(what).await;
}

/// Both meta pages, so that it looks like no store at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_its_beginning_heals() {
    // A clean end makes a checkpoint.
    let blank = |data: &Path| flip(&files(data, ".db")[0], 0, 16 << 10);
    let damaged = Damaged::by(blank, "TERM").await;
    let what = "store-000001.db";
    damaged.names_it_alone(what).heals(what).await;
}

/// The file that says whose data directory it is: the others know that as well, so that
/// it is found before they answer, and named when they do.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_file_that_cannot_be_read_heals() {
    let damaged = Damaged::by(|data| flip(&data.join("member"), 20, 4), "KILL").await;
    damaged.heals("member is not what was written to it").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_member_file_heals() {
    let lose = |data: &Path| fs::remove_file(data.join("member")).unwrap();
    let damaged = Damaged::by(lose, "KILL").await;
    let what = "has already been bootstrapped";
    damaged.heals(what).await;
}
