//! Sorted bulk load: entries whose keys lie behind all that the tree holds, in
//! order, build its right edge bottom-up.
//!
//! A leaf is filled to the brim, with the longest prefix that what is to come
//! shares, before its branch hears of it: one descent and one change of sums per
//! leaf instead of per entry, and no page that is written twice. Comer, "The
//! ubiquitous B-tree", 1979, has the idea.
//!
//! Invariant: between two entries what was appended to the open leaf and not yet
//! carried up is in `pending`; it is carried up before anything else looks at the
//! tree, and before [`append`] returns.

use super::branch::{Child, Delta};
use super::leaf::{COPIED_BYTES, OVERFLOW_REF_BYTES, is_long};
use super::page::{BODY_BYTES, Kind, SLOT_BYTES};
use super::slotted::{NewCell, common_prefix};
use super::split::{self, Split};
use super::write::{Writer, check_length};
use crate::backend::{Entry, Result, Sums};

/// Puts `entries`. They can be any; cheap are those that ascend behind the tree.
pub(super) fn append(writer: &mut Writer<'_, '_>, entries: &[Entry<'_>]) -> Result<()> {
    // Before anything is changed.
    for (key, value) in entries {
        check_length(key, value)?;
    }
    let mut edge = Edge {
        writer,
        leaf: None,
        pending: Pending::default(),
    };
    let mut last: Option<&[u8]> = None;
    for (index, (key, value)) in entries.iter().enumerate() {
        if edge.leaf.is_some() && last.is_none_or(|last| *key <= last) {
            edge.close()?;
        }
        last = Some(key);
        match edge.leaf {
            Some(leaf) => edge.push(leaf, &entries[index..])?,
            None => {
                edge.writer.put(key, value)?;
                edge.open(key)?;
            }
        }
    }
    edge.close()
}

/// What the open leaf has and the branches above it do not know yet.
#[derive(Debug, Default)]
struct Pending {
    sums: Sums,
    has_overflow: bool,
}

/// The right edge of a tree that is being filled.
struct Edge<'e, 'w, 'b> {
    writer: &'e mut Writer<'w, 'b>,
    /// The last leaf, if entries may be added at its end; the writer's place is there.
    leaf: Option<u64>,
    pending: Pending,
}

impl Edge<'_, '_, '_> {
    /// After `key` was put: opens its leaf, if it is the tree's last key.
    fn open(&mut self, key: &[u8]) -> Result<()> {
        let writer = &mut *self.writer;
        writer
            .place
            .go(writer.pages.view(), writer.root.page, key)?;
        let leaf = writer.place.path.leaf();
        let page = writer.pages.page(leaf.page)?;
        let is_last = leaf.index + 1 == page.count();
        // A value that was written over in place leaves the page what it was.
        let is_own = page.birth() == writer.pages.birth();
        if is_last && is_own && writer.place.path.is_rightmost(writer.pages.view())? {
            self.leaf = Some(leaf.page);
        }
        Ok(())
    }

    /// Adds the first of `entries` behind all others.
    fn push(&mut self, leaf: u64, entries: &[Entry<'_>]) -> Result<()> {
        let Some((key, value)) = entries.first() else {
            return Ok(());
        };
        let mut long = Vec::new();
        let cell = NewCell {
            key,
            payload: self.writer.pages.payload(key, value, &mut long)?,
            overflow: is_long(key, value),
        };
        self.pending.sums.entries += 1;
        self.pending.sums.bytes += (key.len() + value.len()) as u64;
        self.pending.has_overflow |= cell.overflow;
        let page = self.writer.pages.page_mut(leaf);
        let end = page.count();
        if split::try_insert(page, end, &cell) {
            return Ok(());
        }
        let separator = {
            let last = page.key_parts(end - 1);
            let common = common_prefix(last, (key, &[]));
            key[..common + 1].to_vec()
        };
        self.next_leaf(separator, &cell, (key.len() + value.len()) as u64, entries)
    }

    /// Starts a leaf with `cell`, and tells the branches of both.
    fn next_leaf(
        &mut self,
        separator: Vec<u8>,
        cell: &NewCell<'_>,
        bytes: u64,
        entries: &[Entry<'_>],
    ) -> Result<()> {
        let writer = &mut *self.writer;
        let number = writer.pages.create(Kind::Leaf, 0)?;
        let page = writer.pages.page_mut(number);
        page.set_prefix((&cell.key[..shared_prefix(entries)], &[]));
        let has_room = split::try_insert(page, 0, cell);
        assert!(has_room, "a cell fits an empty leaf");
        let right = Child {
            page: number,
            has_overflow: cell.overflow,
            sums: Sums { entries: 1, bytes },
        };
        let Pending { sums, has_overflow } = std::mem::take(&mut self.pending);
        let split = Split { separator, right };
        writer.ascend(Delta::added(sums), Some(split), has_overflow)?;
        writer.place.valid = false;
        self.leaf = None;
        self.open(cell.key)
    }

    /// Carries up what the open leaf has got.
    fn close(&mut self) -> Result<()> {
        if self.leaf.take().is_some() {
            let Pending { sums, has_overflow } = std::mem::take(&mut self.pending);
            self.writer.ascend(Delta::added(sums), None, has_overflow)?;
            self.writer.place.valid = false;
        }
        Ok(())
    }
}

/// How much those of `entries` share that will fill one leaf.
fn shared_prefix(entries: &[Entry<'_>]) -> usize {
    let Some(((first, _), rest)) = entries.split_first() else {
        return 0;
    };
    let mut shared = first.len();
    let mut used = first.len();
    let mut previous = *first;
    for (key, value) in rest {
        let value = match is_long(key, value) {
            true => OVERFLOW_REF_BYTES + COPIED_BYTES,
            false => value.len(),
        };
        let next = common_prefix((first, &[]), (key, &[]));
        used += SLOT_BYTES + 2 + key.len().saturating_sub(next) + value;
        if used > BODY_BYTES || *key <= previous {
            break;
        }
        shared = shared.min(next);
        previous = key;
    }
    match rest.is_empty() {
        true => 0, // nothing is known of what comes
        false => shared,
    }
}
