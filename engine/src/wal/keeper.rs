//! Prepares the next segment ahead and disposes of released ones.
//!
//! # Invariants
//! 1. A prepared segment is on disk under its final name, zero-filled or with
//!    records of an earlier life, without a header, and durable, before its
//!    predecessor is sealed.
//! 2. Segments go in order, each durably before the next: a crash leaves no gap.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use super::segment::{HEADER_BYTES, segment_path, spare_path};
use super::{Lsn, Result, WalConfig, WalError, WalStats};
use crate::disk::{AlignedBuf, BLOCK_BYTES, Disk, DiskError, File, OpenMode};

/// Bytes written at a time when filling with zeroes, each durable before the next,
/// so that a group commit beside them does not queue behind all of them.
const FILL_STEP_BYTES: u64 = 4 << 20;

/// A segment ready to get its header.
pub(super) struct Prepared {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) file_bytes: u64,
}

/// The work, done by whoever calls.
pub(super) struct Work {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) config: WalConfig,
    /// Files of released segments, to be used again.
    pub(super) spares: Vec<PathBuf>,
    /// Released segments that are still to go, oldest first.
    pub(super) doomed: VecDeque<(u64, PathBuf)>,
    /// Set when the log is being closed: a segment need not be finished.
    pub(super) stop: Arc<AtomicBool>,
}

impl Work {
    /// Makes segment `number` with room for at least `bytes`.
    pub(super) fn prepare(&mut self, number: u64, bytes: u64) -> Result<Prepared> {
        let path = segment_path(&self.dir, number);
        let prepared = self.prepare_at(&path, number, bytes);
        if let Err(WalError::Disk(error)) = &prepared
            && error.is_no_space()
            && let Err(error) = self.disk.remove(&path)
            && !error.is_not_found()
        {
            // Half a segment is of no use, and others may need the space.
            tracing::warn!(%error, "a half prepared log segment could not be removed");
        }
        prepared
    }

    fn prepare_at(&mut self, path: &Path, number: u64, bytes: u64) -> Result<Prepared> {
        let file = match self.spares.last() {
            Some(spare) if !self.disk.exists(path)? => {
                let file = self.disk.open_log(spare, OpenMode::Existing)?;
                clear_header(&*file)?;
                self.disk.rename(spare, path)?;
                self.spares.pop();
                file
            }
            _ => {
                let file = self.disk.open_log(path, OpenMode::Create)?;
                clear_header(&*file)?;
                file
            }
        };
        let file_bytes = fill(&*file, self.config.segment_bytes.max(bytes), &self.stop)?;
        self.disk.sync_dir(&self.dir)?;
        Ok(Prepared {
            number,
            path: path.to_owned(),
            file,
            file_bytes,
        })
    }

    /// Disposes of what was released: to the spares or away.
    fn dispose(&mut self) -> Result<()> {
        while let Some((number, path)) = self.doomed.front() {
            let spare = spare_path(&self.dir, *number);
            let is_kept = self.spares.len() < self.config.spare_segments;
            // An attempt whose sync failed has renamed it already.
            let is_renamed = !self.disk.exists(path)?;
            match (is_kept, is_renamed) {
                (true, false) => self.disk.rename(path, &spare)?,
                (true, true) => {}
                (false, false) => self.disk.remove(path)?,
                (false, true) => self.disk.remove(&spare)?,
            }
            self.disk.sync_dir(&self.dir)?;
            // Only now: what is used again loses its header, and must not come back
            // under its old name.
            if is_kept {
                self.spares.insert(0, spare);
            }
            self.doomed.pop_front();
        }
        Ok(())
    }

    fn dispose_or_warn(&mut self) {
        if let Err(error) = self.dispose() {
            // Nothing is lost by keeping them, and the next release tries again.
            tracing::warn!(%error, "a released log segment could not be let go");
        }
    }
}

/// Durably takes the header of an earlier life away, before the file gets the
/// name of a segment. Also where it seems to be gone: an attempt whose sync failed
/// leaves zeroes in the page cache that the disk does not have, and that no sync
/// writes any more.
fn clear_header(file: &dyn File) -> std::result::Result<(), DiskError> {
    if !file.is_empty()? {
        file.write_durable(&AlignedBuf::zeroed(BLOCK_BYTES), 0)?;
    }
    Ok(())
}

/// Grows the file to `bytes` of written zeroes, so that later syncs are of data
/// only; its length. The length goes up in steps, each after the zeroes before it
/// are durable, so that an attempt that was broken off is continued by the next.
fn fill(file: &dyn File, bytes: u64, stop: &AtomicBool) -> Result<u64> {
    let bytes = bytes
        .max(2 * HEADER_BYTES)
        .next_multiple_of(BLOCK_BYTES as u64);
    let mut length = file.len()?;
    if length >= bytes {
        return Ok(length);
    }
    let zeroes = AlignedBuf::zeroed(FILL_STEP_BYTES.min(bytes - length) as usize);
    while length < bytes {
        if stop.load(Ordering::Relaxed) {
            return Err(WalError::Closed);
        }
        let step = FILL_STEP_BYTES.min(bytes - length);
        file.allocate(length, step)?;
        // Past the page cache, where the zeroes would take memory and serve nobody.
        file.write_durable(&zeroes[..step as usize], length)?;
        length += step;
    }
    Ok(bytes)
}

enum Job {
    Prepare {
        number: u64,
        reply: Sender<Result<Prepared>>,
    },
    Dispose(Vec<(u64, PathBuf)>),
}

enum Next {
    /// Not being prepared; if an attempt failed, nothing of it is in the way.
    None,
    Ready(Prepared),
    Pending(Receiver<Result<Prepared>>),
}

/// Does the work itself, or has a thread for it.
pub(super) struct Keeper {
    next: Next,
    /// After a failure: the position from which on to try again.
    retry_at: Lsn,
    stats: Arc<WalStats>,
    config: WalConfig,
    stop: Arc<AtomicBool>,
    /// The work, unless the thread has it.
    work: Option<Work>,
    thread: Option<(Sender<Job>, JoinHandle<()>)>,
}

impl Keeper {
    pub(super) fn new(work: Work, stats: Arc<WalStats>) -> Result<Self> {
        let (config, stop) = (work.config.clone(), work.stop.clone());
        let (mut own, mut thread) = (None, None);
        if config.prepare_in_background {
            let (jobs, queue) = unbounded();
            let dir = work.dir.clone();
            let handle = std::thread::Builder::new()
                .name("wal-keeper".into())
                .spawn(move || run(work, &queue))
                .map_err(|e| DiskError::io("start a thread for", &dir, 0, e))?;
            thread = Some((jobs, handle));
        } else {
            own = Some(work);
        }
        Ok(Self {
            next: Next::None,
            retry_at: 0,
            stats,
            config,
            stop,
            work: own,
            thread,
        })
    }

    /// Starts preparing segment `number`, if that is not under way; `end` is where
    /// the log ends now. Failure shows in the stats and is tried again when the log
    /// is longer by a sixteenth of a segment.
    pub(super) fn prepare_ahead(&mut self, number: u64, end: Lsn) {
        self.poll(end);
        if !matches!(self.next, Next::None) || end < self.retry_at {
            return;
        }
        if let Some(work) = &mut self.work {
            let result = work.prepare(number, 0);
            self.arrived(result, end);
        } else if let Some((jobs, _)) = &self.thread {
            let (reply, receiver) = bounded(1);
            if jobs.send(Job::Prepare { number, reply }).is_ok() {
                self.next = Next::Pending(receiver);
            }
        }
    }

    /// As [`Keeper::prepare_ahead`], at once after a failure too.
    pub(super) fn retry(&mut self, number: u64, end: Lsn) {
        self.retry_at = 0;
        self.prepare_ahead(number, end);
    }

    fn poll(&mut self, end: Lsn) {
        if let Next::Pending(receiver) = &self.next
            && let Ok(result) = receiver.try_recv()
        {
            self.arrived(result, end);
        }
    }

    fn arrived(&mut self, result: Result<Prepared>, end: Lsn) {
        self.stats
            .prepare_failed
            .store(u64::from(result.is_err()), Ordering::Relaxed);
        self.next = match result {
            Ok(prepared) => Next::Ready(prepared),
            Err(error) => {
                tracing::warn!(%error, "the next log segment could not be prepared yet");
                self.retry_at = end + self.config.segment_bytes / 16;
                Next::None
            }
        };
    }

    /// Segment `number`, with room for `bytes`; waits for it if need be.
    pub(super) fn take(&mut self, number: u64, bytes: u64) -> Result<Prepared> {
        if let Next::Pending(receiver) = &self.next {
            let result = receiver.recv().unwrap_or(Err(WalError::Closed));
            self.arrived(result, 0);
        }
        if matches!(self.next, Next::None) {
            // Once more, now that it cannot wait: this time the error counts.
            let result = match (&mut self.work, &self.thread) {
                (Some(work), _) => work.prepare(number, bytes),
                (None, Some((jobs, _))) => {
                    let (reply, receiver) = bounded(1);
                    jobs.send(Job::Prepare { number, reply })
                        .map_err(|_| WalError::Closed)?;
                    receiver.recv().unwrap_or(Err(WalError::Closed))
                }
                (None, None) => Err(WalError::Closed),
            };
            self.stats
                .prepare_failed
                .store(u64::from(result.is_err()), Ordering::Relaxed);
            self.next = Next::Ready(result?);
        }
        match std::mem::replace(&mut self.next, Next::None) {
            Next::Ready(mut prepared) => {
                // A group that is larger than a segment gets a larger segment.
                prepared.file_bytes = fill(&*prepared.file, bytes, &self.stop)?;
                Ok(prepared)
            }
            _ => Err(WalError::Closed),
        }
    }

    /// Lets go of released segments, oldest first.
    pub(super) fn dispose(&mut self, released: Vec<(u64, PathBuf)>) {
        if let Some(work) = &mut self.work {
            work.doomed.extend(released);
            work.dispose_or_warn();
        } else if let Some((jobs, _)) = &self.thread {
            // A thread that has ended leaves the files to the next start.
            let _ = jobs.send(Job::Dispose(released));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some((jobs, thread)) = self.thread.take() {
            self.stop.store(true, Ordering::Relaxed);
            drop(jobs);
            let _ = thread.join();
        }
    }
}

fn run(mut work: Work, queue: &Receiver<Job>) {
    for job in queue {
        match job {
            Job::Prepare { number, reply } => {
                let _ = reply.send(work.prepare(number, 0));
            }
            Job::Dispose(released) => {
                work.doomed.extend(released);
                work.dispose_or_warn();
            }
        }
    }
}
