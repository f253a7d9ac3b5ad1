//! The file: opening it at its last checkpoint, and the states that it holds.

// heed makes opening unsafe, as a memory map is only sound while no one else
// changes the file, and its read transactions are not `Sync`.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvFlags, EnvOpenOptions, MdbError, RoTxn, WithoutTls};

use super::{MAX_TAGGED_KEY, NAME};
use crate::backend::store_dir::{Checkpoint, StoreDir, io_error};
use crate::backend::tagged::{
    APPLIED, TaggedKey, borrowed, decode_applied, tagged_bounds, untagged,
};
use crate::backend::{
    Applied, BackendError, Bounds, Direction, Read, Result, Snapshot, TreeId, Visitor,
};

const DATA: &str = "data.mdb";
const LMDB_LOCK: &str = "lock.mdb";

/// Meta pages at the start of the data file.
pub(super) const META_PAGES: u64 = 2;

/// Address space for the map, and so the most the store can hold. It takes no
/// memory. Where the system grants less (`ulimit -v`), half is asked for, and
/// so on down to the least.
const MAP_BYTES: usize = 1 << 40;
const LEAST_MAP_BYTES: usize = 1 << 30;

/// Published states that can be held at a time.
const MAX_READERS: u32 = 4096;

type Env = heed::Env<WithoutTls>;
type Database = heed::Database<'static, Bytes, Bytes>;

/// What states need for as long as they live. The environment closes before
/// the directory's lock is let go.
pub(super) struct Store {
    pub(super) env: Env,
    pub(super) database: Database,
    pub(super) data: File,
    pub(super) data_path: PathBuf,
    pub(super) page_bytes: u64,
    pub(super) dir: StoreDir,
}

/// A published state.
pub(super) struct State {
    /// Before `store`, so that it ends before the environment closes.
    pub(super) txn: RoTxn<'static, WithoutTls>,
    pub(super) applied: Applied,
    /// Both meta pages and the file's length as this state was published.
    pub(super) metas: Vec<u8>,
    pub(super) data_bytes: u64,
    pub(super) last_page: u64,
    pub(super) store: Arc<Store>,
}

// SAFETY: LMDB allows a read transaction to be used by many threads if the user
// synchronizes its use. What would need synchronization is what reading changes
// in it, and reads change nothing: the store has one database, the unnamed one,
// whose root is copied when the transaction begins (named ones are looked up on
// first use), cursors of read transactions are not linked to it, and pages come
// straight from the map. Only `Drop` changes it, with exclusive access. (A read
// that finds a damaged page also sets a flag that makes later reads fail; it is
// one word that is only ever set so.)
unsafe impl Sync for State {}

/// Brings the files back to the checkpoint, before LMDB sees them.
pub(super) fn restore(dir: &StoreDir, checkpoint: &Checkpoint) -> Result<()> {
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
    pub(super) fn open(dir: StoreDir) -> Result<Self> {
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
    pub(super) fn sync(&self) -> Result<()> {
        self.data
            .sync_all()
            .map_err(|source| io_error("syncing", &self.data_path, source))
    }

    pub(super) fn fault(&self, action: &'static str) -> impl Fn(heed::Error) -> BackendError {
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
    pub(super) fn newest(store: &Arc<Store>) -> Result<Self> {
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
    pub(super) fn record(&self) -> Result<()> {
        self.store.dir.write(&Checkpoint {
            applied: self.applied,
            data_bytes: self.data_bytes,
            payload: self.metas.clone(),
        })
    }
}

pub(super) fn get<'t>(
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

pub(super) fn scan(
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
