//! The writer's pages: taking, copying and letting go of them.
//!
//! Invariant: a page born in the open batch has only such pages above it, so
//! to know that a path may be changed in place it is enough to look at its leaf.
//! (While parts of the tree are put to by themselves, `put_all`, this is so up to the
//! part's root, and for the whole tree again when they are back in it.)

use super::leaf::{LongValue, OverflowRef, is_long};
use super::meta::META_PAGES;
use super::page::{Kind, Page};
use super::pager::{BatchToken, Pager, View, run_pages};
use super::path::Step;
use super::space::{Extent, Freed, Leftovers};
use super::state::Root;
use super::store::Shared;
use crate::backend::{BackendError, Result};

/// Pages taken from the shared space at a time.
const POOL_PAGES: usize = 32;

/// The pages of the open batch.
#[derive(Debug)]
pub(super) struct Pages<'b> {
    shared: &'b Shared,
    token: BatchToken,
    /// Taken and not used yet, or not any more; those just taken last, the lowest of them
    /// as the very last.
    pool: Vec<u64>,
    leftovers: Leftovers,
    /// Whether pages were found that are not in memory, in this batch or lately.
    is_cold: bool,
}

impl<'b> Pages<'b> {
    pub(super) fn new(shared: &'b Shared, birth: u64) -> Self {
        Self {
            shared,
            token: BatchToken::new(birth),
            pool: Vec::new(),
            leftovers: Leftovers::default(),
            is_cold: shared.was_cold_before(birth),
        }
    }

    /// For another thread that works on the same batch, in pages that nobody else looks at
    /// meanwhile.
    pub(super) fn apart(&self) -> Self {
        Self::new(self.shared, self.birth())
    }

    /// What such a thread took and freed is this one's.
    pub(super) fn absorb(&mut self, mut apart: Self) {
        self.pool.append(&mut apart.pool);
        let Leftovers { freed, unused } = apart.leftovers;
        self.leftovers.freed.extend(freed);
        self.leftovers.unused.extend(unused);
    }

    fn pager(&self) -> &'b Pager {
        self.shared.pager()
    }

    /// The number of the state that the batch makes.
    pub(super) fn birth(&self) -> u64 {
        self.token.birth()
    }

    pub(super) fn view(&self) -> View<'_> {
        self.pager().working(&self.token)
    }

    pub(super) fn page(&self, number: u64) -> Result<&Page> {
        self.view().page(number)
    }

    /// Not all of the store is in memory.
    pub(super) fn set_cold(&mut self) {
        self.is_cold = true;
        self.shared.set_cold(self.birth());
    }

    /// Whether there is reason to ask whether pages are in memory.
    pub(super) fn is_cold(&self) -> bool {
        self.is_cold
    }

    /// Whether to look at a page would wait for the disk, as far as the batch has
    /// reason to ask.
    pub(super) fn is_absent(&self, number: u64) -> bool {
        self.is_cold && !self.view().is_resident(number)
    }

    /// A page that this batch made.
    pub(super) fn page_mut(&mut self, number: u64) -> &mut Page {
        self.shared.pager().page_mut(&mut self.token, number)
    }

    fn take(&mut self) -> Result<u64> {
        self.fill_pool()?;
        let page = self.pool.pop().ok_or_else(|| BackendError::Other {
            engine: super::NAME,
            message: "no free page was found".to_owned(),
        })?;
        if self.is_cold {
            self.pager().bring_in_free(page)?;
        }
        Ok(page)
    }

    fn fill_pool(&mut self) -> Result<()> {
        if !self.pool.is_empty() {
            return Ok(());
        }
        let mut space = self.shared.space();
        // Under the lock: what a failed checkpoint gives back is not for use.
        self.shared.check_latch()?;
        for taken in 0..POOL_PAGES {
            match space.take_for_batch(self.shared.pager(), 1) {
                Ok(extent) => self.pool.push(extent.page),
                // A few pages are better than none on a full disk.
                Err(error) if taken > 0 && error.is_no_space() => break,
                Err(error) => return Err(error),
            }
        }
        self.pool.reverse();
        Ok(())
    }

    /// Whether the next page that is taken lies before `cut`. The file does not
    /// grow to find out.
    pub(super) fn has_room_before(&mut self, cut: u64) -> Result<bool> {
        if self.pool.is_empty() && !self.shared.space().has_free_before(cut) {
            return Ok(false);
        }
        self.fill_pool()?;
        Ok(self.pool.last().is_some_and(|page| *page < cut))
    }

    /// A new empty page.
    pub(super) fn create(&mut self, kind: Kind, level: u8) -> Result<u64> {
        let number = self.take()?;
        self.pager()
            .adopt(&mut self.token, number)
            .format(kind, level);
        Ok(number)
    }

    /// The page itself if this batch made it, or else a copy that it may change.
    pub(super) fn writable(&mut self, number: u64) -> Result<u64> {
        let birth = self.page(number)?.birth();
        if birth == self.birth() {
            return Ok(number);
        }
        let copy = self.take()?;
        self.pager().copy(&mut self.token, number, copy);
        self.let_go(Extent::one(number), birth);
        Ok(copy)
    }

    /// Makes the pages of a path, from the root of a tree down, the batch's own.
    pub(super) fn make_path_writable(&mut self, root: &mut Root, steps: &mut [Step]) -> Result<()> {
        let mut parent: Option<Step> = None;
        for step in steps {
            let page = self.writable(step.page)?;
            if page != step.page {
                match parent {
                    Some(parent) => self
                        .page_mut(parent.page)
                        .set_child_page(parent.index, page),
                    None => root.page = page,
                }
                step.page = page;
            }
            parent = Some(*step);
        }
        Ok(())
    }

    /// The page itself if this batch made it, or else a new one in its place;
    /// for a page that is about to be written anew.
    pub(super) fn renewed(&mut self, number: u64) -> Result<u64> {
        let birth = self.page(number)?.birth();
        if birth == self.birth() {
            return Ok(number);
        }
        let new = self.take()?;
        self.pager().adopt(&mut self.token, new);
        self.let_go(Extent::one(number), birth);
        Ok(new)
    }

    /// Frees a page of the tree that nothing refers to any more.
    pub(super) fn free(&mut self, number: u64) -> Result<()> {
        let birth = self.page(number)?.birth();
        self.free_unseen(number, birth);
        Ok(())
    }

    /// Frees a page that is known to be born in `birth` or later.
    pub(super) fn free_unseen(&mut self, number: u64, birth: u64) {
        if birth == self.birth() {
            self.pool.push(number);
        } else {
            self.let_go(Extent::one(number), birth);
        }
    }

    fn let_go(&mut self, extent: Extent, birth: u64) {
        self.leftovers.freed.push(Freed { extent, birth });
    }

    /// What a leaf has of `value`. A long one is written to a run, and `long` to what
    /// refers to that.
    ///
    /// Inlined, so that what a short one is made of stays in registers: in memory it
    /// would be read otherwise than it was just written, which waits for all that was
    /// written before, such as the copy of a leaf.
    #[inline(always)]
    pub(super) fn payload<'p>(
        &mut self,
        key: &[u8],
        value: &'p [u8],
        long: &'p mut Vec<u8>,
    ) -> Result<&'p [u8]> {
        if !is_long(key, value) {
            return Ok(value);
        }
        *long = LongValue::payload_of(self.create_run(value)?, value);
        Ok(long)
    }

    fn create_run(&mut self, value: &[u8]) -> Result<OverflowRef> {
        let pager = self.pager();
        let pages = run_pages(value.len());
        let extent = {
            let mut space = self.shared.space();
            self.shared.check_latch()?;
            space.take_for_batch(pager, pages)?
        };
        pager.write_run(&self.token, extent.page, value)?;
        Ok(OverflowRef {
            page: extent.page,
            birth: self.birth(),
            length: value.len() as u32,
        })
    }

    /// Frees the run of a value that was replaced or removed. It is not looked at.
    pub(super) fn free_run(&mut self, run: OverflowRef) -> Result<()> {
        if run.page < META_PAGES || run.end() > self.pager().end() {
            let what = "is referred to as a run, but is none of the file's pages";
            return Err(self.view().damaged(run.page, what));
        }
        let extent = Extent {
            page: run.page,
            pages: run.pages(),
        };
        if run.birth == self.birth() {
            self.leftovers.unused.push(extent);
        } else {
            self.let_go(extent, run.birth);
        }
        Ok(())
    }

    /// Moves a run that reaches to page `cut` or beyond before it; none if it
    /// need not be moved, or there is no room.
    pub(super) fn move_run(&mut self, old: OverflowRef, cut: u64) -> Result<Option<OverflowRef>> {
        if old.end() <= cut {
            return Ok(None);
        }
        let new = {
            let mut space = self.shared.space();
            self.shared.check_latch()?;
            space.take_below(old.pages(), cut)
        };
        let Some(new) = new else {
            return Ok(None);
        };
        let pager = self.pager();
        let value = pager.working(&self.token).run_value(old)?;
        pager.write_run(&self.token, new.page, value)?;
        self.free_run(old)?;
        Ok(Some(OverflowRef {
            page: new.page,
            birth: self.birth(),
            ..old
        }))
    }

    /// Whether a checkpoint began that may have pages of `birth`.
    pub(super) fn is_checkpointed(&self, birth: u64) -> bool {
        birth <= self.shared.begun()
    }

    /// What the batch leaves behind when it is published.
    pub(super) fn take_leftovers(&mut self) -> Leftovers {
        let unused = self.pool.drain(..).map(Extent::one);
        self.leftovers.unused.extend(unused);
        std::mem::take(&mut self.leftovers)
    }
}
