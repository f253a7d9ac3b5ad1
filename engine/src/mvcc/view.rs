//! One published state of the store.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_types::{
    EventRef, KeyRange, KeyValueRef, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};

use super::error::Result;
use super::options::{EventLimits, EventsEnd, RangeEnd};
use crate::backend::{Applied, Snapshot};

/// Sums over live keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LiveSums {
    /// Live keys.
    pub keys: u64,
    /// Bytes of keys and values, with about 10 bytes of marks for each key.
    pub bytes: u64,
}

/// A published state; unaffected by later batches for as long as it is held.
/// A long-held view delays the reuse of space.
pub struct View {
    pub(super) snapshot: Arc<dyn Snapshot>,
}

impl View {
    /// Main revision of the last change.
    pub fn revision(&self) -> i64 {
        unimplemented!()
    }

    /// The revision of the last compaction, -1 before the first; reads below it fail.
    pub fn compacted(&self) -> i64 {
        unimplemented!()
    }

    /// The log entry up to which it applies.
    pub fn applied(&self) -> Applied {
        self.snapshot.applied()
    }

    /// Hash of the live state at its revision.
    pub fn hash(&self) -> u128 {
        unimplemented!()
    }

    /// Hash of the live state as it was at `revision`, from the compacted
    /// revision to the newest (0 or less is the newest).
    pub fn hash_at(&self, _revision: i64) -> Result<u128> {
        unimplemented!()
    }

    /// Whether history below the compacted revision is still being removed.
    pub fn compaction_pending(&self) -> bool {
        unimplemented!()
    }

    /// Passes the live record of `key` to `found`, borrowed from its page. One descent.
    pub fn get<T>(
        &self,
        _key: &[u8],
        _found: impl FnOnce(KeyValueRef<'_>) -> T,
    ) -> Result<Option<T>> {
        unimplemented!()
    }

    /// Answers `request` in memory. For answers of any size use [`View::range_with`].
    pub fn range(&self, _request: &RangeRequest<'_>) -> Result<RangeResponse> {
        unimplemented!()
    }

    /// Answers `request` key by key, borrowed from the pages, until the visitor breaks.
    /// Sorts other than by key are made in memory.
    pub fn range_with(
        &self,
        _request: &RangeRequest<'_>,
        _visit: &mut dyn FnMut(KeyValueRef<'_>) -> ControlFlow<()>,
    ) -> Result<RangeEnd> {
        unimplemented!()
    }

    /// Keys in `range` at `revision` (0 or less is the newest, which is O(log n)).
    pub fn count(&self, _range: KeyRange<'_>, _revision: i64) -> Result<i64> {
        unimplemented!()
    }

    /// Sums over the live keys of `range`, O(log n) on the B+tree.
    pub fn live_sums(&self, _range: KeyRange<'_>) -> Result<LiveSums> {
        unimplemented!()
    }

    /// Answers a transaction that writes nothing ([`TxnRequest::is_read_only`]).
    pub fn read_txn(&self, _request: &TxnRequest<'_>) -> Result<TxnResponse> {
        unimplemented!()
    }

    /// Visits the events of `range` from main revision `from` on, in order.
    /// Fails with `ApiError::Compacted` if `from` is below [`View::compacted`].
    pub fn events(
        &self,
        _range: KeyRange<'_>,
        _from: i64,
        _limits: EventLimits,
        _prev_kv: bool,
        _visit: &mut dyn FnMut(EventRef<'_>),
    ) -> Result<EventsEnd> {
        unimplemented!()
    }

    /// What another layer stored under `name` ([`super::WriteTxn::put_meta`]).
    pub fn meta(&self, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }

    /// Visits what other layers stored under names with this prefix, in order.
    pub fn scan_meta(&self, _prefix: &[u8], _visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        unimplemented!()
    }

    /// Goes over everything: the engine's own check and the store's invariants.
    pub fn check(&self) -> Result<()> {
        unimplemented!()
    }
}
