//! A disk on which the store's checkpoints take as long as a test wants, while
//! the log goes on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use varve_engine::btree::inspect::{Inspector, MetaPage};
use varve_engine::db::{Db, Options};
use varve_engine::disk::{Disk, SimDisk};

use crate::hooked::HookedDisk;
use crate::{db_on, dir, options};

/// Syncs of the store's file wait for the lock.
struct SlowDisk {
    inner: SimDisk,
    turn: Arc<Mutex<()>>,
}

/// Puts of one block of log each.
fn put(db: &Db, numbers: std::ops::Range<u32>) {
    for number in numbers {
        db.put(&number.to_be_bytes(), &[0; 500]).unwrap();
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn slow(options: Options) -> (SlowDisk, Arc<Db>) {
    let disk = SlowDisk {
        inner: SimDisk::new(),
        turn: Arc::default(),
    };
    let mut hooked = HookedDisk::new(disk.inner.clone(), "tree.btree");
    let turn = Arc::clone(&disk.turn);
    hooked.sync = Arc::new(move || {
        drop(turn.lock().unwrap_or_else(PoisonError::into_inner));
        true
    });
    let hooked: Arc<dyn Disk> = Arc::new(hooked);
    let db = Db::open_on(&hooked, dir(), options).unwrap();
    (disk, Arc::new(db))
}

#[test]
fn writers_wait_for_a_checkpoint_that_takes_long() {
    const BLOCK: u64 = 4096;
    let (disk, db) = slow(Options {
        checkpoint_log_bytes: 16 * BLOCK,
        max_log_bytes: 32 * BLOCK,
        ..options()
    });
    let turn = disk.turn.lock().unwrap();
    let log = Arc::clone(db.wal_stats());
    let end = || log.end_lsn.load(Ordering::Relaxed);
    let writer = {
        let db = Arc::clone(&db);
        std::thread::spawn(move || put(&db, 0..200))
    };
    until("full", || end() > 32 * BLOCK);
    std::thread::sleep(Duration::from_millis(200));
    // The log starts at one block; the last batch let through, and a mark or seal each.
    assert!(end() <= 40 * BLOCK, "{} blocks", end() / BLOCK);
    assert!(!writer.is_finished());
    drop(turn);
    writer.join().unwrap();
    assert!(end() > 200 * BLOCK);
    db.check().unwrap();
}

/// What is written while one is made calls for none that only that one was due for.
#[test]
fn a_checkpoint_is_made_once() {
    const BLOCK: u64 = 4096;
    let (disk, db) = slow(Options {
        checkpoint_log_bytes: 16 * BLOCK,
        ..options()
    });
    let sequence = || {
        let inspector = Inspector::open(&disk.inner.crash_now(0), &dir().join("tree.btree"));
        let pages = inspector.unwrap().meta().unwrap();
        let sequence = |page: MetaPage| match page {
            MetaPage::Valid(fields) => fields.sequence,
            _ => 0,
        };
        pages.map(sequence).into_iter().max().unwrap()
    };
    let turn = disk.turn.lock().unwrap();
    put(&db, 0..20);
    std::thread::sleep(Duration::from_millis(100));
    put(&db, 20..25);
    let before = sequence();
    drop(turn);
    until("made", || sequence() > before);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(sequence(), before + 1);
    db.check().unwrap();
}

/// The last batch stays in the log. Where that alone is as long as what calls for a
/// checkpoint, there is no end of them if one that advances nothing calls for the next.
#[test]
fn a_store_whose_log_is_never_short_closes() {
    let (_, db) = slow(Options {
        checkpoint_log_bytes: 4096,
        ..options()
    });
    put(&db, 0..3);
    let db = Arc::into_inner(db).unwrap();
    let closes = std::thread::spawn(move || db.close().unwrap());
    until("closed", || closes.is_finished());
    closes.join().unwrap();
}

#[test]
fn what_is_logged_during_a_checkpoint_is_kept() {
    let (disk, db) = slow(options());
    put(&db, 0..5);
    let turn = disk.turn.lock().unwrap();
    let checkpoint = {
        let db = Arc::clone(&db);
        std::thread::spawn(move || db.checkpoint().unwrap())
    };
    // More than two segments, once the checkpoint has its state and waits.
    std::thread::sleep(Duration::from_millis(100));
    put(&db, 5..60);
    drop(turn);
    checkpoint.join().unwrap();
    drop(db);
    let db = db_on(&disk.inner.crash_now(0)).unwrap();
    assert_eq!(db.revision(), 61);
    db.check().unwrap();
}
