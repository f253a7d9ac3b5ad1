//! Merging a page that became too empty with a neighbour.
//!
//! A page is merged when it falls under a quarter, into a neighbour under the
//! same parent that has the room. Where none has, it stays as it is: a page is
//! never empty, but there is no lower bound on how full it is, and a branch
//! may have a single child. The next change nearby tries again.

use super::page::{BODY_BYTES, Page};
use super::pages::Pages;
use super::slotted::{KeyParts, NewCell, common_prefix, joined, truncate};
use super::write::merged;
use crate::backend::Result;

/// Pages with less in them look for a neighbour to join.
const UNDERFULL_BYTES: usize = BODY_BYTES / 4;
/// A merged page keeps some room, so that the next insert does not split it.
const MERGED_BYTES: usize = BODY_BYTES - BODY_BYTES / 8;

/// Whether a page should be merged.
pub(super) fn is_underfull(page: &Page) -> bool {
    page.count() == 0 || page.used() < UNDERFULL_BYTES
}

/// Removes or merges child `index` of branch `parent` if it is too empty;
/// whether the parent lost a child by it. The parent is the batch's own.
pub(super) fn fix_child(pages: &mut Pages<'_>, parent: u64, index: usize) -> Result<bool> {
    let branch = pages.page(parent)?;
    let count = branch.count();
    let number = branch.child_page(index);
    let child = pages.page(number)?;
    if !is_underfull(child) {
        return Ok(false);
    }
    if child.count() == 0 {
        pages.free(number)?;
        pages.page_mut(parent).remove_cell(index);
        return Ok(true);
    }
    if index + 1 < count && try_merge(pages, parent, index)? {
        return Ok(true);
    }
    if index > 0 && try_merge(pages, parent, index - 1)? {
        return Ok(true);
    }
    Ok(false)
}

/// Two neighbouring pages and what parts them.
struct Pair<'p> {
    left: &'p Page,
    right: &'p Page,
    separator: &'p [u8],
}

impl Pair<'_> {
    /// The first and the last key of the two together.
    fn ends(&self) -> (KeyParts<'_>, KeyParts<'_>) {
        let first = if self.left.count() > self.left.first_key() {
            self.left.key_parts(self.left.first_key())
        } else {
            (self.separator, &[][..])
        };
        let last = if self.right.count() > self.right.first_key() {
            self.right.key_parts(self.right.count() - 1)
        } else {
            (self.separator, &[][..])
        };
        (first, last)
    }

    fn prefix_len(&self) -> usize {
        let (first, last) = self.ends();
        common_prefix(first, last)
    }

    /// Bytes that one page would need.
    fn used(&self) -> usize {
        let prefix = self.prefix_len();
        let separator = if self.left.is_branch() {
            self.separator.len() - prefix
        } else {
            0
        };
        self.left.used_with_prefix(prefix) + self.right.used_with_prefix(prefix) + separator
            - prefix
    }

    fn fill(&self, page: &mut Page) {
        page.format_like(self.left);
        page.set_prefix(truncate(self.ends().0, self.prefix_len()));
        for index in 0..self.left.count() {
            page.append_from(self.left, index, false);
        }
        for index in 0..self.right.count() {
            if index < self.right.first_key() {
                // A branch's first child gets its key back from the parent.
                let cell = NewCell {
                    key: self.separator,
                    payload: self.right.payload(index),
                    overflow: false,
                };
                page.append_new(&cell, false);
            } else {
                page.append_from(self.right, index, false);
            }
        }
        page.note_overflow_below();
    }
}

/// Merges children `index` and `index + 1` if they fit one page.
fn try_merge(pages: &mut Pages<'_>, parent: u64, index: usize) -> Result<bool> {
    let branch = pages.page(parent)?;
    let (left, right) = (branch.child(index), branch.child(index + 1));
    let separator = joined(branch.key_parts(index + 1));
    let view = pages.view();
    let pair = Pair {
        left: view.page(left.page)?,
        right: view.page(right.page)?,
        separator: &separator,
    };
    if pair.used() > MERGED_BYTES {
        return Ok(false);
    }
    let mut page = Page::zeroed();
    pair.fill(&mut page);
    let number = pages.writable(left.page)?;
    pages.page_mut(number).copy_content(&page);
    pages.free(right.page)?;
    let branch = pages.page_mut(parent);
    let mut child = merged(left, right);
    child.page = number;
    branch.set_child(index, child);
    branch.remove_cell(index + 1);
    Ok(true)
}
