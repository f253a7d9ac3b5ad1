//! One published state of the store.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use varve_types::{
    EventRef, KeyRange, KeyValueRef, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};

use super::check::{self, MvccReport};
use super::error::{MvccError, Result};
use super::events::{self, Replay};
use super::history::{decode, key_value, range_sums, version_at};
use super::keys::Revision;
use super::options::{BatchOptions, EventLimits, EventsEnd, RangeEnd, RangeLimits};
use super::pace::Pace;
use super::range::{self, At, OnBreak, RangeCursor};
use super::record::{Change, Record};
use super::state::State;
use super::{LATEST, LOG, META, txn};
use crate::backend::{Applied, Direction, Peek, Read, Snapshot};

/// Sums over live keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LiveSums {
    /// Live keys.
    pub keys: u64,
    /// Bytes of keys and values, with about 10 bytes of marks for each key, 26 from
    /// 1,024 bytes of key and value on.
    pub bytes: u64,
}

/// A published state; unaffected by later batches for as long as it is held.
/// A long-held view delays the reuse of space.
pub struct View {
    snapshot: Arc<dyn Snapshot>,
    state: State,
}

impl View {
    pub(super) fn new(snapshot: Arc<dyn Snapshot>, state: State) -> Self {
        Self { snapshot, state }
    }

    pub(super) fn read(&self) -> &dyn Read {
        &*self.snapshot
    }

    /// Main revision of the last change; 1 in a new store.
    pub fn revision(&self) -> i64 {
        self.state.revision
    }

    /// The revision of the last compaction, -1 before the first; reads below it fail.
    pub fn compacted(&self) -> i64 {
        self.state.compacted
    }

    /// The log entry up to which it applies.
    pub fn applied(&self) -> Applied {
        self.snapshot.applied()
    }

    /// Hash of the live state at its revision.
    pub fn hash(&self) -> u128 {
        self.state.hash
    }

    /// Hash of the live state as it was at `revision`, from the compacted
    /// revision to the newest (0 or less is the newest). Unlike etcd's HashKV
    /// it does not cover history, so that it does not depend on compaction.
    pub fn hash_at(&self, revision: i64) -> Result<u128> {
        let revision = match At::new(revision, &self.state, false)? {
            At::Latest => return Ok(self.state.hash),
            At::Revision(revision) => revision,
        };
        let last = Revision::last_of(revision).log_key();
        let mut found = None;
        let bounds = (Bound::Unbounded, Bound::Included(&last[..]));
        let visit = &mut |key: &[u8], peek: Peek<'_>| {
            found = Some((key.to_vec(), Change::hash_of(&peek.bytes)));
            ControlFlow::Break(())
        };
        self.read()
            .peek_scan(LOG, bounds, Direction::Backward, visit)?;
        match found {
            Some((_, Some(hash))) => Ok(hash),
            Some((key, None)) => Err(MvccError::damaged(LOG, &key, "not a change")),
            // Revision 1 has no changes.
            None => Ok(0),
        }
    }

    /// Whether history below the compacted revision is still being removed.
    pub fn compaction_pending(&self) -> bool {
        self.state.compaction_pending()
    }

    /// Passes the live record of `key` to `found`, borrowed from its page. One descent.
    pub fn get<T>(
        &self,
        key: &[u8],
        found: impl FnOnce(KeyValueRef<'_>) -> T,
    ) -> Result<Option<T>> {
        let Some(bytes) = self.read().get(LATEST, key)? else {
            return Ok(None);
        };
        let record = decode(LATEST, key, &bytes)?;
        Ok(Some(found(key_value(key, &record))))
    }

    /// Answers `request` in memory. For answers of any size use [`View::range_with`].
    pub fn range(&self, request: &RangeRequest<'_>) -> Result<RangeResponse> {
        let at = At::new(request.revision, &self.state, false)?;
        Ok(range::range(self.read(), at, request, usize::MAX)?.0)
    }

    /// Answers `request` key by key, borrowed from the pages. Where the visitor
    /// breaks, the key that it was given is the last. Sorts other than by key
    /// are made in memory, and refused with `ApiError::RequestTooLarge` past 256 MiB.
    pub fn range_with(
        &self,
        request: &RangeRequest<'_>,
        visit: &mut dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()>,
    ) -> Result<RangeEnd> {
        let at = At::new(request.revision, &self.state, false)?;
        range::range_with(self.read(), at, request, visit)
    }

    /// Passes the record that `key` had at `revision` (0 or less is the newest) to
    /// `found`. A few descents, however many versions there are.
    pub fn get_at<T>(
        &self,
        key: &[u8],
        revision: i64,
        found: impl FnOnce(KeyValueRef<'_>) -> T,
    ) -> Result<Option<T>> {
        let revision = match At::new(revision, &self.state, false)? {
            At::Latest => return self.get(key, found),
            At::Revision(revision) => Revision::last_of(revision),
        };
        let version = version_at(self.read(), key, revision)?;
        let record = version.as_ref().and_then(|version| version.record());
        let live = record.filter(|record| record.live);
        Ok(live.map(|record| found(key_value(key, &record))))
    }

    /// Visits the keys of `range` at `revision` (0 or less is the newest) in
    /// order until the visitor breaks, and counts nothing beyond.
    pub fn scan(
        &self,
        range: KeyRange<'_>,
        revision: i64,
        direction: Direction,
        visit: &mut dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let at = At::new(revision, &self.state, false)?;
        let (read, pace) = (self.read(), &mut Pace::unbounded());
        let visit = &mut |key: &[u8], record: &Record<'_>| Ok(visit(key_value(key, record)));
        range::walk(read, at, range, None, direction, pace, visit).map(|_| ())
    }

    /// Goes on with the answer to `request`, where `cursor` stands, until the
    /// visitor breaks, a limit is reached or the answer is complete: then its end is
    /// returned. Each step may be made with a newer view; then `request` must name
    /// the revision of the first one, and the step fails with `ApiError::Compacted`
    /// once that is gone.
    pub fn range_step(
        &self,
        request: &RangeRequest<'_>,
        cursor: &mut RangeCursor,
        limits: RangeLimits,
        visit: &mut dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()>,
    ) -> Result<Option<RangeEnd>> {
        let at = At::new(request.revision, &self.state, false)?;
        let pace = &mut Pace::from(limits);
        cursor.step(self.read(), at, request, pace, OnBreak::Pause, visit)
    }

    /// Keys in `range` at `revision` (0 or less is the newest, which is O(log n)).
    pub fn count(&self, range: KeyRange<'_>, revision: i64) -> Result<i64> {
        let at = At::new(revision, &self.state, false)?;
        range::count(self.read(), at, range)
    }

    /// Sums over the live keys of `range`, O(log n) on the B+tree.
    pub fn live_sums(&self, range: KeyRange<'_>) -> Result<LiveSums> {
        let sums = range_sums(self.read(), LATEST, range)?;
        Ok(LiveSums {
            keys: sums.entries,
            bytes: sums.bytes,
        })
    }

    /// Answers a transaction that writes nothing ([`TxnRequest::is_read_only`]).
    pub fn read_txn(&self, request: &TxnRequest<'_>) -> Result<TxnResponse> {
        let max_bytes = BatchOptions::default().max_reply_bytes;
        txn::read(self.read(), &self.state, request, max_bytes)
    }

    /// Visits the events of `range` from main revision `from` on, in order.
    /// Fails with `ApiError::Compacted` if `from` is below [`View::compacted`].
    /// Events of the compacted revision itself have no previous value.
    pub fn events(
        &self,
        range: KeyRange<'_>,
        from: i64,
        limits: EventLimits,
        prev_kv: bool,
        visit: &mut dyn FnMut(EventRef<'_>),
    ) -> Result<EventsEnd> {
        let replay = Replay {
            range,
            from,
            limits,
            prev_kv,
        };
        events::replay(self.read(), &self.state, &replay, visit)
    }

    /// What another layer stored under `name` ([`super::WriteTxn::put_meta`]).
    pub fn meta(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.read().get(META, name)?.map(|bytes| bytes.into_owned()))
    }

    /// Visits what other layers stored under names with this prefix, in order.
    pub fn scan_meta(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let bounds = (Bound::Included(prefix), Bound::Unbounded);
        let visit = &mut |name: &[u8], value: &[u8]| {
            if !name.starts_with(prefix) {
                return ControlFlow::Break(());
            }
            visit(name, value);
            ControlFlow::Continue(())
        };
        Ok(self.read().scan(META, bounds, Direction::Forward, visit)?)
    }

    /// Goes over all keys and all history: every record and every change must
    /// be where the others say, and the hashes must add up. Reads everything.
    pub fn check(&self) -> Result<MvccReport> {
        check::check(self.read(), &self.state)
    }
}
