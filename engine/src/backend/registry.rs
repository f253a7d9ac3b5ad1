//! The engines that are built in, by name.

use std::path::Path;
use std::sync::Arc;

use super::compressed::{self, Compression};
use super::memory::{self, Memory};
use super::{Backend, BackendError, Result};
use crate::btree::{self, Btree};
use crate::disk::Disk;

/// Names of the engines, the default first.
pub const NAMES: &[&str] = &[
    btree::NAME,
    memory::NAME,
    #[cfg(feature = "lmdb")]
    super::lmdb::NAME,
    #[cfg(feature = "redb")]
    super::redb::NAME,
    #[cfg(feature = "fjall")]
    super::fjall::NAME,
];

/// What can be chosen when an engine is opened; each takes what concerns it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// For the B+tree.
    pub btree: btree::Options,
    /// How long values are stored from now on; any engine reads both.
    pub compression: Compression,
}

/// Opens the engine `name` with its file or files in `dir`, which must exist.
///
/// # Errors
///
/// As [`open_store`].
pub fn open(
    name: &str,
    disk: &dyn Disk,
    dir: &Path,
    options: &Options,
) -> Result<Arc<dyn Backend>> {
    open_store(name, disk, &dir.join(format!("tree.{name}")), options)
}

/// Opens the engine `name` with its store at `path`, a file or a directory as
/// the engine has it. A store that is there is opened; otherwise a new one is
/// made. Engines from other crates do their own I/O: they pass `disk` by.
///
/// # Errors
///
/// `UnknownEngine`, and what the engine says.
pub fn open_store(
    name: &str,
    disk: &dyn Disk,
    path: &Path,
    options: &Options,
) -> Result<Arc<dyn Backend>> {
    let backend: Arc<dyn Backend> = match name {
        btree::NAME => Arc::new(Btree::open(disk, path, options.btree)?),
        memory::NAME => Arc::new(Memory::new()),
        #[cfg(feature = "lmdb")]
        super::lmdb::NAME => Arc::new(super::lmdb::Lmdb::open(path)?),
        #[cfg(feature = "redb")]
        super::redb::NAME => Arc::new(super::redb::Redb::open(path)?),
        #[cfg(feature = "fjall")]
        super::fjall::NAME => Arc::new(super::fjall::Fjall::open(path)?),
        _ => {
            return Err(BackendError::UnknownEngine {
                name: name.to_owned(),
            });
        }
    };
    compressed::wrap(backend, options.compression)
}
