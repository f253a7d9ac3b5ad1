//! Dropping history.
//!
//! A compaction at C is a command: from then on reads below C fail, on every
//! member at the same place in the log. What it frees is removed afterwards in
//! small steps, on each member at its own pace:
//!
//! 1. LOG entries below C go, oldest first, and with the entry of a deletion
//!    goes its tombstone in DEAD. The first key of LOG is the progress.
//! 2. LOG entries *at* C stay, since a watch may start there, but the records
//!    that they replaced are of revisions below C: those go, and so do
//!    tombstones. Without this a store that is emptied by one deletion and then
//!    compacted would keep everything. The progress is in META.
//!
//! So an event at C has no previous value, as in etcd, and that holds from the
//! moment of the compaction on, not only when the removal has come this far.

use std::ops::{Bound, ControlFlow};

use varve_types::ApiError;

use super::error::{MvccError, Result};
use super::history::{decode, decode_change, or_whole, peek_scan, scan};
use super::keys::{LogKey, Revision};
use super::options::CompactBudget;
use super::record::{Change, ChangeKind};
use super::state::State;
use super::{DEAD, LOG};
use crate::backend::{Batch, Bounds, Direction, Read};

/// Marks everything below `revision` as gone.
pub(super) fn compact(state: &mut State, revision: i64) -> std::result::Result<(), ApiError> {
    if revision <= state.compacted {
        return Err(ApiError::Compacted);
    }
    if revision > state.revision {
        return Err(ApiError::FutureRevision);
    }
    state.compacted = revision;
    Ok(())
}

/// Removes some of what is compacted; whether there is more.
pub(super) fn step(
    batch: &mut dyn Batch,
    state: &mut State,
    budget: CompactBudget,
) -> Result<bool> {
    if !state.compaction_pending() {
        return Ok(false);
    }
    let mut budget = Budget {
        entries: budget.entries.max(1),
        bytes: budget.bytes.max(1),
    };
    let kept = Revision::first_of(state.compacted);
    if !drop_below(batch, kept, &mut budget)? {
        return Ok(true);
    }
    let from = state.pruned.max(kept);
    let next = Revision::first_of(state.compacted + 1);
    state.pruned = strip(batch, from, next, &mut budget)?;
    Ok(state.compaction_pending())
}

struct Budget {
    entries: usize,
    bytes: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.entries == 0 || self.bytes == 0
    }

    fn spend(&mut self, bytes: usize) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A deletion whose tombstone may still be the head of its key.
struct Tombstone {
    key: Vec<u8>,
    revision: Revision,
}

fn bury_for_good(batch: &mut dyn Batch, tombstones: &[Tombstone]) -> Result<()> {
    for tombstone in tombstones {
        let key = &tombstone.key;
        let is_head = match batch.get(DEAD, key)? {
            Some(bytes) => decode(DEAD, key, &bytes)?.modified == tombstone.revision,
            None => false,
        };
        if is_head {
            batch.delete(DEAD, key)?;
        }
    }
    Ok(())
}

fn revision_of(key: &[u8]) -> Result<Revision> {
    Revision::from_log_key(key).ok_or_else(|| MvccError::damaged(LOG, key, "not a revision"))
}

/// First part; whether it is done.
fn drop_below(batch: &mut dyn Batch, kept: Revision, budget: &mut Budget) -> Result<bool> {
    let kept = kept.log_key();
    let bounds: Bounds<'_> = (Bound::Unbounded, Bound::Excluded(&kept));
    let mut tombstones = Vec::new();
    let mut last: Option<LogKey> = None;
    let mut done = true;
    let read: &dyn Read = &*batch;
    peek_scan(read, LOG, bounds, Direction::Forward, &mut |key, found| {
        if budget.is_spent() {
            done = false;
            return Ok(ControlFlow::Break(()));
        }
        let revision = revision_of(key)?;
        budget.spend(key.len() + found.length);
        last = Some(revision.log_key());
        if !found.is_whole() && Change::is_put(&found.bytes) {
            return Ok(ControlFlow::Continue(()));
        }
        let has_key = |bytes: &[u8]| Change::decode(bytes).is_some();
        let entry = or_whole(read, LOG, key, found, has_key)?;
        let change = decode_change(revision, &entry.bytes)?;
        if change.kind == ChangeKind::Delete {
            tombstones.push(Tombstone {
                key: change.key.to_vec(),
                revision,
            });
        }
        Ok(ControlFlow::Continue(()))
    })?;
    bury_for_good(batch, &tombstones)?;
    if let Some(last) = last {
        batch.delete_range(LOG, (Bound::Unbounded, Bound::Included(&last)))?;
    }
    Ok(done)
}

/// Second part, from `from` up to `end`; how far it came.
fn strip(
    batch: &mut dyn Batch,
    from: Revision,
    end: Revision,
    budget: &mut Budget,
) -> Result<Revision> {
    let (first, last) = (from.log_key(), end.log_key());
    let bounds: Bounds<'_> = (Bound::Included(&first), Bound::Excluded(&last));
    let mut tombstones = Vec::new();
    let mut stripped: Vec<(LogKey, Vec<u8>)> = Vec::new();
    let mut came_to = end;
    scan(
        &*batch,
        LOG,
        bounds,
        Direction::Forward,
        &mut |key, bytes| {
            let revision = revision_of(key)?;
            if budget.is_spent() {
                came_to = revision;
                return Ok(ControlFlow::Break(()));
            }
            let change = decode_change(revision, bytes)?;
            let replaced = change
                .replaced()
                .ok_or_else(|| MvccError::damaged(LOG, key, "not a record"))?;
            budget.spend(key.len() + bytes.len());
            // What was replaced within this same revision is the value of an event
            // in it: that stays, and so does the tombstone that leads there.
            if replaced.is_some_and(|record| record.modified.main == revision.main) {
                return Ok(ControlFlow::Continue(()));
            }
            if replaced.is_some() {
                let without = &bytes[..bytes.len() - change.undo.len()];
                stripped.push((revision.log_key(), without.to_vec()));
            }
            if change.kind == ChangeKind::Delete {
                tombstones.push(Tombstone {
                    key: change.key.to_vec(),
                    revision,
                });
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    bury_for_good(batch, &tombstones)?;
    for (key, change) in &stripped {
        batch.put(LOG, key, change)?;
    }
    Ok(came_to)
}
