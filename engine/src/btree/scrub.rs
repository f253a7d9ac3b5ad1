//! The scrub of a store: every page that the last durable checkpoint reaches is
//! read from the file and verified, in small steps.
//!
//! Not through the map: the page cache would answer for the disk. And not page by
//! page through the file: what a page's place says of it (a run's inside has no
//! header) and whether it is the version that belongs there (a write that the disk
//! lost leaves an older, whole one) only the way from the root tells.
//!
//! Invariants:
//! - While a step runs no checkpoint does, so the pages that the last one reaches
//!   stay what they are: they are never written to (see `checkpoint.rs`).
//! - Between two steps there may be checkpoints. A pass goes on at a key, not at
//!   a page: a page that was there all the time is visited.
//! - A step visits a page of the lowest level or one long value at least, whatever
//!   its budget, so a pass ends.
//! - What lies below a damaged branch can't be visited; the pass goes on behind it.

use super::branch::Child;
use super::leaf::{OverflowRef, Value};
use super::meta::Meta;
use super::page::{self, CRC_BYTES, HEADER_BYTES, Kind, PAGE_BYTES, Page};
use super::pager::{Pager, disk_error};
use super::path::MAX_DEPTH;
use super::slotted::joined;
use super::store::{Keeper, Shared};
use crate::backend::{MAX_TREES, ScrubStep, Sums};
use crate::disk::AlignedBuf;

/// Pages of a long value that are read at a time.
const RUN_PART_PAGES: u64 = 64;

/// Where a pass is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Cursor {
    /// At the meta page.
    #[default]
    Start,
    /// In a tree: everything below the key is done.
    Tree(usize, Vec<u8>),
    /// At a page of the free map.
    FreeMap(usize),
}

/// Goes on with the pass over the store, until `budget` bytes are read or the
/// pass is over.
pub(super) fn step(shared: &Shared, budget: u64) -> ScrubStep {
    let mut cursor = shared.scrub();
    let keeper = shared.keeper();
    let mut walk = Walk {
        pager: shared.pager(),
        keeper: &keeper,
        budget,
        step: ScrubStep::default(),
        buffer: AlignedBuf::new(),
    };
    while walk.has_budget() {
        let next = walk.part(std::mem::take(&mut *cursor));
        walk.step.is_finished = next == Cursor::Start;
        *cursor = next;
        if walk.step.is_finished {
            break;
        }
    }
    walk.step
}

/// What must hold of a page, as its parent sees it.
struct Expected {
    page: u64,
    /// The parent's birth.
    birth: u64,
    level: Option<u8>,
    sums: Sums,
    depth: usize,
}

struct Walk<'s> {
    pager: &'s Pager,
    keeper: &'s Keeper,
    budget: u64,
    step: ScrubStep,
    buffer: AlignedBuf,
}

impl Walk<'_> {
    fn has_budget(&self) -> bool {
        self.step.read_bytes < self.budget
    }

    /// Does one part of a pass; where to go on.
    fn part(&mut self, cursor: Cursor) -> Cursor {
        let meta = &self.keeper.meta;
        match cursor {
            Cursor::Start => {
                self.meta_page(meta);
                Cursor::Tree(0, Vec::new())
            }
            Cursor::Tree(tree, from) => {
                let Some(root) = meta.state.roots.get(tree).filter(|root| root.page != 0) else {
                    return next_tree(tree);
                };
                let expected = Expected {
                    page: root.page,
                    birth: meta.state.number,
                    level: None,
                    sums: root.sums,
                    depth: 0,
                };
                match self.subtree(&expected, &from) {
                    Some(key) => Cursor::Tree(tree, key),
                    None => next_tree(tree),
                }
            }
            Cursor::FreeMap(index) => {
                let free_map = &self.keeper.free_map;
                let Some(number) = free_map.pages().nth(index) else {
                    return Cursor::Start;
                };
                let kind = match index < free_map.directory.len() {
                    true => Kind::Directory,
                    false => Kind::Bitmap,
                };
                let read = self.page(number, meta.state.number);
                if read.is_some_and(|page| page.kind() != Some(kind)) {
                    self.damaged(number, "is no page of the free map");
                }
                Cursor::FreeMap(index + 1)
            }
        }
    }

    /// The meta page of the last checkpoint; the other one is of no use any more.
    fn meta_page(&mut self, meta: &Meta) {
        let number = meta.page();
        if self.read(number, 1) && self.buffer[..] != meta.encode() {
            self.damaged(
                number,
                "is not the meta page that the last checkpoint wrote",
            );
        }
    }

    /// Visits what is at or above `from` below a page; the key to go on at, if the
    /// budget ran out before the end.
    fn subtree(&mut self, expected: &Expected, from: &[u8]) -> Option<Vec<u8>> {
        let page = self.tree_page(expected)?;
        if page.is_leaf() {
            return self.long_values(&page, from);
        }
        let first = page.child_for(from);
        for index in first..page.count() {
            let Child {
                page: number, sums, ..
            } = page.child(index);
            let below = Expected {
                page: number,
                birth: page.birth(),
                level: Some(page.level() - 1),
                sums,
                depth: expected.depth + 1,
            };
            let from = if index == first { from } else { &[] };
            let stop = self.subtree(&below, from);
            if stop.is_some() {
                return stop;
            }
            if !self.has_budget() && index + 1 < page.count() {
                return Some(joined(page.key_parts(index + 1)));
            }
        }
        None
    }

    /// A leaf or a branch, if it is whole and the one that belongs there.
    fn tree_page(&mut self, expected: &Expected) -> Option<Page> {
        let page = self.page(expected.page, expected.birth)?;
        let is_tree = page.is_leaf() || page.is_branch();
        let what = if expected.depth == MAX_DEPTH {
            format!("lies more than {MAX_DEPTH} levels deep")
        } else if !is_tree || expected.level.is_some_and(|level| level != page.level()) {
            format!("is of level {}, which does not belong there", page.level())
        } else if page.own_sums() != expected.sums {
            let (holds, booked) = (page.own_sums(), expected.sums);
            format!("holds {holds:?}, but is booked as {booked:?}: not what was last written there")
        } else {
            return Some(page);
        };
        self.damaged(expected.page, what);
        None
    }

    /// The runs that a leaf refers to, of keys from `from` on.
    fn long_values(&mut self, page: &Page, from: &[u8]) -> Option<Vec<u8>> {
        if !page.has_overflow() {
            return None;
        }
        let start = page.find(from).unwrap_or_else(|index| index);
        for index in start..page.count() {
            let Value::Long(long) = page.value(index) else {
                continue;
            };
            self.run(long.run);
            if !self.has_budget() && index + 1 < page.count() {
                return Some(joined(page.key_parts(index + 1)));
            }
        }
        None
    }

    fn run(&mut self, overflow: OverflowRef) {
        let (first, pages) = (overflow.page, overflow.pages());
        let mut left = HEADER_BYTES + overflow.length as usize;
        let (mut stored, mut actual) = (0, 0);
        let mut done = 0;
        while done < pages {
            let part = (pages - done).min(RUN_PART_PAGES);
            if !self.read(first + done, part) {
                return;
            }
            let mut bytes = &self.buffer[..left.min(self.buffer.len())];
            left -= bytes.len();
            if done == 0 {
                let head = Page::parse(&self.buffer);
                stored = page::stored_checksum(bytes);
                bytes = &bytes[CRC_BYTES..];
                if let Err(what) = overflow.check_start(&head) {
                    return self.damaged(first, what);
                }
            }
            actual = crc32c::crc32c_append(actual, bytes);
            done += part;
        }
        if stored != actual {
            let what = format!("starts a run whose checksum is {actual:08x}, it says {stored:08x}");
            self.damaged(first, what);
        }
    }

    /// A page that is not inside a run, if it is whole.
    fn page(&mut self, number: u64, parent_birth: u64) -> Option<Page> {
        if !self.read(number, 1) {
            return None;
        }
        let page = Page::parse(&self.buffer);
        let checked = page::decode(&self.buffer, number);
        if let Err(what) = checked {
            self.damaged(number, what);
            return None;
        }
        if page.birth() > parent_birth {
            self.damaged(number, "is younger than what refers to it");
            return None;
        }
        Some(page)
    }

    /// Reads pages into the buffer; whether that worked.
    fn read(&mut self, number: u64, pages: u64) -> bool {
        let end = self.pager.end();
        if number >= end || pages > end - number {
            self.damaged(
                number,
                "is referred to, but lies beyond the end of the file",
            );
            return false;
        }
        self.buffer.resize(pages as usize * PAGE_BYTES);
        self.step.read_bytes += self.buffer.len() as u64;
        let offset = number * PAGE_BYTES as u64;
        match self.pager.file().read_direct_at(&mut self.buffer, offset) {
            Ok(read) if read == self.buffer.len() => return true,
            Ok(_) => self.damaged(number, "is cut off: the file ends within it"),
            Err(error) => {
                let error = disk_error(error);
                self.pager.damage_log().note(number, &error);
                self.step.damage.push(error);
            }
        }
        false
    }

    fn damaged(&mut self, number: u64, what: impl Into<String>) {
        let error = self.pager.damaged(number, what);
        self.step.damage.push(error);
    }
}

fn next_tree(tree: usize) -> Cursor {
    match tree + 1 < MAX_TREES {
        true => Cursor::Tree(tree + 1, Vec::new()),
        false => Cursor::FreeMap(0),
    }
}
