//! The engines that the tests run on.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::backend::{Backend, registry};
use crate::btree;
use crate::disk::{Disk, SimDisk};

/// An engine with the disk that it keeps its files on.
pub(super) struct Engine {
    name: &'static str,
    disk: SimDisk,
    /// What engines from other crates keep theirs in: they know no `Disk`.
    folder: TempDir,
    backend: Arc<dyn Backend>,
}

impl Engine {
    /// A new, empty one of each kind.
    pub(super) fn all() -> Vec<Self> {
        registry::NAMES.iter().copied().map(Self::new).collect()
    }

    /// A new, empty one.
    pub(super) fn new(name: &'static str) -> Self {
        let disk = SimDisk::new();
        let folder = tempfile::tempdir().unwrap();
        let backend = open(name, &disk, folder.path());
        Self {
            name,
            disk,
            folder,
            backend,
        }
    }

    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// Closes it after a checkpoint and opens it again from its disk, where it has one.
    pub(super) fn reopen(self) -> Self {
        let Self {
            name,
            disk,
            folder,
            backend,
        } = self;
        backend.checkpoint().unwrap();
        if name == crate::backend::memory::NAME {
            return Self {
                name,
                disk,
                folder,
                backend,
            };
        }
        assert_eq!(Arc::strong_count(&backend), 1, "still in use");
        drop(backend);
        let backend = open(name, &disk, folder.path());
        Self {
            name,
            disk,
            folder,
            backend,
        }
    }
}

fn open(name: &str, disk: &SimDisk, dir: &Path) -> Arc<dyn Backend> {
    let options = registry::Options {
        btree: btree::Options { map_bytes: 1 << 28 },
        ..registry::Options::default()
    };
    disk.create_dir(dir).unwrap();
    registry::open(name, disk, dir, &options).unwrap()
}
