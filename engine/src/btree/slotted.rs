//! Slots and cells: what leaves and branches have in common.
//!
//! After the header stands the key prefix, which all keys of the page share;
//! then slots, ascending by key; cells fill the page from its end
//! downwards in any order. A cell is `payload length u16, key suffix, payload`;
//! the top bit of the length says that the payload refers to an overflow run.
//! A branch's first child stands for everything below the second's separator
//! and has no key, hence [`Page::first_key`].

use super::page::{HEADER_BYTES, Kind, PAGE_BYTES, Page, SLOT_BYTES};
use super::search::head_of;

const OVERFLOW_BIT: u16 = 0x8000;

/// A key in two parts: the page's prefix and the rest.
pub(super) type KeyParts<'p> = (&'p [u8], &'p [u8]);

/// A cell on its way into a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewCell<'c> {
    pub(super) key: &'c [u8],
    pub(super) payload: &'c [u8],
    pub(super) overflow: bool,
}

impl Page {
    pub(super) fn slots(&self) -> &[[u8; SLOT_BYTES]] {
        let start = self.slot_offset(0);
        let end = start + self.count() * SLOT_BYTES;
        self.span(start..end).as_chunks().0
    }

    /// Where slot `index` is. The prefix stands between header and slots, so
    /// that a search reads one stretch of memory.
    pub(super) fn slot_offset(&self, index: usize) -> usize {
        HEADER_BYTES + self.prefix_len() + index * SLOT_BYTES
    }

    pub(super) fn head(&self, index: usize) -> u32 {
        let slot = &self.slots()[index];
        u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]])
    }

    pub(super) fn cell_offset(&self, index: usize) -> usize {
        let slot = &self.slots()[index];
        usize::from(u16::from_le_bytes([slot[4], slot[5]]))
    }

    pub(super) fn suffix_len(&self, index: usize) -> usize {
        let slot = &self.slots()[index];
        usize::from(u16::from_le_bytes([slot[6], slot[7]]))
    }

    pub(super) fn prefix(&self) -> &[u8] {
        self.span(HEADER_BYTES..HEADER_BYTES + self.prefix_len())
    }

    pub(super) fn suffix(&self, index: usize) -> &[u8] {
        let start = self.cell_offset(index) + 2;
        self.span(start..start + self.suffix_len(index))
    }

    /// Key suffix and payload of a cell, and whether that is a reference.
    #[inline]
    pub(super) fn cell(&self, index: usize) -> (&[u8], &[u8], bool) {
        let slot = &self.slots()[index];
        let offset = usize::from(u16::from_le_bytes([slot[4], slot[5]]));
        let key_len = usize::from(u16::from_le_bytes([slot[6], slot[7]]));
        let length = self.u16_at(offset);
        let payload_len = usize::from(length & !OVERFLOW_BIT);
        let both = self.span(offset + 2..offset + 2 + key_len + payload_len);
        let (suffix, payload) = both.split_at(key_len);
        (suffix, payload, length & OVERFLOW_BIT != 0)
    }

    pub(super) fn key_parts(&self, index: usize) -> KeyParts<'_> {
        (self.prefix(), self.suffix(index))
    }

    /// The first slot that has a key.
    pub(super) fn first_key(&self) -> usize {
        usize::from(self.is_branch())
    }

    pub(super) fn payload(&self, index: usize) -> &[u8] {
        let range = self.payload_range(index);
        self.span(range)
    }

    pub(super) fn payload_mut(&mut self, index: usize) -> &mut [u8] {
        let range = self.payload_range(index);
        self.span_mut(range)
    }

    pub(super) fn payload_is_overflow(&self, index: usize) -> bool {
        self.u16_at(self.cell_offset(index)) & OVERFLOW_BIT != 0
    }

    pub(super) fn payload_range(&self, index: usize) -> std::ops::Range<usize> {
        let offset = self.cell_offset(index);
        let length = usize::from(self.u16_at(offset) & !OVERFLOW_BIT);
        let start = offset + 2 + self.suffix_len(index);
        start..start + length
    }

    pub(super) fn cell_len(&self, index: usize) -> usize {
        let offset = self.cell_offset(index);
        2 + self.suffix_len(index) + usize::from(self.u16_at(offset) & !OVERFLOW_BIT)
    }

    /// Bytes between the slots and the cells.
    pub(super) fn contiguous_free(&self) -> usize {
        self.heap() - self.slot_offset(self.count())
    }

    /// Bytes that a compacted page would have between slots and cells.
    pub(super) fn total_free(&self) -> usize {
        self.contiguous_free() + self.garbage()
    }

    /// Bytes in use after the header.
    pub(super) fn used(&self) -> usize {
        PAGE_BYTES - HEADER_BYTES - self.total_free()
    }

    fn put_bytes(&mut self, at: usize, bytes: &[u8]) {
        self.span_mut(at..at + bytes.len()).copy_from_slice(bytes);
    }

    /// Sets the prefix of a page that has no cells yet.
    pub(super) fn set_prefix(&mut self, prefix: KeyParts<'_>) {
        let length = prefix.0.len() + prefix.1.len();
        self.put_bytes(HEADER_BYTES, prefix.0);
        self.put_bytes(HEADER_BYTES + prefix.0.len(), prefix.1);
        self.set_prefix_len(length);
        self.set_heap(PAGE_BYTES);
    }

    /// Inserts a cell at `index`. The caller made sure that it fits between
    /// slots and cells and cut the page's prefix off the key.
    pub(super) fn insert_cell(
        &mut self,
        index: usize,
        suffix: KeyParts<'_>,
        payload: &[u8],
        overflow: bool,
    ) {
        let key_len = suffix.0.len() + suffix.1.len();
        let count = self.count();
        let offset = self.heap() - (2 + key_len + payload.len());
        let slot = self.slot_offset(index);
        self.shift(slot..self.slot_offset(count), slot + SLOT_BYTES);
        let length = payload.len() as u16 | if overflow { OVERFLOW_BIT } else { 0 };
        self.set_u16(offset, length);
        let key = offset + 2;
        self.put_bytes(key, suffix.0);
        self.put_bytes(key + suffix.0.len(), suffix.1);
        self.put_bytes(key + key_len, payload);
        let head = head_of(self.span(key..key + key_len));
        self.put_bytes(slot, &head.to_le_bytes());
        self.set_u16(slot + 4, offset as u16);
        self.set_u16(slot + 6, key_len as u16);
        self.set_heap(offset);
        self.set_count(count + 1);
        if overflow {
            self.set_has_overflow();
        }
    }

    /// Removes the cell at `index`. In a branch the next child takes over the
    /// place of a removed first one and loses its key.
    pub(super) fn remove_cell(&mut self, index: usize) {
        self.remove_cells(index..index + 1);
    }

    /// Removes a range of cells, as [`Page::remove_cell`] does one.
    pub(super) fn remove_cells(&mut self, range: std::ops::Range<usize>) {
        let count = self.count();
        let freed: usize = range.clone().map(|index| self.cell_len(index)).sum();
        let (from, to) = (self.slot_offset(range.end), self.slot_offset(range.start));
        self.shift(from..self.slot_offset(count), to);
        self.set_count(count - range.len());
        self.set_garbage(self.garbage() + freed);
        if range.start == 0 && self.is_branch() && self.count() > 0 {
            self.drop_first_key();
        }
    }

    /// Turns the first child's key into none.
    fn drop_first_key(&mut self) {
        let (offset, key_len) = (self.cell_offset(0), self.suffix_len(0));
        if key_len == 0 {
            return;
        }
        // The cell moves up against its payload, leaving garbage before it.
        let length = self.u16_at(offset);
        self.set_u16(offset + key_len, length);
        self.set_garbage(self.garbage() + key_len);
        let slot = self.slot_offset(0);
        self.span_mut(slot..slot + 4).fill(0);
        self.set_u16(slot + 4, (offset + key_len) as u16);
        self.set_u16(slot + 6, 0);
    }

    /// Appends the cell `index` of `from`; this page's prefix must be one of
    /// the cell's key, the cell must fit. Without a key if `keyless`.
    pub(super) fn append_from(&mut self, from: &Page, index: usize, keyless: bool) {
        let (prefix, suffix) = from.key_parts(index);
        let cut = self.prefix_len();
        let parts = if keyless || suffix.is_empty() && index < from.first_key() {
            (&[][..], &[][..])
        } else if cut <= prefix.len() {
            (&prefix[cut..], suffix)
        } else {
            (&[][..], &suffix[cut - prefix.len()..])
        };
        self.insert_cell(
            self.count(),
            parts,
            from.payload(index),
            from.payload_is_overflow(index),
        );
    }

    /// Appends a new cell, as [`Page::append_from`] does one of a page.
    pub(super) fn append_new(&mut self, cell: &NewCell<'_>, keyless: bool) {
        let suffix = if keyless {
            &[][..]
        } else {
            &cell.key[self.prefix_len()..]
        };
        self.insert_cell(self.count(), (suffix, &[]), cell.payload, cell.overflow);
    }

    /// Rewrites the page without garbage and with a prefix of `prefix_len`,
    /// which must be at most the present one's length and must fit.
    pub(super) fn rebuild(&mut self, prefix_len: usize) {
        let old = self.clone();
        self.format_like(&old);
        self.set_prefix((&old.prefix()[..prefix_len], &[]));
        for index in 0..old.count() {
            self.append_from(&old, index, false);
        }
        self.note_overflow_below();
    }

    /// Formats as the same kind and level as `model`.
    pub(super) fn format_like(&mut self, model: &Page) {
        let kind = if model.is_branch() {
            Kind::Branch
        } else {
            Kind::Leaf
        };
        self.format(kind, model.level());
    }

    /// What [`Page::used`] would be with a prefix of `prefix_len`.
    pub(super) fn used_with_prefix(&self, prefix_len: usize) -> usize {
        let keys = self.count() - self.first_key().min(self.count());
        self.used() + keys * self.prefix_len() - keys * prefix_len + prefix_len - self.prefix_len()
    }
}

/// How many bytes two keys share at their beginning.
pub(super) fn common_prefix(left: KeyParts<'_>, right: KeyParts<'_>) -> usize {
    // Of one page, or of two neighbours that share as much.
    if left.0 == right.0 {
        return left.0.len() + count_equal(left.1.iter().zip(right.1));
    }
    let left = left.0.iter().chain(left.1);
    let right = right.0.iter().chain(right.1);
    count_equal(left.zip(right))
}

fn count_equal<'p>(pairs: impl Iterator<Item = (&'p u8, &'p u8)>) -> usize {
    pairs.take_while(|(left, right)| left == right).count()
}

/// The first `length` bytes of a key in two parts.
pub(super) fn truncate(key: KeyParts<'_>, length: usize) -> KeyParts<'_> {
    let first = length.min(key.0.len());
    (&key.0[..first], &key.1[..length - first])
}

/// The two parts of a key as one.
pub(super) fn joined(key: KeyParts<'_>) -> Vec<u8> {
    [key.0, key.1].concat()
}
