//! The way from a root to a leaf, and getting there.

use super::page::Page;
use super::pager::View;
use crate::backend::Result;

/// No tree gets this deep: every level at least doubles what is below.
pub(super) const MAX_DEPTH: usize = 40;

/// One page on the way, and the slot taken there.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Step {
    pub(super) page: u64,
    pub(super) index: usize,
}

/// The way from a root (first) to a leaf (last).
#[derive(Debug, Clone)]
pub(super) struct Path {
    steps: [Step; MAX_DEPTH],
    depth: usize,
}

impl Default for Path {
    fn default() -> Self {
        Self {
            steps: [Step::default(); MAX_DEPTH],
            depth: 0,
        }
    }
}

impl Path {
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps[..self.depth]
    }

    pub(super) fn steps_mut(&mut self) -> &mut [Step] {
        &mut self.steps[..self.depth]
    }

    pub(super) fn clear(&mut self) {
        self.depth = 0;
    }

    pub(super) fn leaf(&self) -> Step {
        self.steps[self.depth.saturating_sub(1)]
    }

    fn push(&mut self, view: View<'_>, page: u64, index: usize) -> Result<()> {
        let Some(step) = self.steps.get_mut(self.depth) else {
            return Err(view.too_deep(page));
        };
        *step = Step { page, index };
        self.depth += 1;
        Ok(())
    }

    /// Goes down from `root` to where `key` is, or belongs; whether it is there.
    pub(super) fn descend(&mut self, view: View<'_>, root: u64, key: &[u8]) -> Result<bool> {
        let leaf = self.descend_to(view, root, key, 0)?;
        let (index, found) = match leaf.find(key) {
            Ok(index) => (index, true),
            Err(index) => (index, false),
        };
        self.steps[self.depth - 1].index = index;
        Ok(found)
    }

    /// Goes down from `root` to the page of `level` below which `key` is, or belongs.
    pub(super) fn descend_to<'v>(
        &mut self,
        view: View<'v>,
        root: u64,
        key: &[u8],
        level: u8,
    ) -> Result<&'v Page> {
        self.clear();
        let mut number = root;
        loop {
            let page = view.page(number)?;
            if page.is_leaf() || page.level() <= level {
                self.push(view, number, 0)?;
                return Ok(page);
            }
            let index = page.child_for(key);
            self.push(view, number, index)?;
            number = page.child_page(index);
            view.prefetch_below(page.level(), number);
        }
    }

    /// Whether the leaf is the tree's last.
    pub(super) fn is_rightmost(&self, view: View<'_>) -> Result<bool> {
        for step in &self.steps[..self.depth.saturating_sub(1)] {
            if step.index + 1 != view.page(step.page)?.count() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Where the batch was last in one tree, so that the next operation on the same
/// key or in the same leaf need not start at the root.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) path: Path,
    /// Whether `path` holds in the present tree.
    pub(super) valid: bool,
    /// The key that was looked for, and whether it is there.
    key: Vec<u8>,
    pub(super) found: bool,
}

impl Place {
    /// Goes to where `key` is, or belongs.
    pub(super) fn go(&mut self, view: View<'_>, root: u64, key: &[u8]) -> Result<()> {
        if self.valid && self.key == key {
            return Ok(());
        }
        self.key.clear();
        self.key.extend_from_slice(key);
        // Not valid until it is known where the key is: reading may fail.
        let was_valid = std::mem::take(&mut self.valid);
        if was_valid && self.go_within_leaf(view, key)? {
            self.valid = true;
            return Ok(());
        }
        self.found = self.path.descend(view, root, key)?;
        self.valid = true;
        Ok(())
    }

    /// Stays in the leaf if `key` certainly belongs there: between two of its
    /// keys, or after the last key of the whole tree, or of the part of it that all keys
    /// of this writer belong to.
    fn go_within_leaf(&mut self, view: View<'_>, key: &[u8]) -> Result<bool> {
        let leaf: &Page = view.page(self.path.leaf().page)?;
        let index = match leaf.find(key) {
            Ok(index) => {
                self.found = true;
                index
            }
            Err(index) => {
                let inside = 0 < index && index < leaf.count();
                let belongs = inside || (index > 0 && self.path.is_rightmost(view)?);
                if !belongs {
                    return Ok(false);
                }
                self.found = false;
                index
            }
        };
        if let Some(last) = self.path.steps_mut().last_mut() {
            last.index = index;
        }
        Ok(true)
    }
}
