//! A full leaf shares with a neighbour before it splits (Bayer and McCreight's
//! overflow, 1972): random inserts then fill leaves to about 84 % instead of 70.

use super::branch::Child;
use super::cells::Cells;
use super::page::{BODY_BYTES, Page};
use super::pages::Pages;
use super::path::Step;
use super::slotted::NewCell;
use super::split::try_insert;
use crate::backend::Result;

/// A neighbour with less room is full too. Less would fill leaves better and
/// share more often, for fewer inserts each time.
const WORTHWHILE_BYTES: usize = BODY_BYTES / 12;

/// Shares the cells of the full leaf that `parent` leads to, and a new cell at
/// slot `at`, with one of its neighbours; whether that could be done. Parent
/// and leaf are the batch's own. The parent's sums of both are right after it.
pub(super) fn share(
    pages: &mut Pages<'_>,
    parent: Step,
    at: usize,
    new: &NewCell<'_>,
) -> Result<bool> {
    let Some(left_index) = choose(pages, parent)? else {
        return Ok(false);
    };
    let branch = pages.page(parent.page)?;
    let numbers = (
        branch.child_page(left_index),
        branch.child_page(left_index + 1),
    );
    let left = pages.page(numbers.0)?.clone();
    let right = pages.page(numbers.1)?.clone();
    let at = if parent.index == left_index {
        at
    } else {
        left.count() + at
    };
    let cells = Cells::of_leaves(&left, &right, at, new);
    let (middle, count) = (cells.middle(), cells.count());
    if !cells.fits(0..middle) || !cells.fits(middle..count) {
        return Ok(false);
    }
    // The new separator may be longer than the parent has room for.
    let mut branch = branch.clone();
    branch.remove_cell(left_index + 1);
    let separator = cells.separator(middle);
    let placeholder = Child::default().encode();
    let cell = NewCell {
        key: &separator,
        payload: &placeholder,
        overflow: false,
    };
    if !try_insert(&mut branch, left_index + 1, &cell) {
        return Ok(false);
    }
    let left = refill(pages, numbers.0, &cells, 0..middle)?;
    let right = refill(pages, numbers.1, &cells, middle..count)?;
    branch.set_child(left_index, left);
    branch.set_child(left_index + 1, right);
    pages.page_mut(parent.page).copy_content(&branch);
    Ok(true)
}

fn refill(
    pages: &mut Pages<'_>,
    number: u64,
    cells: &Cells<'_>,
    range: std::ops::Range<usize>,
) -> Result<Child> {
    let number = pages.renewed(number)?;
    let page: &mut Page = pages.page_mut(number);
    cells.fill(page, range);
    Ok(Child {
        page: number,
        has_overflow: page.has_overflow(),
        sums: page.own_sums(),
    })
}

/// The left one of the two leaves that are to share: the full one and the
/// emptier of its neighbours under the same parent.
fn choose(pages: &Pages<'_>, parent: Step) -> Result<Option<usize>> {
    let view = pages.view();
    let branch = view.page(parent.page)?;
    let room = |index: usize| -> Result<usize> {
        match branch.child_page(index) {
            // Worth less than the time to read it.
            page if pages.is_absent(page) => Ok(0),
            page => Ok(pages.page(page)?.total_free()),
        }
    };
    let right = Some(parent.index + 1).filter(|index| *index < branch.count());
    let left = parent.index.checked_sub(1);
    // Both at once: neither is in the processor's cache, most likely.
    for index in [left, right].into_iter().flatten() {
        view.prefetch(branch.child_page(index));
    }
    let left = left.map_or(Ok(0), room)?;
    let right = right.map_or(Ok(0), room)?;
    Ok(if left.max(right) < WORTHWHILE_BYTES {
        None
    } else if left > right {
        Some(parent.index - 1)
    } else {
        Some(parent.index)
    })
}
