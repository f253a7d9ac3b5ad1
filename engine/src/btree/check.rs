//! The whole-store integrity check.
//!
//! Goes over every page of the newest published state: checksums of what was
//! checkpointed, the pages' own structure, order of keys within and across
//! pages, separators, levels, births, sums, flags; and over the free space:
//! the meta page is what was written, and
//! every page of the file is exactly one of free, in use by the state, in use
//! by the free map, or on the way between.

use super::branch::{Child, plus};
use super::meta::{META_PAGES, Meta};
use super::page::{PAGE_BYTES, Page, validate};
use super::pager::{Pager, View, disk_error};
use super::path::MAX_DEPTH;
use super::slotted::joined;
use super::space::{Extent, Space};
use super::state::{Root, State};
use super::store::Shared;
use crate::backend::{BackendError, CheckReport, Result, Sums};

/// Verifies everything and counts what it saw.
pub(super) fn check(shared: &Shared) -> Result<CheckReport> {
    // No checkpoint meanwhile, so that the free map stays what it is.
    let keeper = shared.keeper();
    check_meta(shared.pager(), &keeper.meta)?;
    let (pin, space) = {
        let space = shared.space();
        (shared.readers().pin(), space.clone())
    };
    let view = shared.pager().pinned(&pin);
    let mut walk = Walk {
        view,
        durable: keeper.meta.state.number,
        seen: vec![0; shared.pager().end().div_ceil(64) as usize],
        report: CheckReport::default(),
    };
    walk.state(pin.state())?;
    for page in keeper.free_map.pages() {
        walk.page(page, keeper.meta.state.number)?;
        walk.mark(Extent::one(page))?;
    }
    walk.space(&space)?;
    Ok(walk.report)
}

/// The meta page of the last checkpoint is read when the store is opened and not
/// again: what befalls it later shows only here.
fn check_meta(pager: &Pager, meta: &Meta) -> Result<()> {
    let mut found = [0; PAGE_BYTES];
    let offset = meta.page() * PAGE_BYTES as u64;
    let read = pager.file().read_at(&mut found, offset);
    read.map_err(disk_error)?;
    if found != meta.encode() {
        let what = "is not the meta page that the last checkpoint wrote";
        return Err(pager.damaged(meta.page(), what));
    }
    Ok(())
}

struct Walk<'v> {
    view: View<'v>,
    /// The state of the last checkpoint: pages born by then have checksums.
    durable: u64,
    /// One bit per page that was met.
    seen: Vec<u64>,
    report: CheckReport,
}

/// What must hold of a page, as its parent sees it.
struct Expected<'e> {
    page: u64,
    /// The parent's birth.
    birth: u64,
    level: Option<u8>,
    /// All keys are at or above this one,
    low: &'e [u8],
    /// and below this one.
    high: Option<&'e [u8]>,
    depth: usize,
}

/// What a subtree turned out to hold.
struct Actual {
    sums: Sums,
    has_overflow: bool,
}

impl<'v> Walk<'v> {
    fn state(&mut self, state: &State) -> Result<()> {
        for root in state.roots.iter().filter(|root| root.page != 0) {
            let actual = self.subtree(&Expected {
                page: root.page,
                birth: state.number,
                level: None,
                low: &[],
                high: None,
                depth: 0,
            })?;
            if actual.sums != root.sums {
                return Err(self.wrong_sums(root.page, actual.sums, root.sums));
            }
        }
        let is_wrong = |root: &&Root| root.page == 0 && root.sums != Sums::default();
        match state.roots.iter().find(is_wrong) {
            Some(root) => Err(self.wrong_sums(0, Sums::default(), root.sums)),
            None => Ok(()),
        }
    }

    fn subtree(&mut self, expected: &Expected<'_>) -> Result<Actual> {
        if expected.depth == MAX_DEPTH {
            return Err(self.view.too_deep(expected.page));
        }
        let page = self.page(expected.page, expected.birth)?;
        self.mark(Extent::one(expected.page))?;
        if expected.level.is_some_and(|level| level != page.level()) {
            return Err(self.wrong(expected.page, format!("is of level {}", page.level())));
        }
        validate(page).map_err(|what| self.wrong(expected.page, what))?;
        self.keys(page, expected)?;
        if page.is_branch() {
            self.branch(page, expected)
        } else if page.is_leaf() {
            self.leaf(page)
        } else {
            Err(self.wrong(expected.page, "is no page of a tree"))
        }
    }

    /// A page itself: who it says it is, and its checksum.
    fn page(&mut self, number: u64, parent_birth: u64) -> Result<&'v Page> {
        let page = self.view.page(number)?;
        self.report.pages += 1;
        self.identity(page, number, parent_birth)?;
        if page.birth() <= self.durable && page.stored_checksum() != page.checksum() {
            return Err(self.wrong(number, "has a wrong checksum"));
        }
        Ok(page)
    }

    fn identity(&self, page: &Page, number: u64, parent_birth: u64) -> Result<()> {
        if page.number() != number {
            return Err(self.wrong(number, format!("says it is page {}", page.number())));
        }
        if page.birth() > parent_birth {
            let what = format!("was born in state {}, after its parent", page.birth());
            return Err(self.wrong(number, what));
        }
        Ok(())
    }

    /// All keys lie within what the parent says; their order `validate` checked.
    fn keys(&self, page: &Page, expected: &Expected<'_>) -> Result<()> {
        for index in [page.first_key(), page.count().saturating_sub(1)] {
            if index < page.first_key() || index >= page.count() {
                continue;
            }
            let key = joined(page.key_parts(index));
            if key.as_slice() < expected.low || expected.high.is_some_and(|high| *key >= *high) {
                let what = format!("has key {key:?} outside of its parent's separators");
                return Err(self.wrong(expected.page, what));
            }
        }
        Ok(())
    }

    fn branch(&mut self, page: &Page, expected: &Expected<'_>) -> Result<Actual> {
        let mut actual = Actual {
            sums: Sums::default(),
            has_overflow: false,
        };
        for index in 0..page.count() {
            let key = |index: usize| joined(page.key_parts(index));
            let low = if index == 0 {
                expected.low.to_vec()
            } else {
                key(index)
            };
            let next = (index + 1 < page.count()).then(|| key(index + 1));
            let child: Child = page.child(index);
            let below = self.subtree(&Expected {
                page: child.page,
                birth: page.birth(),
                level: Some(page.level() - 1),
                low: &low,
                high: next.as_deref().or(expected.high),
                depth: expected.depth + 1,
            })?;
            if below.sums != child.sums {
                return Err(self.wrong_sums(child.page, below.sums, child.sums));
            }
            if below.has_overflow && !child.has_overflow {
                return Err(self.wrong(expected.page, "denies the long values of a child"));
            }
            actual.sums = plus(actual.sums, below.sums);
            actual.has_overflow |= child.has_overflow;
        }
        if actual.has_overflow && !page.has_overflow() {
            return Err(self.wrong(expected.page, "denies the long values below it"));
        }
        Ok(actual)
    }

    fn leaf(&mut self, page: &'v Page) -> Result<Actual> {
        let has_overflow = (0..page.count()).any(|index| page.payload_is_overflow(index));
        if has_overflow && !page.has_overflow() {
            return Err(self.wrong(page.number(), "denies its long values"));
        }
        for long in page.long_values() {
            let overflow = long.run;
            let first = self.view.run(overflow.page)?;
            self.identity(first, overflow.page, page.birth())?;
            if !self.view.run_value(overflow)?.starts_with(long.copied()) {
                return Err(self.wrong(page.number(), "has another beginning of a long value"));
            }
            let durable = first.birth() <= self.durable;
            if durable && first.stored_checksum() != self.view.run_checksum(overflow)? {
                return Err(self.wrong(overflow.page, "starts a run with a wrong checksum"));
            }
            let pages = overflow.pages();
            self.mark(Extent {
                page: overflow.page,
                pages,
            })?;
            self.report.pages += pages;
        }
        self.report.entries += page.count() as u64;
        Ok(Actual {
            sums: page.own_sums(),
            has_overflow,
        })
    }

    /// Notes pages as in use; each may be met once.
    fn mark(&mut self, extent: Extent) -> Result<()> {
        for page in extent.iter() {
            let word = self.seen.get_mut((page / 64) as usize);
            let fresh = word.is_some_and(|word| {
                let bit = 1 << (page % 64);
                let fresh = *word & bit == 0;
                *word |= bit;
                fresh
            });
            if !fresh {
                return Err(self.wrong(page, "is in use twice, or lies beyond the end"));
            }
        }
        Ok(())
    }

    fn is_marked(&self, page: u64) -> bool {
        self.seen[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    /// Every page of the file has exactly one place.
    fn space(&mut self, space: &Space) -> Result<()> {
        for page in META_PAGES..space.end() {
            let live = space.is_live(page);
            if live && !self.is_marked(page) {
                return Err(self.wrong(page, "is booked as in use, but nothing leads to it"));
            }
            if space.is_free(page) && self.is_marked(page) {
                return Err(self.wrong(page, "is in use, but booked as free"));
            }
        }
        for extent in space.in_between() {
            if extent.iter().any(|page| space.is_free(page)) {
                return Err(self.wrong(extent.page, "is on the way, but booked as free"));
            }
            self.mark(extent)?;
        }
        for page in META_PAGES..space.end() {
            if space.is_free(page) == self.is_marked(page) {
                return Err(self.wrong(page, "is lost: neither in use nor free"));
            }
        }
        Ok(())
    }

    fn wrong(&self, page: u64, what: impl Into<String>) -> BackendError {
        self.view.damaged(page, what)
    }

    fn wrong_sums(&self, page: u64, actual: Sums, booked: Sums) -> BackendError {
        let what = format!("holds {actual:?}, but is booked as {booked:?}");
        self.view.damaged(page, what)
    }
}
