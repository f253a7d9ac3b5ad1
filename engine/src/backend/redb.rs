//! The `redb` engine.
//!
//! Publishing is a commit with `Durability::None`; a checkpoint is an empty
//! commit with `Durability::Immediate`, which makes those before it durable.
//! After a crash redb is as of the last checkpoint; after a clean end, as of
//! the last batch. Checkpoints save redb's allocator state ("quick repair"), so
//! that opening after a crash does not walk the whole file.
//!
//! redb has one write slot for commits of both kinds: a batch that is published
//! during a checkpoint waits for its sync. Open batches do not (see `overlay`).
//!
//! redb verifies its page checksums when it repairs a file, not when it reads
//! one: [`Backend::check`] goes over structure and order.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata, TableDefinition,
};

use super::checkpoints::Checkpoints;
use super::held::HeldCount;
use super::overlay::{Changes, Commit, OverlayBatch};
use super::store_dir::{Checkpoint, StoreDir, io_error};
use super::tagged::{
    APPLIED, TAG_BYTES, TaggedKey, Walk, borrowed, decode_applied, encode_applied, tagged_bounds,
    untagged,
};
use super::{
    Applied, Backend, BackendError, Batch, Bounds, CheckReport, Direction, Read, Result, Snapshot,
    Stats, TreeId, Visitor,
};

/// The name that `--engine` takes.
pub const NAME: &str = "redb";

/// The longest key. redb's own limit is in gigabytes, but keys are held in memory.
pub const MAX_KEY_BYTES: usize = 1 << 20;

const _: () = assert!(MAX_KEY_BYTES >= varve_types::MAX_KEY_BYTES);

const DATA: &str = "store.redb";
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("varve");

/// Memory for pages.
const CACHE_BYTES: usize = 256 << 20;

/// A store kept by redb.
pub struct Redb {
    published: Mutex<Arc<State>>,
    checkpoints: Checkpoints<State>,
    /// Held while a batch is open.
    writer: Mutex<()>,
    held: HeldCount,
    store: Arc<Store>,
}

/// What states need for as long as they live. The file closes before the
/// directory's lock is let go.
struct Store {
    database: Database,
    data: PathBuf,
    dir: StoreDir,
}

/// A published state.
struct State {
    /// Before `store`, so that it ends before the file closes.
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
    applied: Applied,
    store: Arc<Store>,
}

impl Redb {
    /// Opens the store in `path`, or makes one.
    pub fn open(path: &Path) -> Result<Self> {
        let (dir, checkpoint) = StoreDir::open(NAME, path)?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let data = dir.path().join(DATA);
        let database = match &checkpoint {
            Some(_) => builder.open(&data),
            None => builder.create(&data),
        };
        let store = Arc::new(Store {
            database: database.map_err(fault("opening", &data))?,
            data,
            dir,
        });
        if checkpoint.is_none() {
            store.create_table()?;
        }
        let state = Arc::new(State::newest(&store)?);
        match &checkpoint {
            Some(checkpoint) => store.dir.verify(checkpoint, state.applied)?,
            None => store.dir.write(&Checkpoint::default())?,
        }
        Ok(Self {
            checkpoints: Checkpoints::new(state.applied, &state),
            published: Mutex::new(state),
            writer: Mutex::new(()),
            held: HeldCount::default(),
            store,
        })
    }

    fn published(&self) -> Arc<State> {
        Arc::clone(&lock(&self.published))
    }
}

/// The state behind each lock is whole even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    fn fault<E: Into<::redb::Error>>(&self, action: &'static str) -> impl Fn(E) -> BackendError {
        fault(action, &self.data)
    }

    fn create_table(&self) -> Result<()> {
        let txn = self
            .database
            .begin_write()
            .map_err(self.fault("creating"))?;
        txn.open_table(TABLE).map_err(self.fault("creating"))?;
        txn.commit().map_err(self.fault("creating"))
    }

    fn commit(&self, changes: &Changes, applied: Applied) -> Result<()> {
        let txn = self.database.begin_write();
        let mut txn = txn.map_err(self.fault("beginning to publish"))?;
        txn.set_durability(Durability::None)
            .map_err(self.fault("beginning to publish"))?;
        let mut table = txn.open_table(TABLE).map_err(self.fault("publishing"))?;
        for (key, change) in changes {
            let changed = match change {
                Some(value) => table.insert(key.as_slice(), value.as_slice()),
                None => table.remove(key.as_slice()),
            };
            changed.map_err(self.fault("publishing"))?;
        }
        let applied = encode_applied(applied);
        let inserted = table.insert(APPLIED, applied.as_slice()).map(drop);
        inserted.map_err(self.fault("publishing"))?;
        drop(table);
        txn.commit().map_err(self.fault("publishing"))
    }

    fn sync(&self) -> Result<()> {
        let txn = self.database.begin_write();
        let mut txn = txn.map_err(self.fault("beginning a checkpoint"))?;
        txn.set_quick_repair(true);
        txn.commit().map_err(self.fault("making a checkpoint"))
    }
}

/// What redb said, with what was being done.
fn fault<E: Into<::redb::Error>>(action: &'static str, data: &Path) -> impl Fn(E) -> BackendError {
    move |error| match error.into() {
        ::redb::Error::Io(source) => io_error(action, data, source),
        ::redb::Error::PreviousIo => {
            BackendError::Latched("an earlier read, write or sync failed".to_owned())
        }
        error => BackendError::Other {
            engine: NAME,
            message: format!("{action} {}: {error}", data.display()),
        },
    }
}

impl State {
    fn newest(store: &Arc<Store>) -> Result<Self> {
        let txn = store.database.begin_read();
        let txn = txn.map_err(store.fault("beginning to read"))?;
        let table = txn
            .open_table(TABLE)
            .map_err(store.fault("beginning to read"))?;
        let value = table.get(APPLIED).map_err(store.fault("reading"))?;
        let applied = decode_applied(NAME, value.as_ref().map(|value| value.value()))?;
        Ok(Self {
            table,
            applied,
            store: Arc::clone(store),
        })
    }
}

impl Read for State {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        let key = TaggedKey::new(tree, key)?;
        let value = self.table.get(&*key).map_err(self.store.fault("reading"))?;
        // redb lends a value for as long as its guard lives, which a `Cow` can't hold.
        Ok(value.map(|value| Cow::Owned(value.value().to_vec())))
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        let Some(bounds) = tagged_bounds(tree, bounds, Redb::MAX_TAGGED_KEY)? else {
            return Ok(());
        };
        let range = self.table.range::<&[u8]>(borrowed(&bounds));
        let mut range = range.map_err(self.store.fault("reading"))?;
        loop {
            let next = match direction {
                Direction::Forward => range.next(),
                Direction::Backward => range.next_back(),
            };
            let Some(entry) = next else { return Ok(()) };
            let (key, value) = entry.map_err(self.store.fault("reading"))?;
            if let ControlFlow::Break(()) = visit(untagged(key.value()), value.value()) {
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

impl Commit for Redb {
    const MAX_TAGGED_KEY: usize = MAX_KEY_BYTES + TAG_BYTES;

    fn commit(&self, changes: Changes, applied: Applied) -> Result<()> {
        self.store.commit(&changes, applied)?;
        let state = State::newest(&self.store)?;
        *lock(&self.published) = Arc::new(state);
        Ok(())
    }
}

impl Backend for Redb {
    fn name(&self) -> &'static str {
        NAME
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>> {
        Ok(Arc::new(self.held.hold(self.published())))
    }

    fn begin(&self) -> Result<Box<dyn Batch + '_>> {
        let writer = lock(&self.writer);
        Ok(Box::new(OverlayBatch::new(self, self.published(), writer)))
    }

    fn checkpoint(&self) -> Result<Applied> {
        let published = || {
            let published = self.published();
            (published.applied, Arc::downgrade(&published))
        };
        self.checkpoints
            .make(&self.store.dir, published, || self.store.sync())
    }

    fn durable(&self) -> Applied {
        self.checkpoints.durable()
    }

    /// redb knows what of its file is used only by walking it, so all counts as
    /// used, and nothing as pinned.
    fn stats(&self) -> Stats {
        let file_bytes = self
            .store
            .data
            .metadata()
            .map_or(0, |metadata| metadata.len());
        Stats {
            file_bytes,
            used_bytes: file_bytes,
            readers: self.held.get(),
            ..Stats::default()
        }
    }

    fn check(&self) -> Result<CheckReport> {
        let state = self.published();
        let fault = || state.store.fault("checking");
        let mut walk = Walk::default();
        for entry in state.table.range::<&[u8]>(..).map_err(fault())? {
            let (key, _) = entry.map_err(fault())?;
            walk.step(NAME, key.value())?;
        }
        walk.end(NAME, state.table.len().map_err(fault())?)?;
        Ok(CheckReport {
            pages: 0,
            entries: walk.entries,
        })
    }
}
