//! The `fjall` engine: a log-structured merge tree.
//!
//! Publishing is a batch of fjall without a sync: it goes to fjall's journal
//! and to its memtable. A checkpoint syncs the journal. All trees share one
//! keyspace (see `tagged`): a memtable is then flushed with whole batches of
//! all trees, and what comes back after a crash is always some published state,
//! at or after the last checkpoint, however much of the journal's unsynced end
//! is lost. Should less come back, the store is refused (see `store_dir`).
//! fjall itself does not open with every journal that a power loss can leave;
//! `journal` cuts what is torn before fjall sees it.
//!
//! fjall's batches can't be read, hence `overlay`. Its journal has one lock: a
//! batch that is published during a checkpoint waits for its sync.

mod journal;

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Slice};

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
pub const NAME: &str = "fjall";

/// The longest key.
pub const MAX_KEY_BYTES: usize = u16::MAX as usize - TAG_BYTES;

const _: () = assert!(MAX_KEY_BYTES >= varve_types::MAX_KEY_BYTES);

const DATA: &str = "data";
const KEYSPACE: &str = "varve";

/// Memory for blocks read from disk.
const CACHE_BYTES: u64 = 256 << 20;

/// A store kept by fjall.
pub struct Fjall {
    published: Mutex<Arc<State>>,
    checkpoints: Checkpoints<State>,
    /// Held while a batch is open.
    writer: Mutex<()>,
    held: HeldCount,
    store: Arc<Store>,
}

/// What states need for as long as they live. fjall closes before the
/// directory's lock is let go.
struct Store {
    keyspace: Keyspace,
    database: Database,
    dir: StoreDir,
}

/// A published state.
struct State {
    snapshot: ::fjall::Snapshot,
    applied: Applied,
    store: Arc<Store>,
}

impl Fjall {
    /// Opens the store in `path`, or makes one.
    pub fn open(path: &Path) -> Result<Self> {
        let (dir, checkpoint) = StoreDir::open(NAME, path)?;
        let data = dir.path().join(DATA);
        let cut = journal::repair(&data, dir.path())?;
        let database = Database::builder(&data).cache_size(CACHE_BYTES).open();
        let database = database.map_err(fault("opening", path))?;
        let keyspace = database.keyspace(KEYSPACE, KeyspaceCreateOptions::default);
        let store = Arc::new(Store {
            keyspace: keyspace.map_err(fault("opening", path))?,
            database,
            dir,
        });
        let state = Arc::new(State::newest(&store)?);
        match &checkpoint {
            Some(checkpoint) => {
                store.dir.verify(checkpoint, state.applied)?;
                cut.forget()?;
            }
            None => {
                store.sync()?;
                store.dir.write(&Checkpoint::default())?;
            }
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

/// What fjall said, with what was being done.
fn fault(action: &'static str, path: &Path) -> impl Fn(::fjall::Error) -> BackendError {
    move |error| match error {
        ::fjall::Error::Io(source) | ::fjall::Error::Storage(::fjall::LsmError::Io(source)) => {
            io_error(action, path, source)
        }
        ::fjall::Error::Poisoned => {
            BackendError::Latched("an earlier write or sync of fjall's failed".to_owned())
        }
        error => BackendError::Other {
            engine: NAME,
            message: format!("{action} {}: {error}", path.display()),
        },
    }
}

impl Store {
    fn fault(&self, action: &'static str) -> impl Fn(::fjall::Error) -> BackendError {
        fault(action, self.dir.path())
    }

    fn sync(&self) -> Result<()> {
        let synced = self.database.persist(PersistMode::SyncAll);
        synced.map_err(self.fault("making a checkpoint"))
    }
}

impl State {
    fn newest(store: &Arc<Store>) -> Result<Self> {
        let snapshot = store.database.snapshot();
        let value = snapshot.get(&store.keyspace, APPLIED);
        let value = value.map_err(store.fault("reading"))?;
        Ok(Self {
            applied: decode_applied(NAME, value.as_deref())?,
            snapshot,
            store: Arc::clone(store),
        })
    }
}

impl Read for State {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        let key = TaggedKey::new(tree, key)?;
        if key.len() > Fjall::MAX_TAGGED_KEY {
            return Ok(None);
        }
        let value = self.snapshot.get(&self.store.keyspace, &*key);
        let value = value.map_err(self.store.fault("reading"))?;
        // fjall lends a value by reference count, which a `Cow` can't hold.
        Ok(value.map(|value| Cow::Owned(value.to_vec())))
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        let Some(bounds) = tagged_bounds(tree, bounds, Fjall::MAX_TAGGED_KEY)? else {
            return Ok(());
        };
        let keyspace = &self.store.keyspace;
        let mut range = self.snapshot.range::<&[u8], _>(keyspace, borrowed(&bounds));
        loop {
            let next: Option<Guard> = match direction {
                Direction::Forward => range.next(),
                Direction::Backward => range.next_back(),
            };
            let Some(entry) = next else { return Ok(()) };
            let (key, value) = entry.into_inner().map_err(self.store.fault("reading"))?;
            if let ControlFlow::Break(()) = visit(untagged(&key), &value) {
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

impl Commit for Fjall {
    const MAX_TAGGED_KEY: usize = MAX_KEY_BYTES + TAG_BYTES;

    fn commit(&self, changes: Changes, applied: Applied) -> Result<()> {
        let Store {
            keyspace, database, ..
        } = &*self.store;
        let mut batch =
            ::fjall::OwnedWriteBatch::with_capacity(database.clone(), changes.len() + 1);
        for (key, change) in changes {
            match change {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        batch.insert(keyspace, APPLIED, &encode_applied(applied)[..]);
        batch.commit().map_err(self.store.fault("publishing"))?;
        let state = State::newest(&self.store)?;
        *lock(&self.published) = Arc::new(state);
        Ok(())
    }
}

impl Backend for Fjall {
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

    /// `used_bytes` is what tables hold, entries that were overwritten but not
    /// compacted yet among them; the rest of `file_bytes` is the journal.
    fn stats(&self) -> Stats {
        let used_bytes = self.store.keyspace.disk_space();
        let file_bytes = self.store.database.disk_space().unwrap_or(used_bytes);
        Stats {
            file_bytes,
            used_bytes,
            readers: self.held.get(),
            ..Stats::default()
        }
    }

    fn check(&self) -> Result<CheckReport> {
        let state = self.published();
        let mut walk = Walk::default();
        for entry in state.snapshot.iter(&self.store.keyspace) {
            let (key, _): (Slice, Slice) =
                entry.into_inner().map_err(self.store.fault("checking"))?;
            walk.step(NAME, &key)?;
        }
        Ok(CheckReport {
            pages: 0,
            entries: walk.entries,
        })
    }
}
