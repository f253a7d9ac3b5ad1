//! Leaves: what a payload is there.
//!
//! A leaf's payload is the value itself, or, for a long one, a reference to
//! the run of pages that holds it: first page u64, length u32.

use super::page::{MAX_INLINE_ENTRY_BYTES, Page};
use crate::backend::Sums;

/// Bytes of a reference to an overflow run.
pub(super) const OVERFLOW_REF_BYTES: usize = 12;

/// Where a long value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverflowRef {
    pub(super) page: u64,
    pub(super) length: u32,
}

/// A leaf's payload.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'p> {
    Inline(&'p [u8]),
    Overflow(OverflowRef),
}

impl OverflowRef {
    /// Pages of the run.
    pub(super) fn pages(self) -> u64 {
        super::pager::run_pages(self.length as usize)
    }

    pub(super) fn encode(self) -> [u8; OVERFLOW_REF_BYTES] {
        let mut bytes = [0; OVERFLOW_REF_BYTES];
        bytes[..8].copy_from_slice(&self.page.to_le_bytes());
        bytes[8..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let (mut page, mut length) = ([0; 8], [0; 4]);
        page.copy_from_slice(&bytes[..8]);
        length.copy_from_slice(&bytes[8..OVERFLOW_REF_BYTES]);
        Self {
            page: u64::from_le_bytes(page),
            length: u32::from_le_bytes(length),
        }
    }
}

impl Value<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Value::Inline(bytes) => bytes.len(),
            Value::Overflow(overflow) => overflow.length as usize,
        }
    }
}

/// Whether a value goes to an overflow run.
pub(super) fn is_long(key: &[u8], value: &[u8]) -> bool {
    key.len() + value.len() > MAX_INLINE_ENTRY_BYTES
}

impl Page {
    pub(super) fn value(&self, index: usize) -> Value<'_> {
        let payload = self.payload(index);
        if self.payload_is_overflow(index) {
            Value::Overflow(OverflowRef::decode(payload))
        } else {
            Value::Inline(payload)
        }
    }

    /// The key after the prefix, and the value, reading the slot once.
    #[inline]
    pub(super) fn entry(&self, index: usize) -> (&[u8], Value<'_>) {
        let (suffix, payload, overflow) = self.cell(index);
        if overflow {
            (suffix, Value::Overflow(OverflowRef::decode(payload)))
        } else {
            (suffix, Value::Inline(payload))
        }
    }

    /// Sums over the entries of a range of a leaf's slots.
    pub(super) fn leaf_sums(&self, range: std::ops::Range<usize>) -> Sums {
        let prefix = self.prefix_len();
        let mut sums = Sums {
            entries: range.len() as u64,
            bytes: 0,
        };
        for index in range {
            sums.bytes += (prefix + self.suffix_len(index) + self.value(index).len()) as u64;
        }
        sums
    }

    /// The long values of a leaf.
    pub(super) fn overflows(&self) -> impl Iterator<Item = OverflowRef> {
        // The flag spares the walk over the cells of nearly every leaf.
        let count = if self.has_overflow() { self.count() } else { 0 };
        (0..count).filter_map(|index| match self.value(index) {
            Value::Inline(_) => None,
            Value::Overflow(overflow) => Some(overflow),
        })
    }
}
