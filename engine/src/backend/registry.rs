//! The engines that are built in, by name.

use std::path::Path;
use std::sync::Arc;

use super::memory::{self, Memory};
use super::{Backend, BackendError, Result};
use crate::btree::{self, Btree};
use crate::disk::Disk;

/// Names of the engines, the default first.
pub const NAMES: [&str; 2] = [btree::NAME, memory::NAME];

/// What can be chosen when an engine is opened; each takes what concerns it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// For the B+tree.
    pub btree: btree::Options,
}

/// Opens the engine `name` with its file or files in `dir`, which must exist.
/// An engine whose store is there opens that; otherwise it makes a new one.
///
/// # Errors
///
/// `UnknownEngine`, and what the engine says.
pub fn open(
    name: &str,
    disk: &dyn Disk,
    dir: &Path,
    options: &Options,
) -> Result<Arc<dyn Backend>> {
    match name {
        btree::NAME => Ok(Arc::new(Btree::open(
            disk,
            &dir.join("tree.btree"),
            options.btree,
        )?)),
        memory::NAME => Ok(Arc::new(Memory::new())),
        _ => Err(BackendError::UnknownEngine {
            name: name.to_owned(),
        }),
    }
}
