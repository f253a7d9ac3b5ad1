//! Putting and deleting one key.
//!
//! Top-down on the way: every page from the root to the leaf is made the
//! batch's own. Bottom-up on the way back: sums, and splits or merges.

use super::branch::{Child, Delta, minus, plus};
use super::leaf::{LongValue, Value, is_long};
use super::merge;
use super::page::{Kind, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use super::pages::Pages;
use super::path::{Path, Place, Step};
use super::slotted::NewCell;
use super::spill;
use super::split::{self, Split};
use super::state::Root;
use crate::backend::{BackendError, Result, Sums};

/// One tree while the batch changes it.
pub(super) struct Writer<'w, 'b> {
    pub(super) pages: &'w mut Pages<'b>,
    pub(super) root: &'w mut Root,
    pub(super) place: &'w mut Place,
    /// Whether its last leaf is the last one; not so in most parts of a tree.
    pub(super) is_last: bool,
}

/// Refuses what a page cannot hold, before anything is changed.
pub(super) fn check_length(key: &[u8], value: &[u8]) -> Result<()> {
    if key.len() > MAX_KEY_BYTES {
        return Err(BackendError::KeyTooLong {
            length: key.len(),
            limit: MAX_KEY_BYTES,
        });
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(BackendError::ValueTooLong {
            length: value.len(),
            limit: MAX_VALUE_BYTES,
        });
    }
    Ok(())
}

impl Writer<'_, '_> {
    /// Sets `key` to `value`.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        check_length(key, value)?;
        self.go_to(key)?;
        if self.overwrite(value) {
            return Ok(());
        }
        let removed = self.remove_old()?;
        self.insert_value(key, value, removed)
    }

    /// As [`Writer::put`] of a key that has a long value, whose run goes on to be
    /// used: the payload that referred to it.
    pub(super) fn put_beside(&mut self, key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        self.go_to(key)?;
        let leaf = self.place.path.leaf();
        let former = self.pages.page(leaf.page)?.payload(leaf.index).to_vec();
        let removed = self.remove_found();
        self.insert_value(key, value, removed)?;
        Ok(former)
    }

    /// Sets `key` to `head` and what `long` is, which nothing else refers to any more.
    pub(super) fn put_behind(
        &mut self,
        key: &[u8],
        head: &[u8],
        long: &LongValue<'_>,
    ) -> Result<()> {
        self.go_to(key)?;
        let removed = self.remove_old()?;
        let cell = NewCell {
            key,
            payload: &long.encode(head),
            overflow: true,
        };
        self.insert(&cell, head.len() + long.len(), removed)
    }

    /// Goes to where `key` is or belongs, and makes the pages there the batch's own.
    fn go_to(&mut self, key: &[u8]) -> Result<()> {
        if self.root.page == 0 {
            self.root.page = self.pages.create(Kind::Leaf, 0)?;
            self.place.valid = false;
        }
        self.place.go(self.pages.view(), self.root.page, key)?;
        self.make_path_writable()
    }

    /// Inserts an entry where the writer is; `removed` was there before.
    fn insert_value(&mut self, key: &[u8], value: &[u8], removed: Sums) -> Result<()> {
        let mut long = Vec::new();
        let cell = NewCell {
            key,
            payload: self.pages.payload(key, value, &mut long)?,
            overflow: is_long(key, value),
        };
        self.insert(&cell, value.len(), removed)
    }

    /// Inserts a cell where the writer is, for a value of `length` bytes.
    fn insert(&mut self, cell: &NewCell<'_>, length: usize, removed: Sums) -> Result<()> {
        let added = Sums {
            entries: 1,
            bytes: (cell.key.len() + length) as u64,
        };
        let leaf = self.place.path.leaf();
        let page = self.pages.page_mut(leaf.page);
        let delta = Delta::between(removed, added);
        if split::try_insert(page, leaf.index, cell) {
            self.place.found = true;
            return self.ascend(delta, None, cell.overflow);
        }
        self.place.valid = false;
        let append = removed.entries == 0 && self.is_at_end()?;
        let steps = self.place.path.steps();
        if let [.., parent, _] = *steps
            && !append
            && spill::share(self.pages, parent, leaf.index, cell)?
        {
            let above = steps.len() - 2;
            return self.ascend_from(above, delta, None, cell.overflow);
        }
        let split = split::split(self.pages, leaf.page, leaf.index, cell, append)?;
        self.ascend(delta, Some(split), cell.overflow)
    }

    /// Whether the leaf is the last one of all, so that what comes after it is probably
    /// appended.
    fn is_at_end(&self) -> Result<bool> {
        Ok(self.is_last && self.place.path.is_rightmost(self.pages.view())?)
    }

    /// Removes `key`; whether it was there.
    pub(super) fn delete(&mut self, key: &[u8]) -> Result<bool> {
        if self.root.page == 0 || key.len() > MAX_KEY_BYTES {
            return Ok(false);
        }
        self.place.go(self.pages.view(), self.root.page, key)?;
        if !self.place.found {
            return Ok(false);
        }
        self.make_path_writable()?;
        let removed = self.remove_old()?;
        self.place.found = false;
        self.ascend(Delta::removed(removed), None, false)?;
        let leaf = self.pages.page(self.place.path.leaf().page)?;
        if merge::is_underfull(leaf) {
            self.place.valid = false;
            let path = self.place.path.clone();
            self.rebalance(&path)?;
        }
        Ok(true)
    }

    /// Makes every page of the path the batch's own.
    fn make_path_writable(&mut self) -> Result<()> {
        let leaf = self.place.path.leaf().page;
        if self.pages.page(leaf)?.birth() == self.pages.birth() {
            return Ok(());
        }
        self.pages
            .make_path_writable(self.root, self.place.path.steps_mut())
    }

    /// Writes over the old value, if there is one of the same length in the leaf.
    fn overwrite(&mut self, value: &[u8]) -> bool {
        if !self.place.found {
            return false;
        }
        let leaf = self.place.path.leaf();
        let page = self.pages.page_mut(leaf.page);
        if page.payload_is_overflow(leaf.index) || page.payload(leaf.index).len() != value.len() {
            return false;
        }
        page.payload_mut(leaf.index).copy_from_slice(value);
        true
    }

    /// Removes the entry that the path leads to, if it was found there.
    fn remove_old(&mut self) -> Result<Sums> {
        if !self.place.found {
            return Ok(Sums::default());
        }
        let leaf = self.place.path.leaf();
        if let Value::Long(long) = self.pages.page(leaf.page)?.value(leaf.index) {
            let run = long.run;
            self.pages.free_run(run)?;
        }
        Ok(self.remove_found())
    }

    /// Removes the cell that the path leads to; a run that it refers to stays.
    fn remove_found(&mut self) -> Sums {
        let leaf = self.place.path.leaf();
        let page = self.pages.page_mut(leaf.page);
        let sums = page.leaf_sums(leaf.index..leaf.index + 1);
        page.remove_cell(leaf.index);
        sums
    }

    /// Carries a change of the leaf up to the root.
    pub(super) fn ascend(
        &mut self,
        delta: Delta,
        split: Option<Split>,
        overflow: bool,
    ) -> Result<()> {
        let branches = self.place.path.steps().len().saturating_sub(1);
        self.ascend_from(branches, delta, split, overflow)
    }

    /// Carries a change up to the root through the first `branches` of the path.
    fn ascend_from(
        &mut self,
        branches: usize,
        delta: Delta,
        mut split: Option<Split>,
        overflow: bool,
    ) -> Result<()> {
        let steps = self.place.path.steps();
        let append = split.is_some() && self.is_at_end()?;
        for step in steps[..branches].iter().rev() {
            let branch = self.pages.page_mut(step.page);
            branch.add_child_sums(step.index, delta);
            if overflow {
                branch.set_child_overflow(step.index);
            }
            if let Some(below) = split.take() {
                branch.add_child_sums(step.index, Delta::removed(below.right.sums));
                split = insert_child(self.pages, *step, &below, append)?;
            }
        }
        let total = delta.applied_to(self.root.sums);
        if let Some(split) = split {
            self.grow_root(&split, minus(total, split.right.sums))?;
        }
        self.root.sums = total;
        Ok(())
    }

    /// Puts a new root over the two halves of the old one.
    fn grow_root(&mut self, split: &Split, left_sums: Sums) -> Result<()> {
        let old = self.pages.page(self.root.page)?;
        let left = Child {
            page: self.root.page,
            has_overflow: old.has_overflow(),
            sums: left_sums,
        };
        let level = old.level() + 1;
        let number = self.pages.create(Kind::Branch, level)?;
        let root = self.pages.page_mut(number);
        root.insert_cell(0, (&[], &[]), &left.encode(), false);
        root.insert_cell(1, (&split.separator, &[]), &split.right.encode(), false);
        root.note_overflow_below();
        self.root.page = number;
        Ok(())
    }

    /// Merges pages that became too empty, from the leaf up.
    fn rebalance(&mut self, path: &Path) -> Result<()> {
        for step in path.steps()[..path.steps().len().saturating_sub(1)]
            .iter()
            .rev()
        {
            if !merge::fix_child(self.pages, step.page, step.index)? {
                break;
            }
        }
        self.shrink_root()
    }

    /// Lets go of a root that has nothing, or only one child, below it.
    pub(super) fn shrink_root(&mut self) -> Result<()> {
        loop {
            let page = self.pages.page(self.root.page)?;
            let next = match page.count() {
                0 => 0,
                1 if page.is_branch() => page.child_page(0),
                _ => return Ok(()),
            };
            self.pages.free(self.root.page)?;
            self.root.page = next;
            if next == 0 {
                return Ok(());
            }
        }
    }
}

/// Inserts the right half of a split child into its branch.
fn insert_child(
    pages: &mut Pages<'_>,
    step: Step,
    below: &Split,
    append: bool,
) -> Result<Option<Split>> {
    let payload = below.right.encode();
    let cell = NewCell {
        key: &below.separator,
        payload: &payload,
        overflow: false,
    };
    let branch = pages.page_mut(step.page);
    if split::try_insert(branch, step.index + 1, &cell) {
        if below.right.has_overflow {
            branch.set_has_overflow();
        }
        return Ok(None);
    }
    split::split(pages, step.page, step.index + 1, &cell, append).map(Some)
}

/// Sums of two children that become one.
pub(super) fn merged(left: Child, right: Child) -> Child {
    Child {
        page: left.page,
        has_overflow: left.has_overflow || right.has_overflow,
        sums: plus(left.sums, right.sums),
    }
}
