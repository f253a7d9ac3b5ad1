//! Looking at a store's file without opening the store: what `varvectl inspect`
//! shows. Nothing is believed that was not verified, nothing is written, and any
//! bytes give an answer.

use std::path::Path;
use std::sync::Arc;

use super::branch::plus;
use super::free_map::{directory_of, is_bit_set};
use super::leaf::{OverflowRef, Value};
use super::meta::{Found, META_PAGES, Meta};
use super::page::{self, BODY_BYTES, Kind, PAGE_BYTES, Page, validate};
use super::pager::{disk_error, run_pages};
use super::path::MAX_DEPTH;
use super::slotted::joined;
use crate::backend::{Applied, BackendError, MAX_TREES, Result, Sums};
use crate::disk::{Disk, File, OpenMode};

/// Faults that a walk lists; more are only counted.
pub const MAX_FAULTS: usize = 100;

/// A store's file.
#[derive(Debug)]
pub struct Inspector {
    file: Arc<dyn File>,
    pages: u64,
}

/// What is in the place of a meta page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaPage {
    /// A whole one.
    Valid(Box<MetaFields>),
    /// Zeroes: never written.
    Blank,
    /// Damaged, or cut off: what is wrong.
    Invalid(String),
    /// Another program's or version's.
    Foreign(String),
}

/// The fields of a meta page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaFields {
    /// One more with each checkpoint; the valid page with the higher one counts.
    pub sequence: u64,
    /// Number of the state.
    pub state: u64,
    /// The log entry up to which it applies.
    pub applied: Applied,
    /// Pages of the file.
    pub end: u64,
    /// First page of the free map's directory, 0 for none.
    pub directory: u64,
    /// Per tree: its root page, 0 if it is empty, and its sums.
    pub roots: [(u64, Sums); MAX_TREES],
}

/// What the header of a page says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageHeader {
    /// `leaf`, `branch`, `overflow`, `bitmap`, `directory`, or `None` for another number.
    pub kind: Option<&'static str>,
    /// Height over the leaves.
    pub level: u8,
    /// Slots.
    pub count: usize,
    /// Where the lowest cell starts.
    pub heap: usize,
    /// Bytes of removed cells.
    pub garbage: usize,
    /// The prefix that all keys share; empty if the page is not whole.
    pub prefix: Vec<u8>,
    /// Whether overflow runs may hang below.
    pub has_overflow: bool,
    /// Number of the state that made it.
    pub birth: u64,
    /// The number that it says it has.
    pub number: u64,
    /// The checksum that it says it has, and the one that it has.
    pub checksums: (u32, u32),
    /// Length of the value, of the first page of a run.
    pub run_length: usize,
}

/// What a slot leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A value in the page.
    Inline(Vec<u8>),
    /// A value in a run of pages.
    Run {
        /// Its first page.
        page: u64,
        /// Bytes of the value in it.
        length: u32,
        /// Those before them, which are in this page.
        before: Vec<u8>,
    },
    /// A child.
    Child {
        /// Its page.
        page: u64,
        /// What is below it.
        sums: Sums,
        /// Whether overflow runs may hang below it.
        has_overflow: bool,
    },
}

/// A page, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageView {
    /// Its header.
    pub header: PageHeader,
    /// What is wrong with it.
    pub fault: Option<String>,
    /// Whether the last checkpoint's free map has it in use; unknown if that cannot be read.
    pub is_used: Option<bool>,
    /// Keys and what is there, where the page's structure is whole.
    pub slots: Vec<(Vec<u8>, Payload)>,
}

/// What a tree is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeView {
    /// Its root, 0 if it is empty.
    pub root: u64,
    /// Levels.
    pub depth: usize,
    /// Pages of each kind; those of runs.
    pub leaves: u64,
    /// Branches.
    pub branches: u64,
    /// Long values, and the pages that they take.
    pub runs: u64,
    /// Pages of runs.
    pub run_pages: u64,
    /// Bytes used of the leaves, and of the branches, without their headers.
    pub leaf_bytes: u64,
    /// Bytes used of the branches.
    pub branch_bytes: u64,
    /// What the meta page says that it holds.
    pub booked: Sums,
    /// What it holds.
    pub found: Sums,
    /// Faults in all.
    pub fault_count: u64,
    /// The first [`MAX_FAULTS`] of them.
    pub faults: Vec<String>,
}

impl TreeView {
    /// Share of the leaves' bytes that hold something, 0 to 1.
    pub fn leaf_fill(&self) -> f64 {
        fill(self.leaf_bytes, self.leaves)
    }

    /// Share of the branches' bytes that hold something, 0 to 1.
    pub fn branch_fill(&self) -> f64 {
        fill(self.branch_bytes, self.branches)
    }
}

fn fill(bytes: u64, pages: u64) -> f64 {
    match pages {
        0 => 0.0,
        _ => bytes as f64 / (pages * BODY_BYTES as u64) as f64,
    }
}

impl Inspector {
    /// Opens the file `path`, which must exist, on a disk that need not be writable:
    /// [`FrozenDisk`](crate::disk::frozen::FrozenDisk).
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let file = disk.open(path, OpenMode::Existing).map_err(disk_error)?;
        let pages = file.len().map_err(disk_error)? / PAGE_BYTES as u64;
        Ok(Self { file, pages })
    }

    /// Whole pages of the file.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Both meta pages.
    pub fn meta(&self) -> Result<[MetaPage; 2]> {
        let found = self.found()?;
        Ok(found.map(|found| match found {
            Found::Valid(meta) => MetaPage::Valid(Box::new(MetaFields {
                sequence: meta.sequence,
                state: meta.state.number,
                applied: meta.state.applied,
                end: meta.end,
                directory: meta.directory,
                roots: meta.state.roots.map(|root| (root.page, root.sums)),
            })),
            Found::Blank => MetaPage::Blank,
            Found::Invalid(what) => MetaPage::Invalid(what),
            Found::Foreign(what) => MetaPage::Foreign(what),
        }))
    }

    fn found(&self) -> Result<[Found; 2]> {
        let read = |page| -> Result<Found> {
            let mut bytes = [0; PAGE_BYTES];
            let read = self.file.read_at(&mut bytes, page * PAGE_BYTES as u64);
            Ok(match read.map_err(disk_error)? {
                0 => Found::Invalid("the file ends before it".to_owned()),
                _ => Meta::decode(&bytes, page),
            })
        };
        Ok([read(0)?, read(1)?])
    }

    /// The meta page that a store would be opened with.
    fn newest(&self) -> Result<Meta> {
        let valid = self.found()?.into_iter().filter_map(|found| match found {
            Found::Valid(meta) => Some(*meta),
            _ => None,
        });
        let newest = valid.max_by_key(|meta| meta.sequence);
        newest.ok_or_else(|| self.damaged(0, "and page 1 are no valid meta pages"))
    }

    fn damaged(&self, page: u64, what: impl Into<String>) -> BackendError {
        BackendError::Damaged {
            path: self.file.path().to_owned(),
            page,
            what: what.into(),
        }
    }

    fn read(&self, number: u64, pages: u64) -> Result<Vec<u8>> {
        if number >= self.pages || pages > self.pages - number {
            let what = format!(
                "lies beyond the end of the file, which has {} pages",
                self.pages
            );
            return Err(self.damaged(number, what));
        }
        let mut bytes = vec![0; pages as usize * PAGE_BYTES];
        let read = self
            .file
            .read_exact_at(&mut bytes, number * PAGE_BYTES as u64);
        read.map_err(disk_error)?;
        Ok(bytes)
    }

    /// Page `number`, which is no meta page.
    pub fn page(&self, number: u64) -> Result<PageView> {
        if number < META_PAGES {
            return Err(self.damaged(number, "is a meta page"));
        }
        let mut bytes = self.read(number, 1)?;
        let page = Page::parse(&bytes);
        // The length of a damaged page may be anything.
        if page.kind() == Some(Kind::Overflow) && page.run_length() <= page::MAX_VALUE_BYTES {
            let pages = run_pages(page.run_length());
            bytes = self.read(number, pages).unwrap_or(bytes);
        }
        let fault = page::decode(&bytes, number).err();
        let whole = validate(&page).is_ok();
        let is_slotted = whole && (page.is_leaf() || page.is_branch());
        let length = match page.kind() {
            Some(Kind::Overflow) => page::HEADER_BYTES + page.run_length(),
            _ => PAGE_BYTES,
        };
        let checked = &bytes[..length.min(bytes.len())];
        Ok(PageView {
            header: PageHeader {
                kind: page.kind().map(name_of),
                level: page.level(),
                count: page.count(),
                heap: page.heap(),
                garbage: page.garbage(),
                prefix: if is_slotted {
                    page.prefix().to_vec()
                } else {
                    Vec::new()
                },
                has_overflow: page.has_overflow(),
                birth: page.birth(),
                number: page.number(),
                checksums: (page::stored_checksum(checked), page::checksum(checked)),
                run_length: page.run_length(),
            },
            fault,
            is_used: self.is_used(number).ok(),
            slots: if is_slotted { slots(&page) } else { Vec::new() },
        })
    }

    /// Whether the last checkpoint's free map has the page in use.
    fn is_used(&self, number: u64) -> Result<bool> {
        let mut used = None;
        self.bitmaps(&mut |first, bitmap| {
            if (first..first + super::bitmap::CHUNK_PAGES).contains(&number) {
                used = Some(is_bit_set(bitmap, number - first));
            }
        })?;
        Ok(used.unwrap_or(false))
    }

    /// Visits the free map's pages: the first page that one describes, and it.
    fn bitmaps(&self, visit: &mut dyn FnMut(u64, &Page)) -> Result<()> {
        let meta = self.newest()?;
        let (mut next, mut first) = (meta.directory, 0);
        while next != 0 && first < meta.end {
            let directory = self.whole(next, Kind::Directory)?;
            let (following, bitmaps) = directory_of(&directory);
            if bitmaps.is_empty() {
                return Err(self.damaged(next, "is no part of the free-space directory"));
            }
            for bitmap in bitmaps {
                visit(first, &self.whole(bitmap, Kind::Bitmap)?);
                first += super::bitmap::CHUNK_PAGES;
            }
            next = following;
        }
        Ok(())
    }

    fn whole(&self, number: u64, kind: Kind) -> Result<Page> {
        let bytes = self.read(number, 1)?;
        page::decode(&bytes, number).map_err(|what| self.damaged(number, what))?;
        let page = Page::parse(&bytes);
        match page.kind() == Some(kind) {
            true => Ok(page),
            false => Err(self.damaged(number, format!("is no {} page", name_of(kind)))),
        }
    }

    /// Pages of the file that the last checkpoint does not use, but for the meta pages.
    pub fn free_pages(&self) -> Result<u64> {
        let mut used = 0;
        self.bitmaps(&mut |first, bitmap| {
            let pages = super::bitmap::CHUNK_PAGES.min(self.pages.saturating_sub(first));
            used += (META_PAGES.saturating_sub(first)..pages)
                .filter(|page| is_bit_set(bitmap, *page))
                .count() as u64;
        })?;
        Ok(self.pages.saturating_sub(META_PAGES).saturating_sub(used))
    }

    /// Goes over tree `tree` as of the last checkpoint. What is damaged is listed, and
    /// what lies below it is not visited.
    pub fn tree(&self, tree: usize) -> Result<TreeView> {
        let meta = self.newest()?;
        let Some(root) = meta.state.roots.get(tree) else {
            return Err(BackendError::UnknownTree { tree: tree as u8 });
        };
        let mut walk = TreeWalk {
            inspector: self,
            seen: vec![0; self.pages.div_ceil(64) as usize],
            view: TreeView {
                root: root.page,
                booked: root.sums,
                ..TreeView::default()
            },
        };
        if root.page != 0 {
            walk.view.found = walk.subtree(root.page, meta.state.number, None, 0);
        }
        if walk.view.found != root.sums && walk.view.faults.is_empty() {
            let (found, booked) = (walk.view.found, root.sums);
            walk.fault(format!(
                "the tree holds {found:?}, but is booked as {booked:?}"
            ));
        }
        Ok(walk.view)
    }
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Leaf => "leaf",
        Kind::Branch => "branch",
        Kind::Overflow => "overflow",
        Kind::Bitmap => "bitmap",
        Kind::Directory => "directory",
    }
}

fn slots(page: &Page) -> Vec<(Vec<u8>, Payload)> {
    let payload = |index| match page.is_branch() {
        true => {
            let child = page.child(index);
            Payload::Child {
                page: child.page,
                sums: child.sums,
                has_overflow: child.has_overflow,
            }
        }
        false => match page.value(index) {
            Value::Inline(bytes) => Payload::Inline(bytes.to_vec()),
            Value::Long(long) => Payload::Run {
                page: long.run.page,
                length: long.run.length,
                before: long.before().to_vec(),
            },
        },
    };
    (0..page.count())
        .map(|index| (joined(page.key_parts(index)), payload(index)))
        .collect()
}

struct TreeWalk<'i> {
    inspector: &'i Inspector,
    /// One bit per page that was visited: damaged references must not multiply.
    seen: Vec<u64>,
    view: TreeView,
}

impl TreeWalk<'_> {
    fn fault(&mut self, what: String) {
        self.view.fault_count += 1;
        if self.view.faults.len() < MAX_FAULTS {
            self.view.faults.push(what);
        }
    }

    /// Marks a page; whether it was met for the first time.
    fn mark(&mut self, number: u64) -> bool {
        let Some(word) = self.seen.get_mut((number / 64) as usize) else {
            return true; // reading it says what is wrong
        };
        let bit = 1 << (number % 64);
        std::mem::replace(word, *word | bit) & bit == 0
    }

    fn subtree(&mut self, number: u64, birth: u64, level: Option<u8>, depth: usize) -> Sums {
        self.view.depth = self.view.depth.max(depth + 1);
        let page = match self.tree_page(number, birth, level, depth) {
            Ok(page) => page,
            Err(error) => {
                self.fault(error.to_string());
                return Sums::default();
            }
        };
        let used = page.used() as u64;
        if page.is_leaf() {
            self.view.leaves += 1;
            self.view.leaf_bytes += used;
            page.long_values().for_each(|long| self.run(long.run));
            return page.own_sums();
        }
        self.view.branches += 1;
        self.view.branch_bytes += used;
        let mut sums = Sums::default();
        for index in 0..page.count() {
            let child = page.child(index);
            let faults = self.view.fault_count;
            let below = Some(page.level() - 1);
            let found = self.subtree(child.page, page.birth(), below, depth + 1);
            if found != child.sums && faults == self.view.fault_count {
                let booked = child.sums;
                let what = format!("holds {found:?}, but is booked as {booked:?}");
                self.fault(self.inspector.damaged(child.page, what).to_string());
            }
            sums = plus(sums, found);
        }
        sums
    }

    fn tree_page(
        &mut self,
        number: u64,
        birth: u64,
        level: Option<u8>,
        depth: usize,
    ) -> Result<Page> {
        let inspector = self.inspector;
        let damaged = |what: &str| Err(inspector.damaged(number, what));
        if depth == MAX_DEPTH {
            return damaged("lies too deep");
        }
        if !self.mark(number) {
            return damaged("is referred to twice");
        }
        let bytes = inspector.read(number, 1)?;
        page::decode(&bytes, number).map_err(|what| inspector.damaged(number, what))?;
        let page = Page::parse(&bytes);
        if !(page.is_leaf() || page.is_branch()) || level.is_some_and(|l| l != page.level()) {
            return damaged("is no page of that level of a tree");
        }
        if page.birth() > birth {
            return damaged("is younger than what refers to it");
        }
        Ok(page)
    }

    fn run(&mut self, run: OverflowRef) {
        let number = run.page;
        let pages = run.pages();
        self.view.runs += 1;
        self.view.run_pages += pages;
        let inspector = self.inspector;
        let checked = inspector.read(number, pages).and_then(|bytes| {
            page::decode(&bytes, number).map_err(|what| inspector.damaged(number, what))?;
            let page = Page::parse(&bytes);
            run.check_start(&page)
                .map_err(|what| inspector.damaged(number, what))
        });
        if let Err(error) = checked {
            self.fault(error.to_string());
        } else if !self.mark(number) {
            let error = inspector.damaged(number, "is referred to twice");
            self.fault(error.to_string());
        }
    }
}
