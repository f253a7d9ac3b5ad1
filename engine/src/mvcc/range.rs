//! Answers to range requests.

use std::ops::ControlFlow;

use varve_types::{
    ApiError, KeyRange, KeyValue, KeyValueRef, RangeRequest, RangeResponse, SortOrder, SortTarget,
};

use super::LATEST;
use super::count::Count;
use super::error::Result;
use super::history::{VersionVisitor, key_value, range_sums, walk_at, walk_latest_from};
use super::options::RangeEnd;
use super::pace::Pace;
use super::record::Record;
use super::sort::Sorter;
use super::state::State;
use crate::backend::{Direction, Read};

/// Which versions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// The newest, changes of an open transaction included.
    Latest,
    /// Those at the end of this main revision.
    Revision(i64),
}

impl At {
    /// Reads the convention of requests: 0 or less is the newest. `wrote` says
    /// that an open transaction has changed something after `state`.
    pub(super) fn new(
        revision: i64,
        state: &State,
        wrote: bool,
    ) -> std::result::Result<Self, ApiError> {
        if revision <= 0 {
            return Ok(Self::Latest);
        }
        if revision > state.revision {
            return Err(ApiError::FutureRevision);
        }
        if revision < state.compacted {
            return Err(ApiError::Compacted);
        }
        if revision == state.revision && !wrote {
            return Ok(Self::Latest);
        }
        Ok(Self::Revision(revision))
    }
}

/// Keys of `range`.
pub(super) fn count(read: &dyn Read, at: At, range: KeyRange<'_>) -> Result<i64> {
    let counted = count_step(
        read,
        at,
        range,
        &mut Count::default(),
        &mut Pace::unbounded(),
    )?;
    // Without a bound one step is all.
    Ok(counted.unwrap_or_default())
}

fn count_step(
    read: &dyn Read,
    at: At,
    range: KeyRange<'_>,
    count: &mut Count,
    pace: &mut Pace,
) -> Result<Option<i64>> {
    match (at, range) {
        (At::Latest, KeyRange::One(key)) => Ok(Some(i64::from(read.peek(LATEST, key)?.is_some()))),
        (At::Latest, _) => Ok(Some(range_sums(read, LATEST, range)?.entries as i64)),
        (At::Revision(revision), _) => count.step(read, range, revision, pace),
    }
}

/// Visits the keys of `range` behind `after` in order and at `pace`. Where that ran out:
/// the key to go on behind.
pub(super) fn walk(
    read: &dyn Read,
    at: At,
    range: KeyRange<'_>,
    after: Option<&[u8]>,
    direction: Direction,
    pace: &mut Pace,
    visit: &mut VersionVisitor<'_>,
) -> Result<Option<Vec<u8>>> {
    match at {
        At::Latest => walk_latest_from(read, range, after, direction, pace, visit),
        At::Revision(revision) => walk_at(read, range, revision, after, direction, pace, visit),
    }
}

/// The revision filters of a request.
struct Filters {
    modified: (i64, i64),
    created: (i64, i64),
}

impl Filters {
    fn new(request: &RangeRequest<'_>) -> Self {
        let bounds = |least: i64, most: i64| {
            let least = if least == 0 { i64::MIN } else { least };
            let most = if most == 0 { i64::MAX } else { most };
            (least, most)
        };
        Self {
            modified: bounds(request.min_mod_revision, request.max_mod_revision),
            created: bounds(request.min_create_revision, request.max_create_revision),
        }
    }

    fn pass(&self, record: &Record<'_>) -> bool {
        let within = |value, (least, most)| least <= value && value <= most;
        within(record.modified.main, self.modified) && within(record.create, self.created)
    }
}

/// How far the answer to a range request has come.
///
/// A step takes the newest state there is: what is paused holds none, so that it
/// does not keep old pages. It answers from the same revision throughout; where
/// that has been compacted meanwhile, the step fails.
#[derive(Default)]
pub struct RangeCursor {
    phase: Phase,
    /// The last key gone over.
    after: Option<Vec<u8>>,
    /// Keys that the limit still allows.
    left: usize,
    /// Whether the limit cut something off.
    more: bool,
    /// Live keys gone over.
    seen: i64,
    /// Keys in the range, if they were counted before the end.
    count: Option<i64>,
}

#[derive(Default)]
enum Phase {
    #[default]
    Start,
    /// Keys are visited in their order.
    Keys(Direction),
    /// Keys are collected to be sorted.
    Collecting(Sorter),
    /// Sorted keys are visited.
    Sorted(std::vec::IntoIter<KeyValue>),
    /// What the range has in all is counted.
    Counting(Count),
}

/// What the visitor's breaking means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnBreak {
    /// The answer ends with this key, as if it were the limit.
    Cut,
    /// The step ends; the next one goes on behind this key.
    Pause,
}

/// Answers `request` key by key until the visitor breaks.
pub(super) fn range_with(
    read: &dyn Read,
    at: At,
    request: &RangeRequest<'_>,
    visit: &mut KeyVisitor<'_>,
) -> Result<RangeEnd> {
    let mut cursor = RangeCursor::default();
    let mut pace = Pace::unbounded();
    let end = cursor.step(read, at, request, &mut pace, OnBreak::Cut, visit)?;
    // Without a bound one step is all.
    Ok(end.unwrap_or_default())
}

/// Called for each key of an answer, until it breaks.
pub(super) type KeyVisitor<'v> = dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()> + 'v;

impl RangeCursor {
    /// Goes on with the same request in the same or a newer state. `None` when the
    /// step ended before the answer did.
    pub(super) fn step(
        &mut self,
        read: &dyn Read,
        at: At,
        request: &RangeRequest<'_>,
        pace: &mut Pace,
        on_break: OnBreak,
        visit: &mut KeyVisitor<'_>,
    ) -> Result<Option<RangeEnd>> {
        let range = request.range();
        loop {
            match &mut self.phase {
                Phase::Start => {
                    self.left = left(request.limit);
                    self.phase = first_phase(request);
                }
                Phase::Keys(direction) => {
                    let direction = *direction;
                    if self.keys(read, at, request, direction, pace, on_break, visit)? {
                        if at == At::Latest && self.count.is_none() {
                            // Cheap now, but not once this state is no longer the newest.
                            self.count = Some(count(read, at, range)?);
                        }
                        return Ok(None);
                    }
                    self.phase = Phase::Counting(Count::default());
                    if !self.more {
                        // Nothing was cut off, so everything was seen.
                        self.count = Some(self.seen);
                    }
                }
                Phase::Collecting(sorter) => {
                    let filters = Filters::new(request);
                    let (after, seen) = (self.after.take(), &mut self.seen);
                    let visit = &mut |key: &[u8], record: &Record<'_>| {
                        *seen += 1;
                        if filters.pass(record) {
                            sorter.push(key_value(key, record))?;
                        }
                        Ok(ControlFlow::Continue(()))
                    };
                    let forward = Direction::Forward;
                    self.after = walk(read, at, range, after.as_deref(), forward, pace, visit)?;
                    if self.after.is_some() {
                        return Ok(None);
                    }
                    let full = Phase::Counting(Count::default());
                    if let Phase::Collecting(sorter) = std::mem::replace(&mut self.phase, full) {
                        let (kvs, more) = sorter.finish();
                        (self.more, self.count) = (more, Some(self.seen));
                        self.phase = Phase::Sorted(kvs.into_iter());
                    }
                }
                Phase::Sorted(kvs) => {
                    while let Some(kv) = kvs.next() {
                        if visit((&kv).into()).is_break() {
                            if on_break == OnBreak::Pause {
                                return Ok(None);
                            }
                            self.more |= kvs.len() > 0;
                            break;
                        }
                    }
                    self.phase = Phase::Counting(Count::default());
                }
                Phase::Counting(counting) => {
                    if self.count.is_none() {
                        self.count = count_step(read, at, range, counting, pace)?;
                    }
                    let more = self.more;
                    return Ok(self.count.map(|count| RangeEnd { more, count }));
                }
            }
        }
    }

    /// Visits keys in their order; whether the step ended before they did.
    #[allow(clippy::too_many_arguments)] // the parts of `step`
    fn keys(
        &mut self,
        read: &dyn Read,
        at: At,
        request: &RangeRequest<'_>,
        direction: Direction,
        pace: &mut Pace,
        on_break: OnBreak,
        visit: &mut KeyVisitor<'_>,
    ) -> Result<bool> {
        let filters = Filters::new(request);
        let after = self.after.take();
        let mut broke_at = None;
        let range = request.range();
        let paused_at = walk(
            read,
            at,
            range,
            after.as_deref(),
            direction,
            pace,
            &mut |key, record| {
                self.seen += 1;
                if !filters.pass(record) {
                    return Ok(ControlFlow::Continue(()));
                }
                if self.left == 0 {
                    self.more = true;
                    return Ok(ControlFlow::Break(()));
                }
                self.left -= 1;
                let mut kv = key_value(key, record);
                if request.keys_only {
                    kv.value = &[];
                }
                if visit(kv).is_break() {
                    if on_break == OnBreak::Pause {
                        broke_at = Some(key.to_vec());
                        return Ok(ControlFlow::Break(()));
                    }
                    self.left = 0;
                }
                Ok(ControlFlow::Continue(()))
            },
        )?;
        // A single key is never gone on behind.
        if !matches!(range, KeyRange::One(_)) {
            self.after = broke_at.or(paused_at);
        }
        Ok(self.after.is_some())
    }
}

fn first_phase(request: &RangeRequest<'_>) -> Phase {
    if request.count_only {
        return Phase::Counting(Count::default());
    }
    match (request.sort_target, request.sort_order) {
        (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => Phase::Keys(Direction::Forward),
        (SortTarget::Key, SortOrder::Descend) => Phase::Keys(Direction::Backward),
        _ => Phase::Collecting(Sorter::new(request)),
    }
}

/// How many keys a request's limit allows.
pub(super) fn left(limit: i64) -> usize {
    match usize::try_from(limit) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(limit) => limit,
    }
}

/// Answers `request` in memory, cut at `max_bytes` of keys and values.
pub(super) fn range(
    read: &dyn Read,
    at: At,
    request: &RangeRequest<'_>,
    max_bytes: usize,
) -> Result<(RangeResponse, usize)> {
    let mut kvs = Vec::new();
    let mut bytes = 0;
    let end = range_with(read, at, request, &mut |kv| {
        bytes += kv.encoded_len();
        kvs.push(kv.to_owned());
        if bytes >= max_bytes {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    let response = RangeResponse {
        kvs,
        more: end.more,
        count: end.count,
    };
    Ok((response, bytes))
}
