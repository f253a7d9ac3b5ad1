//! A node that is killed (SIGKILL) again and again while clients write, compact and
//! defragment. What each client was told is recorded here: what was acknowledged is
//! there after the restart, of what was not each transaction is there as a whole or
//! not at all, revisions do not go back, and the store passes its full check.
//!
//! `VARVE_TEST_KILLS` sets how often, `VARVE_SEED` what and when.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Cluster, all};
use varve_client::{Answer, Client, ClientConfig, ClientError};
use varve_engine::backend::conformance::Random;
use varve_engine::backend::{self, Backend};
use varve_engine::disk::psync::PsyncDisk;
use varve_engine::mvcc::Store;
use varve_types::{
    CompactionRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest,
    RequestOp, TxnRequest, TxnResponse,
};

const WRITERS: usize = 8;
/// Keys of one writer.
const KEYS: usize = 100;

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

type Model = BTreeMap<String, String>;

/// What the `number`-th transaction of a writer sets and, without a value, removes.
fn changes(seed: u64, writer: usize, number: u64) -> BTreeMap<String, Option<String>> {
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9) ^ (writer as u64) << 56);
    let mut changes = BTreeMap::new();
    for _ in 0..1 + random.below(5) {
        let key = format!("{writer}/{:03}", random.below(KEYS));
        let bytes = match random.below(10) {
            0 => 6000,
            _ => 1 + random.below(300),
        };
        let value = (random.below(4) > 0).then(|| format!("{number:0bytes$}"));
        changes.insert(key, value);
    }
    changes.insert(last_key(writer), Some(number.to_string()));
    changes
}

/// Where a writer notes the number of its last transaction.
fn last_key(writer: usize) -> String {
    format!("{writer}/last")
}

/// What one writer was told.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    begun: u64,
    acknowledged: u64,
    revision: i64,
}

/// The transaction that is a writer's `number`-th, if the one before it was its last.
async fn commit(
    client: &Client,
    seed: u64,
    writer: usize,
    number: u64,
) -> Result<Answer<TxnResponse>, ClientError> {
    let (last, before) = (last_key(writer), (number - 1).to_string());
    let changes = changes(seed, writer, number);
    let success = changes.iter().map(|(key, value)| match value {
        Some(value) => RequestOp::Put(PutRequest {
            key: key.as_bytes(),
            value: value.as_bytes(),
            ..PutRequest::default()
        }),
        None => RequestOp::DeleteRange(DeleteRangeRequest {
            key: key.as_bytes(),
            ..DeleteRangeRequest::default()
        }),
    });
    let target = match number {
        1 => CompareTarget::Version(0),
        _ => CompareTarget::Value(before.as_bytes()),
    };
    let txn = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal,
            target,
            key: last.as_bytes(),
            range_end: b"",
        }],
        success: success.collect(),
        failure: Vec::new(),
    };
    client.txn(txn).await
}

/// Writes from transaction `first` on until it is told to end: one that was not sent
/// before the kill may go to the node that comes after.
async fn write(
    client: Client,
    seed: u64,
    writer: usize,
    first: u64,
    count: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
) -> Told {
    let mut told = Told {
        begun: first - 1,
        acknowledged: first - 1,
        revision: 0,
    };
    while !end.load(Ordering::Relaxed) {
        let number = told.acknowledged + 1;
        told.begun = number;
        let outcome = commit(&client, seed, writer, number).await;
        if let Ok(answer) = &outcome
            && answer.body.succeeded
        {
            assert!(answer.header.revision > told.revision, "revisions rise");
            told.revision = answer.header.revision;
            told.acknowledged = number;
            count.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        // A busy node may refuse it, now or after it was made: a read tells.
        if let Ok(found) = client.get(last_key(writer).as_bytes()).await {
            let last = found.map_or(0, |kv| {
                String::from_utf8(kv.value).unwrap().parse().unwrap()
            });
            assert!(
                last == number || last + 1 == number,
                "{last} in place of {number}"
            );
            assert!(
                last == number || outcome.is_err(),
                "{number} was compared wrongly"
            );
            told.acknowledged = last;
        }
    }
    told
}

/// Compacts and defragments until it is told to end; the last compaction that was
/// acknowledged.
async fn tidy(client: Client, endpoint: String, seed: u64, end: Arc<AtomicBool>) -> i64 {
    let mut random = Random::new(seed);
    let mut compacted = 0;
    while !end.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.below(40) as u64)).await;
        if random.below(4) == 0 {
            // Either way: what counts is that it may be under way at the kill.
            let _ = client.defragment(&endpoint).await;
            continue;
        }
        let Ok(status) = client.status(&endpoint).await else {
            continue;
        };
        let revision = status.header.revision - random.below(200) as i64;
        let request = CompactionRequest {
            revision,
            physical: random.below(2) == 0,
        };
        if client.compact(&request).await.is_ok() {
            compacted = revision;
        }
    }
    compacted
}

/// The full check of the store of a node that does not run.
fn check(cluster: &Cluster, place: &str) {
    let files = std::fs::read_dir(&cluster.members[0].data_dir).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let stores: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|end| end == "db"))
        .collect();
    assert_eq!(stores.len(), 1, "{place}: {stores:?}");
    let options = backend::Options::default();
    let disk = PsyncDisk::new();
    let opened = backend::open_store("btree", &disk, &stores[0], &options);
    let backend: Arc<dyn Backend> = opened.unwrap_or_else(|error| panic!("{place}: {error}"));
    let checked = backend.check();
    checked.unwrap_or_else(|error| panic!("{place}: {error}"));
    let checked = Store::open(backend).unwrap().view().check();
    checked.unwrap_or_else(|error| panic!("{place}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_killed_again_and_again_loses_nothing() {
    let (kills, seed) = (variable("VARVE_TEST_KILLS", 8), variable("VARVE_SEED", 1));
    let mut random = Random::new(seed);
    // Checkpoints and compacted log segments come often.
    let flags = [
        "--snapshot-count",
        "200",
        "--snapshot-catchup-entries",
        "20",
    ];
    let mut cluster = Cluster::start(1, &flags);
    let mut models = vec![(0, Model::new()); WRITERS];
    let (mut revision, mut compacted, mut unacknowledged) = (0_i64, 0_i64, 0);
    for kill in 0..kills {
        let place = format!("seed {seed}, kill {kill}");
        let endpoint = cluster.members[0].endpoint();
        let config = ClientConfig {
            command_timeout: common::PATIENCE,
            ..ClientConfig::default()
        };
        let client = || Client::new(&[&endpoint], config.clone()).unwrap();
        let (count, end) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let writers: Vec<_> = models
            .iter()
            .enumerate()
            .map(|(writer, (number, _))| {
                let (count, end) = (Arc::clone(&count), Arc::clone(&end));
                tokio::spawn(write(client(), seed, writer, number + 1, count, end))
            })
            .collect();
        let run = seed ^ kill << 32;
        let tidies = tokio::spawn(tidy(client(), endpoint.clone(), run, Arc::clone(&end)));
        // At once, or after some work and a moment.
        let goal = [0, 10, 300, 1000][random.below(4)];
        let started = std::time::Instant::now();
        while count.load(Ordering::Relaxed) < goal {
            assert!(
                started.elapsed() < common::PATIENCE,
                "{place}: writes do not go on"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.below(20_000) as u64)).await;
        cluster.members[0].kill();
        end.store(true, Ordering::Relaxed);
        check(&cluster, &place);
        cluster.spawn(0);
        if random.below(3) == 0 {
            // Also while it starts.
            tokio::time::sleep(Duration::from_micros(random.below(60_000) as u64)).await;
            cluster.members[0].kill();
            cluster.spawn(0);
        }
        cluster.wait_healthy();
        compacted = tidies.await.unwrap().max(compacted);
        let client = client();
        for (writer, running) in writers.into_iter().enumerate() {
            let told = running.await.unwrap();
            let place = format!("{place}, writer {writer}: {told:?}");
            let (number, model) = &mut models[writer];
            let mut found: Model = all(&client, &format!("{writer}/"))
                .await
                .into_iter()
                .collect();
            let last = found.get(&last_key(writer));
            let last: u64 = last.map_or(0, |text| text.parse().unwrap());
            assert!(last >= told.acknowledged, "{place}: {last} is the last one");
            assert!(last <= told.begun, "{place}: {last} was never begun");
            for number in *number + 1..=last {
                for (key, value) in changes(seed, writer, number) {
                    match value {
                        Some(value) => drop(model.insert(key, value)),
                        None => drop(model.remove(&key)),
                    }
                }
            }
            unacknowledged += last - told.acknowledged;
            *number = last;
            assert_eq!(found.len(), model.len(), "{place}: keys");
            // Else a failure prints a megabyte.
            found.retain(|key, value| model.get(key) != Some(value));
            let wrong: Vec<_> = found.into_keys().collect();
            assert!(wrong.is_empty(), "{place}: not as written: {wrong:?}");
            revision = told.revision.max(revision);
        }
        let status = client.status(&endpoint).await;
        let status = status.unwrap_or_else(|error| panic!("{place}: {error}"));
        assert!(
            status.header.revision >= revision,
            "{place}: revisions go back"
        );
        if compacted > 1 {
            let request = CompactionRequest {
                revision: compacted,
                physical: false,
            };
            let again = client.compact(&request).await;
            assert!(again.is_err(), "{place}: {compacted} is not compacted");
        }
    }
    let batches: u64 = models.iter().map(|(number, _)| number).sum();
    println!("{kills} kills, {batches} transactions, {unacknowledged} of them not acknowledged");
    assert!(batches > kills, "the clients hardly came to write");
}
