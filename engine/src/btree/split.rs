//! Making room for a cell: compacting, shortening the prefix, splitting.
//!
//! A split needs two pages only: no cell is larger than half a page (see the
//! assertions in `page.rs`), and a key that does not share the page's prefix
//! lies before all others or after them, so that it can go to a page of its own
//! where shortening the prefix would not leave room for the rest.

use std::ops::Range;

use super::branch::Child;
use super::page::{BODY_BYTES, Page, SLOT_BYTES};
use super::pages::Pages;
use super::slotted::{KeyParts, NewCell, common_prefix, joined, truncate};
use crate::backend::Result;

/// A new right neighbour, for the parent.
#[derive(Debug)]
pub(super) struct Split {
    /// Above all keys of the left page, and not above any of the right one.
    pub(super) separator: Vec<u8>,
    pub(super) right: Child,
}

/// Inserts a cell if the page has room for it, or can be rewritten to.
pub(super) fn try_insert(page: &mut Page, index: usize, cell: &NewCell<'_>) -> bool {
    let prefix = page.prefix_len();
    if !cell.key.starts_with(page.prefix()) {
        let shared = common_prefix((page.prefix(), &[]), (cell.key, &[]));
        let need = SLOT_BYTES + 2 + cell.key.len() - shared + cell.payload.len();
        if page.used_with_prefix(shared) + need > BODY_BYTES {
            return false;
        }
        page.rebuild(shared);
    } else {
        let need = SLOT_BYTES + 2 + cell.key.len() - prefix + cell.payload.len();
        if need > page.contiguous_free() {
            if need > page.total_free() {
                return false;
            }
            page.rebuild(prefix);
        }
    }
    let suffix = &cell.key[page.prefix_len()..];
    page.insert_cell(index, (suffix, &[]), cell.payload, cell.overflow);
    true
}

/// The cells of a page with a new one among them.
struct Cells<'c> {
    old: &'c Page,
    at: usize,
    new: &'c NewCell<'c>,
}

impl<'c> Cells<'c> {
    fn count(&self) -> usize {
        self.old.count() + 1
    }

    /// The place of a cell in the old page; `None` for the new one.
    fn old_index(&self, index: usize) -> Option<usize> {
        match index.cmp(&self.at) {
            std::cmp::Ordering::Less => Some(index),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(index - 1),
        }
    }

    fn key(&self, index: usize) -> KeyParts<'c> {
        match self.old_index(index) {
            Some(index) => self.old.key_parts(index),
            None => (self.new.key, &[]),
        }
    }

    /// Bytes of a cell and its slot with a prefix of `prefix` cut off.
    fn cost(&self, index: usize, prefix: usize) -> usize {
        let cell = match self.old_index(index) {
            Some(index) => self.old.cell_len(index),
            None => 2 + self.new.key.len() - prefix + self.new.payload.len(),
        };
        SLOT_BYTES + cell
    }

    /// Where the right page begins.
    fn split_point(&self, append: bool) -> usize {
        let last = self.count() - 1;
        if append && self.at == last {
            return last;
        }
        if !self.new.key.starts_with(self.old.prefix()) {
            // The first key alone to the left, with a branch's keyless child,
            // or the last key alone to the right.
            return if self.at == last { last } else { self.at + 1 };
        }
        self.split_by_size()
    }

    fn split_by_size(&self) -> usize {
        let prefix = self.old.prefix_len();
        let total: usize = (0..self.count())
            .map(|index| self.cost(index, prefix))
            .sum();
        let room = BODY_BYTES - prefix;
        let (mut left, mut best, mut best_larger) = (0, 1, usize::MAX);
        for index in 1..self.count() {
            left += self.cost(index - 1, prefix);
            let larger = left.max(total - left);
            if larger <= room && larger < best_larger {
                (best, best_larger) = (index, larger);
            }
        }
        best
    }

    /// Fills an empty `page` with a range of the cells.
    fn fill(&self, page: &mut Page, range: Range<usize>) {
        page.format_like(self.old);
        let branch = self.old.is_branch();
        let first = range.start + usize::from(branch);
        let keys = range.end.saturating_sub(first);
        let prefix_len = if keys > 1 {
            common_prefix(self.key(first), self.key(range.end - 1))
        } else if keys == 1 && !branch && first > 0 {
            // What will be appended probably shares as much as the neighbours do.
            common_prefix(self.key(first - 1), self.key(first))
        } else {
            0
        };
        if prefix_len > 0 {
            page.set_prefix(truncate(self.key(first), prefix_len));
        }
        for index in range.clone() {
            let keyless = branch && index == range.start;
            match self.old_index(index) {
                Some(index) => page.append_from(self.old, index, keyless),
                None => page.append_new(self.new, keyless),
            }
        }
        page.note_overflow_below();
    }

    fn separator(&self, split: usize) -> Vec<u8> {
        let right = self.key(split);
        if self.old.is_branch() {
            return joined(right);
        }
        // The shortest that parts the two (Bayer and Unterauer, "Prefix B-trees", 1977).
        let common = common_prefix(self.key(split - 1), right);
        joined(truncate(right, common + 1))
    }
}

/// Splits page `number` in two with a new cell at `index`. `append` says that
/// the page is the tree's last, so that a cell at its end starts a new page and
/// leaves the old one full.
pub(super) fn split(
    pages: &mut Pages<'_>,
    number: u64,
    index: usize,
    new: &NewCell<'_>,
    append: bool,
) -> Result<Split> {
    let old = pages.page(number)?.clone();
    let cells = Cells {
        old: &old,
        at: index,
        new,
    };
    let point = cells.split_point(append);
    let kind = if old.is_branch() {
        super::page::Kind::Branch
    } else {
        super::page::Kind::Leaf
    };
    let right_number = pages.create(kind, old.level())?;
    let right = pages.page_mut(right_number);
    cells.fill(right, point..cells.count());
    let right = Child {
        page: right_number,
        has_overflow: right.has_overflow(),
        sums: right.own_sums(),
    };
    cells.fill(pages.page_mut(number), 0..point);
    Ok(Split {
        separator: cells.separator(point),
        right,
    })
}
