//! One page: its header, checksum and structural validation.
//!
//! All integers are little-endian. `engine/FORMAT.md` has the same table.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | crc32c of bytes 4.. (of the whole run, in an overflow run) |
//! | 4 | 1 | kind |
//! | 5 | 1 | level: 0 in a leaf, above that the height over the leaves |
//! | 6 | 2 | count of slots |
//! | 8 | 2 | heap: where the lowest cell starts |
//! | 10 | 2 | garbage: bytes of removed cells inside the heap |
//! | 12 | 2 | length of the key prefix, which follows the header |
//! | 14 | 2 | flags |
//! | 16 | 8 | birth: the number of the state that made the page |
//! | 24 | 8 | number of the page itself |
//!
//! In the first page of an overflow run, offset 8 holds the length u32 of what is in it.
//!
//! Invariants of a page that was sealed or published: it never changes, but
//! for its checksum, which a checkpoint fills in.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::leaf::{COPIED_BYTES, LongValue, OVERFLOW_REF_BYTES};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of the header of every page.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a slot: key head u32, cell offset u16, key suffix length u16.
pub const SLOT_BYTES: usize = 8;
/// What is left of a page for prefix, slots and cells.
pub const BODY_BYTES: usize = PAGE_BYTES - HEADER_BYTES;
/// The longest key. Three separators of that length still fit a branch and two
/// keys of it a leaf, which is what splitting in two needs.
pub const MAX_KEY_BYTES: usize = 1920;
/// The longest value: lengths are 32 bits wide, with room to spare.
pub const MAX_VALUE_BYTES: usize = 1 << 30;
/// An entry whose key and value together are longer has its value in an overflow
/// run: no cell takes more than half of a page, which is what splitting in two needs.
pub const MAX_INLINE_ENTRY_BYTES: usize = BODY_BYTES / 2 - SLOT_BYTES - CELL_LENGTH_BYTES;
/// Bytes of a cell's length, before its key.
const CELL_LENGTH_BYTES: usize = 2;

/// Flag: some value below (leaf: of this page) lies in an overflow run.
/// Sticky: it may outlive the last such value until the page is rebuilt.
pub(super) const FLAG_OVERFLOW: u16 = 1;

pub(super) const CRC_BYTES: usize = 4;
const KIND: usize = 4;
const LEVEL: usize = 5;
const COUNT: usize = 6;
const HEAP: usize = 8;
const GARBAGE: usize = 10;
const PREFIX: usize = 12;
const FLAGS: usize = 14;
const BIRTH: usize = 16;
const NUMBER: usize = 24;

const _: () = {
    assert!(NUMBER + 8 == HEADER_BYTES);
    assert!(PAGE_BYTES <= u16::MAX as usize);
    assert!(size_of::<Page>() == PAGE_BYTES);
    // Two cells of the largest size fit a leaf.
    assert!(2 * (SLOT_BYTES + CELL_LENGTH_BYTES + MAX_INLINE_ENTRY_BYTES) <= BODY_BYTES);
    assert!(MAX_KEY_BYTES + OVERFLOW_REF_BYTES + COPIED_BYTES <= MAX_INLINE_ENTRY_BYTES);
    // FORMAT.md says it.
    assert!(MAX_INLINE_ENTRY_BYTES == 2022);
    // Three children, of which the first has no key, fit a branch.
    let child = SLOT_BYTES + 2 + super::branch::CHILD_BYTES;
    assert!(3 * child + 2 * MAX_KEY_BYTES <= BODY_BYTES);
};

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Entries of a tree.
    Leaf = 1,
    /// Children of a tree.
    Branch = 2,
    /// The first page of a run that holds one long value.
    Overflow = 3,
    /// Part of the free-space bitmap.
    Bitmap = 4,
    /// Where the bitmap's pages are.
    Directory = 5,
}

/// One page. The checksum stands apart from the other bytes because a
/// checkpoint fills it in while readers hold the page.
#[repr(C, align(8))]
pub(super) struct Page {
    crc: AtomicU32,
    rest: [u8; PAGE_BYTES - CRC_BYTES],
}

impl Clone for Page {
    fn clone(&self) -> Self {
        Self {
            crc: AtomicU32::new(0),
            rest: self.rest,
        }
    }
}

impl Page {
    pub(super) const fn zeroed() -> Self {
        Self {
            crc: AtomicU32::new(0),
            rest: [0; PAGE_BYTES - CRC_BYTES],
        }
    }

    /// The page that `bytes` spell.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut page = Self::zeroed();
        page.rest.copy_from_slice(&bytes[CRC_BYTES..PAGE_BYTES]);
        page
    }

    /// A range of the page's bytes after the checksum.
    pub(super) fn span(&self, range: Range<usize>) -> &[u8] {
        &self.rest[range.start - CRC_BYTES..range.end - CRC_BYTES]
    }

    pub(super) fn span_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.rest[range.start - CRC_BYTES..range.end - CRC_BYTES]
    }

    /// Moves the bytes of `range` to `to`.
    pub(super) fn shift(&mut self, range: Range<usize>, to: usize) {
        self.rest.copy_within(
            range.start - CRC_BYTES..range.end - CRC_BYTES,
            to - CRC_BYTES,
        );
    }

    fn byte(&self, at: usize) -> u8 {
        self.rest[at - CRC_BYTES]
    }

    /// Makes this an empty page without a key prefix.
    pub(super) fn format(&mut self, kind: Kind, level: u8) {
        self.span_mut(KIND..LEVEL + 1)
            .copy_from_slice(&[kind as u8, level]);
        self.set_u16(COUNT, 0);
        self.set_u16(HEAP, PAGE_BYTES as u16);
        self.set_u16(GARBAGE, 0);
        self.set_u16(PREFIX, 0);
        self.set_u16(FLAGS, 0);
    }

    /// Takes over everything of `from`, a page of a tree, but who it is (checksum,
    /// birth, number) and what means nothing: the bytes between slots and cells.
    pub(super) fn copy_content(&mut self, from: &Page) {
        let heap = from.heap();
        let slots_end = heap - from.contiguous_free();
        for range in [KIND..BIRTH, HEADER_BYTES..slots_end, heap..PAGE_BYTES] {
            self.span_mut(range.clone())
                .copy_from_slice(from.span(range));
        }
    }

    pub(super) fn identify(&mut self, birth: u64, number: u64) {
        self.set_u64(BIRTH, birth);
        self.set_u64(NUMBER, number);
    }

    pub(super) fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    pub(super) fn set_u16(&mut self, at: usize, value: u16) {
        self.span_mut(at..at + 2)
            .copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.span(at..at + 8));
        u64::from_le_bytes(bytes)
    }

    pub(super) fn set_u64(&mut self, at: usize, value: u64) {
        self.span_mut(at..at + 8)
            .copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        Some(match self.byte(KIND) {
            1 => Kind::Leaf,
            2 => Kind::Branch,
            3 => Kind::Overflow,
            4 => Kind::Bitmap,
            5 => Kind::Directory,
            _ => return None,
        })
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.byte(KIND) == Kind::Leaf as u8
    }

    pub(super) fn is_branch(&self) -> bool {
        self.byte(KIND) == Kind::Branch as u8
    }

    pub(super) fn level(&self) -> u8 {
        self.byte(LEVEL)
    }

    pub(super) fn count(&self) -> usize {
        usize::from(self.u16_at(COUNT))
    }

    pub(super) fn set_count(&mut self, count: usize) {
        self.set_u16(COUNT, count as u16);
    }

    pub(super) fn heap(&self) -> usize {
        usize::from(self.u16_at(HEAP))
    }

    pub(super) fn set_heap(&mut self, heap: usize) {
        self.set_u16(HEAP, heap as u16);
    }

    pub(super) fn garbage(&self) -> usize {
        usize::from(self.u16_at(GARBAGE))
    }

    pub(super) fn set_garbage(&mut self, garbage: usize) {
        self.set_u16(GARBAGE, garbage as u16);
    }

    pub(super) fn prefix_len(&self) -> usize {
        usize::from(self.u16_at(PREFIX))
    }

    pub(super) fn set_prefix_len(&mut self, length: usize) {
        self.set_u16(PREFIX, length as u16);
    }

    pub(super) fn has_overflow(&self) -> bool {
        self.u16_at(FLAGS) & FLAG_OVERFLOW != 0
    }

    pub(super) fn set_has_overflow(&mut self) {
        let flags = self.u16_at(FLAGS) | FLAG_OVERFLOW;
        self.set_u16(FLAGS, flags);
    }

    pub(super) fn birth(&self) -> u64 {
        self.u64_at(BIRTH)
    }

    pub(super) fn number(&self) -> u64 {
        self.u64_at(NUMBER)
    }

    /// The checksum that the page's content has.
    pub(super) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.rest)
    }

    /// The checksum of the run that this page starts, and that holds `value`.
    pub(super) fn run_checksum(&self, value: &[u8]) -> u32 {
        let header = crc32c::crc32c(self.span(CRC_BYTES..HEADER_BYTES));
        crc32c::crc32c_append(header, value)
    }

    pub(super) fn stored_checksum(&self) -> u32 {
        u32::from_le(self.crc.load(Ordering::Acquire))
    }

    /// Fills in the checksum, of a page that no longer changes.
    pub(super) fn seal(&self, crc: u32) {
        self.crc.store(crc.to_le(), Ordering::Release);
    }

    /// Bytes in the overflow run that this page starts.
    pub(super) fn run_length(&self) -> usize {
        usize::from(self.u16_at(HEAP)) | usize::from(self.u16_at(GARBAGE)) << 16
    }

    /// Makes this the first page of an overflow run.
    pub(super) fn format_run(&mut self, length: u32) {
        self.format(Kind::Overflow, 0);
        self.set_u16(HEAP, length as u16);
        self.set_u16(GARBAGE, (length >> 16) as u16);
    }

    /// The bytes after the header.
    pub(super) fn body(&self) -> &[u8] {
        self.span(HEADER_BYTES..PAGE_BYTES)
    }

    pub(super) fn body_mut(&mut self) -> &mut [u8] {
        self.span_mut(HEADER_BYTES..PAGE_BYTES)
    }
}

/// The header of the overflow run at `number` that holds `value`.
pub(super) fn run_head(birth: u64, number: u64, value: &[u8]) -> [u8; HEADER_BYTES] {
    let mut page = Page::zeroed();
    page.identify(birth, number);
    page.format_run(value.len() as u32);
    let mut head = [0; HEADER_BYTES];
    head[CRC_BYTES..].copy_from_slice(page.span(CRC_BYTES..HEADER_BYTES));
    head[..CRC_BYTES].copy_from_slice(&page.run_checksum(value).to_le_bytes());
    head
}

/// The checksum of a page or of an overflow run.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(&bytes[CRC_BYTES..])
}

/// The checksum that the first four bytes of `bytes` hold.
pub(super) fn stored_checksum(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Decodes a page as at its first read after open: its checksum, that it is
/// page `number`, and that its fields describe cells that lie inside it.
/// `bytes` are the page and, where it starts an overflow run, the pages after it.
///
/// # Errors
///
/// Says what is wrong with it.
pub fn decode(bytes: &[u8], number: u64) -> Result<(), String> {
    if bytes.len() < PAGE_BYTES {
        return Err(format!("has {} bytes only", bytes.len()));
    }
    let page = Page::parse(bytes);
    let run = page.kind() == Some(Kind::Overflow);
    let length = if run {
        HEADER_BYTES + page.run_length()
    } else {
        PAGE_BYTES
    };
    let Some(checked) = bytes.get(..length) else {
        return Err(format!(
            "starts a run of {length} bytes, {} are there",
            bytes.len()
        ));
    };
    let (stored, actual) = (stored_checksum(checked), checksum(checked));
    if stored != actual {
        return Err(format!(
            "checksum is {actual:08x}, the page says {stored:08x}"
        ));
    }
    if page.number() != number {
        return Err(format!("says it is page {}", page.number()));
    }
    validate(&page)
}

/// Verifies that the fields of a page lie inside it and its keys ascend.
pub(super) fn validate(page: &Page) -> Result<(), String> {
    match page.kind() {
        Some(Kind::Leaf) if page.level() == 0 => validate_slotted(page),
        Some(Kind::Branch) if page.level() > 0 => validate_slotted(page),
        Some(Kind::Leaf | Kind::Branch) => Err(format!("has level {}", page.level())),
        Some(Kind::Overflow | Kind::Bitmap | Kind::Directory) => Ok(()),
        None => Err(format!("has unknown kind {}", page.byte(KIND))),
    }
}

fn is_reference(payload: &[u8]) -> bool {
    payload.len() >= OVERFLOW_REF_BYTES && LongValue::decode(payload).is_valid()
}

fn validate_slotted(page: &Page) -> Result<(), String> {
    let (count, heap, prefix_len) = (page.count(), page.heap(), page.prefix_len());
    let slots_end = page.slot_offset(count);
    if prefix_len > MAX_KEY_BYTES || heap > PAGE_BYTES || slots_end > heap {
        return Err(format!(
            "has {count} slots, heap at {heap}, prefix of {prefix_len}"
        ));
    }
    if count == 0 {
        return Err("is empty".to_owned());
    }
    let mut used = 0;
    for index in 0..count {
        let (offset, key_len) = (page.cell_offset(index), page.suffix_len(index));
        if offset < heap || offset + 2 + key_len > PAGE_BYTES {
            return Err(format!("has slot {index} pointing outside, at {offset}"));
        }
        let cell = page.cell_len(index);
        if offset + cell > PAGE_BYTES {
            return Err(format!(
                "has slot {index} reaching outside, {cell} bytes at {offset}"
            ));
        }
        if prefix_len + key_len > MAX_KEY_BYTES {
            return Err(format!("has a key of {} bytes", prefix_len + key_len));
        }
        if page.head(index) != super::search::head_of(page.suffix(index)) {
            return Err(format!(
                "has a key head at slot {index} that is not its key's"
            ));
        }
        used += cell;
        let payload = page.payload(index);
        if page.is_branch() {
            if payload.len() != super::branch::CHILD_BYTES || (index == 0 && key_len != 0) {
                return Err(format!("has a malformed child {index}"));
            }
        } else if page.payload_is_overflow(index) && !is_reference(payload) {
            return Err(format!("has a malformed reference at slot {index}"));
        }
        // A branch's first child has no key.
        let first_key = usize::from(page.is_branch());
        if index > first_key && page.suffix(index - 1) >= page.suffix(index) {
            return Err(format!("has keys out of order at slot {index}"));
        }
    }
    if heap + used + page.garbage() != PAGE_BYTES {
        return Err(format!(
            "has {used} bytes of cells and {} of garbage",
            page.garbage()
        ));
    }
    Ok(())
}
