//! Errors of storage engines.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why an engine could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The disk failed.
    #[error("{action} {} at offset {offset}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Where in the file, 0 where that says nothing or is not known.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// A page is not what was written.
    #[error("{}: page {page} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The page number.
        page: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The file is not one of this engine's, or of another version.
    #[error("{}: {what}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was found instead.
        what: String,
    },
    /// A key is longer than the engine can hold.
    #[error("key of {length} bytes is over the limit of {limit}")]
    KeyTooLong {
        /// Its length.
        length: usize,
        /// The engine's limit.
        limit: usize,
    },
    /// A value is longer than the engine can hold.
    #[error("value of {length} bytes is over the limit of {limit}")]
    ValueTooLong {
        /// Its length.
        length: usize,
        /// The engine's limit.
        limit: usize,
    },
    /// A tree id is out of range.
    #[error("there is no tree {tree}: ids go up to {}", super::MAX_TREES - 1)]
    UnknownTree {
        /// The id asked for.
        tree: u8,
    },
    /// No engine of that name is built in.
    #[error("there is no engine {name:?}: the engines are {}", super::NAMES.join(", "))]
    UnknownEngine {
        /// The name asked for.
        name: String,
    },
    /// An earlier error on write or sync stopped the engine from taking more.
    #[error("the store stopped taking writes after an earlier error: {0}")]
    Latched(String),
    /// An earlier operation of the batch failed half-way.
    #[error("the batch can only be dropped after an earlier error: {0}")]
    BrokenBatch(String),
    /// An engine from another crate failed.
    #[error("{engine}: {message}")]
    Other {
        /// The engine's name.
        engine: &'static str,
        /// What it said.
        message: String,
    },
}

impl BackendError {
    /// Whether the disk is full: the batch or the checkpoint that met it was not
    /// made, and can be once there is room.
    pub fn is_no_space(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}
