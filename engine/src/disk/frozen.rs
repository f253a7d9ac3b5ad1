//! A disk that is only looked at: real files, opened for reading.
//!
//! What is written goes nowhere, or, through a map, into memory of this process
//! alone. So the code that opens, recovers and checks a store runs on files that
//! must not change: those of a backup, of a damaged member, or of one that runs.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::map::Region;
use super::psync::{PsyncDisk, read_all};
use super::{Disk, DiskError, File, Map, OpenMode, Result};

/// Real files that nothing changes. Names are neither made nor removed.
#[derive(Debug, Default, Clone, Copy)]
pub struct FrozenDisk;

impl FrozenDisk {
    /// The disk.
    pub fn new() -> Self {
        Self
    }
}

impl Disk for FrozenDisk {
    fn name(&self) -> &'static str {
        "frozen"
    }

    /// Whatever the mode, the file must exist.
    fn open(&self, path: &Path, _mode: OpenMode) -> Result<Arc<dyn File>> {
        let file = fs::File::open(path).map_err(|e| DiskError::io("open", path, 0, e))?;
        Ok(Arc::new(FrozenFile {
            path: path.to_owned(),
            file,
        }))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        PsyncDisk.exists(path)
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        PsyncDisk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        refuse("create dir", dir)
    }

    fn rename(&self, from: &Path, _to: &Path) -> Result<()> {
        refuse("rename", from)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        refuse("remove", path)
    }

    fn sync_dir(&self, _dir: &Path) -> Result<()> {
        Ok(())
    }
}

fn refuse(action: &'static str, path: &Path) -> Result<()> {
    let source = std::io::ErrorKind::ReadOnlyFilesystem.into();
    Err(DiskError::io(action, path, 0, source))
}

#[derive(Debug)]
struct FrozenFile {
    path: PathBuf,
    file: fs::File,
}

impl File for FrozenFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|e| DiskError::io("stat", &self.path, 0, e))?;
        Ok(metadata.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        read_all(&self.file, buf, offset)
            .map_err(|(at, e)| DiskError::io("read", &self.path, at, e))
    }

    /// Recovery writes what is there already, or zeroes over what a power loss left
    /// of a group: neither matters to who only looks.
    // Nobody makes batches on a frozen disk: what they wrote here would not be there.
    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn write_durable(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    /// Nothing grows here.
    fn allocate(&self, offset: u64, _length: u64) -> Result<()> {
        let source = std::io::ErrorKind::ReadOnlyFilesystem.into();
        Err(DiskError::io("allocate", &self.path, offset, source))
    }

    fn truncate(&self, _length: u64) -> Result<()> {
        Ok(())
    }

    /// A map of its own: what is written to it the file never sees.
    fn map(&self, reserve_bytes: usize) -> Result<Map> {
        let region = Region::private(self.file.as_raw_fd(), reserve_bytes)
            .map_err(|e| DiskError::io("map", &self.path, 0, e))?
            .guarded(&self.path.to_string_lossy());
        Ok(Map::new(Arc::new(region), reserve_bytes))
    }
}
