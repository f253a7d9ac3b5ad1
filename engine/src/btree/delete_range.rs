//! Removing everything within bounds.
//!
//! Whole subtrees inside the bounds are freed without a look at their entries:
//! leaves are not even read where their parent knows that no overflow runs hang
//! on them and that a checkpoint has them. Only the pages along the two edges
//! are changed.

use std::ops::Bound;

use super::branch::{Child, Delta, plus};
use super::leaf::Value;
use super::merge;
use super::page::Page;
use super::path::MAX_DEPTH;
use super::write::Writer;
use crate::backend::{Bounds, Result, Sums};

/// What is left of a subtree.
struct Cut {
    /// Its page; `None` if nothing is left.
    page: Option<u64>,
    removed: Sums,
}

impl Writer<'_, '_> {
    /// Removes the entries within `bounds`; how many they were.
    pub(super) fn delete_range(&mut self, bounds: Bounds<'_>) -> Result<u64> {
        let inside = super::sums::within(self.pages.view(), self.root, bounds)?;
        if inside.entries == 0 {
            return Ok(0);
        }
        self.place.valid = false;
        let cut = self.cut(self.root.page, bounds, 0)?;
        debug_assert_eq!(cut.removed, inside, "sums and entries differ");
        self.root.page = cut.page.unwrap_or(0);
        self.root.sums = Delta::removed(cut.removed).applied_to(self.root.sums);
        if self.root.page != 0 {
            self.shrink_root()?;
        }
        Ok(cut.removed.entries)
    }

    fn cut(&mut self, number: u64, bounds: Bounds<'_>, depth: usize) -> Result<Cut> {
        let view = self.pages.view();
        if depth == MAX_DEPTH {
            return Err(view.too_deep(number));
        }
        let page = view.page(number)?;
        if page.is_leaf() {
            self.cut_leaf(number, bounds)
        } else {
            self.cut_branch(number, bounds, depth)
        }
    }

    fn cut_leaf(&mut self, number: u64, bounds: Bounds<'_>) -> Result<Cut> {
        let page = self.pages.page(number)?;
        let range = page.slots_within(bounds);
        let removed = page.leaf_sums(range.clone());
        if range.is_empty() {
            return Ok(Cut {
                page: Some(number),
                removed,
            });
        }
        if range.len() == page.count() {
            self.drop_leaf(number)?;
            return Ok(Cut {
                page: None,
                removed,
            });
        }
        let number = self.pages.writable(number)?;
        self.free_runs(number, range.clone())?;
        self.pages.page_mut(number).remove_cells(range);
        Ok(Cut {
            page: Some(number),
            removed,
        })
    }

    fn cut_branch(&mut self, number: u64, bounds: Bounds<'_>, depth: usize) -> Result<Cut> {
        let page = self.pages.page(number)?;
        let (first, last) = page.children_within(bounds);
        // The edges first; what is between goes as a whole.
        let mut cuts = Vec::with_capacity(2);
        if first == last {
            cuts.push((first, self.cut(page.child_page(first), bounds, depth + 1)?));
        } else {
            let (first_page, last_page) = (page.child_page(first), page.child_page(last));
            let lower = (bounds.0, Bound::Unbounded);
            let upper = (Bound::Unbounded, bounds.1);
            cuts.push((first, self.cut(first_page, lower, depth + 1)?));
            cuts.push((last, self.cut(last_page, upper, depth + 1)?));
        }
        let mut removed = cuts
            .iter()
            .fold(Sums::default(), |sums, (_, cut)| plus(sums, cut.removed));
        for index in first + 1..last {
            let page = self.pages.page(number)?;
            let (child, level, birth) = (page.child(index), page.level(), page.birth());
            removed = plus(removed, child.sums);
            self.drop_child(child, level - 1, birth)?;
        }
        if removed.entries == 0 {
            return Ok(Cut {
                page: Some(number),
                removed,
            });
        }
        let number = self.pages.writable(number)?;
        let page = self.pages.page_mut(number);
        let (mut from, mut to) = (first + 1, last.max(first + 1));
        for (index, cut) in &cuts {
            match cut.page {
                Some(child) => {
                    page.set_child_page(*index, child);
                    page.add_child_sums(*index, Delta::removed(cut.removed));
                }
                None => {
                    from = from.min(*index);
                    to = to.max(*index + 1);
                }
            }
        }
        page.remove_cells(from..to);
        if page.count() == 0 {
            self.pages.free(number)?;
            return Ok(Cut {
                page: None,
                removed,
            });
        }
        // The edges met at `from`: both may have become too empty.
        for index in [from, from.wrapping_sub(1)] {
            if index < self.pages.page(number)?.count() {
                merge::fix_child(self.pages, number, index)?;
            }
        }
        Ok(Cut {
            page: Some(number),
            removed,
        })
    }

    /// Frees a whole subtree. `birth` is that of its parent, and not before its own.
    fn drop_child(&mut self, child: Child, level: u8, birth: u64) -> Result<()> {
        if level == 0 {
            if child.has_overflow || !self.pages.is_checkpointed(birth) {
                return self.drop_leaf(child.page);
            }
            // Its own birth is on the page, which is not read for it: any state may
            // have it, for all that is known.
            self.pages.free_unseen(child.page, 0);
            return Ok(());
        }
        let page: Page = self.pages.page(child.page)?.clone();
        for index in 0..page.count() {
            self.drop_child(page.child(index), level - 1, page.birth())?;
        }
        self.pages.free(child.page)
    }

    fn drop_leaf(&mut self, number: u64) -> Result<()> {
        let count = self.pages.page(number)?.count();
        self.free_runs(number, 0..count)?;
        self.pages.free(number)
    }

    /// Frees the overflow runs of a range of a leaf's slots.
    fn free_runs(&mut self, number: u64, range: std::ops::Range<usize>) -> Result<()> {
        if !self.pages.page(number)?.has_overflow() {
            return Ok(());
        }
        for index in range {
            if let Value::Long(long) = self.pages.page(number)?.value(index) {
                let run = long.run;
                self.pages.free_run(run)?;
            }
        }
        Ok(())
    }
}
