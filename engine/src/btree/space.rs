//! The life of a page: free, taken by the open batch, live, freed, free again.
//!
//! Invariants:
//! - Every page of the file but the two meta pages is exactly one of: free,
//!   taken by the open batch, live in the newest published state, pending
//!   (freed, but perhaps still seen), or part of a persisted free-space map.
//!
//! When a freed page is free again says `limbo`.

use std::sync::Arc;

use super::bitmap::{Bitmap, CHUNK_PAGES, CHUNK_WORDS, ChunkWords};
use super::limbo::{Horizon, Limbo};
use super::pager::{Cut, Pager};
use super::vacuum::Pass;
use crate::backend::{Result, VacuumExtent};

/// The file grows by at least this many pages,
const MIN_GROWTH_PAGES: u64 = 256;
/// by at most this many,
const MAX_GROWTH_PAGES: u64 = 16_384;
/// and otherwise by this part of itself.
const GROWTH_PART: u64 = 64;

/// Pages that may wait for a checkpoint beside twice as many as are in use: 64 MiB.
const MOST_WAITING_PAGES: u64 = 16_384;
/// New pages that may wait for a checkpoint where not all is in memory: 32 MiB.
const MOST_DIRTY_COLD_PAGES: u64 = 8192;
/// Spare pages that are no reason for a vacuum: 4 MiB.
const LEAST_SPARE_PAGES: u64 = 1024;
/// Free pages that a vacuum leaves: the next batches need some.
const SLACK_PAGES: u64 = 256;
/// Checkpoints after which a vacuum ends wherever it is, having made a pass
/// every two of them: readers hold the rest.
const VACUUM_CHECKPOINTS: u32 = 8;
/// Pages that are cut off the file at a time: 256 KiB.
const CUT_PAGES: u64 = 64;

/// Pages in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) page: u64,
    pub(super) pages: u64,
}

impl Extent {
    pub(super) fn one(page: u64) -> Self {
        Self { page, pages: 1 }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u64> {
        self.page..self.page + self.pages
    }
}

/// Pages that a batch does without, and when they were made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Freed {
    pub(super) extent: Extent,
    pub(super) birth: u64,
}

/// What a batch leaves behind for [`Space::publish`].
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Pages of earlier states that the batch replaced or removed.
    pub(super) freed: Vec<Freed>,
    /// Pages that it took and does not need.
    pub(super) unused: Vec<Extent>,
}

/// What is known of all pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    /// Pages of the file.
    end: u64,
    free: Bitmap,
    /// Pages of the newest published state. Shared with checkpoints, and copied
    /// a chunk at a time when a batch changes them meanwhile.
    live: Vec<Arc<ChunkWords>>,
    /// What batches made since the last checkpoint began.
    new_pages: NewPages,
    /// Taken by the open batch.
    taken: Vec<Extent>,
    /// Freed, but perhaps still needed.
    limbo: Limbo,
    use_of_free: UseOfFree,
    vacuum: Option<Vacuum>,
}

/// What a checkpoint has to write.
#[derive(Debug, Clone, Default)]
pub(super) struct NewPages {
    /// Live pages that may have no checksum yet, a bit each: all but runs of several.
    pub(super) unsealed: Vec<u64>,
    /// Stretches of [`STRETCH_PAGES`] that have new pages, a bit each; none beyond
    /// the last such.
    pub(super) stretches: Vec<u64>,
    count: u64,
}

/// Pages that are written back at a time: 1 MiB.
pub(super) const STRETCH_PAGES: u64 = 256;

impl NewPages {
    fn add(&mut self, extent: Extent) {
        self.count += extent.pages;
        if extent.pages == 1 {
            set(&mut self.unsealed, extent.page);
        }
        self.add_unwritten(extent);
    }

    /// Adds pages that have their checksums.
    pub(super) fn add_unwritten(&mut self, extent: Extent) {
        let last = extent.page + extent.pages - 1;
        for stretch in extent.page / STRETCH_PAGES..=last / STRETCH_PAGES {
            let words = (stretch / 64) as usize + 1;
            self.stretches.resize(words.max(self.stretches.len()), 0);
            set(&mut self.stretches, stretch);
        }
    }
}

/// Which free pages are spare: a batch copies the pages that it changes, so a
/// store that is written to uses some of them from one checkpoint to the next.
#[derive(Debug, Clone, Copy, Default)]
struct UseOfFree {
    /// The fewest pages that were free since the last checkpoint,
    lowest: u64,
    /// and in the interval before it.
    lowest_before: u64,
}

/// A vacuum in progress.
#[derive(Debug, Clone)]
struct Vacuum {
    /// Where the file is to end.
    cut: u64,
    /// None once all is moved that could be.
    pass: Option<Pass>,
    /// Checkpoints after the pass; some are needed until old copies are free.
    checkpoints: u32,
    /// All that is left is to cut the file's end off.
    is_over: bool,
}

impl Space {
    /// Space of a file of `end` pages of which `is_free` says the free ones and
    /// `live` has those of the state.
    pub(super) fn new(
        end: u64,
        first: u64,
        live: Vec<Arc<ChunkWords>>,
        is_used: impl Fn(u64) -> bool,
    ) -> Self {
        let mut space = Self {
            live,
            ..Self::default()
        };
        space.cover(end);
        for page in (first..end).filter(|page| !is_used(*page)) {
            space.free.insert(page);
        }
        space
    }

    fn cover(&mut self, end: u64) {
        self.end = end;
        self.free.grow(end);
        let chunks = end.div_ceil(CHUNK_PAGES) as usize;
        if chunks > self.live.len() {
            let empty = Arc::new([0; CHUNK_WORDS]);
            self.live.resize(chunks, empty);
        }
        let words = self.live.len() * CHUNK_WORDS;
        self.new_pages.unsealed.resize(words, 0);
    }

    /// Takes `pages` pages in a row, growing the file if there are none.
    pub(super) fn take(&mut self, pager: &Pager, pages: u64) -> Result<Extent> {
        loop {
            let found = match pages {
                1 => self.free.take(),
                _ => self.free.take_run(pages),
            };
            if let Some(page) = found {
                self.use_of_free.lowest = self.use_of_free.lowest.min(self.free.count());
                return Ok(Extent { page, pages });
            }
            self.grow(pager, pages)?;
        }
    }

    /// As [`Space::take`], for the open batch.
    pub(super) fn take_for_batch(&mut self, pager: &Pager, pages: u64) -> Result<Extent> {
        let extent = self.take(pager, pages)?;
        self.taken.push(extent);
        Ok(extent)
    }

    /// Gives pages back that nothing refers to.
    pub(super) fn give(&mut self, extent: Extent) {
        for page in extent.iter() {
            let fresh = self.free.insert(page);
            debug_assert!(fresh, "page {page} was given back twice");
        }
    }

    fn grow(&mut self, pager: &Pager, pages: u64) -> Result<()> {
        let end = pager.end();
        let step = (end / GROWTH_PART)
            .clamp(MIN_GROWTH_PAGES, MAX_GROWTH_PAGES)
            .max(pages);
        let grown = match pager.grow(step) {
            // On a nearly full disk, or near the limit, the bare need may still fit.
            Err(error) if step > pages && error.is_no_space() => pager.grow(pages),
            grown => grown,
        };
        grown?;
        self.cover(pager.end());
        for page in end..pager.end() {
            self.free.insert(page);
        }
        Ok(())
    }

    /// Undoes what the open batch took.
    pub(super) fn abort(&mut self) {
        for extent in std::mem::take(&mut self.taken) {
            self.give(extent);
        }
    }

    /// Books what the open batch took and freed, as part of state `number`.
    pub(super) fn publish(&mut self, number: u64, leftovers: Leftovers) {
        for extent in std::mem::take(&mut self.taken) {
            self.set_live(extent, true);
            self.new_pages.add(extent);
        }
        for extent in leftovers.unused {
            self.set_live(extent, false);
            self.give(extent);
        }
        for freed in &leftovers.freed {
            self.set_live(freed.extent, false);
        }
        self.limbo.add(number, leftovers.freed);
    }

    fn set_live(&mut self, extent: Extent, live: bool) {
        for page in extent.iter() {
            let chunk = Arc::make_mut(&mut self.live[(page / CHUNK_PAGES) as usize]);
            let at = page % CHUNK_PAGES;
            let (word, bit) = ((at / 64) as usize, 1 << (at % 64));
            if live {
                chunk[word] |= bit;
            } else {
                chunk[word] &= !bit;
                // Else a later run over this page would get a checksum inside.
                self.new_pages.unsealed[(page / 64) as usize] &= !bit;
            }
        }
    }

    /// Frees the pages that nobody needs any more.
    pub(super) fn recycle(&mut self, horizon: &Horizon) {
        let mut limbo = std::mem::take(&mut self.limbo);
        limbo.release(horizon, |extent| self.give(extent));
        self.limbo = limbo;
    }

    /// Takes `pages` pages in a row before page `limit` for the open batch; none
    /// if there are no such.
    pub(super) fn take_below(&mut self, pages: u64, limit: u64) -> Option<Extent> {
        let page = self.free.take_run_below(pages, limit)?;
        let extent = Extent { page, pages };
        self.taken.push(extent);
        Some(extent)
    }

    /// Whether many pages are spare: all that are free in a store that is `idle`.
    pub(super) fn wants_vacuum(&self, idle: bool) -> bool {
        let used = self.end - self.free.count();
        self.vacuum.is_none() && self.spare_pages(idle) > LEAST_SPARE_PAGES + used / 8
    }

    fn spare_pages(&self, idle: bool) -> u64 {
        let used = &self.use_of_free;
        let free = self.free.count();
        if idle {
            free
        } else {
            used.lowest.min(used.lowest_before).min(free)
        }
    }

    /// Starts to give pages back to the file system.
    pub(super) fn start_vacuum(&mut self, extent: VacuumExtent) {
        let spare = match extent {
            // What waits for a checkpoint is free after the next one.
            VacuumExtent::All => {
                self.free.count() + self.limbo.pinned_pages() + self.limbo.checkpointed_pages()
            }
            VacuumExtent::Spare { idle } => self.spare_pages(idle),
        };
        let cut = self.end - spare.saturating_sub(SLACK_PAGES);
        self.vacuum = Some(Vacuum {
            cut,
            pass: Some(Pass::new(cut)),
            checkpoints: 0,
            is_over: false,
        });
    }

    /// Whether a vacuum is in progress.
    pub(super) fn vacuums(&self) -> bool {
        self.vacuum.is_some()
    }

    /// The pass that the next step goes on with.
    pub(super) fn vacuum_pass(&self) -> Option<Pass> {
        self.vacuum.as_ref()?.pass.clone()
    }

    /// The page from which on a vacuum wants none to be used.
    pub(super) fn vacuum_cut(&self) -> u64 {
        self.vacuum.as_ref().map_or(u64::MAX, |vacuum| vacuum.cut)
    }

    pub(super) fn has_free_before(&self, cut: u64) -> bool {
        self.free.has_before(cut)
    }

    /// How far a step came; `None` when the pass is through.
    pub(super) fn set_vacuum_pass(&mut self, pass: Option<Pass>) {
        if let Some(vacuum) = &mut self.vacuum {
            vacuum.pass = pass;
        }
    }

    /// Whether a checkpoint would help a vacuum on, or free very many pages: a
    /// store that is written to may use twice as much again as it holds, an eighth
    /// where a checkpoint `has_time`.
    /// Where not all is in memory, new pages take room from what is read, and the
    /// kernel is slow to take back what is mapped and dirty: they are written soon.
    pub(super) fn wants_checkpoint(&self, has_time: bool, is_cold: bool) -> bool {
        if is_cold && self.new_pages.count > MOST_DIRTY_COLD_PAGES {
            return true;
        }
        let waiting = self.limbo.checkpointed_pages();
        let used = self.end - self.free.count() - waiting;
        let most_waiting = if has_time {
            LEAST_SPARE_PAGES + used / 8
        } else {
            MOST_WAITING_PAGES + 2 * used
        };
        let vacuum = self.vacuum.as_ref();
        vacuum.is_some_and(|vacuum| vacuum.pass.is_none()) || waiting > most_waiting
    }

    /// Books a checkpoint. Where the file should end now, if a vacuum emptied
    /// its end.
    pub(super) fn checkpointed(&mut self) -> Option<u64> {
        let used = &mut self.use_of_free;
        used.lowest_before = std::mem::replace(&mut used.lowest, self.free.count());
        let vacuum = self.vacuum.as_mut()?;
        if vacuum.pass.is_some() {
            return None;
        }
        vacuum.checkpoints += 1;
        let cut = vacuum.cut;
        let last_used = self.free.last_used(self.end).max(cut);
        if last_used == cut || vacuum.checkpoints == VACUUM_CHECKPOINTS {
            vacuum.is_over = true;
        } else if vacuum.checkpoints.is_multiple_of(2) {
            // There is room now where there was none, or readers let go.
            vacuum.pass = Some(Pass::new(cut));
        }
        (last_used < self.end).then_some(last_used)
    }

    /// Ends a vacuum that is over, now that the file is cut.
    pub(super) fn end_vacuum(&mut self) {
        self.vacuum.take_if(|vacuum| vacuum.is_over);
    }

    /// Takes a part of the file's end away, down to `end` at most: what is to be cut
    /// off once this lock is let go of, and whether there is more. Pages that were taken
    /// meanwhile stay.
    pub(super) fn cut<'p>(&mut self, pager: &'p Pager, end: u64) -> Option<(Cut<'p>, bool)> {
        let last_used = self.free.last_used(self.end).max(end);
        let to = last_used.max(self.end.saturating_sub(CUT_PAGES));
        if to == self.end {
            return None;
        }
        self.free.cut(to, self.end);
        self.end = to;
        Some((pager.cut(to), to > last_used))
    }

    /// The pages of the newest published state, for a checkpoint of it.
    pub(super) fn live(&self) -> Vec<Arc<ChunkWords>> {
        self.live.clone()
    }

    /// The new pages of the newest published state, for a checkpoint of it, which
    /// from now on sees to their checksums.
    pub(super) fn take_new_pages(&mut self) -> NewPages {
        let none = NewPages {
            unsealed: vec![0; self.new_pages.unsealed.len()],
            ..NewPages::default()
        };
        std::mem::replace(&mut self.new_pages, none)
    }

    /// Takes back the new pages that a checkpoint filled in the checksums of, and
    /// could not write.
    pub(super) fn add_unwritten(&mut self, new_pages: &NewPages) {
        let words = &mut self.new_pages.stretches;
        words.resize(words.len().max(new_pages.stretches.len()), 0);
        for (word, more) in words.iter_mut().zip(&new_pages.stretches) {
            *word |= more;
        }
        self.new_pages.count += new_pages.count;
    }

    pub(super) fn is_live(&self, page: u64) -> bool {
        let chunk = self.live.get((page / CHUNK_PAGES) as usize);
        chunk.is_some_and(|chunk| has(chunk, page))
    }

    pub(super) fn is_free(&self, page: u64) -> bool {
        self.free.contains(page)
    }

    /// Pages of the file.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn free_pages(&self) -> u64 {
        self.free.count()
    }

    /// Pages that wait for readers, and pages that wait for a checkpoint.
    pub(super) fn pending_pages(&self) -> (u64, u64) {
        (self.limbo.pinned_pages(), self.limbo.checkpointed_pages())
    }

    /// The pages that are neither free nor live.
    pub(super) fn in_between(&self) -> impl Iterator<Item = Extent> {
        self.taken.iter().copied().chain(self.limbo.extents())
    }
}

fn set(words: &mut [u64], bit: u64) {
    words[(bit / 64) as usize] |= 1 << (bit % 64);
}

/// Whether a chunk has the bit of a page.
pub(super) fn has(chunk: &ChunkWords, page: u64) -> bool {
    let at = page % CHUNK_PAGES;
    chunk[(at / 64) as usize] >> (at % 64) & 1 == 1
}
