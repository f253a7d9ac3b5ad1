//! Finding a key within a page.
//!
//! Slots hold the first four bytes of each key after the page's prefix as a
//! big-endian number, so that nearly all comparisons stay within the slots
//! ("poor man's normalized keys": Graefe and Larson, "B-tree indexes and CPU
//! caches", 2001). The cells are read for equal heads only.

use std::cmp::Ordering;

use super::page::{Page, SLOT_BYTES};
use super::pager::prefetch_cell;

/// The first bytes, zero-padded.
pub(super) fn first_bytes<const COUNT: usize>(suffix: &[u8]) -> [u8; COUNT] {
    if let Some(all) = suffix.first_chunk() {
        return *all;
    }
    let mut padded = [0; COUNT];
    padded[..suffix.len()].copy_from_slice(suffix);
    padded
}

/// The first four bytes as a number that orders like them, zero-padded.
pub(super) fn head_of(suffix: &[u8]) -> u32 {
    u32::from_be_bytes(first_bytes(suffix))
}

fn slot_head(slot: &[u8; SLOT_BYTES]) -> u32 {
    u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]])
}

impl Page {
    /// The slot of a leaf that has `key`, or the one before which it belongs.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.find_from(0, key)
    }

    /// The child of a branch under which `key` belongs.
    pub(super) fn child_for(&self, key: &[u8]) -> usize {
        match self.find_from(1, key) {
            Ok(index) => index,
            Err(index) => index - 1,
        }
    }

    fn find_from(&self, first: usize, key: &[u8]) -> Result<usize, usize> {
        let slots = self.slots();
        let prefix = self.prefix();
        let suffix = if prefix.is_empty() {
            key
        } else {
            let shared = key.len().min(prefix.len());
            match key[..shared].cmp(prefix) {
                Ordering::Less => return Err(first),
                Ordering::Greater => return Err(slots.len()),
                Ordering::Equal => &key[shared..],
            }
        };
        let head = head_of(suffix);
        let mut low = first;
        let mut length = slots.len().saturating_sub(first);
        while length > 0 {
            let half = length / 2;
            let right = slot_head(&slots[low + half]) < head;
            low = if right { low + half + 1 } else { low };
            length = if right { length - half - 1 } else { half };
        }
        if low == slots.len() || slot_head(&slots[low]) != head {
            return Err(low);
        }
        self.find_among_equal_heads(low, head, suffix)
    }

    fn find_among_equal_heads(
        &self,
        mut low: usize,
        head: u32,
        suffix: &[u8],
    ) -> Result<usize, usize> {
        // Mostly the run is one slot long: look there before measuring it.
        prefetch_cell(self, low);
        match self.suffix(low).cmp(suffix) {
            Ordering::Equal => return Ok(low),
            Ordering::Greater => return Err(low),
            Ordering::Less => low += 1,
        }
        let slots = self.slots();
        let mut high = low + slots[low..].partition_point(|slot| slot_head(slot) == head);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.suffix(middle).cmp(suffix) {
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
                Ordering::Less => low = middle + 1,
            }
        }
        Err(low)
    }
}
