//! Errors of disks.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a disk could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The system refused.
    #[error("{action} {} at offset {offset}: {source}", path.display())]
    Io {
        /// What was being done: `open`, `read`, `write`, `sync`, `allocate`,
        /// `truncate`, `map`, `rename`, `remove`, `list`, `create dir`, `sync dir`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Where in the file, 0 where that says nothing.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// There is no such disk.
    #[error("unknown disk {name:?}: use uring or psync")]
    UnknownDisk {
        /// The name that was given.
        name: String,
    },
}

impl DiskError {
    /// An [`DiskError::Io`].
    pub fn io(action: &'static str, path: &Path, offset: u64, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            offset,
            source,
        }
    }

    /// The kind of the system's error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Io { source, .. } => source.kind(),
            Self::UnknownDisk { .. } => io::ErrorKind::InvalidInput,
        }
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }

    /// The parts of an [`DiskError::Io`]: action, path, offset and source; for
    /// errors that carry them in another form.
    pub fn into_parts(self) -> (&'static str, PathBuf, u64, io::Error) {
        match self {
            Self::Io {
                action,
                path,
                offset,
                source,
            } => (action, path, offset, source),
            Self::UnknownDisk { name } => (
                "open",
                PathBuf::new(),
                0,
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("unknown disk {name:?}"),
                ),
            ),
        }
    }
}
