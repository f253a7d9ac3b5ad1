//! The store files of a data directory.
//!
//! Each has a number; the newest marker in the log names the one that counts
//! (see [`crate::record`]). So there is no moment at which a crash could leave
//! it open which is the right one: a store that another member sent is complete
//! and durable before the marker names it, and is not used before the marker is
//! durable. Files that no marker names are leftovers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use varve_engine::backend::{Backend, BackendError};
use varve_engine::disk::Disk;

use crate::error::RaftError;

/// Opens the engine's store in the file at a path, or makes a new one there.
pub type StoreOpener = Arc<dyn Fn(&Path) -> Result<Arc<dyn Backend>, BackendError> + Send + Sync>;

/// The number of the store that the bootstrap makes.
pub(crate) const FIRST_STORE: u64 = 1;

/// Names, opens and removes the store files.
#[derive(Clone)]
pub(crate) struct StoreFiles {
    directory: PathBuf,
    disk: Arc<dyn Disk>,
    opener: StoreOpener,
}

impl StoreFiles {
    /// Those in `directory`, which exists.
    pub(crate) fn new(directory: PathBuf, disk: Arc<dyn Disk>, opener: StoreOpener) -> Self {
        Self {
            directory,
            disk,
            opener,
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("store-{number:06}.db"))
    }

    /// Opens store `number`, or makes it.
    pub(crate) fn open(&self, number: u64) -> Result<Arc<dyn Backend>, RaftError> {
        let backend = (self.opener)(&self.path(number))?;
        self.disk.sync_dir(&self.directory)?;
        Ok(backend)
    }

    /// Whether there is a file for store `number`.
    pub(crate) fn exists(&self, number: u64) -> Result<bool, RaftError> {
        Ok(self.disk.exists(&self.path(number))?)
    }

    /// Removes store `number`, if it has a file. Readers that have it open go on.
    pub(crate) fn remove(&self, number: u64) -> Result<(), RaftError> {
        if self.exists(number)? {
            self.disk.remove(&self.path(number))?;
            self.disk.sync_dir(&self.directory)?;
        }
        Ok(())
    }

    /// The numbers of all store files.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>, RaftError> {
        let names = self.disk.list(&self.directory)?;
        Ok(names.iter().filter_map(|name| number_of(name)).collect())
    }
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("store-")?
        .strip_suffix(".db")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_number() {
        assert_eq!(number_of("store-000001.db"), Some(1));
        assert_eq!(number_of("store-1234567.db"), Some(1_234_567));
        for other in ["store-.db", "store-000001", "wal", "store-x.db"] {
            assert_eq!(number_of(other), None);
        }
    }
}
