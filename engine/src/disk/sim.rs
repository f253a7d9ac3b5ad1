//! A disk in memory, with a crash model and injected faults.

use std::path::Path;
use std::sync::Arc;

use super::{Disk, File, OpenMode, Result};

/// Which operations a [`Fault`] hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOn {
    /// [`File::read_at`].
    Read,
    /// [`File::write_at`] and the write of [`File::write_durable`].
    Write,
    /// [`File::sync`] and the sync of [`File::write_durable`].
    Sync,
    /// [`File::allocate`].
    Allocate,
    /// [`Disk::sync_dir`].
    SyncDir,
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

/// A disk in memory. Clones share the disk.
#[derive(Debug, Clone)]
pub struct SimDisk {}

impl SimDisk {
    /// An empty disk that records no operations ([`SimDisk::crash_now`] works,
    /// [`SimDisk::crash`] does not).
    pub fn new() -> Self {
        unimplemented!()
    }

    /// An empty disk that records every operation from now on.
    pub fn recording() -> Self {
        unimplemented!()
    }

    /// Number of operations recorded so far. What was acknowledged by now must
    /// be there after a crash at any prefix of at least this many operations.
    pub fn op_count(&self) -> usize {
        unimplemented!()
    }

    /// Records the state of mapped files as it is now, as an operation: a point
    /// at which the kernel may write pages back.
    pub fn mark(&self) {
        unimplemented!()
    }

    /// The disk as it may be after a power loss at the point when `prefix`
    /// operations were done. Seed 0 loses everything unsynced, seed 1 keeps
    /// everything, any other seed decides for each 512-byte sector of each
    /// unsynced write and for each unsynced rename, creation, removal and
    /// truncation. The new disk records nothing and has no faults.
    pub fn crash(&self, _prefix: usize, _seed: u64) -> Self {
        unimplemented!()
    }

    /// As [`SimDisk::crash`], at the present point; works without recording.
    pub fn crash_now(&self, _seed: u64) -> Self {
        unimplemented!()
    }

    /// Adds a fault.
    pub fn inject(&self, _fault: Fault) {
        unimplemented!()
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        unimplemented!()
    }

    /// Limits the bytes of all files together; growing past it is ENOSPC.
    pub fn set_capacity(&self, _bytes: Option<u64>) {
        unimplemented!()
    }

    /// Flips bits of a stored byte, on the "platter" and in the cache.
    pub fn corrupt(&self, _path: &Path, _offset: u64, _xor: u8) -> Result<()> {
        unimplemented!()
    }

    /// Number of syncs of files so far (also those of durable writes).
    pub fn sync_count(&self) -> u64 {
        unimplemented!()
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

#[allow(unused_variables)]
impl Disk for SimDisk {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        unimplemented!()
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        unimplemented!()
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        unimplemented!()
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        unimplemented!()
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        unimplemented!()
    }

    fn remove(&self, path: &Path) -> Result<()> {
        unimplemented!()
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        unimplemented!()
    }
}
