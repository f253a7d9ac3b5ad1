//! A disk that asks a test before it does some things with one file.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use varve_engine::disk::{self, Disk, File, Map, OpenMode, SimDisk};

/// Called before; whether the thing is to be done, or only looks so. It may wait.
pub(crate) type Hook = Arc<dyn Fn() -> bool + Send + Sync>;

/// Everything but what has hooks is done by `inner` at once.
#[derive(Clone)]
pub(crate) struct HookedDisk {
    pub(crate) inner: SimDisk,
    /// Name of the file whose calls are hooked.
    pub(crate) name: &'static str,
    pub(crate) sync: Hook,
    pub(crate) truncate: Hook,
}

impl HookedDisk {
    pub(crate) fn new(inner: SimDisk, name: &'static str) -> Self {
        Self {
            inner,
            name,
            sync: Arc::new(|| true),
            truncate: Arc::new(|| true),
        }
    }
}

struct HookedFile {
    inner: Arc<dyn File>,
    disk: HookedDisk,
}

impl fmt::Debug for HookedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hooks for {} on {:?}", self.name, self.inner)
    }
}

impl fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hooks for {:?}", self.inner)
    }
}

impl Disk for HookedDisk {
    fn name(&self) -> &'static str {
        "hooked"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> disk::Result<Arc<dyn File>> {
        let inner = self.inner.open(path, mode)?;
        if !path.ends_with(self.name) {
            return Ok(inner);
        }
        let disk = self.clone();
        Ok(Arc::new(HookedFile { inner, disk }))
    }

    fn exists(&self, path: &Path) -> disk::Result<bool> {
        self.inner.exists(path)
    }

    fn list(&self, dir: &Path) -> disk::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> disk::Result<()> {
        self.inner.create_dir(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> disk::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> disk::Result<()> {
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> disk::Result<()> {
        self.inner.sync_dir(dir)
    }
}

impl File for HookedFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn len(&self) -> disk::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> disk::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> disk::Result<()> {
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> disk::Result<()> {
        match (self.disk.sync)() {
            true => self.inner.sync(),
            false => Ok(()),
        }
    }

    fn write_durable(&self, buf: &[u8], offset: u64) -> disk::Result<()> {
        self.inner.write_durable(buf, offset)
    }

    fn allocate(&self, offset: u64, length: u64) -> disk::Result<()> {
        self.inner.allocate(offset, length)
    }

    fn truncate(&self, length: u64) -> disk::Result<()> {
        match (self.disk.truncate)() {
            true => self.inner.truncate(length),
            false => Ok(()),
        }
    }

    fn map(&self, reserve_bytes: usize) -> disk::Result<Map> {
        self.inner.map(reserve_bytes)
    }
}
