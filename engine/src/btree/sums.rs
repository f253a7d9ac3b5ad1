//! Sums over a range, from the sums that branches keep of their children.

use std::ops::{Bound, Range};

use super::branch::{minus, plus};
use super::page::Page;
use super::pager::View;
use super::path::MAX_DEPTH;
use super::state::Root;
use crate::backend::{Bounds, Result, Sums, is_empty};

impl Page {
    /// The slots of a leaf below which everything lies before `start`.
    pub(super) fn lower_slot(&self, start: Bound<&[u8]>) -> usize {
        match start {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.find(key).unwrap_or_else(|index| index),
            Bound::Excluded(key) => self.find(key).map_or_else(|index| index, |index| index + 1),
        }
    }

    /// The slot of a leaf from which on everything lies after `end`.
    pub(super) fn upper_slot(&self, end: Bound<&[u8]>) -> usize {
        match end {
            Bound::Unbounded => self.count(),
            Bound::Included(key) => self.lower_slot(Bound::Excluded(key)),
            Bound::Excluded(key) => self.lower_slot(Bound::Included(key)),
        }
    }

    /// The slots of a leaf within bounds.
    pub(super) fn slots_within(&self, bounds: Bounds<'_>) -> Range<usize> {
        let start = self.lower_slot(bounds.0);
        start..self.upper_slot(bounds.1).max(start)
    }

    /// The children of a branch, first and last, between which bounds lie.
    pub(super) fn children_within(&self, bounds: Bounds<'_>) -> (usize, usize) {
        let first = match bounds.0 {
            Bound::Unbounded => 0,
            Bound::Included(key) | Bound::Excluded(key) => self.child_for(key),
        };
        let last = match bounds.1 {
            Bound::Unbounded => self.count() - 1,
            Bound::Included(key) | Bound::Excluded(key) => self.child_for(key),
        };
        (first, last.max(first))
    }
}

/// Sums over the entries within `bounds`: O(height).
pub(super) fn within(view: View<'_>, root: &Root, bounds: Bounds<'_>) -> Result<Sums> {
    if root.page == 0 || is_empty(bounds) {
        return Ok(Sums::default());
    }
    let below_end = match bounds.1 {
        Bound::Unbounded => root.sums,
        // What lies before an excluded start goes up to and with an included end.
        Bound::Included(key) => before(view, root.page, Bound::Excluded(key))?,
        Bound::Excluded(key) => before(view, root.page, Bound::Included(key))?,
    };
    let below_start = match bounds.0 {
        Bound::Unbounded => Sums::default(),
        start => before(view, root.page, start)?,
    };
    Ok(minus(below_end, below_start))
}

/// Sums over the entries before `start`.
fn before(view: View<'_>, root: u64, start: Bound<&[u8]>) -> Result<Sums> {
    let mut sums = Sums::default();
    let mut number = root;
    for _ in 0..MAX_DEPTH {
        let page = view.page(number)?;
        if page.is_leaf() {
            return Ok(plus(sums, page.leaf_sums(0..page.lower_slot(start))));
        }
        let (index, _) = page.children_within((start, Bound::Unbounded));
        sums = plus(sums, page.branch_sums(0..index));
        number = page.child_page(index);
    }
    Err(view.too_deep(number))
}
