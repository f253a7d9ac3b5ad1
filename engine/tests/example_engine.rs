//! A storage engine from nothing, to learn from: `ENGINES.md` goes through it.
//!
//! `Journal` keeps the whole store in memory, in sorted maps, and appends each
//! batch to a file. Opening reads the file from the start. The file is never
//! rewritten, and a batch copies the maps of the trees that it changes: it is
//! as small as an engine can be that holds all of the trait's promises, not one
//! to run a node on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use varve_engine::backend::conformance::{KeyShape, Session, Traits, operations, run_cases};
use varve_engine::backend::held::HeldCount;
use varve_engine::backend::{
    Applied, Backend, BackendError, Batch, Bounds, CheckReport, Direction, MAX_TREES, Read, Result,
    Snapshot, Stats, TreeId, Visitor, is_empty,
};

/// The name that `--engine` would take.
const NAME: &str = "journal";

/// The longest key.
const MAX_KEY_BYTES: usize = 64 << 10;

// ---------------------------------------------------------------- the state

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

/// A state of the store. A copy shares all trees; changing one copies that one.
#[derive(Clone, Default)]
struct State {
    trees: [Arc<Tree>; MAX_TREES],
    applied: Applied,
}

fn unknown(tree: TreeId) -> BackendError {
    BackendError::UnknownTree { tree: tree.0 }
}

impl State {
    fn tree(&self, tree: TreeId) -> Result<&Tree> {
        let found = self.trees.get(usize::from(tree.0));
        found.map(|tree| &**tree).ok_or_else(|| unknown(tree))
    }

    fn tree_mut(&mut self, tree: TreeId) -> Result<&mut Tree> {
        let found = self.trees.get_mut(usize::from(tree.0));
        found.map(Arc::make_mut).ok_or_else(|| unknown(tree))
    }
}

impl Read for State {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        // Lend the value where the engine can: readers encode it from there.
        let value = self.tree(tree)?.get(key);
        Ok(value.map(|value| Cow::Borrowed(value.as_slice())))
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        let tree = self.tree(tree)?;
        // Inverted bounds are not an error; many maps panic on them.
        if is_empty(bounds) {
            return Ok(());
        }
        let mut entries = tree.range::<[u8], _>(bounds);
        loop {
            let next = match direction {
                Direction::Forward => entries.next(),
                Direction::Backward => entries.next_back(),
            };
            let Some((key, value)) = next else {
                return Ok(());
            };
            if let ControlFlow::Break(()) = visit(key, value) {
                return Ok(());
            }
        }
    }
}

impl Snapshot for State {
    fn applied(&self) -> Applied {
        self.applied
    }
}

// ---------------------------------------------------------------- the engine

struct Journal {
    /// What new snapshots see.
    published: Mutex<Arc<State>>,
    /// How far the last checkpoint applies.
    durable: Mutex<Applied>,
    /// Held while a batch is open: one writer at a time.
    writer: Mutex<File>,
    /// The same file, to sync beside the writer.
    sync: File,
    path: PathBuf,
    /// The first failed write or sync. After it nothing is written: what the
    /// file holds is not known any more.
    latched: OnceLock<String>,
    held: HeldCount,
}

/// The value behind a lock is whole even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens the store in `dir`, or makes one.
    fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("journal");
        let io = |action| {
            let path = path.clone();
            move |source| BackendError::Io {
                action,
                path,
                offset: 0,
                source,
            }
        };
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(&path).map_err(io("opening"))?;
        let (state, end) = recover(&mut file).map_err(io("reading"))?;
        // What follows the last whole record is torn, and was never durable.
        file.set_len(end).map_err(io("cutting"))?;
        // What was recovered may not be durable, but `durable` will say so.
        file.sync_all().map_err(io("syncing"))?;
        let sync = file.try_clone().map_err(io("opening"))?;
        Ok(Self {
            durable: Mutex::new(state.applied),
            published: Mutex::new(Arc::new(state)),
            writer: Mutex::new(file),
            sync,
            path,
            latched: OnceLock::new(),
            held: HeldCount::default(),
        })
    }

    fn check_latch(&self) -> Result<()> {
        match self.latched.get() {
            Some(first) => Err(BackendError::Latched(first.clone())),
            None => Ok(()),
        }
    }

    fn latch(&self, action: &'static str, source: std::io::Error) -> BackendError {
        let path = self.path.clone();
        let error = BackendError::Io {
            action,
            path,
            offset: 0,
            source,
        };
        let _ = self.latched.set(error.to_string());
        error
    }
}

impl Backend for Journal {
    fn name(&self) -> &'static str {
        NAME
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>> {
        let published = Arc::clone(&lock(&self.published));
        Ok(Arc::new(self.held.hold(published)))
    }

    fn begin(&self) -> Result<Box<dyn Batch + '_>> {
        let writer = lock(&self.writer);
        self.check_latch()?;
        Ok(Box::new(JournalBatch {
            journal: self,
            state: State::clone(&lock(&self.published)),
            changes: Vec::new(),
            writer,
        }))
    }

    fn checkpoint(&self) -> Result<Applied> {
        self.check_latch()?;
        // First what will be durable, then the sync: never the other way round.
        let applied = lock(&self.published).applied;
        let synced = self.sync.sync_data();
        synced.map_err(|source| self.latch("syncing", source))?;
        *lock(&self.durable) = applied;
        Ok(applied)
    }

    fn durable(&self) -> Applied {
        *lock(&self.durable)
    }

    fn stats(&self) -> Stats {
        let file_bytes = self.sync.metadata().map_or(0, |metadata| metadata.len());
        Stats {
            file_bytes,
            used_bytes: file_bytes,
            readers: self.held.get(),
            pinned_bytes: 0,
            ..Stats::default()
        }
    }

    fn check(&self) -> Result<CheckReport> {
        // The maps are ordered by their type, so it is the file that is checked:
        // up to what is published, it must give the published state.
        let published = Arc::clone(&lock(&self.published));
        let mut file = File::open(&self.path).map_err(|source| BackendError::Io {
            action: "opening",
            path: self.path.clone(),
            offset: 0,
            source,
        })?;
        let mut entries = 0;
        let mut found = false;
        let replayed = replay(&mut file, |state| {
            // Several batches may apply up to one log entry.
            if state.applied == published.applied {
                found |= state.trees == published.trees;
            }
        });
        replayed.map_err(|source| BackendError::Io {
            action: "reading",
            path: self.path.clone(),
            offset: 0,
            source,
        })?;
        if !found {
            return Err(BackendError::Other {
                engine: NAME,
                message: format!("{} is damaged: set it aside", self.path.display()),
            });
        }
        for tree in &published.trees {
            entries += tree.len() as u64;
        }
        Ok(CheckReport { pages: 0, entries })
    }
}

// ---------------------------------------------------------------- the batch

struct JournalBatch<'j> {
    journal: &'j Journal,
    /// The published state with the changes so far: reads see them.
    state: State,
    /// The changes, as the file takes them.
    changes: Vec<u8>,
    writer: MutexGuard<'j, File>,
}

impl Read for JournalBatch<'_> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        self.state.get(tree, key)
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.state.scan(tree, bounds, direction, visit)
    }
}

impl Batch for JournalBatch<'_> {
    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<()> {
        if key.len() > MAX_KEY_BYTES {
            return Err(BackendError::KeyTooLong {
                length: key.len(),
                limit: MAX_KEY_BYTES,
            });
        }
        let entries = self.state.tree_mut(tree)?;
        entries.insert(key.to_vec(), value.to_vec());
        encode_change(&mut self.changes, tree, key, Some(value));
        Ok(())
    }

    fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        let was_there = self.state.tree_mut(tree)?.remove(key).is_some();
        if was_there {
            encode_change(&mut self.changes, tree, key, None);
        }
        Ok(was_there)
    }

    fn delete_range(&mut self, tree: TreeId, bounds: Bounds<'_>) -> Result<u64> {
        let mut keys = Vec::new();
        self.scan(tree, bounds, Direction::Forward, &mut |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        for key in &keys {
            self.delete(tree, key)?;
        }
        Ok(keys.len() as u64)
    }

    fn publish(mut self: Box<Self>, applied: Applied) -> Result<()> {
        // Changes and log position are one record: neither is there without the
        // other.
        let record = encode_record(&self.changes, applied);
        let written = self.writer.write_all(&record);
        written.map_err(|source| self.journal.latch("writing", source))?;
        self.state.applied = applied;
        *lock(&self.journal.published) = Arc::new(self.state);
        Ok(())
    }
}

// ---------------------------------------------------------------- the file

// A record: length of the body u32, crc32c of the body u32, body. The body:
// term u64, index u64, changes. A change: tree u8, 1 for a put and 0 for a
// removal u8, key length u32, value length u32, key, value. Little-endian.
const HEADER_BYTES: usize = 8;

fn encode_change(to: &mut Vec<u8>, tree: TreeId, key: &[u8], value: Option<&[u8]>) {
    let bytes = value.unwrap_or_default();
    to.extend_from_slice(&[tree.0, u8::from(value.is_some())]);
    to.extend_from_slice(&(key.len() as u32).to_le_bytes());
    to.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    to.extend_from_slice(key);
    to.extend_from_slice(bytes);
}

fn encode_record(changes: &[u8], applied: Applied) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 + changes.len());
    body.extend_from_slice(&applied.term.to_le_bytes());
    body.extend_from_slice(&applied.index.to_le_bytes());
    body.extend_from_slice(changes);
    let mut record = Vec::with_capacity(HEADER_BYTES + body.len());
    record.extend_from_slice(&(body.len() as u32).to_le_bytes());
    record.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    record.extend_from_slice(&body);
    record
}

/// Applies the body of a record; nothing where it is not one.
fn apply(state: &mut State, body: &[u8]) -> Option<()> {
    let (term, rest) = body.split_first_chunk::<8>()?;
    let (index, mut rest) = rest.split_first_chunk::<8>()?;
    while !rest.is_empty() {
        let (&[tree, is_put], after) = rest.split_first_chunk::<2>()?;
        let (key_bytes, after) = after.split_first_chunk::<4>()?;
        let (value_bytes, after) = after.split_first_chunk::<4>()?;
        let (key, after) = after.split_at_checked(u32::from_le_bytes(*key_bytes) as usize)?;
        let (value, after) = after.split_at_checked(u32::from_le_bytes(*value_bytes) as usize)?;
        let entries = state.tree_mut(TreeId(tree)).ok()?;
        if is_put == 1 {
            entries.insert(key.to_vec(), value.to_vec());
        } else {
            entries.remove(key);
        }
        rest = after;
    }
    state.applied = Applied {
        term: u64::from_le_bytes(*term),
        index: u64::from_le_bytes(*index),
    };
    Some(())
}

/// Goes through the whole records, calls `each` with the state at the start and
/// after each, and returns the last state and where its record ends.
fn replay(file: &mut File, mut each: impl FnMut(&State)) -> std::io::Result<(State, u64)> {
    let mut state = State::default();
    let mut end = file.seek(SeekFrom::Start(0))?;
    let length = file.metadata()?.len();
    each(&state);
    loop {
        let mut header = [0; HEADER_BYTES];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok((state, end)),
            Err(error) => return Err(error),
        }
        let [a, b, c, d, crc @ ..] = header;
        let body_bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
        let next = end + HEADER_BYTES as u64 + body_bytes;
        // A length from a torn record must not ask for any amount of memory.
        if next > length {
            return Ok((state, end));
        }
        let mut body = vec![0; body_bytes as usize];
        file.read_exact(&mut body)?;
        if crc32c::crc32c(&body) != u32::from_le_bytes(crc) || apply(&mut state, &body).is_none() {
            return Ok((state, end));
        }
        each(&state);
        end = next;
    }
}

fn recover(file: &mut File) -> std::io::Result<(State, u64)> {
    let (state, end) = replay(file, |_| {})?;
    file.seek(SeekFrom::Start(end))?;
    Ok((state, end))
}

// ---------------------------------------------------------------- the tests

const TRAITS: Traits = Traits {
    durable: true,
    max_key_bytes: MAX_KEY_BYTES,
};

fn open(dir: &Path) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(Journal::open(dir)?))
}

#[test]
fn named_cases_hold() {
    // Each case takes an empty store.
    let mut dirs = Vec::new();
    let mut opener = || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let backend = open(dir.path());
        dirs.push(dir);
        backend
    };
    run_cases(&mut opener, TRAITS).expect("all cases hold");
}

#[test]
fn random_runs_agree_with_the_model() {
    for seed in 0..4 {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let shape = KeyShape::Mixed { max: 1000 };
        let operations = operations(seed, 2000, shape, 500, true);
        let mut opener = || open(dir.path());
        Session::new(&mut opener, TRAITS)
            .and_then(|mut session| session.run(&operations))
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

/// The suite can't know where an engine's file may be torn; its author does.
#[test]
fn any_cut_of_the_file_leaves_a_published_state() -> Result<()> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (path, applied) = (dir.path().join("journal"), |index| Applied {
        term: 1,
        index,
    });
    let mut ends = vec![0];
    let backend = open(dir.path())?;
    for index in 1..=5_u64 {
        let mut batch = backend.begin()?;
        batch.put(TreeId(0), b"key", &index.to_le_bytes())?;
        batch.publish(applied(index))?;
        ends.push(backend.stats().file_bytes);
    }
    assert_eq!(backend.checkpoint()?, applied(5));
    drop(backend);
    let whole = std::fs::read(&path).expect("the file can be read");
    for cut in 0..=whole.len() {
        for torn in [false, true] {
            let mut bytes = whole[..cut].to_vec();
            if let (true, Some(last)) = (torn, bytes.last_mut()) {
                *last ^= 0x40;
            }
            std::fs::write(&path, &bytes).expect("the file can be written");
            let backend = open(dir.path())?;
            let kept = (cut - usize::from(torn && cut > 0)) as u64;
            let expected = ends.iter().filter(|&&end| end <= kept).count() as u64 - 1;
            let snapshot = backend.snapshot()?;
            assert_eq!((cut, snapshot.applied().index), (cut, expected));
            assert_eq!(backend.durable(), snapshot.applied());
            let value = snapshot.get(TreeId(0), b"key")?;
            let expected = (expected > 0).then(|| expected.to_le_bytes());
            assert_eq!(value.as_deref(), expected.as_ref().map(|bytes| &bytes[..]));
            backend.check()?;
        }
    }
    Ok(())
}
