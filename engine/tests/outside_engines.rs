//! What engines from other crates must hold: reopening, crashes, power losses.
//!
//! A store is driven by a workload that follows from the log index alone, so
//! that whatever state comes back can be compared, entry by entry, with what it
//! must be. Seeds are printed; `VARVE_SEED` runs one again.
#![cfg(any(feature = "lmdb", feature = "redb", feature = "fjall"))]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use varve_engine::backend::{
    Applied, Backend, BackendError, Direction, Read, Result, Snapshot, TreeId,
};

type Open = fn(&Path) -> Result<Box<dyn Backend>>;

#[cfg(feature = "lmdb")]
fn open_lmdb(path: &Path) -> Result<Box<dyn Backend>> {
    Ok(Box::new(varve_engine::backend::lmdb::Lmdb::open(path)?))
}

#[cfg(feature = "redb")]
fn open_redb(path: &Path) -> Result<Box<dyn Backend>> {
    Ok(Box::new(varve_engine::backend::redb::Redb::open(path)?))
}

#[cfg(feature = "fjall")]
fn open_fjall(path: &Path) -> Result<Box<dyn Backend>> {
    Ok(Box::new(varve_engine::backend::fjall::Fjall::open(path)?))
}

const ENGINES: &[(&str, Open)] = &[
    #[cfg(feature = "lmdb")]
    ("lmdb", open_lmdb),
    #[cfg(feature = "redb")]
    ("redb", open_redb),
    #[cfg(feature = "fjall")]
    ("fjall", open_fjall),
];

/// Opens a store that was let go of a moment ago. A process that another test starts has
/// the lock's descriptor too, from its fork until it becomes another program.
fn reopen(open: Open, path: &Path) -> Result<Box<dyn Backend>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match open(path) {
            Err(error)
                if error.to_string().contains("open already") && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn seed() -> u64 {
    let seed = env::var("VARVE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64)
    });
    println!("VARVE_SEED={seed}");
    seed
}

type Model = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

fn applied(index: u64) -> Applied {
    Applied {
        term: 1 + index / 100,
        index,
    }
}

/// What the batch of log entry `index` does: puts, deletes, a range delete.
fn change(index: u64, mut each: impl FnMut(u8, &[u8], Option<Vec<u8>>)) {
    let mut random = Random(index);
    for _ in 0..1 + random.below(12) {
        let tree = random.below(8) as u8;
        let key = format!("key {:03}", random.below(300));
        let value = (random.below(4) > 0).then(|| {
            // Some values span several blocks of the disk.
            let length = if random.below(20) == 0 {
                20_000
            } else {
                random.below(600)
            };
            let fill = random.below(256) as u8;
            [index.to_le_bytes().to_vec(), vec![fill; length as usize]].concat()
        });
        each(tree, key.as_bytes(), value);
    }
}

fn publish(backend: &dyn Backend, index: u64) -> Result<()> {
    let mut batch = backend.begin()?;
    let mut done = Ok(());
    change(index, |tree, key, value| {
        let tree = TreeId(tree);
        let changed = match value {
            Some(value) => batch.put(tree, key, &value),
            None => batch.delete(tree, key).map(drop),
        };
        if done.is_ok() {
            done = changed;
        }
    });
    done?;
    batch.publish(applied(index))
}

fn model(index: u64) -> Model {
    let mut model = Model::new();
    for index in 1..=index {
        change(index, |tree, key, value| match value {
            Some(value) => drop(model.insert((tree, key.to_vec()), value)),
            None => drop(model.remove(&(tree, key.to_vec()))),
        });
    }
    model
}

fn contents(read: &dyn Read) -> Result<Model> {
    let mut model = Model::new();
    for tree in 0..8 {
        let all = (Bound::Unbounded, Bound::Unbounded);
        read.scan(TreeId(tree), all, Direction::Forward, &mut |key, value| {
            model.insert((tree, key.to_vec()), value.to_vec());
            ControlFlow::Continue(())
        })?;
    }
    Ok(model)
}

/// Checks that the store is exactly as of some published state, and returns
/// which.
fn verify(backend: &dyn Backend) -> Result<u64> {
    let snapshot = backend.snapshot()?;
    let index = snapshot.applied().index;
    let expected = model(index);
    assert!(
        contents(&*snapshot)? == expected,
        "not the state of log entry {index}"
    );
    if index > 0 {
        assert_eq!(snapshot.applied(), applied(index));
    }
    assert_eq!(backend.check()?.entries, expected.len() as u64);
    Ok(index)
}

#[test]
fn reopens_at_or_after_its_checkpoint() -> Result<()> {
    for (name, open) in ENGINES {
        println!("{name}");
        let temp = tempfile::tempdir().expect("temporary directory");
        let path = temp.path().join("store");
        let mut last = 0;
        for (published, checkpointed) in
            [(0, false), (10, true), (25, false), (40, true), (40, false)]
        {
            let backend = reopen(*open, &path)?;
            assert_eq!(backend.name(), *name);
            assert_eq!(backend.durable(), backend.snapshot()?.applied());
            let from = verify(&*backend)?;
            assert!(from >= last, "{name}: from {from}, but durable was {last}");
            for index in from + 1..=published {
                publish(&*backend, index)?;
            }
            assert!(backend.durable().index >= last);
            if checkpointed {
                assert_eq!(backend.checkpoint()?, applied(published));
                assert_eq!(backend.durable(), applied(published));
                last = published;
            }
            assert_eq!(verify(&*backend)?, from.max(published));
            // Open twice is refused, whoever asks.
            assert!(open(&path).is_err());
        }
        let backend = reopen(*open, &path)?;
        assert!(verify(&*backend)? >= 40);
    }
    Ok(())
}

/// Batches without a new log entry, as maintenance makes them, are published
/// and checkpointed all the same.
#[test]
fn a_batch_of_the_same_log_entry_counts() -> Result<()> {
    for (name, open) in ENGINES {
        println!("{name}");
        let temp = tempfile::tempdir().expect("temporary directory");
        let backend = open(temp.path())?;
        for value in [b"one", b"two"] {
            let mut batch = backend.begin()?;
            batch.put(TreeId(1), b"key", value)?;
            batch.publish(applied(5))?;
            assert_eq!(backend.checkpoint()?, applied(5));
        }
        drop(backend);
        let backend = reopen(*open, temp.path())?;
        let snapshot = backend.snapshot()?;
        assert_eq!(
            snapshot.get(TreeId(1), b"key")?.as_deref(),
            Some(&b"two"[..])
        );
    }
    Ok(())
}

/// Neither an open batch nor a held snapshot is in a checkpoint's way, and
/// snapshots stay as they were while batches and checkpoints pass.
#[test]
fn snapshots_stay_while_batches_and_checkpoints_pass() -> Result<()> {
    for (name, open) in ENGINES {
        println!("{name}");
        let temp = tempfile::tempdir().expect("temporary directory");
        let backend = open(temp.path())?;
        publish(&*backend, 1)?;
        {
            let mut batch = backend.begin()?;
            batch.put(TreeId(0), b"open", b"")?;
            assert_eq!(backend.checkpoint()?, applied(1));
            assert_eq!(backend.snapshot()?.get(TreeId(0), b"open")?, None);
        }
        let stop = AtomicBool::new(false);
        let early: Arc<dyn Snapshot> = backend.snapshot()?;
        std::thread::scope(|scope| -> Result<()> {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let early = Arc::clone(&early);
                    let (backend, stop) = (&backend, &stop);
                    scope.spawn(move || -> Result<u64> {
                        let mut newest = 0;
                        while !stop.load(Ordering::Relaxed) {
                            // One snapshot read by all, and one of its own.
                            assert_eq!(contents(&*early)?, model(1));
                            let own = backend.snapshot()?;
                            let index = own.applied().index;
                            assert!(index >= newest);
                            newest = index;
                            assert!(contents(&*own)? == model(index));
                        }
                        Ok(newest)
                    })
                })
                .collect();
            let checkpoints = scope.spawn(|| -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    backend.checkpoint()?;
                }
                Ok(())
            });
            for index in 2..=150 {
                publish(&*backend, index)?;
            }
            assert!(backend.stats().readers >= 1);
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().expect("reader")?;
            }
            checkpoints.join().expect("checkpoints")
        })?;
        assert_eq!(contents(&*early)?, model(1));
        drop(early);
        assert_eq!(backend.stats().readers, 0);
        assert!(backend.stats().file_bytes > 0);
        assert_eq!(verify(&*backend)?, 150);
    }
    Ok(())
}

#[test]
fn keys_over_the_limit_are_refused_and_hurt_nothing() -> Result<()> {
    for (name, open) in ENGINES {
        let temp = tempfile::tempdir().expect("temporary directory");
        let backend = open(temp.path())?;
        let mut batch = backend.begin()?;
        let long = vec![b'k'; 2 << 20];
        let Err(BackendError::KeyTooLong { length, limit }) = batch.put(TreeId(0), &long, b"")
        else {
            panic!("{name} took a key of {} bytes", long.len());
        };
        println!("{name}: keys up to {limit} bytes");
        assert_eq!(length, long.len());
        assert_eq!(batch.get(TreeId(0), &long)?, None);
        assert!(!batch.delete(TreeId(0), &long)?);
        batch.put(TreeId(0), &long[..limit], b"longest")?;
        batch.put(TreeId(0), b"", b"empty")?;
        batch.publish(applied(1))?;
        let snapshot = backend.snapshot()?;
        assert_eq!(snapshot.get(TreeId(0), &long)?, None);
        assert_eq!(
            snapshot.get(TreeId(0), &long[..limit])?.as_deref(),
            Some(&b"longest"[..])
        );
        assert_eq!(
            snapshot.get(TreeId(0), b"")?.as_deref(),
            Some(&b"empty"[..])
        );
        for (bounds, expected) in [
            ((Bound::Included(&long[..]), Bound::Unbounded), 0),
            ((Bound::Unbounded, Bound::Excluded(&long[..])), 2),
            ((Bound::Excluded(&b""[..]), Bound::Included(&long[..])), 1),
        ] {
            assert_eq!(
                snapshot.sums(TreeId(0), bounds)?.entries,
                expected,
                "{name}"
            );
        }
        let unknown = snapshot.get(TreeId(8), b"");
        assert!(matches!(
            unknown,
            Err(BackendError::UnknownTree { tree: 8 })
        ));
    }
    Ok(())
}

/// Another engine's directory, and one that lost its files, are named.
#[test]
fn strange_directories_are_refused() -> Result<()> {
    for (name, open) in ENGINES {
        println!("{name}");
        let temp = tempfile::tempdir().expect("temporary directory");
        let path = temp.path().join("store");
        let backend = open(&path)?;
        publish(&*backend, 1)?;
        backend.checkpoint()?;
        drop(backend);
        for (other, open_other) in ENGINES {
            let opened = reopen(*open_other, &path);
            assert_eq!(opened.is_ok(), other == name);
        }
        for (file, _) in files(&path) {
            if !file.ends_with("CHECKPOINT") {
                fs::remove_file(path.join(file)).expect("remove");
            }
        }
        let error = open(&path).err().expect("a store without its files opened");
        println!("{error}");
    }
    Ok(())
}

/// All files below `path`, but for locks.
fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("list") {
            let entry = entry.expect("entry").path();
            if entry.is_dir() {
                directories.push(entry);
            } else {
                let bytes = fs::read(&entry).expect("read");
                found.insert(entry.strip_prefix(path).expect("below").to_owned(), bytes);
            }
        }
    }
    found
}

/// What a power loss may leave: of what was written after the sync, each block
/// reached the disk or did not, in no order.
fn power_loss(
    synced: &BTreeMap<PathBuf, Vec<u8>>,
    written: &BTreeMap<PathBuf, Vec<u8>>,
    to: &Path,
    random: &mut Random,
) {
    let lost_in_8 = random.below(9);
    let block_bytes = [512, 4096][random.below(2) as usize];
    for (name, written) in written {
        let mut bytes = written.clone();
        if let Some(synced) = synced.get(name) {
            for start in (0..bytes.len()).step_by(block_bytes) {
                if random.below(8) < lost_in_8 {
                    let end = (start + block_bytes).min(bytes.len());
                    for (position, byte) in bytes[start..end].iter_mut().enumerate() {
                        *byte = synced.get(start + position).copied().unwrap_or(0);
                    }
                }
            }
        }
        let path = to.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        // Journals are preallocated: their zeros need not be written.
        let zeros = bytes.iter().rev().take_while(|&&byte| byte == 0).count();
        fs::write(&path, &bytes[..bytes.len() - zeros]).expect("write");
        let file = fs::File::options().write(true).open(&path).expect("open");
        file.set_len(bytes.len() as u64).expect("length");
    }
}

#[test]
fn a_power_loss_leaves_a_published_state_at_or_after_the_checkpoint() -> Result<()> {
    let mut random = Random(seed());
    for (name, open) in ENGINES {
        for round in 0..6 {
            let temp = tempfile::tempdir().expect("temporary directory");
            let (path, lost) = (temp.path().join("store"), temp.path().join("lost"));
            let backend = open(&path)?;
            let checkpoint = random.below(60);
            for index in 1..=checkpoint {
                publish(&*backend, index)?;
                if random.below(10) == 0 {
                    backend.checkpoint()?;
                }
            }
            backend.checkpoint()?;
            let synced = files(&path);
            let last = checkpoint + 1 + random.below(150);
            for index in checkpoint + 1..=last {
                publish(&*backend, index)?;
            }
            let written = files(&path);
            for cut in 0..4 {
                fs::create_dir_all(&lost).expect("directory");
                power_loss(&synced, &written, &lost, &mut random);
                let recovered = reopen(*open, &lost)?;
                let index = verify(&*recovered)?;
                println!("{name} {round}.{cut}: {checkpoint} <= {index} <= {last}");
                assert!((checkpoint..=last).contains(&index));
                assert_eq!(recovered.durable().index, index);
                // And it goes on from there.
                publish(&*recovered, index + 1)?;
                recovered.checkpoint()?;
                assert_eq!(verify(&*recovered)?, index + 1);
                drop(recovered);
                assert_eq!(verify(&*reopen(*open, &lost)?)?, index + 1);
                fs::remove_dir_all(&lost).expect("remove");
            }
        }
    }
    Ok(())
}

const CHILD_ENGINE: &str = "VARVE_TEST_CHILD_ENGINE";
const CHILD_PATH: &str = "VARVE_TEST_CHILD_PATH";

/// Not a test by itself: the process that `kill_9_...` starts and kills.
#[test]
fn child() -> Result<()> {
    let (Ok(engine), Ok(path)) = (env::var(CHILD_ENGINE), env::var(CHILD_PATH)) else {
        return Ok(());
    };
    let (_, open) = ENGINES
        .iter()
        .find(|(name, _)| *name == engine)
        .expect("engine");
    let backend = open(Path::new(&path))?;
    for index in verify(&*backend)? + 1.. {
        publish(&*backend, index)?;
        if index % 7 == 0 {
            println!("durable {}", backend.checkpoint()?.index);
        }
    }
    Ok(())
}

#[test]
fn kill_9_leaves_a_published_state_at_or_after_the_checkpoint() -> Result<()> {
    let mut random = Random(seed());
    for (name, open) in ENGINES {
        let temp = tempfile::tempdir().expect("temporary directory");
        let path = temp.path().join("store");
        let mut last = 0;
        for _ in 0..4 {
            let mut child = Command::new(env::current_exe().expect("own path"))
                .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
                .env(CHILD_ENGINE, name)
                .env(CHILD_PATH, &path)
                .stdout(Stdio::piped())
                .spawn()
                .expect("start");
            let lines = BufReader::new(child.stdout.take().expect("output")).lines();
            let mut checkpoints = 1 + random.below(15);
            for line in lines {
                let line = line.expect("line");
                if let Some((_, index)) = line.split_once("durable ") {
                    last = index.parse().expect("index");
                    checkpoints -= 1;
                }
                if checkpoints == 0 {
                    break;
                }
            }
            child.kill().expect("kill");
            child.wait().expect("wait");
            let index = verify(&*reopen(*open, &path)?)?;
            println!("{name}: {last} <= {index}");
            assert!(
                index >= last,
                "{name}: checkpoint at {last}, but came back at {index}"
            );
        }
    }
    Ok(())
}
