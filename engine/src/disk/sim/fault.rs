//! Errors to be injected.

use std::io;
use std::path::Path;

/// Which operations a [`Fault`] hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOn {
    /// Reads.
    Read,
    /// Writes, and the write of a durable write. The first half of the bytes gets
    /// written all the same.
    Write,
    /// Syncs, writing back, and the sync of a durable write. What was written before stays
    /// unsynced for ever, as after a failed fsync on Linux: a later sync that
    /// succeeds does not make it durable.
    Sync,
    /// Allocation.
    Allocate,
    /// Syncs of directories.
    SyncDir,
    /// Changes of a file's length.
    Truncate,
    /// Opening and making of files.
    Open,
    /// Renaming, by the old name.
    Rename,
    /// Removal of files.
    Remove,
}

/// An error to be injected.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Which operations it hits.
    pub on: FaultOn,
    /// How many matching operations succeed before it hits.
    pub after: u64,
    /// Whether every later matching operation fails too, or only that one.
    pub forever: bool,
    /// Only files whose path contains this; empty for all.
    pub path_contains: String,
    /// The error number, as `libc::EIO` or `libc::ENOSPC`.
    pub errno: i32,
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Counts the operation, and fails it if its turn has come.
    pub(super) fn check(&mut self, on: FaultOn, path: &Path) -> io::Result<()> {
        let path = path.to_string_lossy();
        let mut hit = None;
        self.0.retain_mut(|fault| {
            if fault.on != on || !path.contains(fault.path_contains.as_str()) {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            hit.get_or_insert(fault.errno);
            fault.forever
        });
        match hit {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}
