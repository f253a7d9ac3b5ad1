//! The `lmdb` engine: LMDB through heed.
//!
//! LMDB makes every commit durable by itself, or, with `MDB_NOSYNC`, none; and
//! without syncs a power loss can leave both of its meta pages pointing at
//! pages that never reached the disk. Varve publishes without a sync and makes
//! the state durable now and then, so this engine adds what LMDB lacks:
//!
//! - commits run with `MDB_NOSYNC`;
//! - a checkpoint syncs the data file, and then keeps a copy of both meta pages,
//!   as they were at the published state, in `CHECKPOINT` (see `store_dir`);
//! - a read transaction pins the checkpointed state until the next checkpoint,
//!   so that LMDB reuses none of its pages, whatever is committed meanwhile;
//! - opening puts the kept meta pages back. The store is then exactly as of the
//!   last checkpoint, after a clean end, a crash and a power loss alike.
//!
//! The price: pages freed since the last checkpoint are not reused before the
//! next one, so the file grows by what is written between two checkpoints.
//!
//! LMDB has no page checksums. Damage by the medium is found where it shows in
//! the structure, by [`Backend::check`], or by comparing members' hashes.

// heed makes opening unsafe, as a memory map is only sound while no one else
// changes the file, and its read transactions are not `Sync`.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};

use super::held::HeldCount;
use super::store_dir::{Checkpoint, StoreDir, io_error};
use super::tagged::{
    APPLIED, TAG_BYTES, TaggedKey, Walk, borrowed, check_length, decode_applied, encode_applied,
    tagged_bounds, untagged,
};
use super::{
    Applied, Backend, BackendError, Batch, Bounds, CheckReport, Direction, Read, Result, Snapshot,
    Stats, TreeId, Visitor,
};

/// The name that `--engine` takes.
pub const NAME: &str = "lmdb";

/// The longest key, the same on every machine: what fits pages of 4 KiB, the
/// smallest that LMDB has.
pub const MAX_KEY_BYTES: usize = MAX_TAGGED_KEY - TAG_BYTES;

const MAX_TAGGED_KEY: usize = 1982;

const DATA: &str = "data.mdb";
const LMDB_LOCK: &str = "lock.mdb";

/// Meta pages at the start of the data file.
const META_PAGES: u64 = 2;

/// Address space for the map, and so the most the store can hold. It takes no
/// memory. Where the system grants less (`ulimit -v`), half is asked for, and
/// so on down to the least.
const MAP_BYTES: usize = 1 << 40;
const LEAST_MAP_BYTES: usize = 1 << 30;

/// Published states that can be held at a time.
const MAX_READERS: u32 = 4096;

type Env = heed::Env<WithoutTls>;
type Database = heed::Database<'static, Bytes, Bytes>;

/// A store kept by LMDB.
pub struct Lmdb {
    store: Arc<Store>,
    published: Mutex<Arc<State>>,
    /// The state of the last checkpoint; its read transaction is the pin.
    durable: Mutex<Arc<State>>,
    /// Held while a batch is open.
    writer: Mutex<()>,
    /// Held during a checkpoint.
    checkpointing: Mutex<()>,
    /// The first error after which nothing can be written any more.
    latched: OnceLock<String>,
    held: HeldCount,
}

/// What states need for as long as they live. The environment closes before
/// the directory's lock is let go.
struct Store {
    env: Env,
    database: Database,
    data: File,
    data_path: PathBuf,
    page_bytes: u64,
    dir: StoreDir,
}

/// A published state.
struct State {
    /// Before `store`, so that it ends before the environment closes.
    txn: RoTxn<'static, WithoutTls>,
    applied: Applied,
    /// Both meta pages and the file's length as this state was published.
    metas: Vec<u8>,
    data_bytes: u64,
    last_page: u64,
    store: Arc<Store>,
}

// SAFETY: LMDB allows a read transaction to be used by many threads if the user
// synchronizes its use. What would need synchronization is what reading changes
// in it, and reads change nothing: the store has one database, the unnamed one,
// whose root is copied when the transaction begins (named ones are looked up on
// first use), cursors of read transactions are not linked to it, and pages come
// straight from the map. Only `Drop` changes it, with exclusive access.
unsafe impl Sync for State {}

impl Lmdb {
    /// Opens the store in `path`, as of its last checkpoint, or makes one.
    pub fn open(path: &Path) -> Result<Self> {
        let (dir, checkpoint) = StoreDir::open(NAME, path)?;
        if let Some(checkpoint) = &checkpoint {
            restore(&dir, checkpoint)?;
        }
        let store = Arc::new(Store::open(dir)?);
        let state = Arc::new(State::newest(&store)?);
        match &checkpoint {
            Some(checkpoint) => store.dir.verify(checkpoint, state.applied)?,
            None => {
                store.sync()?;
                state.record()?;
            }
        }
        Ok(Self {
            store,
            published: Mutex::new(Arc::clone(&state)),
            durable: Mutex::new(state),
            writer: Mutex::new(()),
            checkpointing: Mutex::new(()),
            latched: OnceLock::new(),
            held: HeldCount::default(),
        })
    }

    fn published(&self) -> Arc<State> {
        Arc::clone(&lock(&self.published))
    }

    fn check_latch(&self) -> Result<()> {
        match self.latched.get() {
            Some(first) => Err(BackendError::Latched(first.clone())),
            None => Ok(()),
        }
    }

    /// Stops all writing from here on; gives the error back.
    fn latch(&self, error: BackendError) -> BackendError {
        let _ = self.latched.set(error.to_string());
        error
    }
}

/// The state behind each lock is whole even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings the files back to the checkpoint, before LMDB sees them.
fn restore(dir: &StoreDir, checkpoint: &Checkpoint) -> Result<()> {
    // Its reader table and newest transaction are of an earlier process.
    remove(&dir.path().join(LMDB_LOCK))?;
    let path = dir.path().join(DATA);
    let metas = &checkpoint.payload;
    let file = File::options().read(true).write(true).open(&path);
    let file = file.map_err(|source| io_error("opening", &path, source))?;
    let length = file
        .metadata()
        .map_err(|source| io_error("reading", &path, source))?
        .len();
    if length < checkpoint.data_bytes {
        return Err(BackendError::Damaged {
            path,
            page: length / (metas.len() as u64 / META_PAGES).max(1),
            what: format!(
                "the file ends here, at {length} bytes, but had {} at its last checkpoint; set \
                 the directory aside and restore it from another member or from a snapshot",
                checkpoint.data_bytes
            ),
        });
    }
    file.write_all_at(metas, 0)
        .and_then(|()| file.sync_data())
        .map_err(|source| io_error("restoring the checkpoint in", &path, source))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("removing", path, error))
        }
        _ => Ok(()),
    }
}

/// What heed said, with what was being done.
fn fault(action: &'static str, data: &Path) -> impl Fn(heed::Error) -> BackendError {
    let other = |message| BackendError::Other {
        engine: NAME,
        message,
    };
    move |error| match error {
        heed::Error::Io(source) => io_error(action, data, source),
        heed::Error::Mdb(MdbError::MapFull) => other(format!(
            "{action}: the store has reached the {MAP_BYTES} bytes of its map, or as much of them \
             as the process's limit of address space allows"
        )),
        heed::Error::Mdb(MdbError::ReadersFull) => other(format!(
            "{action}: more than {MAX_READERS} published states are held by readers"
        )),
        error => other(format!("{action} {}: {error}", data.display())),
    }
}

impl Store {
    fn open(dir: StoreDir) -> Result<Self> {
        let data_path = dir.path().join(DATA);
        let env = open_env(dir.path(), &data_path)?;
        let opening = || fault("opening", &data_path);
        if env.max_key_size() < MAX_TAGGED_KEY {
            return Err(BackendError::Other {
                engine: NAME,
                message: format!(
                    "this LMDB takes keys of {} bytes; build it with long keys (heed's feature \
                     longer-keys)",
                    env.max_key_size()
                ),
            });
        }
        let read = env.read_txn().map_err(opening())?;
        let database = env
            .open_databases_and_commit(read, |opener, read| {
                opener
                    .open_database::<Bytes, Bytes>(read, None)
                    .map(CommitOrAbort::<_, ()>::Commit)
            })
            .map_err(opening())?
            .unwrap_commit()
            .ok_or_else(|| BackendError::Foreign {
                path: data_path.clone(),
                what: "the file has no root database: it is damaged".to_owned(),
            })?;
        let data = env.try_clone_inner_file().map_err(opening())?;
        Ok(Self {
            database,
            data,
            page_bytes: u64::from(env.unnamed_database_stat().page_size),
            env,
            data_path,
            dir,
        })
    }

    /// Makes everything committed durable, but for knowing where it is.
    fn sync(&self) -> Result<()> {
        self.data
            .sync_all()
            .map_err(|source| io_error("syncing", &self.data_path, source))
    }

    fn fault(&self, action: &'static str) -> impl Fn(heed::Error) -> BackendError {
        fault(action, &self.data_path)
    }
}

fn open_env(path: &Path, data: &Path) -> Result<Env> {
    let mut map_bytes = MAP_BYTES;
    loop {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(map_bytes).max_readers(MAX_READERS);
        // SAFETY: `NO_SYNC` can corrupt the file on a power loss, from which the
        // checkpoint's meta pages and the pin on their state bring it back. The
        // directory's lock keeps other processes of Varve off the file, and
        // LMDB's own keeps its tools off the pages in use.
        let opened = unsafe { options.flags(EnvFlags::NO_SYNC).open(path) };
        match opened {
            Err(heed::Error::Io(error))
                if error.kind() == io::ErrorKind::OutOfMemory && map_bytes > LEAST_MAP_BYTES =>
            {
                map_bytes /= 2;
            }
            Err(heed::Error::Mdb(error @ (MdbError::Invalid | MdbError::VersionMismatch))) => {
                return Err(BackendError::Foreign {
                    path: data.to_owned(),
                    what: error.to_string(),
                });
            }
            opened => return opened.map_err(fault("opening", data)),
        }
    }
}

impl State {
    /// The newest committed state. No batch may be open meanwhile: the meta
    /// pages must be those of the state.
    fn newest(store: &Arc<Store>) -> Result<Self> {
        let begun = store.env.clone().static_read_txn();
        let txn = begun.map_err(store.fault("beginning to read"))?;
        let mut metas = vec![0; (META_PAGES * store.page_bytes) as usize];
        let data_bytes = store
            .data
            .read_exact_at(&mut metas, 0)
            .and_then(|()| Ok(store.data.metadata()?.len()))
            .map_err(|source| io_error("reading", &store.data_path, source))?;
        let value = store.database.get(&txn, APPLIED);
        let applied = decode_applied(NAME, value.map_err(store.fault("reading"))?)?;
        Ok(Self {
            txn,
            applied,
            metas,
            data_bytes,
            last_page: store.env.info().last_page_number as u64,
            store: Arc::clone(store),
        })
    }

    /// Makes this state, whose pages are synced, the last checkpoint.
    fn record(&self) -> Result<()> {
        self.store.dir.write(&Checkpoint {
            applied: self.applied,
            data_bytes: self.data_bytes,
            payload: self.metas.clone(),
        })
    }
}

fn get<'t>(
    store: &Store,
    txn: &'t RoTxn,
    tree: TreeId,
    key: &[u8],
) -> Result<Option<Cow<'t, [u8]>>> {
    let key = TaggedKey::new(tree, key)?;
    if key.len() > MAX_TAGGED_KEY {
        return Ok(None);
    }
    let value = store
        .database
        .get(txn, &key)
        .map_err(store.fault("reading"))?;
    Ok(value.map(Cow::Borrowed))
}

fn scan(
    store: &Store,
    txn: &RoTxn,
    (tree, bounds, direction): (TreeId, Bounds<'_>, Direction),
    visit: &mut Visitor<'_>,
) -> Result<()> {
    let Some(bounds) = tagged_bounds(tree, bounds, MAX_TAGGED_KEY)? else {
        return Ok(());
    };
    let bounds = borrowed(&bounds);
    let mut visit = |entry: heed::Result<(&[u8], &[u8])>| {
        let (key, value) = entry.map_err(store.fault("reading"))?;
        Ok(visit(untagged(key), value))
    };
    match direction {
        Direction::Forward => {
            let range = store.database.range(txn, &bounds);
            until_break(range.map_err(store.fault("reading"))?.map(&mut visit))
        }
        Direction::Backward => {
            let range = store.database.rev_range(txn, &bounds);
            until_break(range.map_err(store.fault("reading"))?.map(&mut visit))
        }
    }
}

fn until_break(visited: impl Iterator<Item = Result<ControlFlow<()>>>) -> Result<()> {
    for flow in visited {
        if flow?.is_break() {
            break;
        }
    }
    Ok(())
}

impl Read for State {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        get(&self.store, &self.txn, tree, key)
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        scan(&self.store, &self.txn, (tree, bounds, direction), visit)
    }
}

impl Snapshot for State {
    fn applied(&self) -> Applied {
        self.applied
    }
}

struct LmdbBatch<'l> {
    lmdb: &'l Lmdb,
    txn: RwTxn<'l>,
    /// After `txn`: the next batch begins when this one has ended.
    _writer: MutexGuard<'l, ()>,
}

impl Read for LmdbBatch<'_> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        get(&self.lmdb.store, &self.txn, tree, key)
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        scan(
            &self.lmdb.store,
            &self.txn,
            (tree, bounds, direction),
            visit,
        )
    }
}

impl Batch for LmdbBatch<'_> {
    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<()> {
        let store = &self.lmdb.store;
        check_length(key, MAX_TAGGED_KEY)?;
        let key = TaggedKey::new(tree, key)?;
        let put = store.database.put(&mut self.txn, &key, value);
        put.map_err(self.lmdb.store.fault("writing"))
    }

    fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        let store = &self.lmdb.store;
        let key = TaggedKey::new(tree, key)?;
        if key.len() > MAX_TAGGED_KEY {
            return Ok(false);
        }
        let deleted = store.database.delete(&mut self.txn, &key);
        deleted.map_err(self.lmdb.store.fault("deleting"))
    }

    fn delete_range(&mut self, tree: TreeId, bounds: Bounds<'_>) -> Result<u64> {
        let Some(bounds) = tagged_bounds(tree, bounds, MAX_TAGGED_KEY)? else {
            return Ok(0);
        };
        let database = &self.lmdb.store.database;
        let deleted = database.delete_range(&mut self.txn, &borrowed(&bounds));
        Ok(deleted.map_err(self.lmdb.store.fault("deleting"))? as u64)
    }

    fn publish(self: Box<Self>, applied: Applied) -> Result<()> {
        // In this order, so that the transaction ends before the next can begin.
        let Self {
            _writer,
            lmdb,
            mut txn,
        } = *self;
        let value = encode_applied(applied);
        let put = lmdb.store.database.put(&mut txn, APPLIED, &value);
        put.map_err(lmdb.store.fault("writing"))?;
        txn.commit().map_err(|error| {
            let fatal = matches!(error, heed::Error::Mdb(MdbError::Panic));
            let error = lmdb.store.fault("publishing")(error);
            if fatal { lmdb.latch(error) } else { error }
        })?;
        // Committed, but readers can't be given it: nothing may build on that.
        let state = State::newest(&lmdb.store).map_err(|error| lmdb.latch(error))?;
        *lock(&lmdb.published) = Arc::new(state);
        Ok(())
    }
}

impl Backend for Lmdb {
    fn name(&self) -> &'static str {
        NAME
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>> {
        Ok(Arc::new(self.held.hold(self.published())))
    }

    fn begin(&self) -> Result<Box<dyn Batch + '_>> {
        let writer = lock(&self.writer);
        self.check_latch()?;
        let txn = self.store.env.write_txn();
        Ok(Box::new(LmdbBatch {
            lmdb: self,
            txn: txn.map_err(self.store.fault("beginning a batch"))?,
            _writer: writer,
        }))
    }

    fn checkpoint(&self) -> Result<Applied> {
        let _turn = lock(&self.checkpointing);
        self.check_latch()?;
        let state = self.published();
        if !Arc::ptr_eq(&state, &lock(&self.durable)) {
            // A failed sync may have dropped what it did not write, and the next
            // one would not say so.
            self.store.sync().map_err(|error| self.latch(error))?;
            state.record()?;
            *lock(&self.durable) = Arc::clone(&state);
        }
        Ok(state.applied)
    }

    fn durable(&self) -> Applied {
        lock(&self.durable).applied
    }

    fn stats(&self) -> Stats {
        let store = &self.store;
        let (published, durable) = (self.published(), Arc::clone(&lock(&self.durable)));
        let root = store.env.unnamed_database_stat();
        let used_pages = root.branch_pages + root.leaf_pages + root.overflow_pages;
        Stats {
            file_bytes: published.data_bytes,
            used_bytes: (used_pages as u64 + META_PAGES) * store.page_bytes,
            readers: self.held.get(),
            // What the file grew by while the checkpoint's state was pinned.
            pinned_bytes: published.last_page.saturating_sub(durable.last_page) * store.page_bytes,
        }
    }

    fn check(&self) -> Result<CheckReport> {
        let state = self.published();
        let (store, txn) = (&self.store, &state.txn);
        let fault = || store.fault("checking");
        let mut walk = Walk::default();
        for entry in store.database.iter(txn).map_err(fault())? {
            let (key, _) = entry.map_err(fault())?;
            walk.step(NAME, key)?;
        }
        let stat = store.database.stat(txn).map_err(fault())?;
        walk.end(NAME, stat.entries as u64)?;
        Ok(CheckReport {
            pages: (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64,
            entries: walk.entries,
        })
    }
}
