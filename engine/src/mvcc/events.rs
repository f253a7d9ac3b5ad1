//! Replay of events from a past revision.
//!
//! LOG is in the order of revisions, so a replay is a sequential read of it. A
//! deletion is answered from its entry alone. The value of a put is where the
//! versions of its key are: one descent while it is the newest, else a walk.

use std::ops::{Bound, ControlFlow};

use varve_types::{ApiError, EventRef, KeyRange};

use super::LOG;
use super::error::{MvccError, Result};
use super::history::{decode_change, scan, version_at};
use super::keys::Revision;
use super::live::event_of;
use super::options::{EventLimits, EventsEnd};
use super::record::ChangeKind;
use super::state::State;
use crate::backend::{Direction, Read};

/// What is replayed.
pub(super) struct Replay<'a> {
    pub(super) range: KeyRange<'a>,
    pub(super) from: i64,
    pub(super) limits: EventLimits,
    pub(super) prev_kv: bool,
}

/// Visits the events of `replay` in order.
pub(super) fn replay(
    read: &dyn Read,
    state: &State,
    replay: &Replay<'_>,
    visit: &mut dyn FnMut(EventRef<'_>),
) -> Result<EventsEnd> {
    if replay.from < state.compacted {
        return Err(ApiError::Compacted.into());
    }
    let from = replay.from.max(0);
    let mut end = EventsEnd {
        next_revision: from.max(state.revision.saturating_add(1)),
        done: true,
        events: 0,
    };
    if replay.range.is_empty() || from > state.revision {
        return Ok(end);
    }
    let start = Revision::first_of(from).log_key();
    let bounds = (Bound::Included(&start[..]), Bound::Unbounded);
    let (mut bytes, mut scanned, mut current) = (0, 0, from);
    scan(read, LOG, bounds, Direction::Forward, &mut |key, entry| {
        let revision = Revision::from_log_key(key)
            .ok_or_else(|| MvccError::damaged(LOG, key, "not a revision"))?;
        let limits = &replay.limits;
        let full =
            end.events >= limits.events || bytes >= limits.bytes || scanned >= limits.scanned;
        if full && scanned > 0 && revision.main != current {
            end.next_revision = revision.main;
            end.done = false;
            return Ok(ControlFlow::Break(()));
        }
        current = revision.main;
        scanned += 1;
        let change = decode_change(revision, entry)?;
        if !replay.range.contains(change.key) {
            return Ok(ControlFlow::Continue(()));
        }
        // Previous values of the compacted revision go with the compaction.
        let replaced = if replay.prev_kv && revision.main > state.compacted {
            change
                .replaced()
                .ok_or_else(|| MvccError::damaged(LOG, key, "not a record"))?
        } else {
            None
        };
        let mut deliver = |event: EventRef<'_>| {
            end.events += 1;
            bytes += event.encoded_len();
            visit(event);
        };
        match change.kind {
            ChangeKind::Delete => deliver(event_of(
                ChangeKind::Delete,
                change.key,
                revision,
                None,
                replaced.as_ref(),
            )),
            ChangeKind::Put => {
                let lost = || MvccError::damaged(LOG, key, "no version of the key is of this put");
                let version = version_at(read, change.key, revision)?.ok_or_else(lost)?;
                let record = version.record().ok_or_else(lost)?;
                if record.modified != revision || !record.live {
                    return Err(lost());
                }
                deliver(event_of(
                    ChangeKind::Put,
                    change.key,
                    revision,
                    Some(&record),
                    replaced.as_ref(),
                ));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(end)
}
