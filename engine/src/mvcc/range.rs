//! Answers to range requests.

use std::ops::ControlFlow;

use varve_types::{
    ApiError, KeyRange, KeyValueRef, RangeRequest, RangeResponse, SortOrder, SortTarget,
};

use super::LATEST;
use super::error::Result;
use super::history::{VersionVisitor, count_at, key_value, range_sums, walk_at, walk_latest};
use super::options::RangeEnd;
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
    match (at, range) {
        (At::Latest, KeyRange::One(key)) => Ok(i64::from(read.get(LATEST, key)?.is_some())),
        (At::Latest, _) => Ok(range_sums(read, LATEST, range)?.entries as i64),
        (At::Revision(revision), _) => count_at(read, range, revision),
    }
}

/// Visits the keys of `range` in order.
pub(super) fn walk(
    read: &dyn Read,
    at: At,
    range: KeyRange<'_>,
    direction: Direction,
    visit: &mut VersionVisitor<'_>,
) -> Result<()> {
    match at {
        At::Latest => walk_latest(read, range, direction, visit),
        At::Revision(revision) => walk_at(read, range, revision, direction, visit),
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

/// Answers `request` key by key until the visitor breaks.
pub(super) fn range_with(
    read: &dyn Read,
    at: At,
    request: &RangeRequest<'_>,
    visit: &mut dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()>,
) -> Result<RangeEnd> {
    let range = request.range();
    if request.count_only {
        let count = count(read, at, range)?;
        return Ok(RangeEnd { more: false, count });
    }
    match (request.sort_target, request.sort_order) {
        (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => {
            in_key_order(read, at, request, Direction::Forward, visit)
        }
        (SortTarget::Key, SortOrder::Descend) => {
            in_key_order(read, at, request, Direction::Backward, visit)
        }
        _ => sorted(read, at, request, visit),
    }
}

fn in_key_order(
    read: &dyn Read,
    at: At,
    request: &RangeRequest<'_>,
    direction: Direction,
    visit: &mut dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()>,
) -> Result<RangeEnd> {
    let range = request.range();
    let filters = Filters::new(request);
    let mut left = left(request.limit);
    let (mut more, mut seen) = (false, 0);
    walk(read, at, range, direction, &mut |key, record| {
        seen += 1;
        if !filters.pass(record) {
            return Ok(ControlFlow::Continue(()));
        }
        if left == 0 {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        left -= 1;
        let mut kv = key_value(key, record);
        if request.keys_only {
            kv.value = &[];
        }
        if visit(kv).is_break() {
            left = 0;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let count = if more { count(read, at, range)? } else { seen };
    Ok(RangeEnd { more, count })
}

/// How many keys a request's limit allows.
pub(super) fn left(limit: i64) -> usize {
    match usize::try_from(limit) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(limit) => limit,
    }
}

fn sorted(
    read: &dyn Read,
    at: At,
    request: &RangeRequest<'_>,
    visit: &mut dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()>,
) -> Result<RangeEnd> {
    let filters = Filters::new(request);
    let mut sorter = Sorter::new(request);
    let mut count = 0;
    walk(
        read,
        at,
        request.range(),
        Direction::Forward,
        &mut |key, record| {
            count += 1;
            if filters.pass(record) {
                sorter.push(key_value(key, record))?;
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    let (kvs, mut more) = sorter.finish();
    let mut kvs = kvs.iter();
    for kv in kvs.by_ref() {
        if visit(kv.into()).is_break() {
            more |= kvs.len() > 0;
            break;
        }
    }
    Ok(RangeEnd { more, count })
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
