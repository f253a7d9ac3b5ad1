//! Leaves: what a payload is there.
//!
//! A leaf's payload is the value itself, or, for a long one, a reference to the
//! run of pages that holds it, and the value's beginning:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | first page of the run |
//! | 8 | birth of the run |
//! | 4 | bytes in the run |
//! | 2 | bytes of the value that are not in the run but before it |
//! | the rest | those bytes, and a copy of the first ones in the run |
//!
//! So a run need not be looked at to know how a value begins, to go from one entry
//! to another, behind other bytes, or to be freed.

use super::page::{Kind, MAX_INLINE_ENTRY_BYTES, Page};
use super::pager::run_pages;
use crate::backend::Sums;

/// Bytes of a reference to an overflow run.
pub(super) const OVERFLOW_REF_BYTES: usize = 22;
/// Bytes of a run that its leaf has a copy of.
pub(super) const COPIED_BYTES: usize = 64;

/// Where a run lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverflowRef {
    pub(super) page: u64,
    /// The number of the state that made it.
    pub(super) birth: u64,
    /// Bytes in it.
    pub(super) length: u32,
}

/// A value that lies in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LongValue<'p> {
    pub(super) run: OverflowRef,
    /// Bytes of the value before those in the run.
    before: u16,
    /// The first bytes of the value: those before the run, and some that are in it.
    pub(super) beginning: &'p [u8],
}

/// A leaf's payload.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'p> {
    Inline(&'p [u8]),
    Long(LongValue<'p>),
}

impl OverflowRef {
    /// Pages of the run.
    pub(super) fn pages(self) -> u64 {
        run_pages(self.length as usize)
    }

    /// The page after it.
    pub(super) fn end(self) -> u64 {
        self.page.saturating_add(self.pages())
    }

    /// Says so if `page` does not start this run.
    pub(super) fn check_start(self, page: &Page) -> Result<(), String> {
        let is_it = page.kind() == Some(Kind::Overflow)
            && page.number() == self.page
            && page.birth() == self.birth
            && page.run_length() == self.length as usize;
        match is_it {
            true => Ok(()),
            false => Err(format!(
                "starts no run of {} bytes of state {}",
                self.length, self.birth
            )),
        }
    }

    /// Has the reference at the start of `payload` lead to this run, of the same content.
    pub(super) fn replace_in(self, payload: &mut [u8]) {
        payload[..8].copy_from_slice(&self.page.to_le_bytes());
        payload[8..16].copy_from_slice(&self.birth.to_le_bytes());
    }
}

impl<'p> LongValue<'p> {
    /// The payload of a value that is all in `run`.
    pub(super) fn payload_of(run: OverflowRef, value: &[u8]) -> Vec<u8> {
        let beginning = &value[..value.len().min(COPIED_BYTES)];
        let long = LongValue {
            run,
            before: 0,
            beginning,
        };
        long.encode(&[])
    }

    /// Its payload, with `head` before it.
    pub(super) fn encode(&self, head: &[u8]) -> Vec<u8> {
        let mut payload = vec![0; 16];
        self.run.replace_in(&mut payload);
        payload.extend_from_slice(&self.run.length.to_le_bytes());
        let before = self.before + head.len() as u16;
        payload.extend_from_slice(&before.to_le_bytes());
        payload.extend_from_slice(head);
        payload.extend_from_slice(self.beginning);
        payload
    }

    /// Of a payload of [`OVERFLOW_REF_BYTES`] or more.
    pub(super) fn decode(payload: &'p [u8]) -> Self {
        let (mut page, mut birth, mut length) = ([0; 8], [0; 8], [0; 4]);
        page.copy_from_slice(&payload[..8]);
        birth.copy_from_slice(&payload[8..16]);
        length.copy_from_slice(&payload[16..20]);
        Self {
            run: OverflowRef {
                page: u64::from_le_bytes(page),
                birth: u64::from_le_bytes(birth),
                length: u32::from_le_bytes(length),
            },
            before: u16::from_le_bytes([payload[20], payload[21]]),
            beginning: &payload[OVERFLOW_REF_BYTES..],
        }
    }

    /// Whether the payload has the bytes that it says are not in the run, and no more
    /// of the run than that has.
    pub(super) fn is_valid(&self) -> bool {
        usize::from(self.before) <= self.beginning.len()
            && self.copied().len() <= self.run.length as usize
    }

    /// Bytes of the value.
    pub(super) fn len(&self) -> usize {
        usize::from(self.before) + self.run.length as usize
    }

    /// The bytes before those in the run.
    pub(super) fn before(&self) -> &'p [u8] {
        &self.beginning[..usize::from(self.before)]
    }

    /// What the run begins with.
    pub(super) fn copied(&self) -> &'p [u8] {
        &self.beginning[usize::from(self.before)..]
    }
}

impl Value<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Value::Inline(bytes) => bytes.len(),
            Value::Long(long) => long.len(),
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
            Value::Long(LongValue::decode(payload))
        } else {
            Value::Inline(payload)
        }
    }

    /// The key after the prefix, and the value, reading the slot once.
    #[inline]
    pub(super) fn entry(&self, index: usize) -> (&[u8], Value<'_>) {
        let (suffix, payload, overflow) = self.cell(index);
        if overflow {
            (suffix, Value::Long(LongValue::decode(payload)))
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
    pub(super) fn long_values(&self) -> impl Iterator<Item = LongValue<'_>> {
        // The flag spares the walk over the cells of nearly every leaf.
        let count = if self.has_overflow() { self.count() } else { 0 };
        (0..count).filter_map(|index| match self.value(index) {
            Value::Inline(_) => None,
            Value::Long(long) => Some(long),
        })
    }
}
