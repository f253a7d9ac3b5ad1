//! Processes that write to a store and are killed (SIGKILL) at any moment, opening
//! included. What they were told is recorded outside of them, through a pipe: what
//! was acknowledged is there, of what was only begun each batch is there as a whole
//! or not at all, and everything stored agrees.
//!
//! Each writer has keys of its own, and its n-th batch follows from the seed, so that
//! this process knows what the store must hold when it says which batch was the last.
//! `VARVE_TEST_KILLS` sets how often, `VARVE_SEED` what.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::{self, Direction};
use varve_engine::db::{Db, Kv, Options, Pending, WriteBatch, Written};
use varve_engine::wal::WalConfig;
use varve_types::{
    Command as Change, Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyRange,
    PutRequest, RequestOp, TxnRequest,
};

const WRITERS: usize = 4;
/// Keys of one writer.
const KEYS: usize = 300;
/// Batches that a writer does not wait for.
const AHEAD: usize = 6;

const CHILD_KIND: &str = "VARVE_TEST_CHILD_KIND";
const CHILD_PATH: &str = "VARVE_TEST_CHILD_PATH";
const SEED: &str = "VARVE_SEED";

fn variable(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn options() -> Options {
    Options {
        backend: backend::Options {
            btree: varve_engine::btree::Options { map_bytes: 1 << 30 },
            ..backend::Options::default()
        },
        wal: WalConfig {
            segment_bytes: 64 << 10,
            spare_segments: 2,
            prepare_in_background: true,
        },
        checkpoint_log_bytes: 512 << 10,
        max_log_bytes: 1 << 20,
        ..Options::default()
    }
}

/// What a batch does.
#[derive(Debug)]
enum Step {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

fn key(writer: usize, number: usize) -> Vec<u8> {
    format!("{writer}/{number:04}").into_bytes()
}

/// Where a writer notes the number of its last batch.
fn last_key(writer: usize) -> Vec<u8> {
    format!("{writer}/last").into_bytes()
}

/// The `number`-th batch of a writer.
fn steps(seed: u64, writer: usize, number: u64) -> Vec<Step> {
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9) ^ (writer as u64) << 56);
    let mut steps = Vec::new();
    for _ in 0..1 + random.below(8) {
        let (first, length) = (random.below(KEYS), random.below(40));
        steps.push(match random.below(40) {
            0 => Step::DeleteRange(key(writer, first), key(writer, first + length)),
            1..=8 => Step::Delete(key(writer, first)),
            kind => {
                let bytes = match kind {
                    9 => 9000,
                    10..=14 => 2500,
                    _ => 1 + random.below(300),
                };
                Step::Put(key(writer, first), vec![number as u8; bytes])
            }
        });
    }
    steps.push(Step::Put(last_key(writer), number.to_string().into_bytes()));
    steps
}

/// Whether a batch is a transaction, and one revision.
fn is_txn(number: u64) -> bool {
    number.is_multiple_of(5)
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn follow(model: &mut Model, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Put(key, value) => drop(model.insert(key, value)),
            Step::Delete(key) => drop(model.remove(&key)),
            Step::DeleteRange(from, to) => model.retain(|key, _| *key < from || *key >= to),
        }
    }
}

/// Either kind of store.
enum Store {
    Db(Db),
    Kv(Kv),
}

/// A batch on its way.
enum OnItsWay {
    Db(Pending<Written>),
    Kv(Pending<()>),
}

impl OnItsWay {
    /// The revision after the batch, where there are revisions.
    fn wait(self) -> i64 {
        match self {
            Self::Db(pending) => pending.wait().expect("written").revision,
            Self::Kv(pending) => {
                pending.wait().expect("written");
                0
            }
        }
    }
}

impl Store {
    fn open(kind: &str, path: &Path) -> Self {
        match kind {
            "db" => Self::Db(Db::open(path, options()).expect("opens")),
            _ => Self::Kv(Kv::open(path, options()).expect("opens")),
        }
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Db(db) => db.get(key).expect("get").map(|kv| kv.value),
            Self::Kv(kv) => kv.get(key).expect("get"),
        }
    }

    /// Number of the last batch of a writer.
    fn last(&self, writer: usize) -> u64 {
        let last = self.get(&last_key(writer));
        last.map_or(0, |text| String::from_utf8(text).unwrap().parse().unwrap())
    }

    fn all(&self) -> Model {
        match self {
            Self::Db(db) => db
                .iter(KeyRange::From(b""), 0)
                .map(|kv| kv.map(|kv| (kv.key, kv.value)).expect("a key"))
                .collect(),
            Self::Kv(kv) => {
                let mut all = Model::new();
                let visit = &mut |key: &[u8], value: &[u8]| {
                    all.insert(key.to_vec(), value.to_vec());
                    ControlFlow::Continue(())
                };
                let snapshot = kv.snapshot().expect("a snapshot");
                let scanned = snapshot.scan(KeyRange::From(b""), Direction::Forward, visit);
                scanned.expect("scan");
                all
            }
        }
    }

    fn check(&self) {
        match self {
            Self::Db(db) => drop(db.check().expect("the check passes")),
            Self::Kv(kv) => drop(kv.check().expect("the check passes")),
        }
    }

    fn close(self) {
        match self {
            Self::Db(db) => db.close().expect("closes"),
            Self::Kv(kv) => kv.close().expect("closes"),
        }
    }

    fn submit(&self, steps: &[Step]) -> OnItsWay {
        let mut batch = WriteBatch::new();
        for step in steps {
            match step {
                Step::Put(key, value) => batch.put(key, value),
                Step::Delete(key) => batch.delete(key),
                Step::DeleteRange(from, to) => batch.delete_range(KeyRange::Between(from, to)),
            }
            .expect("a step");
        }
        match self {
            Self::Db(db) => OnItsWay::Db(db.submit(&batch).expect("submitted")),
            Self::Kv(kv) => OnItsWay::Kv(kv.submit(&batch).expect("submitted")),
        }
    }
}

/// Keys may be put once in a transaction, and not where they are deleted: what
/// comes last counts.
fn txn_steps(steps: Vec<Step>) -> Vec<Step> {
    let mut kept = BTreeMap::new();
    for step in steps {
        if let Step::Put(key, _) | Step::Delete(key) = &step {
            kept.insert(key.clone(), step);
        }
    }
    kept.into_values().collect()
}

/// The revision after a transaction that goes through only if the batch before it
/// was the writer's last.
fn run_txn(db: &Db, writer: usize, number: u64, steps: &[Step]) -> i64 {
    let (last, before) = (last_key(writer), (number - 1).to_string());
    let success = steps.iter().map(|step| match step {
        Step::Put(key, value) => RequestOp::Put(PutRequest {
            key,
            value,
            ..PutRequest::default()
        }),
        Step::Delete(key) | Step::DeleteRange(key, _) => {
            RequestOp::DeleteRange(DeleteRangeRequest {
                key,
                ..DeleteRangeRequest::default()
            })
        }
    });
    let txn = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal,
            target: CompareTarget::Value(before.as_bytes()),
            key: &last,
            range_end: b"",
        }],
        success: success.collect(),
        failure: Vec::new(),
    };
    let (revision, response) = db.apply(&Change::Txn(txn)).expect("applied");
    let varve_engine::mvcc::CommandResponse::Txn(response) = response else {
        panic!("another answer: {response:?}");
    };
    assert!(
        response.succeeded,
        "batch {} of {writer} is not there",
        number - 1
    );
    revision
}

/// What batch `number` of a writer does to a store of this kind.
fn planned(kind: &str, seed: u64, writer: usize, number: u64) -> Vec<Step> {
    let steps = steps(seed, writer, number);
    match kind == "db" && is_txn(number) {
        true => txn_steps(steps),
        false => steps,
    }
}

/// Writes for ever, and says so before and after each batch.
fn write(store: &Store, kind: &str, seed: u64, writer: usize) {
    let mut on_their_way = std::collections::VecDeque::new();
    let done = |(number, pending): (u64, OnItsWay)| {
        let revision = pending.wait();
        println!("@done {writer} {number} {revision}");
    };
    for number in store.last(writer) + 1.. {
        let steps = planned(kind, seed, writer, number);
        match store {
            Store::Db(db) if is_txn(number) => {
                on_their_way.drain(..).for_each(done);
                println!("@begin {writer} {number} 0");
                let revision = run_txn(db, writer, number, &steps);
                println!("@done {writer} {number} {revision}");
            }
            _ => {
                println!("@begin {writer} {number} 0");
                on_their_way.push_back((number, store.submit(&steps)));
                if on_their_way.len() > AHEAD {
                    on_their_way.pop_front().into_iter().for_each(done);
                }
            }
        }
    }
}

/// Checkpoints, compactions, vacuums, and readers that hold on to a state.
fn tidy(store: &Store, seed: u64) {
    let mut random = Random::new(seed);
    loop {
        std::thread::sleep(Duration::from_millis(random.below(15) as u64));
        let kind = random.below(6);
        match store {
            Store::Db(db) => match kind {
                0 | 1 => db.checkpoint().expect("checkpoint"),
                2 => db.vacuum().expect("vacuum"),
                3 | 4 => {
                    let revision = db.revision() - random.below(400) as i64;
                    match db.compact(revision) {
                        Ok(()) => println!("@compacted 0 0 {revision}"),
                        // Compacted before, or before the beginning.
                        Err(error) => assert!(error.api().is_some(), "{error}"),
                    }
                }
                _ => {
                    let view = db.view();
                    std::thread::sleep(Duration::from_millis(30));
                    view.check().expect("the check passes");
                }
            },
            Store::Kv(kv) => match kind {
                0 | 1 => kv.checkpoint().expect("checkpoint"),
                2 => kv.vacuum().expect("vacuum"),
                _ => {
                    let snapshot = kv.snapshot().expect("a snapshot");
                    std::thread::sleep(Duration::from_millis(30));
                    snapshot.sums(KeyRange::From(b"")).expect("sums");
                }
            },
        }
    }
}

/// Not a test by itself: the process that the others start and kill.
#[test]
fn child() {
    let (Ok(kind), Ok(path)) = (env::var(CHILD_KIND), env::var(CHILD_PATH)) else {
        return;
    };
    let seed = variable(SEED, 1);
    let store = Store::open(&kind, Path::new(&path));
    let (store, kind) = (&store, &kind[..]);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || write(store, kind, seed, writer));
        }
        // Another run of tidying in each process.
        let run = seed ^ u64::from(std::process::id());
        scope.spawn(move || tidy(store, run));
    });
}

/// What one process said.
#[derive(Default, Clone)]
struct Told {
    begun: [u64; WRITERS],
    /// The last batch that was acknowledged, and the revision after it.
    done: [(u64, i64); WRITERS],
    compacted: i64,
}

impl Told {
    fn note(&mut self, line: &str) -> Option<()> {
        let (_, line) = line.split_once('@')?;
        let mut words = line.split(' ');
        let (what, writer, number, revision) =
            (words.next()?, words.next()?, words.next()?, words.next()?);
        let (writer, number): (usize, u64) = (writer.parse().ok()?, number.parse().ok()?);
        let revision = revision.parse().ok()?;
        match what {
            "begin" => self.begun[writer] = number,
            "done" => self.done[writer] = (number, revision),
            _ => self.compacted = self.compacted.max(revision),
        }
        Some(())
    }
}

/// Starts a process, kills it at some moment, and gives back what it said.
fn run_and_kill(kind: &str, path: &Path, seed: u64, random: &mut Random) -> Told {
    let mut child = Command::new(env::current_exe().expect("own path"))
        .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
        .env(CHILD_KIND, kind)
        .env(CHILD_PATH, path)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let told = Arc::new(Mutex::new(Told::default()));
    let lines_read = Arc::new(AtomicU64::new(0));
    let output = BufReader::new(child.stdout.take().expect("output"));
    let reading = {
        let (told, lines_read) = (Arc::clone(&told), Arc::clone(&lines_read));
        std::thread::spawn(move || {
            for line in output.lines() {
                // The last line may have been cut off.
                told.lock().unwrap().note(&line.expect("text"));
                lines_read.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    // While it opens, or after so many lines and a moment.
    let lines = match random.below(5) {
        0 => 0,
        1 => random.below(20) as u64,
        _ => random.below(3000) as u64,
    };
    while lines_read.load(Ordering::Relaxed) < lines {
        let ended = child.try_wait().expect("its state");
        assert!(ended.is_none(), "{kind} ended by itself: {ended:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_micros(random.below(20_000) as u64));
    assert!(
        child.try_wait().expect("its state").is_none(),
        "{kind} ended by itself"
    );
    child.kill().expect("killed");
    child.wait().expect("ended");
    reading.join().expect("all lines are read");
    told.lock().unwrap().clone()
}

fn kill_again_and_again(kind: &str) {
    let (kills, seed) = (variable("VARVE_TEST_KILLS", 20), variable(SEED, 1));
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("store");
    let mut random = Random::new(seed);
    let mut models = vec![(0, Model::new()); WRITERS];
    let (mut batches, mut unacknowledged, mut compacted) = (0, 0, 0);
    for kill in 0..kills {
        let told = run_and_kill(kind, &path, seed, &mut random);
        let place = format!("{kind}, seed {seed}, kill {kill}");
        let store = Store::open(kind, &path);
        store.check();
        for (writer, (number, model)) in models.iter_mut().enumerate() {
            let found = store.last(writer);
            let done = told.done[writer].0.max(*number);
            let begun = told.begun[writer].max(done);
            assert!(
                found >= done,
                "{place}: batch {done} of {writer} is lost: {found}"
            );
            assert!(
                found <= begun,
                "{place}: {found} of {writer} was never begun"
            );
            for number in *number + 1..=found {
                follow(model, planned(kind, seed, writer, number));
            }
            batches += found - *number;
            unacknowledged += found - done;
            *number = found;
        }
        let expected: Model = models.iter().flat_map(|(_, model)| model.clone()).collect();
        // Else a failure prints megabytes.
        assert!(store.all() == expected, "{place}: not what was written");
        compacted = told.compacted.max(compacted);
        if let Store::Db(db) = &store {
            verify_history(db, &told, compacted, &place);
        }
        if kill % 4 == 0 {
            store.close();
        }
    }
    println!(
        "{kind}: {kills} kills, {batches} batches there, {unacknowledged} of them not acknowledged"
    );
    assert!(batches > kills, "the processes hardly came to write");
}

/// What was compacted is so, and revisions are those that writers were told.
fn verify_history(db: &Db, told: &Told, compacted: i64, place: &str) {
    if compacted > 1 {
        let error = db.get_at(b"0/last", compacted - 1);
        assert!(error.is_err(), "{place}: {compacted} is not compacted");
    }
    for (writer, (number, revision)) in told.done.iter().enumerate() {
        if *number == 0 || *revision < compacted {
            continue;
        }
        // A compaction may have gone through that nobody was told of.
        if let Ok(found) = db.get_at(&last_key(writer), *revision) {
            let found = found.map(|kv| kv.value);
            let expected = number.to_string().into_bytes();
            assert_eq!(found, Some(expected), "{place}: {writer} at {revision}");
        }
    }
}

#[test]
fn a_revisioned_store_keeps_what_it_acknowledged() {
    kill_again_and_again("db");
}

#[test]
fn a_map_keeps_what_it_acknowledged() {
    kill_again_and_again("kv");
}
