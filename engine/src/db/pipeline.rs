//! The life of an open store: the threads around the log and the machine.
//!
//! | thread | does | waits for |
//! |---|---|---|
//! | callers | encode batches, hand them to the log | room, their answers |
//! | log (`wal`) | group commit: what is queued is one write and one sync | disk |
//! | apply | applies what is durable, in order; tidies when idle | the log |
//! | apply-part | helps for the time of one batch, where that has many puts | |
//! | checkpoint | makes the store durable when the log got long | disk |
//! | scrub | reads store and log again and verifies them | time, disk |

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::apply;
use super::error::{DbError, Result};
use super::gate::Gate;
use super::machine::Machine;
use super::options::Options;
use super::recover::{self, Opened};
use crate::backend::{Backend, ScrubStats, Scrubber};
use crate::disk::{self, Disk};
use crate::wal::{Committer, Identity, Wal, WalReader};

/// After this long without a batch the log is marked ([`Wal::sync_mark`]).
const LOG_IDLE: Duration = Duration::from_millis(500);

/// The file that is locked while the store is open.
const LOCK_FILE: &str = "lock";

/// An open store.
pub(super) struct Pipeline<T: Send + 'static> {
    gate: Arc<Gate<T>>,
    threads: Vec<JoinHandle<()>>,
    scrub: Option<Scrub>,
    path: PathBuf,
    /// Let go when everything else has ended.
    lock: Option<File>,
}

/// The scrub's thread: it ends when `stop` is dropped.
struct Scrub {
    stats: Arc<ScrubStats>,
    stop: Sender<()>,
}

/// Opens `dir` on this machine's disk; no other process can while it is open.
pub(super) fn open<M: Machine>(
    dir: &Path,
    options: &Options,
    identity: Identity,
    make: impl FnOnce(Arc<dyn Backend>) -> Result<M>,
) -> Result<Pipeline<M::Output>> {
    let opened = disk::open_default();
    if let Some(reason) = &opened.fallback {
        tracing::info!("disk: {}, as {reason}", opened.disk.name());
    }
    opened.disk.create_dir(dir)?;
    let lock = lock_dir(dir)?;
    let mut pipeline = open_on(&opened.disk, dir, options, identity, make)?;
    pipeline.lock = Some(lock);
    Ok(pipeline)
}

/// Opens `dir` on `disk`, without a lock.
pub(super) fn open_on<M: Machine>(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    options: &Options,
    identity: Identity,
    make: impl FnOnce(Arc<dyn Backend>) -> Result<M>,
) -> Result<Pipeline<M::Output>> {
    let opened = recover::open(disk, dir, options, identity, make)?;
    start(dir, opened, options)
}

fn lock_dir(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK_FILE);
    let io = |action, source| DbError::Io {
        action,
        path: path.clone(),
        source,
    };
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| io("open", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DbError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(io("lock", source)),
    }
}

fn start<M: Machine>(
    dir: &Path,
    opened: Opened<M>,
    options: &Options,
) -> Result<Pipeline<M::Output>> {
    let Opened { machine, wal } = opened;
    let backend = Arc::clone(machine.backend());
    let io = |action| {
        move |source| DbError::Io {
            action,
            path: dir.to_owned(),
            source,
        }
    };
    let (sender, completions) = unbounded();
    let log = wal.reader();
    let committer = Committer::spawn(wal, LOG_IDLE, move |completion| {
        // Once nobody applies any more, nobody waits either.
        let _ = sender.send(completion);
    });
    let committer = committer.map_err(io("start the log's thread for"))?;
    let gate = Arc::new(Gate::new(committer, backend, options));
    let mut pipeline = Pipeline {
        gate: Arc::clone(&gate),
        threads: Vec::new(),
        scrub: None,
        path: dir.to_owned(),
        lock: None,
    };
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(run).map_err(io("start a thread for"))
    };
    let applying = Arc::clone(&gate);
    let run = Box::new(move || apply::run(machine, &completions, &applying));
    pipeline.threads.push(spawn("apply", run)?);
    let checkpointing = Arc::clone(&gate);
    let run = Box::new(move || checkpointing.run_checkpoints());
    pipeline.threads.push(spawn("checkpoint", run)?);
    if let Some(scrubber) = Scrubber::new(options.scrub_interval) {
        let (stop, stopped) = bounded(0);
        let stats = scrubber.stats();
        let backend = Arc::clone(gate.backend());
        let run = Box::new(move || run_scrub(scrubber, &*backend, &log, &stopped));
        pipeline.threads.push(spawn("scrub", run)?);
        pipeline.scrub = Some(Scrub { stats, stop });
    }
    Ok(pipeline)
}

fn run_scrub(
    mut scrubber: Scrubber,
    backend: &dyn Backend,
    log: &WalReader,
    stopped: &Receiver<()>,
) {
    let mut pause = scrubber.first_pause();
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(pause) {
        pause = scrubber.step(backend, log);
    }
}

impl<T: Send + 'static> Pipeline<T> {
    /// How the scrub goes, if there is one.
    pub(super) fn scrub_stats(&self) -> Option<&Arc<ScrubStats>> {
        self.scrub.as_ref().map(|scrub| &scrub.stats)
    }

    pub(super) fn gate(&self) -> &Gate<T> {
        &self.gate
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Commits and applies what was submitted, makes a last checkpoint, and ends.
    pub(super) fn close(mut self) -> Result<()> {
        let wal = self.end();
        if let Some(why) = self.gate.stopped() {
            return Err(DbError::Stopped(why));
        }
        self.gate.checkpoint()?;
        if let Some(mut wal) = wal {
            wal.release(self.gate.durable());
        }
        Ok(())
    }

    /// The log, the first time.
    fn end(&mut self) -> Option<Wal> {
        let committer = self.gate.close()?;
        if let Some(Scrub { stop, .. }) = self.scrub.take() {
            drop(stop);
        }
        let wal = committer.shutdown();
        for thread in self.threads.drain(..) {
            // A thread that panicked has stopped the store, or applied all.
            let _ = thread.join();
        }
        wal.ok()
    }
}

impl<T: Send + 'static> Drop for Pipeline<T> {
    fn drop(&mut self) {
        self.end();
    }
}
