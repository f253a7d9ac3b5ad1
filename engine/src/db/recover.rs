//! Opening: the store as of its last checkpoint, and the log after it.
//!
//! | log | store | what happens |
//! |---|---|---|
//! | none | none | both are made |
//! | from its first segment on | new or empty | all of the log is replayed |
//! | its first segment is gone | new or empty | refused: the store is gone, or of another engine |
//! | holds the last batch applied | as of it | what is after it is replayed |
//! | does not hold it | as of it | refused: the log is gone, or has lost batches |
//!
//! Nothing is replayed before it is known that both belong together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::KIND_BATCH;
use super::error::{DbError, Result};
use super::machine::{Logged, Machine};
use super::options::Options;
use crate::backend::{self, Backend};
use crate::disk::Disk;
use crate::wal::{Identity, Lsn, Wal};

/// Bytes of the log that are replayed as one batch of the store.
const REPLAY_BYTES: usize = 4 << 20;
/// Batches of them.
const REPLAY_BATCHES: usize = 4096;

/// A directory, opened.
pub(super) struct Opened<M> {
    pub(super) machine: M,
    pub(super) wal: Wal,
}

/// Opens or makes log and store in `dir`.
pub(super) fn open<M: Machine>(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    options: &Options,
    identity: Identity,
    make: impl FnOnce(Arc<dyn Backend>) -> Result<M>,
) -> Result<Opened<M>> {
    let wal_dir = match &options.wal_dir {
        Some(dir) => dir.clone(),
        None => dir.join("wal"),
    };
    make_dir(&**disk, dir)?;
    make_dir(&**disk, &wal_dir)?;
    let is_whole = Wal::holds_its_start(&**disk, &wal_dir)?;
    let backend = backend::open(&options.engine, &**disk, dir, &options.backend)?;
    let applied = backend.snapshot()?.applied().index;
    let inconsistent = |what: String| DbError::Inconsistent {
        path: dir.to_owned(),
        what,
    };
    if applied == 0 && !is_whole {
        return Err(inconsistent(format!(
            "the log's beginning was let go after a checkpoint, but engine {} has no store here; \
             open it with the engine that it was made with, or restore a backup of both",
            options.engine
        )));
    }
    let mut replay = Replay::new(make(backend)?, applied);
    let (wal, recovered) = Wal::open(
        Arc::clone(disk),
        &wal_dir,
        options.wal.clone(),
        identity,
        &mut |lsn, kind, payload| replay.visit(lsn, kind, payload),
    )?;
    if !replay.is_found {
        return Err(inconsistent(format!(
            "the store holds the batch at lsn {applied}, but the log, from {} to {}, does not; \
             the log was removed or lost, restore a backup of both",
            recovered.start_lsn, recovered.end_lsn
        )));
    }
    let (machine, replayed) = replay.finish()?;
    tracing::info!(
        "log: {:?}, {} batches replayed after lsn {applied}, {} bytes cut",
        recovered.case,
        replayed,
        recovered.truncated_bytes
    );
    Ok(Opened { machine, wal })
}

/// Makes `dir`, so that it is there after a power loss.
fn make_dir(disk: &dyn Disk, dir: &Path) -> Result<()> {
    if disk.exists(dir)? {
        return Ok(());
    }
    disk.create_dir(dir)?;
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok(disk.sync_dir(&parent)?)
}

/// Applies the log's batches after the last one that the store has.
struct Replay<M: Machine> {
    machine: M,
    applied: Lsn,
    /// Whether the last batch that the store has was seen, if it has any.
    is_found: bool,
    /// Payloads, and where each ends.
    bytes: Vec<u8>,
    batches: Vec<(Lsn, usize)>,
    outputs: Vec<M::Output>,
    replayed: u64,
    failed: Option<DbError>,
}

impl<M: Machine> Replay<M> {
    fn new(machine: M, applied: Lsn) -> Self {
        Self {
            machine,
            applied,
            is_found: applied == 0,
            bytes: Vec::new(),
            batches: Vec::new(),
            outputs: Vec::new(),
            replayed: 0,
            failed: None,
        }
    }

    fn visit(&mut self, lsn: Lsn, kind: u8, payload: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if kind != KIND_BATCH {
            let what = format!("kind {kind} is unknown");
            self.failed = Some(DbError::Record { lsn, what });
            return;
        }
        if lsn <= self.applied || !self.is_found {
            self.is_found |= lsn == self.applied;
            return;
        }
        self.bytes.extend_from_slice(payload);
        self.batches.push((lsn, self.bytes.len()));
        if self.bytes.len() >= REPLAY_BYTES || self.batches.len() >= REPLAY_BATCHES {
            self.failed = self.apply().err();
        }
    }

    fn apply(&mut self) -> Result<()> {
        let mut start = 0;
        let logged = self.batches.iter().map(|&(lsn, end)| {
            let payload = &self.bytes[start..end];
            start = end;
            Logged {
                lsn,
                payload,
                replies: false,
            }
        });
        let logged: Vec<_> = logged.collect();
        if logged.is_empty() {
            return Ok(());
        }
        self.machine.apply(&logged, &mut self.outputs)?;
        self.replayed += logged.len() as u64;
        self.outputs.clear();
        self.batches.clear();
        self.bytes.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<(M, u64)> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.apply()?;
        Ok((self.machine, self.replayed))
    }
}
