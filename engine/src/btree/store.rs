//! What the writer, the readers and checkpoints of one store share.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::free_map::FreeMap;
use super::limbo::Horizon;
use super::meta::Meta;
use super::pager::Pager;
use super::readers::{Publisher, Readers};
use super::scrub::Cursor;
use super::space::Space;
use crate::backend::{Applied, BackendError, Result, Stats};
use crate::sync::AtomicU64;

/// Shared by all handles of one store.
///
/// Locks are taken in this order, and `space` for moments only:
/// `scrub`, `writer` (for the life of a batch) or `keeper` (for that of a checkpoint
/// or of a step of the scrub), then `space`. Readers take none.
#[derive(Debug)]
pub(super) struct Shared {
    pager: Pager,
    readers: Arc<Readers>,
    writer: Mutex<Publisher>,
    keeper: Mutex<Keeper>,
    space: Mutex<Space>,
    /// How far the scrub is.
    scrub: Mutex<Cursor>,
    /// The newest state of which a checkpoint began.
    begun: AtomicU64,
    /// The state of the last durable checkpoint.
    durable: AtomicU64,
    durable_applied: Mutex<Applied>,
    /// The newest state whose batch met pages that were not in memory.
    cold: AtomicU64,
    latch: OnceLock<String>,
}

/// What the last durable checkpoint left; a checkpoint in progress holds it.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) meta: Meta,
    pub(super) free_map: FreeMap,
}

/// What the locks guard is whole even if a holder panicked: the trees are only
/// changed in pages that nobody refers to before a batch is published.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(pager: Pager, space: Space, keeper: Keeper) -> Self {
        let state = keeper.meta.state;
        let publisher = Publisher::new(state);
        Self {
            pager,
            readers: Arc::clone(publisher.readers()),
            writer: Mutex::new(publisher),
            keeper: Mutex::new(keeper),
            space: Mutex::new(space),
            scrub: Mutex::default(),
            begun: AtomicU64::new(state.number),
            durable: AtomicU64::new(state.number),
            durable_applied: Mutex::new(state.applied),
            cold: AtomicU64::new(0),
            latch: OnceLock::new(),
        }
    }

    pub(super) fn pager(&self) -> &Pager {
        &self.pager
    }

    pub(super) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    pub(super) fn writer(&self) -> MutexGuard<'_, Publisher> {
        lock(&self.writer)
    }

    pub(super) fn keeper(&self) -> MutexGuard<'_, Keeper> {
        lock(&self.keeper)
    }

    pub(super) fn scrub(&self) -> MutexGuard<'_, Cursor> {
        lock(&self.scrub)
    }

    pub(super) fn space(&self) -> MutexGuard<'_, Space> {
        lock(&self.space)
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun.load(SeqCst)
    }

    pub(super) fn set_begun(&self, state: u64) {
        self.begun.store(state, SeqCst);
    }

    pub(super) fn set_cold(&self, state: u64) {
        self.cold.store(state, SeqCst);
    }

    /// Whether the store met pages that were not in memory since the last
    /// checkpoint began.
    pub(super) fn is_cold(&self) -> bool {
        self.cold.load(SeqCst) > self.begun()
    }

    /// Whether one of the last batches before state `number` met such pages.
    pub(super) fn was_cold_before(&self, number: u64) -> bool {
        const BATCHES: u64 = 64;
        let last = self.cold.load(SeqCst);
        last > 0 && number - last <= BATCHES
    }

    /// The state of the last durable checkpoint, and how far it applies.
    pub(super) fn durable(&self) -> (u64, Applied) {
        let applied = lock(&self.durable_applied);
        (self.durable.load(SeqCst), *applied)
    }

    pub(super) fn set_durable(&self, state: u64, applied: Applied) {
        let mut durable_applied = lock(&self.durable_applied);
        self.durable.store(state, SeqCst);
        *durable_applied = applied;
    }

    /// Frees what nobody sees or needs any more, unless a batch is open: the
    /// next one does it then.
    pub(super) fn recycle_if_idle(&self) {
        if let Ok(publisher) = self.writer.try_lock() {
            self.recycle(&publisher);
        }
    }

    /// Frees what nobody sees or needs any more. No batch is open.
    pub(super) fn recycle(&self, publisher: &Publisher) {
        let horizon = Horizon::look(publisher, &self.durable);
        self.space().recycle(&horizon);
    }

    /// Fails if an earlier error stopped the writer.
    pub(super) fn check_latch(&self) -> Result<()> {
        match self.latch.get() {
            Some(message) => Err(BackendError::Latched(message.clone())),
            None => Ok(()),
        }
    }

    /// Stops the writer for good. A failed write or sync leaves unknown what is
    /// on the disk, and a second one would only hide that (the kernel marks the
    /// pages clean): Rebello et al., "Can applications recover from fsync
    /// failures?", 2020.
    pub(super) fn latch(&self, error: BackendError) -> BackendError {
        if self.latch.set(error.to_string()).is_ok() {
            tracing::error!(%error, "the store takes no more writes");
        }
        error
    }

    /// As [`Shared::latch`], but a full disk is no reason to stop for good:
    /// nothing was written.
    pub(super) fn latch_unless_full(&self, error: BackendError) -> BackendError {
        match &error {
            BackendError::Io { .. } if !error.is_no_space() => self.latch(error),
            _ => error,
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let page = super::page::PAGE_BYTES as u64;
        let space = self.space();
        let end = self.pager.end();
        let (pinned, checkpointed) = space.pending_pages();
        Stats {
            file_bytes: end * page,
            used_bytes: (end - space.free_pages()) * page,
            readers: self.readers.count(),
            oldest_reader_states: self.readers.oldest_age(),
            pinned_bytes: pinned * page,
            checkpoint_bytes: checkpointed * page,
        }
    }
}
