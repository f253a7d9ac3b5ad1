//! The cells of one page, or of two neighbouring leaves, with a new one among
//! them: what is dealt out anew to two pages.

use std::cmp::Ordering;
use std::ops::Range;

use super::page::{BODY_BYTES, Page, SLOT_BYTES};
use super::slotted::{KeyParts, NewCell, common_prefix, joined, truncate};

/// More cells than two leaves and a new one can have.
const MAX_CELLS: usize = 2 * (BODY_BYTES / (SLOT_BYTES + 2)) + 2;

/// Cells in order.
pub(super) struct Cells<'c> {
    first: &'c Page,
    /// A leaf after `first`.
    second: Option<&'c Page>,
    /// Where the new cell goes.
    at: usize,
    new: &'c NewCell<'c>,
    count: usize,
    /// Bytes of each cell with its whole key, and of its slot; added up.
    ends: [u32; MAX_CELLS],
}

/// Where a cell comes from.
enum Source<'c> {
    Page(&'c Page, usize),
    New,
}

impl<'c> Cells<'c> {
    pub(super) fn of_page(page: &'c Page, at: usize, new: &'c NewCell<'c>) -> Self {
        Self::new(page, None, at, new)
    }

    /// `at` counts from the first cell of `left` on.
    pub(super) fn of_leaves(
        left: &'c Page,
        right: &'c Page,
        at: usize,
        new: &'c NewCell<'c>,
    ) -> Self {
        Self::new(left, Some(right), at, new)
    }

    fn new(first: &'c Page, second: Option<&'c Page>, at: usize, new: &'c NewCell<'c>) -> Self {
        let mut cells = Self {
            first,
            second,
            at,
            new,
            count: first.count() + second.map_or(0, Page::count) + 1,
            ends: [0; MAX_CELLS],
        };
        let mut end = 0;
        for index in 0..cells.count {
            end += cells.cost(index) as u32;
            cells.ends[index + 1] = end;
        }
        cells
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of a range of the cells with their whole keys, and of their slots.
    fn bytes(&self, range: &Range<usize>) -> usize {
        (self.ends[range.end] - self.ends[range.start]) as usize
    }

    pub(super) fn is_branch(&self) -> bool {
        self.first.is_branch()
    }

    fn source(&self, index: usize) -> Source<'c> {
        let index = match index.cmp(&self.at) {
            Ordering::Less => index,
            Ordering::Equal => return Source::New,
            Ordering::Greater => index - 1,
        };
        match self.second {
            Some(second) if index >= self.first.count() => {
                Source::Page(second, index - self.first.count())
            }
            _ => Source::Page(self.first, index),
        }
    }

    pub(super) fn key(&self, index: usize) -> KeyParts<'c> {
        match self.source(index) {
            Source::Page(page, index) => page.key_parts(index),
            Source::New => (self.new.key, &[]),
        }
    }

    /// Bytes of a cell with its whole key, and of its slot.
    fn cost(&self, index: usize) -> usize {
        let cell = match self.source(index) {
            Source::Page(page, index) if index < page.first_key() => page.cell_len(index),
            Source::Page(page, index) => page.cell_len(index) + page.prefix_len(),
            Source::New => 2 + self.new.key.len() + self.new.payload.len(),
        };
        SLOT_BYTES + cell
    }

    /// Where to part the cells so that both sides get about as much.
    pub(super) fn middle(&self) -> usize {
        // What all keys share is stored once on either side. Counting it for each
        // key would balance their number more than their bytes, and the larger
        // half might not fit.
        let shared = self.prefix_len(&(0..self.count()));
        let bytes = |range: Range<usize>| {
            let keys = self.keys(&range).len();
            self.bytes(&range) - keys * shared
        };
        let total = bytes(0..self.count);
        let (mut best, mut best_larger) = (1, usize::MAX);
        for index in 1..self.count {
            let left = bytes(0..index);
            let larger = left.max(total - left);
            if larger < best_larger {
                (best, best_larger) = (index, larger);
            }
        }
        best
    }

    /// Whether a range of the cells fits one page.
    pub(super) fn fits(&self, range: Range<usize>) -> bool {
        let keys = self.keys(&range);
        let saved = self.prefix_len(&range) * keys.len().saturating_sub(1);
        self.bytes(&range) <= BODY_BYTES + saved
    }

    /// The cells of a range that have a key in the page.
    fn keys(&self, range: &Range<usize>) -> Range<usize> {
        let first = range.start + usize::from(self.is_branch());
        first..range.end.max(first)
    }

    fn prefix_len(&self, range: &Range<usize>) -> usize {
        let keys = self.keys(range);
        match keys.len() {
            0 => 0,
            // What will be appended probably shares as much as the neighbours do.
            1 if !self.is_branch() && keys.start > 0 => {
                common_prefix(self.key(keys.start - 1), self.key(keys.start))
            }
            1 => 0,
            _ => common_prefix(self.key(keys.start), self.key(keys.end - 1)),
        }
    }

    /// Fills `page` with a range of the cells.
    pub(super) fn fill(&self, page: &mut Page, range: Range<usize>) {
        page.format_like(self.first);
        let prefix_len = self.prefix_len(&range);
        if prefix_len > 0 {
            page.set_prefix(truncate(self.key(self.keys(&range).start), prefix_len));
        }
        for index in range.clone() {
            let keyless = self.is_branch() && index == range.start;
            match self.source(index) {
                Source::Page(from, index) => page.append_from(from, index, keyless),
                Source::New => page.append_new(self.new, keyless),
            }
        }
        page.note_overflow_below();
    }

    /// The shortest key that parts the cells before `split` from the others
    /// (Bayer and Unterauer, "Prefix B-trees", 1977). A branch's is given: the
    /// key that the first child on the right loses.
    pub(super) fn separator(&self, split: usize) -> Vec<u8> {
        let right = self.key(split);
        if self.is_branch() {
            return joined(right);
        }
        let common = common_prefix(self.key(split - 1), right);
        joined(truncate(right, common + 1))
    }
}
