//! [`Db`]: the revisioned store on a log of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use varve_types::{
    Command, CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, KeyRange, KeyValue,
    KeyValueRef, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};

use super::batch::{WriteBatch, decode, ends, raw};
use super::error::{DbError, Result};
use super::iter::Iter;
use super::machine::{Logged, Machine, applied};
use super::options::Options;
use super::pending::Pending;
use super::pipeline::{self, Pipeline};
use crate::backend::{Backend, Damage, Direction, Lookahead, ScrubStats, Stats, Upkeep};
use crate::disk::Disk;
use crate::mvcc::{
    BatchOptions, CommandResponse, Limits, MvccReport, Reader, Reply, Store, View, validate,
    validate_range, validate_read_txn,
};
use crate::wal::{Identity, WalStats};

/// Whose log it is: not a node's, whose cluster id is a hash.
const IDENTITY: Identity = Identity {
    cluster_id: u64::from_le_bytes(*b"varve-db"),
    member_id: 1,
};

/// What a batch came to.
#[derive(Debug)]
pub struct Written {
    /// The store's revision after the batch.
    pub revision: i64,
    replies: Vec<Reply>,
}

/// An embedded, revisioned key-value store in one directory.
///
/// One process at a time has it open; all its methods may be called from any
/// thread. A call that writes returns when its change is durable in the log and
/// visible to readers; callers that wait at the same time share one write and
/// one sync. Readers never wait for writers, nor writers for readers.
///
/// Dropping it commits what was submitted and ends; [`Db::close`] also makes a
/// checkpoint, so that the next open has nothing to replay.
pub struct Db {
    pipeline: Pipeline<Written>,
    reader: Reader,
    limits: Limits,
}

impl Db {
    /// Opens the store in `dir`, or makes one. It takes the time to read the log
    /// behind the last checkpoint, whatever the store holds.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let mut reader = None;
        let make = |backend| Revisioned::new(backend, &mut reader);
        let pipeline = pipeline::open(dir.as_ref(), &options, IDENTITY, make)?;
        Self::new(pipeline, reader, &options)
    }

    /// As [`Db::open`], on a disk of the caller's choice and without a lock on
    /// the directory: for tests on the simulated disk.
    pub fn open_on(disk: &Arc<dyn Disk>, dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let mut reader = None;
        let make = |backend| Revisioned::new(backend, &mut reader);
        let pipeline = pipeline::open_on(disk, dir.as_ref(), &options, IDENTITY, make)?;
        Self::new(pipeline, reader, &options)
    }

    fn new(pipeline: Pipeline<Written>, reader: Option<Reader>, options: &Options) -> Result<Self> {
        let reader = reader.ok_or_else(|| DbError::Stopped("it was never made".to_owned()))?;
        Ok(Self {
            pipeline,
            reader,
            limits: options.limits,
        })
    }

    /// Sets `key` to `value`; the store's revision after it.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<i64> {
        let mut batch = WriteBatch::new();
        batch.put(key, value)?;
        self.write(&batch)
    }

    /// Removes `key`; whether it was there.
    pub fn delete(&self, key: &[u8]) -> Result<bool> {
        Ok(self.delete_range(KeyRange::One(key))?.deleted > 0)
    }

    /// Removes the keys of `range`, as one revision; how many those were.
    pub fn delete_range(&self, range: KeyRange<'_>) -> Result<DeleteRangeResponse> {
        let (key, range_end) = ends(range);
        let request = DeleteRangeRequest {
            key,
            range_end,
            ..DeleteRangeRequest::default()
        };
        match self.apply(&Command::DeleteRange(request))?.1 {
            CommandResponse::DeleteRange(response) => Ok(response),
            other => Err(mismatch(&other)),
        }
    }

    /// Makes a transaction: its compares choose a branch, whose operations are
    /// one revision. One that only reads costs no write.
    pub fn txn(&self, request: &TxnRequest<'_>) -> Result<TxnResponse> {
        if request.is_read_only() {
            validate_read_txn(request, &self.limits)?;
            return Ok(self.view().read_txn(request)?);
        }
        match self.apply(&Command::Txn(request.clone()))?.1 {
            CommandResponse::Txn(response) => Ok(response),
            other => Err(mismatch(&other)),
        }
    }

    /// Makes history below `revision` unreadable; what that frees is removed in
    /// small steps beside other work.
    pub fn compact(&self, revision: i64) -> Result<()> {
        let request = CompactionRequest {
            revision,
            ..CompactionRequest::default()
        };
        self.apply(&Command::Compaction(request)).map(drop)
    }

    /// Any command; the revision after it, and its answer.
    pub fn apply(&self, command: &Command<'_>) -> Result<(i64, CommandResponse)> {
        validate(command, &self.limits)?;
        let mut batch = WriteBatch::new();
        batch.push(command)?;
        let written = self.pipeline.gate().submit(&batch, true)?.wait()?;
        let reply = written.replies.into_iter().next();
        let Reply { revision, result } =
            reply.ok_or_else(|| DbError::Stopped("a command was not answered".to_owned()))?;
        Ok((revision, result?))
    }

    /// Writes a batch; the store's revision after it.
    pub fn write(&self, batch: &WriteBatch) -> Result<i64> {
        Ok(self.submit(batch)?.wait()?.revision)
    }

    /// Hands a batch to the log and does not wait for the disk: the next one can
    /// be made meanwhile. Batches are made in the order in which they are
    /// submitted. Waits while more than [`Options::max_in_flight_bytes`] are on
    /// their way.
    pub fn submit(&self, batch: &WriteBatch) -> Result<Pending<Written>> {
        self.pipeline.gate().submit(batch, false)
    }

    /// The newest state. It stays as it is for as long as it is held, and keeps
    /// the space that it needs; for several reads that must agree.
    pub fn view(&self) -> Arc<View> {
        self.reader.view()
    }

    /// The value of `key` with its marks.
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>> {
        Ok(self.view().get(key, |kv: KeyValueRef<'_>| kv.to_owned())?)
    }

    /// The value that `key` had at `revision`.
    pub fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>> {
        Ok(self.view().get_at(key, revision, |kv| kv.to_owned())?)
    }

    /// Answers a range request in memory: limits, revisions, sorts and filters as
    /// etcd has them. [`Db::iter`] is for ranges of any size.
    pub fn range(&self, request: &RangeRequest<'_>) -> Result<RangeResponse> {
        validate_range(request)?;
        Ok(self.view().range(request)?)
    }

    /// Streams the keys of `range` at `revision` (0 is the newest) in order.
    pub fn iter(&self, range: KeyRange<'_>, revision: i64) -> Iter {
        Iter::new(self.view(), range, revision, Direction::Forward)
    }

    /// As [`Db::iter`], from the last key to the first.
    pub fn iter_backward(&self, range: KeyRange<'_>, revision: i64) -> Iter {
        Iter::new(self.view(), range, revision, Direction::Backward)
    }

    /// The revision of the last change.
    pub fn revision(&self) -> i64 {
        self.view().revision()
    }

    /// Makes a checkpoint now. Nothing needs that: acknowledged writes are
    /// durable in the log, and checkpoints are made when the log gets long.
    pub fn checkpoint(&self) -> Result<()> {
        self.pipeline.gate().checkpoint()
    }

    /// Gives all free space back to the file system, beside readers and writers;
    /// waits until that is done. Without it, what is spare for long goes by itself.
    pub fn vacuum(&self) -> Result<()> {
        self.pipeline.gate().vacuum()
    }

    /// Sizes of the store.
    pub fn stats(&self) -> Stats {
        self.pipeline.gate().backend().stats()
    }

    /// What was found damaged in the store, by reads or by the scrub, since it was opened,
    /// and what the scrub found damaged in the log.
    pub fn damage(&self) -> Damage {
        let store = self.pipeline.gate().backend().damage();
        match self.pipeline.scrub_stats() {
            Some(stats) => store.and(stats.log_damage()),
            None => store,
        }
    }

    /// How the scrub goes; `None` without one ([`Options::scrub_interval`]).
    pub fn scrub_stats(&self) -> Option<&Arc<ScrubStats>> {
        self.pipeline.scrub_stats()
    }

    /// Counters of the log.
    pub fn wal_stats(&self) -> &Arc<WalStats> {
        self.pipeline.gate().log()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.pipeline.path()
    }

    /// Goes over everything stored and everything that must agree.
    pub fn check(&self) -> Result<MvccReport> {
        self.pipeline.gate().backend().check()?;
        Ok(self.view().check()?)
    }

    /// Commits what was submitted, makes a checkpoint, and ends.
    pub fn close(self) -> Result<()> {
        self.pipeline.close()
    }
}

/// A command got the answer of another: a bug, but no reason to panic.
fn mismatch(other: &CommandResponse) -> DbError {
    DbError::Stopped(format!("a command was answered with {other:?}"))
}

/// The revisioned store as a machine.
struct Revisioned {
    store: Store,
    upkeep: Upkeep,
}

impl Revisioned {
    fn new(backend: Arc<dyn Backend>, reader: &mut Option<Reader>) -> Result<Self> {
        let store = Store::open(backend)?;
        *reader = Some(store.reader());
        let upkeep = Upkeep::default();
        Ok(Self { store, upkeep })
    }
}

impl Machine for Revisioned {
    type Output = Written;

    fn backend(&self) -> &Arc<dyn Backend> {
        self.store.backend()
    }

    fn apply(&mut self, batches: &[Logged<'_>], outputs: &mut Vec<Written>) -> Result<()> {
        let Some(last) = batches.last().map(|batch| batch.lsn) else {
            return Ok(());
        };
        let mut txn = self.store.begin(BatchOptions::default())?;
        let mut ahead = Lookahead::new(raw(batches));
        for batch in batches {
            let mut replies = Vec::new();
            let read = decode(batch.payload, |command| {
                txn.look_ahead(&mut ahead);
                if let Command::MemberAttributes(_) = command {
                    return Err(batch.foreign("a member's attributes, as nodes log them".into()));
                }
                match batch.replies {
                    true => replies.push(txn.apply(&command)?),
                    false => txn.apply_silent(&command)?,
                }
                Ok(())
            })?;
            read.map_err(|what| batch.foreign(what))?;
            outputs.push(Written {
                revision: txn.revision(),
                replies,
            });
        }
        txn.publish(applied(last))?;
        Ok(())
    }

    /// Removes some compacted history, then gives some space back.
    fn tidy(&mut self, idle: bool) -> Result<bool> {
        Ok(self.store.tidy(&mut self.upkeep, Instant::now(), idle)?)
    }
}
