//! The write-ahead log: preallocated segments, chained records, group commit.
//!
//! # Invariants
//! 1. A [`Lsn`] is a byte position in one endless stream; it is never given to
//!    two acknowledged records.
//! 2. A group is there as a whole or not at all after a crash, and an
//!    acknowledged group is always there.
//! 3. Nothing that was acknowledged is ever cut. What recovery cuts is the one
//!    group that was being written when the power went.
//! 4. After a failed write or sync nothing is written any more ([`WalError::Latched`]).
//!    A disk without room for the next segment is neither: nothing was written, and
//!    the log goes on when there is room ([`WalError::NoSpace`]).

mod committer;
mod error;
mod group;
pub mod inspect;
mod keeper;
mod log;
mod reader;
pub mod record;
mod recovery;
mod scan;
mod scrub;
mod segment;
mod stats;

pub use committer::{CommitQueue, Committer, Completion};
pub use error::WalError;
pub use group::Group;
pub use log::{Committed, Wal};
pub use reader::WalReader;
pub use record::{MAX_GROUP_BYTES, MAX_KIND, MAX_PAYLOAD_BYTES};
pub use recovery::{Case, Recovered};
pub use scrub::{LogScrub, LogScrubStep};
pub use stats::{Histogram, WalStats};

/// Position in the log: a byte offset in the stream of all records ever written.
/// The first record of a new log is at [`FIRST_LSN`].
pub type Lsn = u64;

/// Where a new log starts. 0 is no position.
pub const FIRST_LSN: Lsn = 4096;

/// What the operations of this module return.
pub type Result<T> = std::result::Result<T, WalError>;

/// Whose log it is. A log of someone else is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: u64,
    /// The member's id.
    pub member_id: u64,
}

/// Settings of a log.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// Bytes of a segment file. A group that is larger gets a larger segment.
    pub segment_bytes: u64,
    /// Released segments that are kept to be used again, instead of removed.
    pub spare_segments: usize,
    /// Whether a thread prepares the next segment ahead. Without it that happens
    /// within the commit that needs it, as simulations want.
    pub prepare_in_background: bool,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            spare_segments: 2,
            prepare_in_background: true,
        }
    }
}

#[cfg(test)]
mod tests;
