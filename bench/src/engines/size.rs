//! What files take, and what the process has written.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::error::{BenchError, Result};

/// Bytes of the files in a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Size {
    /// Lengths.
    pub(crate) length: u64,
    /// Blocks that the file system has given them (what `du` counts).
    pub(crate) allocated: u64,
    /// Of the blocks, those of Varve's log; the other engines' logs are part of
    /// their files.
    pub(crate) log: u64,
}

impl Size {
    /// Of everything below `folder`. A file that goes meanwhile counts nothing.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let mut size = Self::default();
        size.add(folder, false)?;
        Ok(size)
    }

    fn add(&mut self, folder: &Path, is_log: bool) -> Result<()> {
        let entries = fs::read_dir(folder).map_err(|source| BenchError::Io {
            action: "read",
            path: folder.to_owned(),
            source,
        })?;
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                self.add(&entry.path(), is_log || entry.file_name() == "wal")?;
                continue;
            }
            let allocated = metadata.blocks() * 512;
            self.length += metadata.len();
            self.allocated += allocated;
            if is_log {
                self.log += allocated;
            }
        }
        Ok(())
    }

    /// The blocks without Varve's log.
    pub(crate) fn data(&self) -> u64 {
        self.allocated - self.log
    }
}

/// Bytes that this process caused to be written to disks so far; what it
/// dirtied through a map counts when it dirties it.
pub(crate) fn written_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let field = text
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"));
    field
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

/// A field of `/proc/self/status` in bytes, such as `RssAnon`.
pub(crate) fn status_bytes(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_files_and_logs() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/wal")).unwrap();
        fs::write(folder.path().join("data"), vec![1; 10_000]).unwrap();
        fs::write(folder.path().join("a/wal/1"), vec![1; 5_000]).unwrap();
        let sparse = fs::File::create(folder.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let size = Size::of(folder.path()).unwrap();
        assert_eq!(size.length, 15_000 + (1 << 30));
        assert!(size.allocated >= 15_000 && size.allocated < 1 << 20);
        assert!(size.log >= 5_000 && size.log < size.allocated);
        assert_eq!(size.data() + size.log, size.allocated);
    }

    #[test]
    fn reads_the_status() {
        assert!(status_bytes("RssAnon") > 4096);
        assert_eq!(status_bytes("NoSuchField"), 0);
    }
}
