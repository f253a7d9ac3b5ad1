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

mod store;

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use heed::{MdbError, RwTxn};

use self::store::{META_PAGES, State, Store, get, restore, scan};
use super::held::HeldCount;
use super::store_dir::StoreDir;
use super::tagged::{
    APPLIED, TAG_BYTES, TaggedKey, Walk, borrowed, check_length, encode_applied, tagged_bounds,
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

const _: () = assert!(MAX_KEY_BYTES >= varve_types::MAX_KEY_BYTES);

const MAX_TAGGED_KEY: usize = 1982;

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
            ..Stats::default()
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
