//! Online vacuum: gives the space of free pages back to the file system.
//!
//! A *pass* goes over all trees and copies every page that lies at or beyond a
//! *cut* to a free page before it, a few at a time as part of ordinary batches:
//! to a copy-on-write tree a moved page is a changed page. Once a checkpoint has
//! let go of the old copies the file ends in free pages, and is cut off there.
//! A pass reads the branches; leaves only where overflow runs lie below them.
//!
//! Readers go on meanwhile: a page that one of them holds is not free, so the
//! file is not cut there. Nothing about a vacuum is in the file: after a crash
//! the next one starts anew.

use super::leaf::Value;
use super::pages::Pages;
use super::path::{MAX_DEPTH, Step};
use super::slotted::joined;
use super::state::Root;
use crate::backend::{MAX_TREES, Result};

/// Pages that one step moves, about: 1 MiB.
const STEP_PAGES: u64 = 256;
/// Pages that one step looks at without moving any.
const STEP_VISITS: u64 = 1024;

/// How far a pass has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pass {
    /// Pages from this one on are moved before it.
    cut: u64,
    tree: usize,
    /// Where in the tree it goes on.
    key: Vec<u8>,
}

/// What became of a part of a tree.
enum Visited {
    /// The pass goes on at this key,
    Until(Vec<u8>),
    /// or in the next tree.
    End,
    /// There is no free page before the cut.
    NoRoom,
}

/// What a step may still do.
struct Budget {
    pages: u64,
    visits: u64,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.pages == 0 || self.visits == 0
    }
}

impl Pass {
    /// A pass that empties the file from page `cut` on.
    pub(super) fn new(cut: u64) -> Self {
        Self {
            cut,
            tree: 0,
            key: Vec::new(),
        }
    }

    /// Moves some pages; whether the pass goes on.
    pub(super) fn step(
        &mut self,
        pages: &mut Pages<'_>,
        roots: &mut [Root; MAX_TREES],
    ) -> Result<bool> {
        let mut budget = Budget {
            pages: STEP_PAGES,
            visits: STEP_VISITS,
        };
        while let Some(root) = roots.get_mut(self.tree) {
            if budget.is_spent() {
                return Ok(true);
            }
            match self.visit(pages, root, &mut budget)? {
                Visited::Until(key) => self.key = key,
                Visited::End => {
                    self.tree += 1;
                    self.key.clear();
                }
                Visited::NoRoom => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Moves what lies on the way to `key`, and the leaves beside the one there.
    fn visit(
        &self,
        pages: &mut Pages<'_>,
        root: &mut Root,
        budget: &mut Budget,
    ) -> Result<Visited> {
        if root.page == 0 {
            return Ok(Visited::End);
        }
        let mut steps = Vec::with_capacity(8);
        let mut next = None;
        let mut number = root.page;
        loop {
            let page = pages.page(number)?;
            budget.visits = budget.visits.saturating_sub(1);
            if page.is_leaf() {
                // The root: there is no branch.
                let has_overflow = page.has_overflow();
                let moved = self.move_leaf(pages, number, has_overflow, budget)?;
                root.page = moved.number;
                return Ok(if moved.is_before_cut {
                    Visited::End
                } else {
                    Visited::NoRoom
                });
            }
            let index = page.child_for(&self.key);
            if page.level() == 1 {
                steps.push(Step {
                    page: number,
                    index,
                });
                break;
            }
            if steps.len() == MAX_DEPTH {
                return Err(pages.view().too_deep(number));
            }
            if index + 1 < page.count() {
                next = Some(joined(page.key_parts(index + 1)));
            }
            steps.push(Step {
                page: number,
                index,
            });
            number = page.child_page(index);
        }
        if steps.iter().any(|step| step.page >= self.cut) {
            pages.make_path_writable(root, &mut steps)?;
            budget.pages = budget.pages.saturating_sub(steps.len() as u64);
            if steps.iter().any(|step| step.page >= self.cut) {
                return Ok(Visited::NoRoom);
            }
        }
        let last = steps[steps.len() - 1];
        let mut branch = last.page;
        for index in last.index..pages.page(branch)?.count() {
            let page = pages.page(branch)?;
            let child = page.child(index);
            if index > last.index && budget.is_spent() {
                return Ok(Visited::Until(joined(page.key_parts(index))));
            }
            let moved = self.move_leaf(pages, child.page, child.has_overflow, budget)?;
            if moved.number != child.page {
                pages.make_path_writable(root, &mut steps)?;
                branch = steps[steps.len() - 1].page;
                pages.page_mut(branch).set_child_page(index, moved.number);
            }
            if !moved.is_before_cut {
                return Ok(Visited::NoRoom);
            }
        }
        Ok(next.map_or(Visited::End, Visited::Until))
    }

    /// Moves a leaf, and the overflow runs below it, before the cut.
    fn move_leaf(
        &self,
        pages: &mut Pages<'_>,
        mut number: u64,
        has_overflow: bool,
        budget: &mut Budget,
    ) -> Result<Moved> {
        if number >= self.cut && pages.has_room_before(self.cut)? {
            number = pages.writable(number)?;
            budget.pages = budget.pages.saturating_sub(1);
        }
        if has_overflow {
            budget.visits = budget.visits.saturating_sub(1);
            if pages.is_cold() {
                let view = pages.view();
                let runs = view.page(number)?.long_values().map(|long| long.run);
                let mut pages = budget.pages;
                for run in runs.filter(|run| run.end() > self.cut) {
                    if pages == 0 {
                        break;
                    }
                    pages = pages.saturating_sub(run.pages());
                    if !view.is_resident(run.page) {
                        view.will_need(run.page, run.pages());
                    }
                }
            }
            for index in 0..pages.page(number)?.count() {
                let Value::Long(long) = pages.page(number)?.value(index) else {
                    continue;
                };
                let old = long.run;
                // A run for which there is no room before the cut stays.
                if let Some(new) = pages.move_run(old, self.cut)? {
                    number = pages.writable(number)?;
                    new.replace_in(pages.page_mut(number).payload_mut(index));
                    budget.pages = budget.pages.saturating_sub(old.pages());
                }
            }
        }
        Ok(Moved {
            number,
            is_before_cut: number < self.cut,
        })
    }
}

/// Where a leaf is now.
struct Moved {
    number: u64,
    is_before_cut: bool,
}
