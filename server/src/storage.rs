//! The disk and the storage engine that the settings name.

use std::path::Path;
use std::sync::Arc;

use varve_engine::backend::{self, Backend, BackendError, Compression, Options};
use varve_engine::disk::psync::PsyncDisk;
use varve_engine::disk::uring::UringDisk;
use varve_raft::StoreOpener;

use crate::config::{Disk, Engine};

/// The disk in use.
pub struct Storage {
    /// The disk.
    pub disk: Arc<dyn varve_engine::disk::Disk>,
    /// Why it is not the one that was asked for.
    pub fallback: Option<String>,
}

impl Storage {
    /// The disk that was asked for, or the other one where the system forbids it.
    pub fn open(wanted: Disk) -> Self {
        let psync = || Arc::new(PsyncDisk::new());
        let (disk, fallback): (Arc<dyn varve_engine::disk::Disk>, _) = match wanted {
            Disk::Psync => (psync(), None),
            Disk::Uring => match UringDisk::probe() {
                Ok(disk) => (Arc::new(disk), None),
                Err(reason) => (psync(), Some(reason.to_string())),
            },
        };
        match &fallback {
            None => tracing::info!("disk: {}", disk.name()),
            Some(reason) => tracing::warn!(
                "disk: {} instead of uring, as the system does not allow that: {reason}",
                disk.name()
            ),
        }
        Self { disk, fallback }
    }

    /// Opens stores of an engine.
    pub fn opener(&self, engine: Engine, compression: Compression) -> StoreOpener {
        let options = Options {
            compression,
            ..Options::default()
        };
        let disk = Arc::clone(&self.disk);
        Arc::new(
            move |path: &Path| -> Result<Arc<dyn Backend>, BackendError> {
                backend::open_store(engine.name(), &*disk, path, &options)
            },
        )
    }
}
