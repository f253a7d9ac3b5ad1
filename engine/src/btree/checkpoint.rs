//! Checkpoint: the newest published state becomes durable.
//!
//! Runs beside readers and the writer. Invariants:
//! - No page that the last durable checkpoint reaches is written to before the
//!   new meta page is durable: the state's pages are new ones, the free map
//!   goes to pages that were free, and the meta page takes the place of the one
//!   before the last.
//! - The meta page is written only after everything that it leads to is synced:
//!   what is new since the last checkpoint is written back, in whole stretches,
//!   and synced. What was not written for want of space is the next one's.
//! - An error on write or sync latches: the same data is never synced again.

use std::time::Instant;

use super::meta::Meta;
use super::page::PAGE_BYTES;
use super::pager::{Pager, View, disk_error};
use super::space::{Extent, NewPages, STRETCH_PAGES};
use super::store::{Keeper, Shared};
use crate::backend::{Applied, BackendError, Result};

/// Parts of the file's end that one checkpoint cuts off, 1 GiB: the log has to wait for
/// the next one.
const MOST_CUTS: u32 = 4096;
/// So many times as long as a cut took is the pause after it.
const CUT_PAUSE_PART: u32 = 2;

/// What was taken for a checkpoint that panics is written by no other one.
struct LatchOnPanic<'s>(&'s Shared);

impl Drop for LatchOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.latch(BackendError::Other {
                engine: super::NAME,
                message: "a checkpoint panicked".to_owned(),
            });
        }
    }
}

/// Makes the newest published state durable; how far it applies.
pub(super) fn checkpoint(shared: &Shared) -> Result<Applied> {
    let mut keeper = shared.keeper();
    shared.check_latch()?;
    let _guard = LatchOnPanic(shared);

    // The state, its pages and those of them that lack a checksum are taken at
    // one moment: publishing holds the same lock.
    let (pin, live, mut new_pages) = {
        let mut space = shared.space();
        let pin = shared.readers().pin();
        if pin.state().number == keeper.meta.state.number {
            drop((pin, space));
            shared.recycle_if_idle();
            cut(shared)?;
            return Ok(keeper.meta.state.applied);
        }
        (pin, space.live(), space.take_new_pages())
    };
    let state = *pin.state();
    let is_cold = shared.is_cold();
    // From here on a deletion of a range need not look at leaves that are older:
    // see `Pages::is_checkpointed`.
    shared.set_begun(state.number);

    let pager = shared.pager();
    let view = pager.pinned(&pin);
    seal(pager, view, &new_pages.unsealed, is_cold).map_err(|error| shared.latch(error))?;

    // The file's end is what it is now, before the sync that makes it durable.
    let (free_map, end) = {
        let mut space = shared.space();
        match keeper.free_map.plan(pager, &mut space, live) {
            Ok(plan) => (plan, pager.end()),
            Err(error) => {
                space.add_unwritten(&new_pages);
                return Err(shared.latch_unless_full(error));
            }
        }
    };
    let meta = Meta {
        sequence: keeper.meta.sequence + 1,
        state,
        end,
        directory: free_map.directory.first().copied().unwrap_or(0),
    };
    free_map.write(pager, state.number, &keeper.free_map);
    let map_pages = free_map.replaced_by(&keeper.free_map);
    for page in &map_pages {
        new_pages.add_unwritten(Extent::one(*page));
    }
    if let Err(error) = make_durable(shared, &meta, &new_pages) {
        // The file may refer to these pages already. Nobody takes them: a batch
        // looks at the latch whenever it takes pages.
        give(shared, &map_pages);
        return Err(error);
    }

    let replaced = keeper.free_map.replaced_by(&free_map);
    *keeper = Keeper { meta, free_map };
    shared.set_durable(state.number, state.applied);
    give(shared, &replaced);
    drop(pin);
    shared.recycle_if_idle();
    cut(shared)?;
    Ok(state.applied)
}

/// Fills in the checksums of new pages. Where not all is in memory, some of them
/// may have been written and let go of meanwhile; many are read at a time then.
fn seal(pager: &Pager, view: View<'_>, unsealed: &[u64], is_cold: bool) -> Result<()> {
    const WINDOW_WORDS: usize = 16; // 1024 pages, 4 MiB
    for (window, words) in unsealed.chunks(WINDOW_WORDS).enumerate() {
        let first = (window * WINDOW_WORDS * 64) as u64;
        let pages = || bits_of(words).map(|page| first + page);
        if is_cold {
            let absent = pages().filter(|page| !view.is_resident(*page));
            absent.for_each(|page| view.will_need(page, 1));
        }
        for page in pages() {
            pager.seal(view, page)?;
        }
    }
    Ok(())
}

/// Cuts off what a vacuum emptied at the file's end, or some of it. The durable state
/// does not reach it, so it does not matter when the file's new length is durable.
fn cut(shared: &Shared) -> Result<()> {
    let end = shared.space().checkpointed();
    let is_cut = end.map_or(Ok(true), |end| cut_down_to(shared, end))?;
    if is_cut {
        // Who waits for it finds the file cut.
        shared.space().end_vacuum();
    }
    Ok(())
}

/// Whether it came to `end`; else the next checkpoint goes on.
///
/// The first store to a page waits while the file is cut (ext4 holds the map's lock
/// until the disk has discarded the space), so it is cut in parts of less than a
/// millisecond, with pauses.
fn cut_down_to(shared: &Shared, end: u64) -> Result<bool> {
    for _ in 0..MOST_CUTS {
        // Batches take pages under the space's lock: it is let go of before the cut.
        let part = shared.space().cut(shared.pager(), end);
        let Some((part, more)) = part else {
            return Ok(true);
        };
        let started = Instant::now();
        part.finish().map_err(|error| shared.latch(error))?;
        if !more {
            return Ok(true);
        }
        std::thread::sleep(CUT_PAUSE_PART * started.elapsed());
    }
    Ok(false)
}

/// Has the pages written back a stretch at a time, so that the log's writes wait
/// behind one stretch at most, and the sync that follows finds little to do.
fn write_back(pager: &Pager, new_pages: &NewPages) -> Result<()> {
    bits_of(&new_pages.stretches)
        .try_for_each(|stretch| pager.write_back(stretch * STRETCH_PAGES, STRETCH_PAGES))
}

/// Syncs what `meta` leads to, `new_pages` among it, and then `meta`.
fn make_durable(shared: &Shared, meta: &Meta, new_pages: &NewPages) -> Result<()> {
    let pager = shared.pager();
    let write = || {
        write_back(pager, new_pages)?;
        pager.sync_written_back()?;
        let offset = meta.page() * PAGE_BYTES as u64;
        let written = pager.file().write_at(&meta.encode(), offset);
        written.map_err(disk_error)?;
        pager.write_back(meta.page(), 1)?;
        pager.sync_written_back()
    };
    write().map_err(|error| shared.latch(error))
}

fn give(shared: &Shared, pages: &[u64]) {
    let mut space = shared.space();
    for page in pages {
        space.give(Extent::one(*page));
    }
}

/// The numbers of the bits that are set.
fn bits_of(words: &[u64]) -> impl Iterator<Item = u64> {
    words.iter().enumerate().flat_map(|(index, word)| {
        let base = index as u64 * 64;
        (0..64)
            .filter(move |bit| word >> bit & 1 == 1)
            .map(move |bit| base + bit)
    })
}
