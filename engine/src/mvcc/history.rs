//! Versions of a key at old revisions.
//!
//! The newest version of a key is its *head*: a record in LATEST or a
//! tombstone in DEAD. The LOG entry of the change that made a version holds
//! the version before it, as it was, so that a walk goes from newer to older:
//!
//! ```text
//! LATEST[k]          LOG[rev 9]            LOG[rev 6]
//! k@9 = "c"   --9->  undo: k@6 = "b" --6-> undo: k@3 = "a" --3-> ...
//! ```
//!
//! Since the replaced record is kept with its anchors, every step can choose
//! the farthest of them that is still newer than the target: a walk over n
//! versions takes at most 8 steps for each factor of 8 in n. (Myers, "An
//! applicative random-access stack", IPL 1983, has the idea of skipping
//! pointers in an append-only list; the base and the anchors are ours.) Every
//! entry that it touches is newer than the target, so never compacted.

use std::borrow::Cow;
use std::ops::{Bound, ControlFlow};

use varve_types::{KeyRange, KeyValueRef};

use super::error::{MvccError, Result};
use super::keys::Revision;
use super::pace::Pace;
use super::record::{Change, Record};
use super::{DEAD, LATEST, LOG};
use crate::backend::{Bounds, Direction, Peek, Read, Sums, TreeId};

/// A version that was found, in the bytes that hold it.
pub(super) struct Version<'r> {
    bytes: Cow<'r, [u8]>,
    record_at: usize,
}

impl Version<'_> {
    /// The record. It was decoded before, so it decodes.
    pub(super) fn record(&self) -> Option<Record<'_>> {
        Record::decode(self.bytes.get(self.record_at..)?)
    }
}

/// Reads a record that is the value of `key` in `tree`.
pub(super) fn decode<'a>(tree: TreeId, key: &[u8], bytes: &'a [u8]) -> Result<Record<'a>> {
    Record::decode(bytes).ok_or_else(|| MvccError::damaged(tree, key, "not a record"))
}

/// Reads the LOG entry `bytes` at `revision`.
pub(super) fn decode_change(revision: Revision, bytes: &[u8]) -> Result<Change<'_>> {
    Change::decode(bytes)
        .ok_or_else(|| MvccError::damaged(LOG, &revision.log_key(), "not a change"))
}

/// A stored key with its marks, as requests answer it.
pub(super) fn key_value<'a>(key: &'a [u8], record: &Record<'a>) -> KeyValueRef<'a> {
    KeyValueRef {
        key,
        create_revision: record.create,
        mod_revision: record.modified.main,
        version: record.version,
        value: record.value,
        lease: record.lease,
    }
}

/// The version of `key`, tombstones included, that was the newest at `target`.
pub(super) fn version_at<'r>(
    read: &'r dyn Read,
    key: &[u8],
    target: Revision,
) -> Result<Option<Version<'r>>> {
    for tree in [LATEST, DEAD] {
        let Some(bytes) = read.get(tree, key)? else {
            continue;
        };
        let head = decode(tree, key, &bytes)?;
        if head.modified > target {
            return older_version(read, key, &head, target);
        }
        return Ok(Some(Version {
            bytes,
            record_at: 0,
        }));
    }
    Ok(None)
}

/// The version of `key` that was the newest at `target`, given a version that
/// is newer than that.
pub(super) fn older_version<'r>(
    read: &'r dyn Read,
    key: &[u8],
    newer: &Record<'_>,
    target: Revision,
) -> Result<Option<Version<'r>>> {
    let mut step = next_step(newer, target)
        .ok_or_else(|| MvccError::damaged(LATEST, key, "anchors that are none"))?;
    loop {
        let log_key = step.log_key();
        let damaged = |what| MvccError::damaged(LOG, &log_key, what);
        let found = peek(read, LOG, &log_key, has_both_marks)?
            .ok_or_else(|| damaged("missing, but a newer version names it"))?;
        let change = decode_change(step, &found.bytes)?;
        if change.key != key {
            return Err(damaged("a change of another key than the newer version's"));
        }
        let Some(replaced) = change.replaced().ok_or_else(|| damaged("not a record"))? else {
            return Ok(None);
        };
        if replaced.modified >= step {
            return Err(damaged("replaces a version that is not older"));
        }
        if replaced.modified > target {
            step = next_step(&replaced, target).ok_or_else(|| damaged("anchors that are none"))?;
            continue;
        }
        let record_at = found.bytes.len() - change.undo.len();
        let bytes = or_whole(read, LOG, &log_key, found, |_| false)?.bytes;
        return Ok(Some(Version { bytes, record_at }));
    }
}

/// The oldest change newer than `target` that `record`, itself newer, names.
fn next_step(record: &Record<'_>, target: Revision) -> Option<Revision> {
    let anchors = record.anchors()?;
    let farthest = anchors
        .as_slice()
        .iter()
        .rev()
        .find(|anchor| **anchor > target && **anchor <= record.modified);
    Some(farthest.copied().unwrap_or(record.modified))
}

/// Called for each key with its record, until it breaks.
pub(super) type VersionVisitor<'v> = dyn FnMut(&[u8], &Record<'_>) -> Result<ControlFlow<()>> + 'v;

/// Visits the live keys of `range` in order.
pub(super) fn walk_latest(
    read: &dyn Read,
    range: KeyRange<'_>,
    direction: Direction,
    visit: &mut VersionVisitor<'_>,
) -> Result<()> {
    let mut pace = Pace::unbounded();
    walk_latest_from(read, range, None, direction, &mut pace, visit).map(|_| ())
}

/// The same behind the key `after`, at `pace`. Where that ran out: the key to go
/// on behind.
pub(super) fn walk_latest_from(
    read: &dyn Read,
    range: KeyRange<'_>,
    after: Option<&[u8]>,
    direction: Direction,
    pace: &mut Pace,
    visit: &mut VersionVisitor<'_>,
) -> Result<Option<Vec<u8>>> {
    if range.is_empty() {
        return Ok(None);
    }
    if let KeyRange::One(key) = range {
        if let Some(bytes) = read.get(LATEST, key)? {
            // A single visit: whether it breaks makes no difference.
            let _ = visit(key, &decode(LATEST, key, &bytes)?)?;
        }
        return Ok(None);
    }
    let mut paused_at = None;
    let bounds = narrowed(range.bounds(), direction, after);
    scan(read, LATEST, bounds, direction, &mut |key, bytes| {
        let flow = visit(key, &decode(LATEST, key, bytes)?)?;
        pace.spend(key.len() + bytes.len());
        if flow.is_continue() && pace.is_spent() {
            paused_at = Some(key.to_vec());
            return Ok(ControlFlow::Break(()));
        }
        Ok(flow)
    })?;
    Ok(paused_at)
}

/// Called for each entry of a tree, until it breaks.
pub(super) type EntryVisitor<'v> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>> + 'v;

/// The value of `key` as far as it `suffices`: all of it, or, where that lies apart,
/// its beginning.
pub(super) fn peek<'r>(
    read: &'r dyn Read,
    tree: TreeId,
    key: &[u8],
    suffices: impl FnOnce(&[u8]) -> bool,
) -> Result<Option<Peek<'r>>> {
    let found = read.peek(tree, key)?;
    found
        .map(|found| or_whole(read, tree, key, found, suffices))
        .transpose()
}

/// What was found of the value of `key` if it `suffices`, or else all of it.
pub(super) fn or_whole<'f>(
    read: &'f dyn Read,
    tree: TreeId,
    key: &[u8],
    found: Peek<'f>,
    suffices: impl FnOnce(&[u8]) -> bool,
) -> Result<Peek<'f>> {
    if found.is_whole() || suffices(&found.bytes) {
        return Ok(found);
    }
    // It is there: it was found in the same state.
    Ok(Peek::whole(read.get(tree, key)?.unwrap_or_default()))
}

/// Whether the beginning of a value has all of a record but its value.
pub(super) fn has_marks(beginning: &[u8]) -> bool {
    Record::decode(beginning).is_some_and(|record| !record.live || record.hash.is_some())
}

/// Whether the beginning of a LOG entry has all but the value in it.
pub(super) fn has_both_marks(beginning: &[u8]) -> bool {
    Change::decode(beginning).is_some_and(|change| has_marks(change.undo))
}

/// A scan whose visitor may fail.
pub(super) fn scan(
    read: &dyn Read,
    tree: TreeId,
    bounds: Bounds<'_>,
    direction: Direction,
    visit: &mut EntryVisitor<'_>,
) -> Result<()> {
    let mut failed = None;
    read.scan(tree, bounds, direction, &mut |key, value| {
        or_stop(visit(key, value), &mut failed)
    })?;
    failed.map_or(Ok(()), Err)
}

/// Ends a scan whose visitor failed, and keeps the error.
fn or_stop(flow: Result<ControlFlow<()>>, failed: &mut Option<MvccError>) -> ControlFlow<()> {
    flow.unwrap_or_else(|error| {
        *failed = Some(error);
        ControlFlow::Break(())
    })
}

/// Called for each entry of a tree with what a peek finds, until it breaks.
pub(super) type PeekVisitor<'v> = dyn FnMut(&[u8], Peek<'_>) -> Result<ControlFlow<()>> + 'v;

/// As [`scan`], with no more than the beginning of values that lie apart.
pub(super) fn peek_scan(
    read: &dyn Read,
    tree: TreeId,
    bounds: Bounds<'_>,
    direction: Direction,
    visit: &mut PeekVisitor<'_>,
) -> Result<()> {
    let mut failed = None;
    read.peek_scan(tree, bounds, direction, &mut |key, found| {
        or_stop(visit(key, found), &mut failed)
    })?;
    failed.map_or(Ok(()), Err)
}

/// Heads of dead keys held in memory at a time.
const DEAD_CHUNK: usize = 256;

/// Visits the keys of `range` behind `after` that were live at the end of main
/// revision `revision`, in order and at `pace`. Where that ran out: the key to go
/// on behind.
pub(super) fn walk_at(
    read: &dyn Read,
    range: KeyRange<'_>,
    revision: i64,
    after: Option<&[u8]>,
    direction: Direction,
    pace: &mut Pace,
    visit: &mut VersionVisitor<'_>,
) -> Result<Option<Vec<u8>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let target = Revision::last_of(revision);
    if let KeyRange::One(key) = range {
        if let Some(version) = version_at(read, key, target)? {
            let _ = visit_live(key, &version, visit)?;
        }
        return Ok(None);
    }
    let mut walk = OldWalk {
        read,
        target,
        direction,
        stopped: false,
        paused_at: None,
    };
    // Dead keys come in chunks, so that the scan of live keys between them is one scan a chunk.
    let mut from: Option<Vec<u8>> = after.map(<[u8]>::to_vec);
    loop {
        let bounds = narrowed(range.bounds(), direction, from.as_deref());
        // A part of the pace, so that there is some left for the keys between them.
        let DeadChunk { keys, until } = walk.dead_chunk(bounds, &mut pace.split_half())?;
        walk.merge(
            closed(bounds, direction, until.as_deref()),
            &keys,
            pace,
            visit,
        )?;
        if walk.stopped || walk.paused_at.is_some() {
            return Ok(walk.paused_at);
        }
        if until.is_none() || pace.is_spent() {
            return Ok(until);
        }
        from = until;
    }
}

fn visit_live(
    key: &[u8],
    version: &Version<'_>,
    visit: &mut VersionVisitor<'_>,
) -> Result<ControlFlow<()>> {
    match version.record() {
        Some(record) if record.live => visit(key, &record),
        _ => Ok(ControlFlow::Continue(())),
    }
}

/// `bounds` without what was visited up to and including `after`.
fn narrowed<'a>(bounds: Bounds<'a>, direction: Direction, after: Option<&'a [u8]>) -> Bounds<'a> {
    match (after, direction) {
        (None, _) => bounds,
        (Some(after), Direction::Forward) => (Bound::Excluded(after), bounds.1),
        (Some(after), Direction::Backward) => (bounds.0, Bound::Excluded(after)),
    }
}

/// `bounds` that end with `until`, included.
fn closed<'a>(bounds: Bounds<'a>, direction: Direction, until: Option<&'a [u8]>) -> Bounds<'a> {
    match (until, direction) {
        (None, _) => bounds,
        (Some(until), Direction::Forward) => (bounds.0, Bound::Included(until)),
        (Some(until), Direction::Backward) => (Bound::Included(until), bounds.1),
    }
}

struct OldWalk<'r> {
    read: &'r dyn Read,
    target: Revision,
    direction: Direction,
    /// The visitor broke.
    stopped: bool,
    /// The pace ran out at this key.
    paused_at: Option<Vec<u8>>,
}

/// Dead keys in order.
struct DeadChunk {
    keys: Vec<Vec<u8>>,
    /// Where there may be more of them: up to which key these are all.
    until: Option<Vec<u8>>,
}

impl OldWalk<'_> {
    /// The next dead keys within `bounds` that were deleted after the target.
    fn dead_chunk(&self, bounds: Bounds<'_>, pace: &mut Pace) -> Result<DeadChunk> {
        let mut keys = Vec::new();
        let mut until = None;
        scan(
            self.read,
            DEAD,
            bounds,
            self.direction,
            &mut |key, bytes| {
                if decode(DEAD, key, bytes)?.modified > self.target {
                    keys.push(key.to_vec());
                }
                pace.spend(key.len() + bytes.len());
                if keys.len() == DEAD_CHUNK || pace.is_spent() {
                    until = Some(key.to_vec());
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok(DeadChunk { keys, until })
    }

    /// Visits the live keys within `bounds`, and the `dead` ones in their places.
    fn merge(
        &mut self,
        bounds: Bounds<'_>,
        dead: &[Vec<u8>],
        pace: &mut Pace,
        visit: &mut VersionVisitor<'_>,
    ) -> Result<()> {
        let mut dead = dead.iter().map(Vec::as_slice).peekable();
        let (read, direction, target) = (self.read, self.direction, self.target);
        let before = |dead: &[u8], live: &[u8]| match direction {
            Direction::Forward => dead < live,
            Direction::Backward => dead > live,
        };
        let mut stopped = false;
        let mut paused_at = None;
        scan(read, LATEST, bounds, direction, &mut |key, bytes| {
            while let Some(gone) = dead.next_if(|gone| before(gone, key)) {
                pace.spend_lookup();
                if self.visit_dead(gone, visit)?.is_break() {
                    stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            let head = decode(LATEST, key, bytes)?;
            let flow = if head.modified <= target {
                visit(key, &head)?
            } else {
                pace.spend_lookup();
                match older_version(read, key, &head, target)? {
                    Some(version) => visit_live(key, &version, visit)?,
                    None => ControlFlow::Continue(()),
                }
            };
            stopped = flow.is_break();
            pace.spend(key.len() + bytes.len());
            if !stopped && pace.is_spent() {
                paused_at = Some(key.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            Ok(flow)
        })?;
        while !stopped && paused_at.is_none() {
            // At most a chunk of them, whatever the pace.
            let Some(gone) = dead.next() else { break };
            stopped = self.visit_dead(gone, visit)?.is_break();
        }
        (self.stopped, self.paused_at) = (stopped, paused_at);
        Ok(())
    }

    fn visit_dead(&self, key: &[u8], visit: &mut VersionVisitor<'_>) -> Result<ControlFlow<()>> {
        match version_at(self.read, key, self.target)? {
            Some(version) => visit_live(key, &version, visit),
            None => Ok(ControlFlow::Continue(())),
        }
    }
}

/// Sums over the entries of `tree` whose key is in `range`.
pub(super) fn range_sums(read: &dyn Read, tree: TreeId, range: KeyRange<'_>) -> Result<Sums> {
    if range.is_empty() {
        return Ok(Sums::default());
    }
    Ok(read.sums(tree, range.bounds())?)
}
