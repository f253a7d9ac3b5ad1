//! Errors of an embedded store.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use varve_types::ApiError;

use crate::backend::BackendError;
use crate::disk::DiskError;
use crate::mvcc::MvccError;
use crate::wal::{Lsn, WalError};

/// What the operations of this module return.
pub type Result<T> = std::result::Result<T, DbError>;

/// Why an embedded store could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DbError {
    /// The request is at fault, or the state does not allow it; nothing changed.
    #[error(transparent)]
    Api(ApiError),
    /// The log failed.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The storage engine failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The revisioned store failed.
    #[error(transparent)]
    Mvcc(MvccError),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The directory could not be locked, or a thread not be started.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process, or another handle of this one, has the store open.
    #[error("{} is open already; close that store, or use another directory", .0.display())]
    Locked(PathBuf),
    /// A batch would be longer than one record of the log can be.
    #[error("batch of {bytes} bytes is over the limit of {limit}; write it in parts")]
    BatchTooLarge {
        /// What its length would be.
        bytes: usize,
        /// The longest.
        limit: usize,
    },
    /// What is loaded must ascend.
    #[error(
        "entry {entry} of the load is not above the one before it; sort the keys as byte \
         strings, and give each once"
    )]
    NotSorted {
        /// Which entry, counted from 0.
        entry: u64,
    },
    /// Log and store are not of one another.
    #[error("{}: log and store do not belong together: {what}", path.display())]
    Inconsistent {
        /// The directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A record of the log is whole, but not what this store writes.
    #[error("log: record at lsn {lsn}: {what}; it is of another program or a newer version")]
    Record {
        /// Where it is.
        lsn: Lsn,
        /// What is wrong with it.
        what: String,
    },
    /// An earlier error stopped the store, or it was closed.
    #[error("the store takes no more writes: {0}; close it, mend the cause, and open it again")]
    Stopped(String),
}

impl From<ApiError> for DbError {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<MvccError> for DbError {
    fn from(error: MvccError) -> Self {
        match error {
            MvccError::Api(error) => Self::Api(error),
            error => Self::Mvcc(error),
        }
    }
}

impl DbError {
    /// Where the request is at fault: why, as a node would answer it.
    pub fn api(&self) -> Option<ApiError> {
        match self {
            Self::Api(error) => Some(*error),
            _ => None,
        }
    }
}
