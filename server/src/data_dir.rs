//! The data directory: made with the owner's rights only, and locked for as
//! long as the process lives, so that two processes never write one log.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use varve_engine::disk::psync::create_dirs;

/// Name of the file that is locked. It stays when the process ends; the lock does not.
const LOCK_FILE: &str = "lock";
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Why the data directory can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// It can't be made, read or written.
    #[error("cannot use data directory {}: {action}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Something that is not a directory has its name.
    #[error(
        "cannot use data directory {}: it is not a directory; choose another with --data-dir",
        path.display()
    )]
    NotADirectory {
        /// Its path.
        path: PathBuf,
    },
    /// It is one of etcd's.
    #[error(
        "cannot use data directory {}: it has a directory \"member\", as etcd's have, and the \
         formats differ; choose another with --data-dir",
        path.display()
    )]
    OfEtcd {
        /// The directory.
        path: PathBuf,
    },
    /// Another process holds it.
    #[error(
        "data directory {} is in use by another process; stop that one, or choose another \
         directory with --data-dir",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

/// A data directory that this process alone uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock; the kernel drops it with the file, however the process ends.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is missing, and locks it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |action| {
            move |source| DataDirError::Io {
                path: path.to_owned(),
                action,
                source,
            }
        };
        if path.exists() && !path.is_dir() {
            return Err(DataDirError::NotADirectory {
                path: path.to_owned(),
            });
        }
        if path.join(varve_raft::MEMBER_FILE).is_dir() {
            return Err(DataDirError::OfEtcd {
                path: path.to_owned(),
            });
        }
        create_dirs(path).map_err(failed("create it"))?;
        warn_if_open_to_others(path);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FILE_MODE)
            .open(path.join(LOCK_FILE))
            .map_err(failed("open its lock file"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::Locked {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed("lock it")(source)),
        }
    }

    /// Whether it belongs to a member already.
    pub fn has_member(&self) -> bool {
        self.path.join(varve_raft::MEMBER_FILE).exists()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn warn_if_open_to_others(path: &Path) {
    let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777);
    if let Ok(mode) = mode
        && mode & 0o077 != 0
    {
        tracing::warn!(
            "data directory {} has mode {mode:o}; {DIR_MODE:o} is recommended",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b.varve");
        let first = DataDir::open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        // flock is per open file, so that a second opening in one process is refused too.
        assert!(matches!(
            DataDir::open(&path),
            Err(DataDirError::Locked { .. })
        ));
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_of_etcd_is_told_and_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(parent.path().join("member/wal")).unwrap();
        let error = DataDir::open(parent.path()).unwrap_err();
        assert!(error.to_string().contains("as etcd's have"), "{error}");
        assert!(!parent.path().join(LOCK_FILE).exists());
    }

    #[test]
    fn a_file_is_no_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::open(file.path()).unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
        let error = DataDir::open(&file.path().join("below")).unwrap_err();
        assert!(
            error.to_string().contains("cannot use data directory"),
            "{error}"
        );
    }
}
