//! Errors of the log.

use std::path::PathBuf;

use thiserror::Error;

use super::{Case, Lsn};
use crate::disk::DiskError;

/// Why the log could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WalError {
    /// The disk failed.
    #[error("log: {0}")]
    Disk(#[from] DiskError),
    /// There was no room for the next segment. Nothing was written: the same
    /// group can be committed once there is room again.
    #[error("log: {0}; nothing was written, free some space on the disk of the log")]
    NoSpace(DiskError),
    /// An earlier failed write or sync stopped the log for good.
    #[error(
        "the log stopped taking writes after an earlier error; restart after fixing the disk: {0}"
    )]
    Latched(String),
    /// A record is longer than [`super::MAX_PAYLOAD_BYTES`], or a group longer
    /// than [`super::MAX_GROUP_BYTES`].
    #[error("log: {what} of {length} bytes is over the limit of {limit}")]
    TooLarge {
        /// What is too large: `record` or `group`.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Nothing is at this position: it is below the released or past the end.
    #[error("log: no record at lsn {lsn}: the log holds {start} to {end}")]
    OutOfRange {
        /// The position asked for.
        lsn: Lsn,
        /// The first position held.
        start: Lsn,
        /// The end of the log.
        end: Lsn,
    },
    /// A record is not what was written.
    #[error(
        "log: {}: record at offset {offset} (lsn {lsn}) is damaged: {what}", path.display()
    )]
    DamagedRecord {
        /// The segment's file.
        path: PathBuf,
        /// Offset in the file.
        offset: u64,
        /// The record's position.
        lsn: Lsn,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Recovery found one of the cases that a log cannot go on from.
    #[error("log: {}: {message}", path.display())]
    Unrecoverable {
        /// Which case.
        case: Case,
        /// The segment's file, or the directory.
        path: PathBuf,
        /// What was found, what is still whole, and what to do.
        message: String,
        /// Where the damage is, if it is at one place.
        lsn: Option<Lsn>,
    },
    /// The committer's thread has ended.
    #[error("log: the committer was shut down")]
    Closed,
}
