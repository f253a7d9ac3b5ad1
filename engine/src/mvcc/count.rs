//! Counting the keys of a range at an old revision.
//!
//! Either the keys of the range are gone over, or the changes since the revision
//! are taken back from today's count, whichever is less: a page of a long list at
//! a fresh revision costs about as much as one at the newest. Both go in steps,
//! each of which may be made in a newer state than the one before: neither the
//! keys of a revision nor the changes up to another ever change.

use std::ops::{Bound, ControlFlow};

use varve_types::KeyRange;

use super::LOG;
use super::error::{MvccError, Result};
use super::history::{has_both_marks, or_whole, peek_scan, range_sums, walk_at};
use super::keys::Revision;
use super::pace::Pace;
use super::record::{Change, ChangeKind, Record};
use super::{DEAD, LATEST};
use crate::backend::{Direction, Read};

/// How far a count has come.
#[derive(Debug, Default)]
pub(super) enum Count {
    /// Not begun.
    #[default]
    Start,
    /// The keys up to `after` are counted.
    Keys { count: i64, after: Option<Vec<u8>> },
    /// From the count of a newer state the changes up to `after` are taken back;
    /// those behind `last` are not in it.
    Changes {
        count: i64,
        after: Vec<u8>,
        last: Vec<u8>,
    },
}

impl Count {
    /// Goes on; the keys of `range` that were live at the end of main revision
    /// `revision`, once they are counted.
    pub(super) fn step(
        &mut self,
        read: &dyn Read,
        range: KeyRange<'_>,
        revision: i64,
        pace: &mut Pace,
    ) -> Result<Option<i64>> {
        if let Self::Start = self {
            *self = Self::choose(read, range, revision)?;
        }
        match self {
            Self::Start => Ok(Some(0)),
            Self::Keys { count, after } => {
                let from = after.take();
                let forward = Direction::Forward;
                let visit = &mut |_: &[u8], _: &Record<'_>| {
                    *count += 1;
                    Ok(ControlFlow::Continue(()))
                };
                *after = walk_at(read, range, revision, from.as_deref(), forward, pace, visit)?;
                Ok(after.is_none().then_some(*count))
            }
            Self::Changes { count, after, last } => {
                let from = std::mem::take(after);
                match growth(read, range, &from, last, pace)? {
                    (growth, Some(paused_at)) => {
                        (*count, *after) = (*count - growth, paused_at);
                        Ok(None)
                    }
                    (growth, None) => Ok(Some(*count - growth)),
                }
            }
        }
    }

    fn choose(read: &dyn Read, range: KeyRange<'_>, revision: i64) -> Result<Self> {
        let live = range_sums(read, LATEST, range)?.entries;
        let since = Revision::last_of(revision).log_key();
        let newer = (Bound::Excluded(&since[..]), Bound::Unbounded);
        let changes = read.sums(LOG, newer)?.entries;
        let keys = live + range_sums(read, DEAD, range)?.entries;
        if changes > keys {
            return Ok(Self::Keys {
                count: 0,
                after: None,
            });
        }
        let mut last = since.to_vec();
        peek_scan(read, LOG, newer, Direction::Backward, &mut |key, _| {
            last = key.to_vec();
            Ok(ControlFlow::Break(()))
        })?;
        Ok(Self::Changes {
            count: live as i64,
            after: since.to_vec(),
            last,
        })
    }
}

/// Keys of `range` that came, less those that went, in the changes behind `after` up to
/// `last`; where the pace ran out, the change that it came to.
fn growth(
    read: &dyn Read,
    range: KeyRange<'_>,
    after: &[u8],
    last: &[u8],
    pace: &mut Pace,
) -> Result<(i64, Option<Vec<u8>>)> {
    let mut growth = 0;
    let mut paused_at = None;
    if after >= last {
        return Ok((growth, None));
    }
    let bounds = (Bound::Excluded(after), Bound::Included(last));
    peek_scan(read, LOG, bounds, Direction::Forward, &mut |key, found| {
        let bytes = or_whole(read, LOG, key, found, has_both_marks)?.bytes;
        let change =
            Change::decode(&bytes).ok_or_else(|| MvccError::damaged(LOG, key, "not a change"))?;
        if range.contains(change.key) {
            let replaced = change
                .replaced()
                .ok_or_else(|| MvccError::damaged(LOG, key, "not a record"))?;
            let was_live = replaced.is_some_and(|record| record.live);
            growth += i64::from(change.kind == ChangeKind::Put) - i64::from(was_live);
        }
        pace.spend(key.len() + bytes.len());
        if pace.is_spent() {
            paused_at = Some(key.to_vec());
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((growth, paused_at))
}
