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

/// Starts reading the pages on the way to `keys` that are not in memory, and those
/// of long values there; whether there were any. Waits for branches, and where there
/// are long values for leaves, and for those of one level at a time.
pub(super) fn read_ahead(view: View<'_>, root: &Root, keys: &[&[u8]]) -> bool {
    if root.page == 0 {
        return false;
    }
    let Ok(top) = view.page(root.page) else {
        return false;
    };
    let mut sample: Vec<_> = keys.iter().step_by(SAMPLE).map(|_| root.page).collect();
    for _ in 0..top.level() {
        let keys = keys.iter().step_by(SAMPLE);
        sample
            .iter_mut()
            .zip(keys)
            .for_each(|(lane, key)| go_down(view, lane, key));
    }
    let is_absent = |run: OverflowRef| !view.is_resident(run.page);
    let keys_of_sample = keys.iter().step_by(SAMPLE);
    let is_all_there = sample.iter().zip(keys_of_sample).all(|(leaf, key)| {
        view.is_resident(*leaf) && !run_of(view, *leaf, key).is_some_and(is_absent)
    });
    if is_all_there {
        return false;
    }
    let mut lanes = vec![root.page; keys.len()];
    for _ in 0..top.level() {
        for (lane, key) in lanes.iter_mut().zip(keys) {
            go_down(view, lane, key);
            if !view.is_resident(*lane) {
                view.will_need(*lane, 1);
            }
        }
    }
    if top.has_overflow() {
        let runs = lanes.iter().zip(keys);
        let runs = runs.filter_map(|(leaf, key)| run_of(view, *leaf, key));
        let mut pages = MOST_RUN_PAGES;
        for run in runs.filter(|run| is_absent(*run)) {
            if pages < run.pages() {
                break;
            }
            pages -= run.pages();
            view.will_need(run.page, run.pages());
        }
    }
    true
}

/// The long value of `key` in a leaf, if it is one; none in a damaged leaf.
fn run_of(view: View<'_>, leaf: u64, key: &[u8]) -> Option<OverflowRef> {
    let page = view.page(leaf).ok()?;
    if !page.is_leaf() || !page.has_overflow() {
        return None;
    }
    match page.value(page.find(key).ok()?) {
        Value::Overflow(run) => Some(run),
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
