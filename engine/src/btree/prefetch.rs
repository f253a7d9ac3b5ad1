//! Going down for many keys side by side, so that the processor waits for
//! memory once a level and not once a page, and for the disk as well.
//!
//! A put of a random key in a tree that is larger than the caches waits for its
//! leaf several times over: for the slots, for a cell, then for the rest of the
//! page as it is copied. Several descents at a time overlap these waits
//! ("Cimple: instruction and memory level parallelism", Kiriansky et al., 2018).

use super::leaf::{OverflowRef, Value};
use super::page::Page;
use super::pager::View;
use super::pages::Pages;
use super::path::MAX_DEPTH;
use super::state::Root;

/// Descents at a time: as many as a core has line fill buffers, about.
const LANES: usize = 16;

/// Asks for the leaves of `keys`, which are about to be copied. Says nothing of
/// damaged pages: whoever goes there will.
pub(super) fn leaves(view: View<'_>, root: &Root, keys: &[&[u8]]) {
    if root.page == 0 {
        return;
    }
    let Ok(top) = view.page(root.page) else {
        return;
    };
    for keys in keys.chunks(LANES) {
        let mut lanes = [Some(top); LANES];
        for _ in 0..MAX_DEPTH {
            let mut below = false;
            for (lane, key) in lanes.iter_mut().zip(keys) {
                below |= step(view, lane, key);
            }
            if !below {
                break;
            }
        }
    }
}

/// Goes one level down in a lane; whether there is more to do in it.
fn step<'v>(view: View<'v>, lane: &mut Option<&'v Page>, key: &[u8]) -> bool {
    let Some(page) = lane.take() else {
        return false;
    };
    if !page.is_branch() {
        return false;
    }
    let child = page.child_page(page.child_for(key));
    if page.level() == 1 {
        view.prefetch_all(child);
        return false;
    }
    view.prefetch(child);
    *lane = view.page(child).ok();
    lane.is_some()
}

/// Pages of long values that are asked for at a time, 32 MiB: more would be thrown
/// out again before they are looked at, where memory is scarce.
const MOST_RUN_PAGES: u64 = 8192;

/// The leaf of one of so many keys tells whether others may be absent too.
const SAMPLE: usize = 32;

/// Starts reading the pages on the way to `keys` that are not in memory, with
/// `whole` those of long values as well; whether there were any. Waits for branches,
/// where long values are asked for also for leaves, and for those of one level at a
/// time. A few keys are looked at first, unless the store is known to be cold.
pub(super) fn read_ahead(pages: &Pages<'_>, root: &Root, keys: &[&[u8]], whole: bool) -> bool {
    if root.page == 0 {
        return false;
    }
    let view = pages.view();
    let Ok(top) = view.page(root.page) else {
        return false;
    };
    let whole = whole && top.has_overflow();
    let is_absent = |run: OverflowRef| !view.is_resident(run.page);
    if !pages.is_cold() {
        let is_there = |key: &&[u8]| {
            let mut leaf = root.page;
            (0..top.level()).for_each(|_| go_down(view, &mut leaf, key));
            view.is_resident(leaf) && !(whole && run_of(view, leaf, key).is_some_and(is_absent))
        };
        if keys.iter().step_by(SAMPLE).all(is_there) {
            return false;
        }
    }
    let mut some_absent = false;
    let mut lanes = vec![root.page; keys.len()];
    for _ in 0..top.level() {
        for (lane, key) in lanes.iter_mut().zip(keys) {
            go_down(view, lane, key);
        }
        // Many keys share a branch.
        let mut below = lanes.clone();
        below.sort_unstable();
        below.dedup();
        for page in below.into_iter().filter(|page| !view.is_resident(*page)) {
            some_absent = true;
            view.will_need(page, 1);
        }
    }
    if whole {
        let runs = lanes.iter().zip(keys);
        let runs = runs.filter_map(|(leaf, key)| run_of(view, *leaf, key));
        let mut pages = MOST_RUN_PAGES;
        for run in runs.filter(|run| is_absent(*run)) {
            some_absent = true;
            if pages < run.pages() {
                break;
            }
            pages -= run.pages();
            view.will_need(run.page, run.pages());
        }
    }
    some_absent
}

/// The long value of `key` in a leaf, if it is one; none in a damaged leaf.
fn run_of(view: View<'_>, leaf: u64, key: &[u8]) -> Option<OverflowRef> {
    let page = view.page(leaf).ok()?;
    if !page.is_leaf() || !page.has_overflow() {
        return None;
    }
    match page.value(page.find(key).ok()?) {
        Value::Long(long) => Some(long.run),
        Value::Inline(_) => None,
    }
}

/// Goes one level down; a damaged page is left to whoever needs it.
fn go_down(view: View<'_>, lane: &mut u64, key: &[u8]) {
    if let Ok(page) = view.page(*lane)
        && page.is_branch()
    {
        *lane = page.child_page(page.child_for(key));
    }
}
