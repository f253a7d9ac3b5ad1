//! Going down for many keys side by side, so that the processor waits for
//! memory once a level and not once a page.
//!
//! A put of a random key in a tree that is larger than the caches waits for its
//! leaf several times over: for the slots, for a cell, then for the rest of the
//! page as it is copied. Several descents at a time overlap these waits
//! ("Cimple: instruction and memory level parallelism", Kiriansky et al., 2018).

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
