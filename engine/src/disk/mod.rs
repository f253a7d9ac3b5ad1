//! What stands between the engine and the file system.
//!
//! [`Disk`] is a file system's names, [`File`] the bytes of one file. There are
//! three of them: [`uring`] and [`psync`] on real files, [`sim`] in memory with
//! a crash model and injected faults. Everything above is written against the
//! traits, so that what runs in production is what the crash tests run.
//!
//! What is assumed of a disk is written down in `engine/FORMAT.md`.

use std::path::Path;
use std::sync::Arc;

pub mod align;
mod error;
pub mod frozen;
pub mod map;
pub mod psync;
pub mod sigbus;
pub mod sim;
pub mod uring;

#[cfg(test)]
mod tests;

pub use align::{AlignedBuf, BLOCK_BYTES};
pub use error::DiskError;
pub use map::Map;
pub use sim::SimDisk;

/// What the operations of this module return.
pub type Result<T> = std::result::Result<T, DiskError>;

/// What to do about a file that exists, or that does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist.
    Existing,
    /// The file is made if it does not exist.
    Create,
    /// The file must not exist.
    CreateNew,
}

/// The names of a file system.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// The name that `--disk` takes.
    fn name(&self) -> &'static str;

    /// Opens `path` for reading and writing. A created file survives a crash
    /// only after [`Disk::sync_dir`] of its directory.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>>;

    /// As [`Disk::open`], for a file whose [`File::write_durable`] is the group
    /// commit: buffers, offsets and lengths that are multiples of
    /// [`BLOCK_BYTES`] may then bypass the page cache.
    fn open_log(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        self.open(path, mode)
    }

    /// Whether there is a file or a directory at `path`.
    fn exists(&self, path: &Path) -> Result<bool>;

    /// The names in `dir`, sorted: of files, and of directories where the disk
    /// has them.
    fn list(&self, dir: &Path) -> Result<Vec<String>>;

    /// Makes `dir` and what is missing above it; durable on return. It is no error if it
    /// exists.
    fn create_dir(&self, dir: &Path) -> Result<()>;

    /// Gives the file `from` the name `to`, replacing what was there.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes the file `path`, or the directory with all that is in it: some
    /// engines keep a store in one.
    fn remove(&self, path: &Path) -> Result<()>;

    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
}

/// The bytes of one file. All methods may be called from any thread.
pub trait File: Send + Sync + std::fmt::Debug {
    /// The path it was opened at (a later rename does not change it).
    fn path(&self) -> &Path;

    /// Length in bytes.
    fn len(&self) -> Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads at `offset` until `buf` is full or the file ends; how many bytes
    /// that were.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// As [`File::read_at`], but what the device holds and not what the page
    /// cache remembers of it, where the file system can: for a check of the disk
    /// itself. Only if `buf`, its length and `offset` are multiples of
    /// [`BLOCK_BYTES`].
    fn read_direct_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.read_at(buf, offset)
    }

    /// Fills `buf` from `offset`, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let length = buf.len();
        let read = self.read_at(buf, offset)?;
        if read == length {
            return Ok(());
        }
        Err(DiskError::io(
            "read",
            self.path(),
            offset,
            std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                format!("the file ends {} bytes too early", length - read),
            ),
        ))
    }

    /// Writes all of `buf` at `offset`, growing the file if need be. Durable
    /// only after [`File::sync`].
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Makes everything that was written before, also through a [`Map`],
    /// durable, and the length with it (fdatasync). After an error the state of
    /// what was written is unknown and a second call proves nothing: the caller
    /// must stop trusting the file.
    fn sync(&self) -> Result<()>;

    /// Has what the range holds now handed to the disk, and waits for that: not
    /// durable yet (no metadata, no flush of the disk's cache). It keeps a large
    /// sync from filling the disk's queue in one go, where the log's writes would
    /// wait behind it. After an error the same holds as for [`File::sync`].
    fn write_back(&self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }

    /// Makes durable what [`File::write_back`] handed to the disk, and the length
    /// with it, by way of a map of the file. A [`File::sync`] would also write what
    /// others have changed since, and make each of these pages fault again.
    /// After an error the same holds as for [`File::sync`].
    fn sync_written_back(&self, _map: &Map) -> Result<()> {
        self.sync()
    }

    /// Writes all of `buf` at `offset` and makes *these* bytes durable in one
    /// step: the group commit. Says nothing about other unsynced writes.
    /// After an error the same holds as for [`File::sync`].
    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Reserves space for `length` bytes from `offset` on and grows the file to
    /// hold them; new bytes read as zero (fallocate).
    fn allocate(&self, offset: u64, length: u64) -> Result<()>;

    /// Sets the length; bytes beyond the old length read as zero.
    fn truncate(&self, length: u64) -> Result<()>;

    /// Maps the file, shared and writable, and reserves `reserve_bytes` of
    /// addresses for it, which may be more than its length. Bytes beyond the
    /// length must not be touched (SIGBUS) before the file has grown to them.
    fn map(&self, reserve_bytes: usize) -> Result<Map>;
}

/// A disk, and why it is not the one that was asked for first.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Why io_uring is not used although it was wanted, for the log line and
    /// the metric.
    pub fallback: Option<String>,
}

/// The best disk of this machine: io_uring, or [`psync`] where the kernel or a
/// container's seccomp profile forbids it.
pub fn open_default() -> Opened {
    match uring::UringDisk::probe() {
        Ok(disk) => Opened {
            disk: Arc::new(disk),
            fallback: None,
        },
        Err(reason) => Opened {
            disk: Arc::new(psync::PsyncDisk::new()),
            fallback: Some(reason.to_string()),
        },
    }
}

/// The names that [`by_name`] takes.
pub const NAMES: [&str; 2] = ["uring", "psync"];

/// The disk that `--disk` names. `uring` falls back to `psync` with the reason
/// where it is forbidden.
pub fn by_name(name: &str) -> Result<Opened> {
    match name {
        "uring" => Ok(open_default()),
        "psync" => Ok(Opened {
            disk: Arc::new(psync::PsyncDisk::new()),
            fallback: None,
        }),
        _ => Err(DiskError::UnknownDisk {
            name: name.to_owned(),
        }),
    }
}
