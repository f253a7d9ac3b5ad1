//! What stays small however much is stored: the time to open, the memory that no
//! file backs, a count, a page of a list, and the file beside what lives in it.
//! Memory and sizes are asserted; times are printed, and asserted with a wide margin
//! only, since machines differ.
//!
//! By hand, with a release build: `VARVE_TEST_KEYS=10000000` for the first,
//! `VARVE_TEST_SECONDS=600` for the second, and `VARVE_TEST_OVERWRITE_SECONDS=3600` for
//! the pace of its promise.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use varve_engine::backend::conformance::Random;
use varve_engine::db::{Db, Options, WriteBatch};
use varve_types::{KeyRange, RangeRequest};

const MIB: u64 = 1 << 20;

const CHILD_PATH: &str = "VARVE_TEST_CHILD_PATH";
const KEYS: &str = "VARVE_TEST_KEYS";
const SECONDS: &str = "VARVE_TEST_SECONDS";
const OVERWRITE_SECONDS: &str = "VARVE_TEST_OVERWRITE_SECONDS";

fn variable(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Memory of this process that no file backs.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("its status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.expect("RssAnon").trim().trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") << 10
}

/// Keys in an order of their own, so that an open finds no sorted file.
fn key(number: u64) -> [u8; 16] {
    let mut key = *b"/keys/..........";
    let mixed = (number as u32).wrapping_mul(0x9e37_79b1);
    for (place, digit) in key[6..].iter_mut().enumerate() {
        *digit = b'0' + (mixed / 10_u32.pow(9 - place as u32) % 10) as u8;
    }
    key
}

fn fill(path: &Path, keys: u64) {
    let db = Db::open(path, Options::default()).expect("a new store");
    let mut batch = WriteBatch::new();
    let mut last = None;
    for number in 0..keys {
        batch.put(&key(number), &[b'v'; 100]).expect("put");
        if batch.len() == 2000 || number + 1 == keys {
            last = Some(db.submit(&batch).expect("submitted"));
            batch.clear();
        }
    }
    last.expect("keys").wait().expect("written");
    let live = db.view().count(KeyRange::From(b""), 0).expect("count");
    assert_eq!(live as u64, keys, "keys are distinct");
    // One key more stays in the log, to be replayed.
    db.checkpoint().expect("checkpoint");
    db.put(b"/last", b"1").expect("put");
}

/// Not a test by itself: opens the store in a process of its own, whose memory
/// holds nothing else.
#[test]
fn child() {
    let Ok(path) = env::var(CHILD_PATH) else {
        return;
    };
    let keys = variable(KEYS, 0);
    let before = anonymous_bytes();
    let started = Instant::now();
    let db = Db::open(path, Options::default()).expect("opens");
    let found = db.get(b"/last").expect("get");
    println!("@open_us {}", started.elapsed().as_micros());
    assert_eq!(found.expect("what was put last").value, b"1");
    println!("@memory {}", anonymous_bytes().saturating_sub(before));

    let (first, middle, last) = (
        b"/keys/0".to_vec(),
        b"/keys/21".to_vec(),
        b"/keys/42".to_vec(),
    );
    let view = db.view();
    let range = KeyRange::Between(b"/keys/", b"/keys0");
    view.count(range, 0).expect("count");
    let started = Instant::now();
    let count = view.count(range, 0).expect("count");
    println!("@count_us {}", started.elapsed().as_micros());
    assert_eq!(count as u64, keys);

    // Pages of 500 keys: the first of the list, and one from its middle and its end.
    let page = |from: &[u8]| {
        let request = RangeRequest {
            key: from,
            range_end: b"/keys0",
            limit: 500,
            ..RangeRequest::default()
        };
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let started = Instant::now();
            let answer = db.range(&request).expect("range");
            best = best.min(started.elapsed());
            assert!(answer.kvs.len() == 500 && answer.more && answer.count > 500);
        }
        best
    };
    let pages = [page(&first), page(&middle), page(&last)];
    println!("@pages_us {pages:?}");
    let (least, most) = (pages.iter().min(), pages.iter().max());
    let (least, most) = (least.expect("pages"), most.expect("pages"));
    assert!(
        *most < *least * 10,
        "a page costs by where it is: {pages:?}"
    );

    // A scan of all of it keeps nothing.
    let scanned = db.iter(KeyRange::From(b""), 0).map(Result::unwrap).count();
    assert_eq!(scanned as u64, keys + 1);
    println!("@scan_memory {}", anonymous_bytes().saturating_sub(before));
}

fn report(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.split_once(name));
    let (_, figure) = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    figure.trim().parse().expect("a number")
}

#[test]
fn neither_open_nor_memory_nor_count_grows_with_the_keys() {
    let most = variable(KEYS, 1_000_000);
    for keys in [most / 10, most] {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("store");
        fill(&path, keys);
        let output = Command::new(env::current_exe().expect("own path"))
            .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
            .env(CHILD_PATH, &path)
            .env(KEYS, keys.to_string())
            .output()
            .expect("starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{errors}");
        let [open, memory, count, scan] = ["@open_us ", "@memory ", "@count_us ", "@scan_memory "]
            .map(|name| report(&text, name));
        let pages = text
            .lines()
            .find_map(|line| line.strip_prefix("@pages_us "));
        println!(
            "{keys} keys: open to first read {open} us, {memory} bytes of memory, \
             {scan} after a scan of all; count {count} us; pages {}",
            pages.unwrap_or_default()
        );
        assert!(memory < 32 * MIB, "{memory} bytes of memory");
        assert!(scan < 48 * MIB, "{scan} bytes of memory after a scan");
        // The promises are 200 ms and 1 ms.
        assert!(open < 10_000_000, "{open} us to open");
        assert!(count < 100_000, "{count} us to count");
    }
}

/// Bytes of the file that the file system has allocated.
fn file_bytes(db: &Db) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let file = db.path().join("tree.btree");
    std::fs::metadata(file).expect("the store's file").blocks() * 512
}

/// All keys are overwritten again and again, what is older than a moment is
/// compacted, and nobody calls for a vacuum.
#[test]
fn the_file_follows_what_lives_in_it() {
    const VALUE_BYTES: usize = 200;
    const RETENTION: Duration = Duration::from_secs(2);
    let seconds = variable(SECONDS, 20);
    // By hand the 64 MiB of the promise.
    let keys = if seconds > 60 { 327_680 } else { 81_920 };
    let live = keys * (16 + VALUE_BYTES as u64);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let options = Options {
        checkpoint_log_bytes: 64 * MIB,
        ..Options::default()
    };
    let db = Db::open(folder.path().join("store"), options).expect("a new store");
    let mut random = Random::new(1);
    let mut batch = WriteBatch::new();
    let mut value = vec![0; VALUE_BYTES];
    let mut put = |batch: &mut WriteBatch, random: &mut Random, number: u64| {
        value.fill_with(|| random.number() as u8);
        batch.put(&key(number), &value).expect("put");
    };
    for number in 0..keys {
        put(&mut batch, &mut random, number);
        if batch.len() == 64 {
            db.write(&batch).expect("written");
            batch.clear();
        }
    }
    // A revision of each second, to be compacted after the retention. The promise is of
    // 100 % an hour, which leaves no time to see anything: by itself this test overwrites
    // as many keys as there are in 16 seconds.
    let overwrite_seconds = variable(OVERWRITE_SECONDS, 16);
    let per_second = keys / overwrite_seconds;
    // Faster than that a store may be replaced between two checkpoints, and once more
    // during one: as much as is held may be new since the last one, and as much again
    // be free, see `Space::wants_checkpoint`.
    let promise = if overwrite_seconds < 60 { 3.0 } else { 1.3 };
    let started = Instant::now();
    let mut revisions = std::collections::VecDeque::new();
    let (mut worst, mut samples) = (0.0_f64, 0);
    for second in 1..=seconds {
        let mut left = per_second;
        while left > 0 {
            batch.clear();
            let puts = left.min(64);
            left -= puts;
            for _ in 0..puts {
                let number = random.number() % keys;
                put(&mut batch, &mut random, number);
            }
            db.write(&batch).expect("written");
        }
        revisions.push_back((Instant::now(), db.revision()));
        while let Some((at, revision)) = revisions.front()
            && at.elapsed() > RETENTION
        {
            let _ = db.compact(*revision);
            revisions.pop_front();
        }
        let due = Duration::from_secs(second);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        // What the fill left has gone by then, and what is compacted waits for nobody.
        let is_settled = second > if seconds > 60 { 120 } else { 8 };
        if is_settled {
            let retained = (revisions.len() as u64 + 1) * per_second * (16 + VALUE_BYTES as u64);
            let held = (live + retained) as f64;
            worst = worst.max(file_bytes(&db) as f64 / held);
            samples += 1;
            assert!(
                (file_bytes(&db) as f64) < promise * held + 64.0 * MIB as f64,
                "second {second}: {} MiB of file for {} live and {} retained",
                file_bytes(&db) / MIB,
                live / MIB,
                retained / MIB
            );
        }
    }
    println!(
        "{seconds} s, {} MiB live, all overwritten in {overwrite_seconds} s: the file is at most \
         {worst:.2} times what is held, {samples} samples",
        live / MIB
    );
    assert!(samples > 0);
    // Once it is idle, it settles without being told to, but for what leaves that were
    // filled in any order leave empty.
    db.compact(db.revision()).expect("compacted");
    let deadline = Instant::now() + Duration::from_secs(60);
    while file_bytes(&db) as f64 > 1.6 * live as f64 {
        let now = file_bytes(&db);
        assert!(
            Instant::now() < deadline,
            "{now} bytes for {live} live ones: {:?}",
            db.stats()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "settled at {:.2} times",
        file_bytes(&db) as f64 / live as f64
    );
    db.check().expect("the check passes");
}

/// A burst leaves pages that wait for a checkpoint, and then there are too few writes to
/// fill the log, but never none: nobody calls for a checkpoint, and the store is not idle.
#[test]
fn a_burst_before_slow_writes_leaves_no_space_behind() {
    const KEYS: u64 = 40_000;
    const VALUE: [u8; 200] = [b'v'; 200];
    let folder = tempfile::tempdir().expect("a temporary directory");
    let db = Db::open(folder.path().join("store"), Options::default()).expect("a new store");
    let put_all = |keys: std::ops::Range<u64>| {
        let mut batch = WriteBatch::new();
        for number in keys {
            batch.put(&key(number), &VALUE).expect("put");
        }
        db.write(&batch).expect("written");
    };
    let overwrite = || (0..KEYS / 100).for_each(|part| put_all(part * 100..(part + 1) * 100));
    for _ in 0..2 {
        overwrite();
        db.checkpoint().expect("checkpoint");
    }
    overwrite();
    db.compact(db.revision()).expect("compacted");
    let burst = file_bytes(&db);

    let mut random = Random::new(1);
    let deadline = Instant::now() + Duration::from_secs(60);
    while 4 * file_bytes(&db) > 3 * burst {
        let (now, stats) = (file_bytes(&db), db.stats());
        assert!(
            Instant::now() < deadline,
            "{now} bytes, {burst} after the burst: {stats:?}"
        );
        let first = random.number() % (KEYS - 20);
        put_all(first..first + 20);
        std::thread::sleep(Duration::from_millis(20));
    }
}
