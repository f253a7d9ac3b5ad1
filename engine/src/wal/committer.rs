//! The thread that commits: all groups that are queued become one write and one
//! sync. While it waits for the disk, the next ones queue up, so that the size
//! of a batch follows from the load.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::{Committed, Group, Lsn, Result, Wal, WalError, WalReader, WalStats};

/// How long to wait before the disk is tried again where it was full.
const SPACE_RETRY: Duration = Duration::from_millis(250);

/// Longest pause between groups for which the next one is waited for awake: one
/// client's, who writes again as soon as it has its answer. To put the thread's core
/// to sleep and to wake it takes a good part of that, once for each put.
const AWAKE: Duration = Duration::from_micros(200);

/// A look at the queue that took longer let another thread run on this core.
const BUSY: Duration = Duration::from_micros(10);

/// Bytes up to which queued groups become one; a larger one goes alone.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// The end of one submitted group.
#[derive(Debug)]
pub struct Completion {
    /// What the caller gave with it.
    pub ticket: u64,
    /// The group, for use again ([`Group::clear`] it).
    pub group: Group,
    /// Where it is, or why it is not durable. After the first error all later
    /// groups fail with [`WalError::Latched`]. A full disk is no error: the group
    /// waits, and those behind it, until there is room or the committer is shut
    /// down; [`WalStats::low_space`] says so before.
    pub result: Result<Committed>,
}

enum Request {
    Commit(u64, Group),
    Release(Lsn),
    Shutdown,
}

/// The thread that owns a [`Wal`]: it takes all groups that are queued, writes
/// them with one write and one sync, and calls back in order of submission.
#[derive(Debug)]
pub struct Committer {
    requests: Sender<Request>,
    thread: Option<JoinHandle<Wal>>,
    reader: WalReader,
    stats: Arc<WalStats>,
}

impl Committer {
    /// Starts the thread. `complete` is called on it, once per group, in order of
    /// submission; it must not block. After `idle` without a group a mark is
    /// written (see [`Wal::sync_mark`]).
    pub fn spawn(
        wal: Wal,
        idle: Duration,
        complete: impl FnMut(Completion) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, queue) = unbounded();
        let (reader, stats) = (wal.reader(), wal.stats());
        let mut worker = Worker {
            commits: CommitQueue::new(wal),
            idle,
            complete,
            retry_at: None,
            has_cores: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            last_pause: Duration::MAX,
        };
        let thread = std::thread::Builder::new()
            .name("wal".into())
            .spawn(move || {
                worker.run(&queue);
                worker.commits.wal
            })?;
        Ok(Self {
            requests,
            thread: Some(thread),
            reader,
            stats,
        })
    }

    /// Queues a group; never waits for the disk. How much may be queued is for the
    /// caller to bound, by counting completions. Fails with [`WalError::Closed`]
    /// if the thread has ended.
    pub fn submit(&self, ticket: u64, group: Group) -> Result<()> {
        self.requests
            .send(Request::Commit(ticket, group))
            .map_err(|_| WalError::Closed)
    }

    /// As [`Wal::release`], after what was queued before.
    pub fn release(&self, lsn: Lsn) {
        // A thread that has ended leaves the segments to the next start.
        let _ = self.requests.send(Request::Release(lsn));
    }

    /// A reader.
    pub fn reader(&self) -> WalReader {
        self.reader.clone()
    }

    /// Counters.
    pub fn stats(&self) -> Arc<WalStats> {
        self.stats.clone()
    }

    /// Commits what is queued, writes a mark, ends the thread and hands the log
    /// back. Dropping the committer does the same without the log.
    pub fn shutdown(mut self) -> Result<Wal> {
        self.end().ok_or(WalError::Closed)
    }

    /// `None` if the thread panicked, or has been ended before.
    fn end(&mut self) -> Option<Wal> {
        let _ = self.requests.send(Request::Shutdown);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.end();
    }
}

struct Worker<F> {
    /// With what was taken off the queue.
    commits: CommitQueue,
    idle: Duration,
    complete: F,
    /// When to try again, where the disk was full.
    retry_at: Option<Instant>,
    /// Whether there is a core for somebody else while this thread is awake.
    has_cores: bool,
    /// How long the queue was empty before the last request.
    last_pause: Duration,
}

impl<F: FnMut(Completion)> Worker<F> {
    fn run(&mut self, queue: &Receiver<Request>) {
        let mut open = true;
        while open {
            let paused = Instant::now();
            if self.has_cores && self.last_pause < AWAKE {
                stay_awake(queue, paused);
            }
            // A mark only after something that it could mark.
            let lacks_space = self.commits.wal.lacks_space();
            let request = if lacks_space {
                queue.recv_timeout(SPACE_RETRY)
            } else if self.commits.wal.wants_mark() {
                queue.recv_timeout(self.idle)
            } else {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            self.last_pause = paused.elapsed();
            match request {
                Ok(request) => open = self.take(request),
                Err(RecvTimeoutError::Timeout) if lacks_space => self.commits.wal.retry_space(),
                Err(RecvTimeoutError::Timeout) => self.commits.mark(),
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            while open && let Ok(request) = queue.try_recv() {
                open = self.take(request);
            }
            if self.retry_at.is_none_or(|at| at <= Instant::now()) {
                self.commit_waiting();
            }
        }
        self.give_up_waiting();
        self.commits.mark();
    }

    /// The last attempt; what still finds no room is told so.
    fn give_up_waiting(&mut self) {
        self.commit_waiting();
        let mut first = true;
        for (ticket, mut group) in std::mem::take(&mut self.commits.waiting) {
            // A later one may be smaller, but must not be there without this one.
            let result = match std::mem::take(&mut first) {
                true => self.commits.wal.commit(&mut group),
                false => Err(WalError::Closed),
            };
            first = result.is_ok();
            (self.complete)(Completion {
                ticket,
                group,
                result,
            });
        }
    }

    /// Says once per outage that the disk is full.
    fn wait_for_space(&mut self, error: &WalError) {
        if self.retry_at.is_none() {
            tracing::error!(%error, "the log waits for space");
        }
        self.retry_at = Some(Instant::now() + SPACE_RETRY);
    }

    /// Whether to go on.
    fn take(&mut self, request: Request) -> bool {
        match request {
            Request::Commit(ticket, group) => self.commits.push(ticket, group),
            Request::Release(lsn) => {
                self.commits.wal.release(lsn);
                // That may have been the space that is lacking.
                self.retry_at = self.retry_at.map(|_| Instant::now());
            }
            Request::Shutdown => return false,
        }
        true
    }

    fn commit_waiting(&mut self) {
        match self.commits.commit(&mut self.complete) {
            Ok(()) => self.retry_at = None,
            Err(error) => self.wait_for_space(&error),
        }
    }
}

/// Waits for a request without sleep, for no longer than [`AWAKE`], and only while
/// no other thread wants this core.
fn stay_awake(queue: &Receiver<Request>, since: Instant) {
    let mut last = since;
    while queue.is_empty() {
        std::thread::yield_now();
        let now = Instant::now();
        if now - last > BUSY || now - since > AWAKE {
            return;
        }
        last = now;
    }
}

/// What the committer's thread does, without the thread: simulations call it when
/// their disk says so.
#[derive(Debug)]
pub struct CommitQueue {
    wal: Wal,
    /// In order.
    waiting: VecDeque<(u64, Group)>,
    /// Several groups as one.
    merged: Group,
    /// The parts of `merged`, with their offsets in it.
    batch: Vec<(u64, Group, u64)>,
}

impl CommitQueue {
    /// Nothing waits.
    pub fn new(wal: Wal) -> Self {
        Self {
            wal,
            waiting: VecDeque::new(),
            merged: Group::new(),
            batch: Vec::new(),
        }
    }

    /// Queues a group.
    pub fn push(&mut self, ticket: u64, group: Group) {
        self.waiting.push_back((ticket, group));
    }

    /// As [`Wal::release`].
    pub fn release(&mut self, lsn: Lsn) {
        self.wal.release(lsn);
    }

    /// Writes a mark if there is something to be marked. An error latches and is
    /// told to the next caller.
    pub fn mark(&mut self) {
        match self.wal.sync_mark() {
            Ok(()) | Err(WalError::NoSpace(_)) => {}
            Err(error) => tracing::error!(%error, "the log could not be marked"),
        }
    }

    /// Commits what is queued, with one write and one sync for as many groups as
    /// fit, and calls `complete` for each. Fails only where the disk is full: the
    /// rest then stays queued.
    pub fn commit(&mut self, complete: &mut impl FnMut(Completion)) -> Result<()> {
        while let Some((ticket, mut group)) = self.waiting.pop_front() {
            let more = self.waiting.front();
            if more.is_some_and(|(_, next)| group.fits(next, MAX_BATCH_BYTES)) {
                self.merge(ticket, group);
                self.commit_merged(complete)?;
            } else {
                let result = self.wal.commit(&mut group);
                if let Err(error @ WalError::NoSpace(_)) = result {
                    self.waiting.push_front((ticket, group));
                    return Err(error);
                }
                self.count(1);
                complete(Completion {
                    ticket,
                    group,
                    result,
                });
            }
        }
        Ok(())
    }

    /// Collects the group and those behind it, as far as they fit.
    fn merge(&mut self, ticket: u64, group: Group) {
        self.merged.clear();
        let mut next = Some((ticket, group));
        while let Some((ticket, group)) = next {
            let offset = self.merged.append(&group);
            self.batch.push((ticket, group, offset));
            let merged = &self.merged;
            let fits = |(_, next): &(u64, Group)| merged.fits(next, MAX_BATCH_BYTES);
            next = match self.waiting.front().is_some_and(fits) {
                true => self.waiting.pop_front(),
                false => None,
            };
        }
    }

    fn commit_merged(&mut self, complete: &mut impl FnMut(Completion)) -> Result<()> {
        let mut result = self.wal.commit(&mut self.merged);
        if let Err(error @ WalError::NoSpace(_)) = result {
            for (ticket, group, _) in self.batch.drain(..).rev() {
                self.waiting.push_front((ticket, group));
            }
            return Err(error);
        }
        self.count(self.batch.len() as u64);
        for (ticket, group, offset) in self.batch.drain(..) {
            let own = match &result {
                Ok(all) => Ok(Committed {
                    first_lsn: all.first_lsn + offset,
                    ..*all
                }),
                // The first one gets the error itself, the others its text.
                Err(error) => {
                    let text = WalError::Latched(error.to_string());
                    std::mem::replace(&mut result, Err(text))
                }
            };
            complete(Completion {
                ticket,
                group,
                result: own,
            });
        }
        Ok(())
    }

    fn count(&self, groups: u64) {
        let stats = self.wal.stats_ref();
        stats.groups.fetch_add(groups, Ordering::Relaxed);
        stats.batch_groups.record(groups);
    }
}
