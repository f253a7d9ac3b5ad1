//! [`Kv`]: an ordered map on a log of its own, without revisions.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use varve_types::{Command, KeyRange, opcode};

use super::batch::{WriteBatch, decode, raw};
use super::error::Result;
use super::load;
use super::machine::{Logged, Machine, applied};
use super::options::Options;
use super::pending::Pending;
use super::pipeline::{self, Pipeline};
use crate::backend::{
    Backend, CheckReport, Direction, Entry, Lookahead, Snapshot, Stats, Sums, TreeId, Upkeep,
    Visitor,
};
use crate::disk::Disk;
use crate::wal::{Identity, WalStats};

/// Whose log it is; see [`super::Db`] for its neighbour.
const IDENTITY: Identity = Identity {
    cluster_id: u64::from_le_bytes(*b"varve-kv"),
    member_id: 1,
};

/// The tree that holds everything.
const TREE: TreeId = TreeId(0);

/// An embedded, ordered map of byte strings in one directory: what LMDB or
/// redb are, on Varve's log and storage engines.
///
/// All that is said of [`super::Db`] holds here, but that there are no
/// revisions: a write replaces the value, and nothing of the old one is kept.
pub struct Kv {
    pipeline: Pipeline<()>,
}

impl Kv {
    /// Opens the map in `dir`, or makes one.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let pipeline = pipeline::open(dir.as_ref(), &options, IDENTITY, Map::new)?;
        Ok(Self { pipeline })
    }

    /// As [`Kv::open`], on a disk of the caller's choice and without a lock on
    /// the directory: for tests on the simulated disk.
    pub fn open_on(disk: &Arc<dyn Disk>, dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let pipeline = pipeline::open_on(disk, dir.as_ref(), &options, IDENTITY, Map::new)?;
        Ok(Self { pipeline })
    }

    /// Sets `key` to `value`.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.put(key, value)?;
        self.write(&batch)
    }

    /// Removes `key`, if it is there.
    pub fn delete(&self, key: &[u8]) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.delete(key)?;
        self.write(&batch)
    }

    /// Removes the keys of `range`.
    pub fn delete_range(&self, range: KeyRange<'_>) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.delete_range(range)?;
        self.write(&batch)
    }

    /// Writes a batch.
    pub fn write(&self, batch: &WriteBatch) -> Result<()> {
        self.submit(batch)?.wait()
    }

    /// Hands a batch to the log and does not wait for the disk; see
    /// [`super::Db::submit`].
    pub fn submit(&self, batch: &WriteBatch) -> Result<Pending<()>> {
        self.pipeline.gate().submit(batch, false)
    }

    /// Puts entries whose keys ascend (as byte strings, each above the one before it), and
    /// returns how many they were once all of them are durable. Meant for the first
    /// filling of a map: they are not logged, so each byte is written once, and where
    /// they lie behind all that the map holds they make full pages. Keys that are there
    /// get the new value.
    ///
    /// It is no batch. Readers see the entries some thousands at a time, and other
    /// writers' batches come between. If it ends with an error, or by a crash, the map
    /// has the first entries up to some one of them: the load can be made again, from
    /// its beginning. Memory is bounded, however many there are.
    ///
    /// # Errors
    ///
    /// [`super::DbError::NotSorted`], and for keys and values as [`WriteBatch::put`].
    pub fn load_sorted<K, V>(&self, entries: impl IntoIterator<Item = (K, V)>) -> Result<u64>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        load::load(self.pipeline.gate(), TREE, entries)
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.snapshot()?.get(key)?.map(Cow::into_owned))
    }

    /// The newest state. It stays as it is for as long as it is held.
    pub fn snapshot(&self) -> Result<KvSnapshot> {
        Ok(KvSnapshot(self.pipeline.gate().backend().snapshot()?))
    }

    /// Makes a checkpoint now; see [`super::Db::checkpoint`].
    pub fn checkpoint(&self) -> Result<()> {
        self.pipeline.gate().checkpoint()
    }

    /// Gives all free space back; see [`super::Db::vacuum`].
    pub fn vacuum(&self) -> Result<()> {
        self.pipeline.gate().vacuum()
    }

    /// Sizes of the store.
    pub fn stats(&self) -> Stats {
        self.pipeline.gate().backend().stats()
    }

    /// Counters of the log.
    pub fn wal_stats(&self) -> &Arc<WalStats> {
        self.pipeline.gate().log()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.pipeline.path()
    }

    /// Goes over everything stored.
    pub fn check(&self) -> Result<CheckReport> {
        Ok(self.pipeline.gate().backend().check()?)
    }

    /// Commits what was submitted, makes a checkpoint, and ends.
    pub fn close(self) -> Result<()> {
        self.pipeline.close()
    }
}

/// A state of a [`Kv`]; unaffected by later writes.
pub struct KvSnapshot(Arc<dyn Snapshot>);

impl KvSnapshot {
    /// The value of `key`, borrowed from its page where the engine can.
    pub fn get(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        Ok(self.0.get(TREE, key)?)
    }

    /// Visits the entries of `range` in order until the visitor breaks.
    pub fn scan(
        &self,
        range: KeyRange<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        Ok(self.0.scan(TREE, range.bounds(), direction, visit)?)
    }

    /// Entries of `range`, and their bytes. O(log n) on the B+tree.
    pub fn sums(&self, range: KeyRange<'_>) -> Result<Sums> {
        if range.is_empty() {
            return Ok(Sums::default());
        }
        Ok(self.0.sums(TREE, range.bounds())?)
    }
}

/// One tree of a storage engine as a machine.
struct Map {
    backend: Arc<dyn Backend>,
    upkeep: Upkeep,
}

impl Map {
    fn new(backend: Arc<dyn Backend>) -> Result<Self> {
        let upkeep = Upkeep::default();
        Ok(Self { backend, upkeep })
    }
}

impl Machine for Map {
    type Output = ();

    fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    fn apply(&mut self, batches: &[Logged<'_>], outputs: &mut Vec<()>) -> Result<()> {
        let Some(last) = batches.last().map(|batch| batch.lsn) else {
            return Ok(());
        };
        let mut changes = self.backend.begin()?;
        // Nothing but puts: their order is the engine's to choose.
        let only_puts = raw(batches).all(|(opcode, _)| opcode == opcode::PUT);
        let mut puts: Vec<Entry<'_>> = Vec::new();
        let mut ahead = Lookahead::new(raw(batches));
        for batch in batches {
            let read = decode(batch.payload, |command| {
                if !only_puts {
                    ahead.step(&mut *changes, TREE, false);
                }
                match command {
                    Command::Put(put) if only_puts => puts.push((put.key, put.value)),
                    Command::Put(put) => changes.put(TREE, put.key, put.value)?,
                    Command::DeleteRange(delete) => match delete.range() {
                        KeyRange::One(key) => drop(changes.delete(TREE, key)?),
                        range if range.is_empty() => {}
                        range => drop(changes.delete_range(TREE, range.bounds())?),
                    },
                    _ => return Err(batch.foreign("a command of a revisioned store".to_owned())),
                }
                Ok(())
            })?;
            read.map_err(|what| batch.foreign(what))?;
            outputs.push(());
        }
        changes.put_all(TREE, &puts)?;
        changes.publish(applied(last))?;
        Ok(())
    }

    /// Gives some space back.
    fn tidy(&mut self, idle: bool) -> Result<bool> {
        let now = Instant::now();
        if !self.upkeep.is_vacuum_on(&*self.backend, now, idle) {
            return Ok(false);
        }
        let as_of = self.backend.snapshot()?.applied();
        let mut batch = self.backend.begin()?;
        let more = batch.vacuum_step()?;
        batch.publish(as_of)?;
        Ok(more)
    }
}
