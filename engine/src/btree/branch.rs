//! Branches: what a payload is there.
//!
//! A branch's payload describes one child: its page number u64, of which the
//! top bit says that overflow runs may lie below, and the sums over all its
//! entries, entries u64 and bytes u64.

use super::page::Page;
use crate::backend::Sums;

/// Bytes of the description of one child.
pub(super) const CHILD_BYTES: usize = 24;

const OVERFLOW_BIT: u64 = 1 << 63;

/// What a branch knows of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Child {
    pub(super) page: u64,
    pub(super) has_overflow: bool,
    pub(super) sums: Sums,
}

/// A change of sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) entries: i64,
    pub(super) bytes: i64,
}

impl Delta {
    pub(super) fn added(sums: Sums) -> Self {
        Self {
            entries: sums.entries as i64,
            bytes: sums.bytes as i64,
        }
    }

    pub(super) fn removed(sums: Sums) -> Self {
        Self {
            entries: -(sums.entries as i64),
            bytes: -(sums.bytes as i64),
        }
    }

    pub(super) fn between(before: Sums, after: Sums) -> Self {
        Self::added(minus(after, before))
    }

    /// `sums` after this change.
    pub(super) fn applied_to(self, sums: Sums) -> Sums {
        Sums {
            entries: sums.entries.wrapping_add_signed(self.entries),
            bytes: sums.bytes.wrapping_add_signed(self.bytes),
        }
    }
}

pub(super) fn plus(left: Sums, right: Sums) -> Sums {
    Sums {
        entries: left.entries.wrapping_add(right.entries),
        bytes: left.bytes.wrapping_add(right.bytes),
    }
}

pub(super) fn minus(left: Sums, right: Sums) -> Sums {
    Sums {
        entries: left.entries.wrapping_sub(right.entries),
        bytes: left.bytes.wrapping_sub(right.bytes),
    }
}

impl Child {
    pub(super) fn encode(self) -> [u8; CHILD_BYTES] {
        let mut bytes = [0; CHILD_BYTES];
        let page = self.page | if self.has_overflow { OVERFLOW_BIT } else { 0 };
        bytes[..8].copy_from_slice(&page.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sums.entries.to_le_bytes());
        bytes[16..].copy_from_slice(&self.sums.bytes.to_le_bytes());
        bytes
    }
}

impl Page {
    pub(super) fn child_page(&self, index: usize) -> u64 {
        self.u64_at(self.payload_range(index).start) & !OVERFLOW_BIT
    }

    pub(super) fn child(&self, index: usize) -> Child {
        let at = self.payload_range(index).start;
        let page = self.u64_at(at);
        Child {
            page: page & !OVERFLOW_BIT,
            has_overflow: page & OVERFLOW_BIT != 0,
            sums: Sums {
                entries: self.u64_at(at + 8),
                bytes: self.u64_at(at + 16),
            },
        }
    }

    pub(super) fn set_child(&mut self, index: usize, child: Child) {
        self.payload_mut(index).copy_from_slice(&child.encode());
        if child.has_overflow {
            self.set_has_overflow();
        }
    }

    /// Follows a child that moved to another page.
    pub(super) fn set_child_page(&mut self, index: usize, page: u64) {
        let at = self.payload_range(index).start;
        let flag = self.u64_at(at) & OVERFLOW_BIT;
        self.set_u64(at, page | flag);
    }

    pub(super) fn set_child_overflow(&mut self, index: usize) {
        let at = self.payload_range(index).start;
        let page = self.u64_at(at);
        self.set_u64(at, page | OVERFLOW_BIT);
        self.set_has_overflow();
    }

    pub(super) fn add_child_sums(&mut self, index: usize, delta: Delta) {
        let at = self.payload_range(index).start;
        let entries = self.u64_at(at + 8).wrapping_add_signed(delta.entries);
        let bytes = self.u64_at(at + 16).wrapping_add_signed(delta.bytes);
        self.set_u64(at + 8, entries);
        self.set_u64(at + 16, bytes);
    }

    /// Sets a branch's flag if one of its children has it.
    pub(super) fn note_overflow_below(&mut self) {
        if self.is_branch() && (0..self.count()).any(|index| self.child(index).has_overflow) {
            self.set_has_overflow();
        }
    }

    /// Sums over a range of a branch's children.
    pub(super) fn branch_sums(&self, range: std::ops::Range<usize>) -> Sums {
        range.fold(Sums::default(), |sums, index| {
            plus(sums, self.child(index).sums)
        })
    }

    /// Sums over everything at and below this page.
    pub(super) fn own_sums(&self) -> Sums {
        let all = 0..self.count();
        if self.is_branch() {
            self.branch_sums(all)
        } else {
            self.leaf_sums(all)
        }
    }
}
