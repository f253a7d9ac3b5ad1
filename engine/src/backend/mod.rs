//! The trait that storage engines implement.
//!
//! A backend is an ordered map of byte strings, divided into a few numbered
//! trees. It has one writer and any number of snapshot readers. A batch is
//! *published* as a whole: new snapshots see it, at no cost of a sync. A
//! *checkpoint* makes everything published so far durable. After a crash the
//! store is as of some checkpoint, and the WAL replays the rest: the position
//! in the log up to which a batch applies ([`Applied`]) is part of the batch.

use std::borrow::Cow;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

#[cfg(any(feature = "redb", feature = "fjall"))]
mod checkpoints;
pub mod compressed;
#[doc(hidden)]
pub mod conformance;
mod error;
#[cfg(feature = "fjall")]
pub mod fjall;
pub mod held;
#[cfg(feature = "lmdb")]
pub mod lmdb;
pub(crate) mod lookahead;
pub mod memory;
#[cfg(any(feature = "redb", feature = "fjall"))]
mod overlay;
#[cfg(feature = "redb")]
pub mod redb;
pub mod registry;
pub mod scrub;
#[cfg(any(feature = "lmdb", feature = "redb", feature = "fjall"))]
mod store_dir;
#[cfg(any(feature = "lmdb", feature = "redb", feature = "fjall"))]
mod tagged;
mod treap;
mod upkeep;

pub use compressed::Compression;
pub use error::BackendError;
pub use lookahead::Lookahead;
pub use registry::{NAMES, Options, open, open_store};
pub use scrub::{Damage, DamageLog, ScrubStats, ScrubStep, Scrubber};
pub use upkeep::{CheckpointPace, Upkeep};

/// What a backend's operations return.
pub type Result<T> = std::result::Result<T, BackendError>;

/// One of the trees in a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId(pub u8);

/// How many trees a backend has: ids 0 to `MAX_TREES - 1`.
pub const MAX_TREES: usize = 8;

/// The last log entry whose effect a state includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Applied {
    /// Raft term of the entry.
    pub term: u64,
    /// Raft index of the entry.
    pub index: u64,
}

/// Bounds of a scan.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Whether no key can lie within `bounds`, as when they are inverted.
pub fn is_empty(bounds: Bounds<'_>) -> bool {
    match bounds {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start), Bound::Excluded(end))
        | (Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
        (Bound::Unbounded, Bound::Excluded(end)) => end.is_empty(),
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

/// The order of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Backward,
}

/// Sums over the entries of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// A key and its value.
pub type Entry<'e> = (&'e [u8], &'e [u8]);

/// Called for each entry with key and value, until it breaks.
pub type Visitor<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// A value as [`Read::peek`] finds it: whole, or its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek<'r> {
    /// The first bytes of the value, or all.
    pub bytes: Cow<'r, [u8]>,
    /// Bytes of the whole value.
    pub length: usize,
}

impl<'r> Peek<'r> {
    /// Of a value that is all there.
    pub fn whole(value: impl Into<Cow<'r, [u8]>>) -> Self {
        let bytes = value.into();
        Self {
            length: bytes.len(),
            bytes,
        }
    }

    /// Whether it is more than the beginning.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == self.length
    }
}

/// Called for each entry with key and what a peek at its value finds, until it breaks.
pub type PeekVisitor<'v> = dyn FnMut(&[u8], Peek<'_>) -> ControlFlow<()> + 'v;

/// Where the value goes that a key had: see [`Batch::put_and_keep`].
#[derive(Debug, Clone, Copy)]
pub struct Keep<'k> {
    /// The tree,
    pub tree: TreeId,
    /// the key in it, another one than that which is put,
    pub key: &'k [u8],
    /// and what stands before the value there.
    pub head: &'k [u8],
}

/// Reading, from a snapshot or from an open batch.
pub trait Read {
    /// The value of `key`; borrowed from the store where the engine can.
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>>;

    /// Visits the entries within `bounds` in order.
    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()>;

    /// As [`Read::get`], but of a value that lies apart from its key only the
    /// beginning, which lies beside it: its pages are not looked at.
    fn peek(&self, tree: TreeId, key: &[u8]) -> Result<Option<Peek<'_>>> {
        Ok(self.get(tree, key)?.map(Peek::whole))
    }

    /// As [`Read::scan`], with what [`Read::peek`] finds.
    fn peek_scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut PeekVisitor<'_>,
    ) -> Result<()> {
        self.scan(tree, bounds, direction, &mut |key, value| {
            visit(key, Peek::whole(value))
        })
    }

    /// Sums over `bounds`. O(log n) on the B+tree; other engines may walk.
    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        let mut sums = Sums::default();
        self.scan(tree, bounds, Direction::Forward, &mut |key, value| {
            sums.entries += 1;
            sums.bytes += (key.len() + value.len()) as u64;
            ControlFlow::Continue(())
        })?;
        Ok(sums)
    }
}

/// A published state; unaffected by later batches for as long as it is held.
pub trait Snapshot: Read + Send + Sync {
    /// The log entry up to which it applies.
    fn applied(&self) -> Applied;
}

/// The changes of one batch. Reads see them. Dropping it unpublished undoes it.
pub trait Batch: Read {
    /// Says that `keys` are about to be read or written, so that an engine can
    /// bring what they need into the processor's cache, for all of them at a
    /// time instead of one after another. Changes nothing. A few dozen keys at
    /// a time do most; more only push each other out.
    fn prefetch(&self, _tree: TreeId, _keys: &[&[u8]]) {}

    /// The same for the disk: starts reading what is not in memory; with
    /// `whole`, all of a value that lies apart from its key. Some hundreds of keys
    /// at a time do most.
    fn read_ahead(&mut self, _tree: TreeId, _keys: &[&[u8]], _whole: bool) {}

    /// Sets `key` to `value`.
    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<()>;

    /// As [`Batch::put`] of each of `entries`, in that order, so that the last one of a key
    /// stays. An engine can put them in the order that is best for it, and several at a time.
    fn put_all(&mut self, tree: TreeId, entries: &[Entry<'_>]) -> Result<()> {
        for (key, value) in entries {
            self.put(tree, key, value)?;
        }
        Ok(())
    }

    /// Sets `key` to `value`, and `keep.key` to `keep.head` followed by the value that
    /// `key` had; nothing follows if it had none. An engine in which long values lie
    /// apart from their keys neither reads nor copies the old one. After an error the
    /// batch may have the half of it.
    fn put_and_keep(
        &mut self,
        tree: TreeId,
        key: &[u8],
        value: &[u8],
        keep: Keep<'_>,
    ) -> Result<()> {
        put_with_copy(self, tree, key, value, keep)
    }

    /// As [`Batch::put`] of each of `entries`, in that order: the way to load what is
    /// sorted. Where the keys ascend and lie behind all that the tree holds, an engine
    /// can build full pages from the bottom up.
    fn append(&mut self, tree: TreeId, entries: &[Entry<'_>]) -> Result<()> {
        self.put_all(tree, entries)
    }

    /// Removes `key`; whether it was there.
    fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool>;

    /// Removes everything within `bounds`; how many entries that were.
    /// On the B+tree the cost is that of the pages at the edges plus one visit
    /// of each page that becomes free.
    fn delete_range(&mut self, tree: TreeId, bounds: Bounds<'_>) -> Result<u64>;

    /// Moves some of what a vacuum has to move, of the order of 1 MiB; whether
    /// there is more. Changes no entry.
    fn vacuum_step(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Makes the batch what new snapshots see. Costs no sync.
    fn publish(self: Box<Self>, applied: Applied) -> Result<()>;
}

/// What [`Batch::put_and_keep`] does, by a copy of the old value.
pub(crate) fn put_with_copy<B: Batch + ?Sized>(
    batch: &mut B,
    tree: TreeId,
    key: &[u8],
    value: &[u8],
    keep: Keep<'_>,
) -> Result<()> {
    let mut kept = keep.head.to_vec();
    if let Some(former) = batch.get(tree, key)? {
        kept.extend_from_slice(&former);
    }
    batch.put(keep.tree, keep.key, &kept)?;
    batch.put(tree, key, value)
}

/// How much a vacuum gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VacuumExtent {
    /// All that is free.
    All,
    /// What batches have not needed lately, or, in a store that is idle, all.
    Spare {
        /// Whether nothing was written for a while.
        idle: bool,
    },
}

/// Sizes, for metrics and `endpoint status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes of the file or files.
    pub file_bytes: u64,
    /// Bytes of them that hold something.
    pub used_bytes: u64,
    /// Snapshots held.
    pub readers: u64,
    /// How many states the oldest snapshot held is behind the newest; 0 where the
    /// engine does not tell.
    pub oldest_reader_states: u64,
    /// Bytes that wait for snapshots to be let go.
    pub pinned_bytes: u64,
    /// Bytes that wait for a checkpoint to be free.
    pub checkpoint_bytes: u64,
}

/// What a whole-store integrity check went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Pages visited, 0 where the engine has no pages.
    pub pages: u64,
    /// Entries visited, in all trees.
    pub entries: u64,
}

/// A storage engine.
pub trait Backend: Send + Sync {
    /// The name that `--engine` takes.
    fn name(&self) -> &'static str;

    /// The newest published state. Never waits for the writer.
    fn snapshot(&self) -> Result<Arc<dyn Snapshot>>;

    /// Starts a batch; waits for an earlier one to end.
    fn begin(&self) -> Result<Box<dyn Batch + '_>>;

    /// Makes the newest published state durable and returns how far it applies.
    /// May run beside readers and beside the writer.
    fn checkpoint(&self) -> Result<Applied>;

    /// How far the last checkpoint applies.
    fn durable(&self) -> Applied;

    /// Whether a checkpoint is due for the engine's own reasons. `has_time` says that
    /// it disturbs nobody: nothing was written for a while, or see [`CheckpointPace`].
    fn wants_checkpoint(&self, _has_time: bool) -> bool {
        false
    }

    /// Whether a small batch may have to wait for the disk, as far as the engine knows: for
    /// pages that are not in memory, or for a checkpoint. Who must not wait leaves it to
    /// others.
    fn may_wait(&self) -> bool {
        true
    }

    /// Whether much of the file is free for good, so that a vacuum pays. `idle`
    /// says that nothing was written for a while.
    fn wants_vacuum(&self, _idle: bool) -> bool {
        false
    }

    /// Starts to give space back to the file system. [`Batch::vacuum_step`] and
    /// checkpoints do the work.
    fn start_vacuum(&self, _extent: VacuumExtent) {}

    /// Whether a vacuum is in progress.
    fn vacuums(&self) -> bool {
        false
    }

    /// Sizes.
    fn stats(&self) -> Stats;

    /// Goes over everything stored: order, checksums, sums, free space.
    fn check(&self) -> Result<CheckReport>;

    /// Verifies the next part of what is durable, about `budget_bytes` of it, as the
    /// disk has it: see [`scrub`]. Beside readers and writers; a checkpoint waits. Its
    /// place in the pass is the store's. Engines that can't are done at once.
    fn scrub_step(&self, _budget_bytes: u64) -> ScrubStep {
        ScrubStep {
            is_finished: true,
            ..ScrubStep::default()
        }
    }

    /// What was found damaged since it was opened.
    fn damage(&self) -> Damage {
        Damage::default()
    }
}
