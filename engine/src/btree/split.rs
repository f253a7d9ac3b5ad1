//! Making room for a cell: compacting, shortening the prefix, splitting.
//!
//! A split needs two pages only: no cell is larger than half a page (see the
//! assertions in `page.rs`), and a key that does not share the page's prefix
//! lies before all others or after them, so that it can go to a page of its own
//! where shortening the prefix would not leave room for the rest.

use super::branch::Child;
use super::cells::Cells;
use super::page::{BODY_BYTES, Kind, Page, SLOT_BYTES};
use super::pages::Pages;
use super::slotted::{NewCell, common_prefix};
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

/// Where the right page begins.
fn split_point(cells: &Cells<'_>, old: &Page, at: usize, new: &NewCell<'_>, append: bool) -> usize {
    let last = cells.count() - 1;
    if append && at == last {
        return last;
    }
    let middle = cells.middle();
    if cells.fits(0..middle) && cells.fits(middle..cells.count()) {
        return middle;
    }
    debug_assert!(!new.key.starts_with(old.prefix()), "halves do not fit");
    // The first key alone to the left, with a branch's keyless child, or the
    // last key alone to the right.
    if at == last { last } else { at + 1 }
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
    let cells = Cells::of_page(&old, index, new);
    let point = split_point(&cells, &old, index, new, append);
    let kind = if old.is_branch() {
        Kind::Branch
    } else {
        Kind::Leaf
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
