//! The revisioned key-value store.
//!
//! A revision is (main, sub): one main for each transaction that writes, one
//! sub for each change in it. Four trees hold everything:
//!
//! | tree | key | value |
//! |---|---|---|
//! | [`META`] | small names | state, progress, and what the layers above keep |
//! | [`LATEST`] | user key | the live record, with its value |
//! | [`DEAD`] | user key | the tombstone of a deleted key, until it is compacted |
//! | [`LOG`] | revision | the change: its key, the state hash after it, and the record it replaced |
//!
//! Invariants:
//! - a user key is in at most one of LATEST and DEAD;
//! - the record of a key names the revision of its last change, and LOG holds
//!   that change as long as its main revision is at or above the compacted one;
//! - every value is stored once: in LATEST while it is the newest, in the LOG
//!   entry of the change that replaced it afterwards;
//! - the state hash is the sum of the hashes of all records in LATEST.
//!
//! Compaction is logical at once and physical in small steps: what was removed
//! so far may differ between members, what a read answers may not.

mod check;
mod compaction;
mod count;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzz;
mod hash;
mod history;
mod keys;
mod live;
mod options;
mod pace;
mod range;
mod record;
mod reply;
mod snapshot;
mod snapshot_check;
mod snapshot_file;
mod snapshot_progress;
mod sort;
mod space;
mod state;
mod store;
mod txn;
mod validate;
mod varint;
mod view;
mod write;

#[cfg(test)]
mod tests;

use crate::backend::TreeId;

pub use check::MvccReport;
pub use error::{MvccError, Result};
pub use live::{EventBatch, LiveEvents};
pub use options::{
    BatchOptions, CompactBudget, EventLimits, EventsEnd, Limits, RangeEnd, RangeLimits,
};
pub use range::RangeCursor;
pub use reply::reply_bytes;
pub use snapshot::{SnapshotInfo, SnapshotPosition, SnapshotSink, SnapshotSource};
pub use snapshot_check::{EntryVisitor, SnapshotCheck};
pub use snapshot_file::{SnapshotFileError, SnapshotFileReader, SnapshotFileWriter};
pub use space::{SpaceLine, SpaceQuery};
pub use store::{CommandResponse, Published, Reader, Reply, Store, WriteTxn};
pub use validate::{MAX_KEY_BYTES, validate, validate_range, validate_read_txn};
pub use view::{LiveSums, View};

/// Small things: the store's state and what other layers keep with it.
pub const META: TreeId = TreeId(0);
/// Live keys.
pub const LATEST: TreeId = TreeId(1);
/// Deleted keys whose deletion is not compacted yet.
pub const DEAD: TreeId = TreeId(2);
/// Changes by revision.
pub const LOG: TreeId = TreeId(3);
