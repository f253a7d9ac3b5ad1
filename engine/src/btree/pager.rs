//! Pages in the mapped file: who may look at them, who may change them.
//!
//! Invariants, on which all of this file's `unsafe` rests:
//! - A page that some published state can reach is not changed (but for its
//!   checksum, which is atomic) as long as that state is pinned. Whoever looks
//!   at pages shows a [`Pin`] or is the writer, who shows the [`BatchToken`].
//! - A page that the open batch made is reachable from no published state, and
//!   only the writer knows its number. Where it has several threads put to parts of a
//!   tree (`put_all`), each with a token of its own, a page of a part is looked at and
//!   changed by that part's thread alone, until all have ended; whoever made it.
//! - Pages below `end` lie inside the file. `end` falls only past pages that
//!   are free: no reader looks at them.
//! - A page from before the file was opened is verified before anything in it
//!   is believed: its bit in `verified` is set after that, and set at once for
//!   pages that this process makes.
#![allow(unsafe_code)] // pages are shared memory; the protocol above guards them

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::leaf::{LongValue, OverflowRef};
use super::page::{self, HEADER_BYTES, Kind, PAGE_BYTES, Page};
use super::readers::Pin;
use super::store::lock;
use crate::backend::{BackendError, DamageLog, Result};
use crate::disk::{DiskError, File, Map};

/// The file and its map.
#[derive(Debug)]
pub(super) struct Pager {
    file: Arc<dyn File>,
    map: Map,
    /// Pages that the map can hold.
    capacity: u64,
    /// Pages that the file has.
    end: AtomicU64,
    /// Held by whoever changes the file's length.
    length: Mutex<()>,
    /// One bit per page that need not be verified any more.
    verified: Box<[AtomicU64]>,
    /// Number of the state that was opened: no page of it is younger.
    opened: u64,
    /// Pages that turned out to be damaged.
    damage: DamageLog,
}

/// An end that the file itself does not have yet; meanwhile it does not grow.
#[must_use]
pub(super) struct Cut<'p> {
    pager: &'p Pager,
    _length: MutexGuard<'p, ()>,
}

impl Cut<'_> {
    /// Cuts the file off.
    pub(super) fn finish(self) -> Result<()> {
        let end = self.pager.end() * PAGE_BYTES as u64;
        self.pager.file.truncate(end).map_err(disk_error)
    }
}

/// The right to make and change pages; held by the writer of the open batch,
/// and by a checkpoint for pages of its own.
#[derive(Debug)]
pub(super) struct BatchToken {
    /// Birth of the pages that it makes.
    birth: u64,
}

impl BatchToken {
    /// A token for pages that no other token's holder looks at meanwhile.
    pub(super) fn new(birth: u64) -> Self {
        Self { birth }
    }

    pub(super) fn birth(&self) -> u64 {
        self.birth
    }
}

/// Sight of the pages of one state.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'v> {
    pager: &'v Pager,
}

/// The error of a disk as one of a backend.
pub(super) fn disk_error(error: DiskError) -> BackendError {
    let (action, path, offset, source) = error.into_parts();
    BackendError::Io {
        action,
        path,
        offset,
        source,
    }
}

impl Pager {
    /// Maps `file`, of which `end` pages exist, reserving `map_bytes`.
    pub(super) fn new(file: Arc<dyn File>, map_bytes: usize, opened: u64) -> Result<Self> {
        let map = file.map(map_bytes).map_err(disk_error)?;
        map.expect_random_access();
        let capacity = (map.reserved_bytes() / PAGE_BYTES) as u64;
        let end = (file.len().map_err(disk_error)? / PAGE_BYTES as u64).min(capacity);
        Ok(Self {
            file,
            map,
            capacity,
            end: AtomicU64::new(end),
            length: Mutex::new(()),
            verified: zeroed_words(capacity.div_ceil(64) as usize),
            opened,
            damage: DamageLog::default(),
        })
    }

    pub(super) fn file(&self) -> &dyn File {
        &*self.file
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Pages that the file has.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Makes the file `pages` longer.
    pub(super) fn grow(&self, pages: u64) -> Result<()> {
        // The system may still be at cutting off what lay there before.
        let _length = lock(&self.length);
        let end = self.end();
        if pages > self.capacity - end {
            return Err(BackendError::Io {
                action: "allocate",
                path: self.path().to_owned(),
                offset: end * PAGE_BYTES as u64,
                source: std::io::Error::new(
                    std::io::ErrorKind::StorageFull,
                    format!("the store is limited to {} pages", self.capacity),
                ),
            });
        }
        let bytes = PAGE_BYTES as u64;
        self.file
            .allocate(end * bytes, pages * bytes)
            .map_err(disk_error)?;
        self.end.store(end + pages, Ordering::Release);
        Ok(())
    }

    /// The file ends at page `end` from now on, for all who take or look at pages; no
    /// state, pinned or durable, reaches the pages from there on. [`Cut::finish`] then
    /// gives their space back, which takes milliseconds.
    pub(super) fn cut(&self, end: u64) -> Cut<'_> {
        let length = lock(&self.length);
        self.end.store(end, Ordering::Release);
        Cut {
            pager: self,
            _length: length,
        }
    }

    /// Has the pages `first..first + pages` written back, but for those beyond the
    /// file: see [`File::write_back`].
    pub(super) fn write_back(&self, first: u64, pages: u64) -> Result<()> {
        let pages = pages.min(self.end().saturating_sub(first));
        if pages == 0 {
            return Ok(());
        }
        let (offset, length) = (first * PAGE_BYTES as u64, pages * PAGE_BYTES as u64);
        self.map
            .unmap_for_write_back(offset as usize, length as usize);
        self.file.write_back(offset, length).map_err(disk_error)
    }

    /// Makes everything durable that was written back so far.
    pub(super) fn sync_written_back(&self) -> Result<()> {
        let synced = self.file.sync_written_back(&self.map);
        synced.map_err(disk_error)
    }

    /// Sight of the state that `pin` holds.
    pub(super) fn pinned<'v>(&'v self, _pin: &'v Pin) -> View<'v> {
        View { pager: self }
    }

    /// Sight of the state that a batch works on.
    pub(super) fn working<'v>(&'v self, _token: &'v BatchToken) -> View<'v> {
        View { pager: self }
    }

    /// A page that `token`'s holder made.
    pub(super) fn page_mut<'v>(&'v self, token: &'v mut BatchToken, number: u64) -> &'v mut Page {
        assert!(number < self.end(), "page {number} is beyond the file");
        // SAFETY: inside the file; the batch made the page, and of its threads only the
        // token's holder looks at it now; the token is borrowed for as long as the page is.
        let page = unsafe { &mut *self.address(number) };
        assert!(
            page.birth() == token.birth,
            "page {number} is of an earlier state"
        );
        page
    }

    /// Makes page `number`, which was free, the token's own.
    pub(super) fn adopt<'v>(&'v self, token: &'v mut BatchToken, number: u64) -> &'v mut Page {
        assert!(number < self.end(), "page {number} is beyond the file");
        // SAFETY: inside the file, and free pages are nobody's.
        let page = unsafe { &mut *self.address(number) };
        page.identify(token.birth, number);
        self.set_verified(number);
        page
    }

    /// Makes page `to`, which was free, the token's own, with the content of
    /// `from`, which was read before.
    pub(super) fn copy(&self, token: &mut BatchToken, from: u64, to: u64) {
        assert!(
            from != to && from < self.end(),
            "page {from} is copied to {to}"
        );
        // SAFETY: inside the file; `from` is a page of the state that the token's
        // holder works on, so nobody changes it, and `to` is another page.
        let from = unsafe { &*self.address(from) };
        self.adopt(token, to).copy_content(from);
    }

    /// Makes the run of pages at `number`, which were free, hold `value`, with its
    /// checksum: no checkpoint need look at it again. Written as part of a file and
    /// in whole pages: through the map each page would be a fault of its own, for
    /// which the kernel reads or clears it first.
    pub(super) fn write_run(&self, token: &BatchToken, number: u64, value: &[u8]) -> Result<()> {
        let pages = run_pages(value.len());
        assert!(
            number + pages <= self.end(),
            "run {number} ends beyond the file"
        );
        let head = page::run_head(token.birth, number, value);
        let mut part = Vec::with_capacity(RUN_PART_BYTES.min(pages as usize * PAGE_BYTES));
        part.extend_from_slice(&head);
        let (mut rest, mut offset) = (value, number * PAGE_BYTES as u64);
        loop {
            let taken = rest.len().min(RUN_PART_BYTES - part.len());
            part.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            part.resize(part.len().next_multiple_of(PAGE_BYTES), 0);
            self.file.write_at(&part, offset).map_err(disk_error)?;
            if rest.is_empty() {
                break;
            }
            offset += part.len() as u64;
            part.clear();
        }
        self.set_verified(number);
        Ok(())
    }

    /// Has a page in memory that is about to be written to, and whose content
    /// nobody needs: written as part of a file it is not read first.
    pub(super) fn bring_in_free(&self, number: u64) -> Result<()> {
        const EMPTY: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        if self.is_resident(number) {
            return Ok(());
        }
        let written = self.file.write_at(&EMPTY, number * PAGE_BYTES as u64);
        written.map_err(disk_error)
    }

    fn is_resident(&self, number: u64) -> bool {
        number >= self.end() || self.map.is_resident(number as usize * PAGE_BYTES)
    }

    fn address(&self, number: u64) -> *mut Page {
        // SAFETY: callers checked that the page is inside the map.
        unsafe { self.map.base().cast::<Page>().add(number as usize) }
    }

    fn is_verified(&self, number: u64) -> bool {
        let word = self.verified.get((number / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (number % 64) & 1 == 1)
    }

    fn set_verified(&self, number: u64) {
        // A look first: most pages are recycled ones, and an atomic change waits
        // for the stores before it.
        if !self.is_verified(number)
            && let Some(word) = self.verified.get((number / 64) as usize)
        {
            word.fetch_or(1 << (number % 64), Ordering::AcqRel);
        }
    }

    /// A page at its first read since the file was opened.
    #[cold]
    fn verify(&self, number: u64, run: bool) -> Result<()> {
        if number >= self.end() || number < super::meta::META_PAGES {
            return Err(self.damaged(number, "is referred to, but is none of the file's pages"));
        }
        // SAFETY: inside the file; see `View::page`.
        let page = unsafe { &*self.address(number) };
        let pages = match (run, page.kind()) {
            (false, Some(Kind::Leaf | Kind::Branch | Kind::Bitmap | Kind::Directory)) => 1,
            (true, Some(Kind::Overflow)) => run_pages(page.run_length()),
            (_, kind) => {
                return Err(self.damaged(number, format!("is of kind {kind:?} where it cannot be")));
            }
        };
        if number + pages > self.end() {
            return Err(self.damaged(number, "starts a run that ends beyond the file"));
        }
        let bytes = pages as usize * PAGE_BYTES;
        self.decode(number, bytes)
            .map_err(|what| self.damaged(number, what))?;
        if page.birth() > self.opened {
            let what = format!(
                "is of state {}, but belongs to state {}: something overwrote it",
                page.birth(),
                self.opened
            );
            return Err(self.damaged(number, what));
        }
        self.set_verified(number);
        Ok(())
    }

    fn decode(&self, number: u64, bytes: usize) -> std::result::Result<(), String> {
        // SAFETY: the caller made sure that the bytes are inside the file, and
        // pages from before it was opened are changed by nobody who reads them.
        let bytes = unsafe { std::slice::from_raw_parts(self.address(number).cast::<u8>(), bytes) };
        page::decode(bytes, number)
    }

    /// Fills in the checksum of a new page, if it has none: a run is made with it.
    pub(super) fn seal(&self, view: View<'_>, number: u64) -> Result<()> {
        if !self.is_verified(number) {
            return Err(self.damaged(number, "is new, but was never made"));
        }
        let page = view.page(number)?;
        if page.kind() != Some(Kind::Overflow) {
            page.seal(page.checksum());
        }
        Ok(())
    }

    /// An error that names a page, which is noted as damaged.
    pub(super) fn damaged(&self, page: u64, what: impl Into<String>) -> BackendError {
        let error = BackendError::Damaged {
            path: self.path().to_owned(),
            page,
            what: what.into(),
        };
        self.damage.note(page, &error);
        error
    }

    /// What was found damaged since the store was opened.
    pub(super) fn damage_log(&self) -> &DamageLog {
        &self.damage
    }
}

/// Bytes of a run that are written at a time.
const RUN_PART_BYTES: usize = 1 << 18;

/// Pages of a run that holds a value of `length` bytes.
pub(super) fn run_pages(length: usize) -> u64 {
    (HEADER_BYTES + length).div_ceil(PAGE_BYTES) as u64
}

impl<'v> View<'v> {
    /// Asks the processor to load what a search in a page begins with: its
    /// header, its prefix and its first slots.
    #[inline]
    pub(super) fn prefetch(&self, number: u64) {
        self.prefetch_lines(number, SEARCH_LINES);
    }

    /// The same for a child of a branch of `level`, when no other page is on its way: all
    /// slots of a branch, which would be waited for one after another.
    #[inline]
    pub(super) fn prefetch_below(&self, level: u8, number: u64) {
        match level {
            ..=1 => self.prefetch(number),
            _ => self.prefetch_lines(number, BRANCH_LINES),
        }
    }

    /// Asks the processor to load a whole page, which is about to be copied.
    #[inline]
    pub(super) fn prefetch_all(&self, number: u64) {
        self.prefetch_lines(number, PAGE_LINES);
    }

    /// Whether reading a page would not wait for the disk.
    pub(super) fn is_resident(&self, number: u64) -> bool {
        self.pager.is_resident(number)
    }

    /// Starts reading `pages` pages from `number` on.
    pub(super) fn will_need(&self, number: u64, pages: u64) {
        let pages = pages.min(self.pager.end().saturating_sub(number));
        if pages > 0 {
            let map = &self.pager.map;
            map.will_need(number as usize * PAGE_BYTES, pages as usize * PAGE_BYTES);
        }
    }

    #[inline]
    fn prefetch_lines(&self, number: u64, lines: usize) {
        // Only an address is formed, and a prefetch of a wrong one does nothing.
        let start = self
            .pager
            .map
            .base()
            .wrapping_add(number as usize * PAGE_BYTES);
        for line in 0..lines {
            prefetch_line(start.wrapping_add(line * LINE_BYTES));
        }
    }

    /// A page of the tree.
    #[inline]
    pub(super) fn page(&self, number: u64) -> Result<&'v Page> {
        if !self.pager.is_verified(number) {
            self.pager.verify(number, false)?;
        }
        // SAFETY: verified pages are inside the file, and those that the viewed
        // state reaches are not changed while `'v` holds its pin or its token.
        Ok(unsafe { &*self.pager.address(number) })
    }

    /// The first page of an overflow run.
    pub(super) fn run(&self, number: u64) -> Result<&'v Page> {
        if !self.pager.is_verified(number) {
            self.pager.verify(number, true)?;
        }
        // SAFETY: as in `page`.
        Ok(unsafe { &*self.pager.address(number) })
    }

    /// What an overflow run holds.
    pub(super) fn run_value(&self, overflow: OverflowRef) -> Result<&'v [u8]> {
        let page = self.run(overflow.page)?;
        overflow
            .check_start(page)
            .map_err(|what| self.pager.damaged(overflow.page, what))?;
        Ok(self.run_bytes(overflow.page, page))
    }

    /// The whole of a long value.
    pub(super) fn long_value(&self, long: &LongValue<'_>) -> Result<Cow<'v, [u8]>> {
        let run = self.run_value(long.run)?;
        Ok(match long.before() {
            [] => Cow::Borrowed(run),
            before => Cow::Owned([before, run].concat()),
        })
    }

    /// The checksum that a run's content has.
    pub(super) fn run_checksum(&self, overflow: OverflowRef) -> Result<u32> {
        let page = self.run(overflow.page)?;
        Ok(page.run_checksum(self.run_bytes(overflow.page, page)))
    }

    fn run_bytes(&self, number: u64, page: &Page) -> &'v [u8] {
        // SAFETY: as in `page`; the run's length was verified, or written by
        // this process, and so lies inside the file.
        unsafe {
            let start = self.pager.address(number).cast::<u8>().add(HEADER_BYTES);
            std::slice::from_raw_parts(start, page.run_length())
        }
    }

    #[cold]
    pub(super) fn too_deep(&self, page: u64) -> BackendError {
        let what = format!("lies more than {} levels deep", super::path::MAX_DEPTH);
        self.pager.damaged(page, what)
    }

    /// An error that names a page.
    pub(super) fn damaged(&self, page: u64, what: impl Into<String>) -> BackendError {
        self.pager.damaged(page, what)
    }
}

/// `count` zero words. The allocator maps them lazily, so a bitmap for the
/// whole reserved range costs memory only where the file has pages.
fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
    let words = Box::into_raw(vec![0_u64; count].into_boxed_slice());
    // SAFETY: AtomicU64 has the same layout as u64, and the box is not used as
    // anything else from here on.
    unsafe { Box::from_raw(words as *mut [AtomicU64]) }
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// Lines that a search in a leaf of usual values looks at.
const SEARCH_LINES: usize = 3;
/// Lines of the slots of a branch of 140 children: with short keys it has 80 to 110.
const BRANCH_LINES: usize = 18;
/// Lines of a whole page.
const PAGE_LINES: usize = PAGE_BYTES / LINE_BYTES;

#[inline]
fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Lines of a cell that are asked for before its length is known: those of a value
/// of 256 bytes.
const CELL_LINES: usize = 5;

/// Asks the processor to load a cell whose value is likely to be read.
#[inline]
pub(super) fn prefetch_cell(page: &Page, index: usize) {
    let start = std::ptr::from_ref(page).cast::<u8>();
    let cell = start.wrapping_add(page.cell_offset(index));
    for line in 0..CELL_LINES {
        prefetch_line(cell.wrapping_add(line * LINE_BYTES));
    }
}

/// Asks the processor to load the beginning of each cell of a range of slots,
/// which a scan is about to visit: they lie in the page in any order.
pub(super) fn prefetch_cells(page: &Page, slots: std::ops::Range<usize>) {
    let start = std::ptr::from_ref(page).cast::<u8>();
    for index in slots {
        prefetch_line(start.wrapping_add(page.cell_offset(index)));
    }
}
