//! Plain system calls: pread, pwrite, fdatasync.
#![allow(unsafe_code)] // fallocate and mmap have no safe form in std

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::map::Region;
use super::{Disk, DiskError, File, Map, OpenMode, Result, align};
use crate::mutations::{Mutation, is_on};

/// What is made here is for its owner alone: also where a directory of its own, for the
/// log, is open to others.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// Real files with one system call per operation. Works everywhere.
#[derive(Debug, Default, Clone, Copy)]
pub struct PsyncDisk;

impl PsyncDisk {
    /// The disk.
    pub fn new() -> Self {
        Self
    }
}

impl Disk for PsyncDisk {
    fn name(&self) -> &'static str {
        "psync"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        Ok(Arc::new(SystemFile::open(path, mode, false)?))
    }

    fn open_log(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        Ok(Arc::new(SystemFile::open(path, mode, true)?))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        path.try_exists()
            .map_err(|e| DiskError::io("look up", path, 0, e))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let fail = |e| DiskError::io("list", dir, 0, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(fail)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry.map_err(fail)?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        create_dirs(dir).map_err(|e| DiskError::io("create dir", dir, 0, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|e| DiskError::io("rename", from, 0, e))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        // Engines from other crates keep a store in a directory.
        let removed = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.map_err(|e| DiskError::io("remove", path, 0, e))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        if is_on(Mutation::NamesNotSynced) {
            return Ok(());
        }
        let fail = |e| DiskError::io("sync dir", dir, 0, e);
        fs::File::open(dir).map_err(fail)?.sync_all().map_err(fail)
    }
}

/// Makes a directory and those above it that are missing, for their owner alone, so that
/// a power loss does not take their names.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.is_dir();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(DIR_MODE).create(dir)?;
    if is_on(Mutation::NamesNotSynced) {
        return Ok(());
    }
    for made in missing {
        let above = made.parent().filter(|above| !above.as_os_str().is_empty());
        fs::File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// A file of the operating system. [`super::uring`] adds another
/// `write_durable` to it.
#[derive(Debug)]
pub(super) struct SystemFile {
    path: PathBuf,
    file: fs::File,
    /// The same file past the page cache, every write durable on return
    /// (O_DIRECT and O_DSYNC), where that is wanted and the file system can.
    direct: Option<fs::File>,
    /// The same file for reading past the page cache, opened when it is first
    /// wanted; `None` where the file system cannot.
    direct_reads: OnceLock<Option<fs::File>>,
    /// Whether a sync of a part of the file is one of the file's metadata and of
    /// the disk's cache as well.
    syncs_ranges: AtomicBool,
}

impl SystemFile {
    pub(super) fn open(path: &Path, mode: OpenMode, log: bool) -> Result<Self> {
        let fail = |e| DiskError::io("open", path, 0, e);
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).mode(FILE_MODE);
        match mode {
            OpenMode::Existing => {}
            OpenMode::Create => {
                options.create(true).truncate(false);
            }
            OpenMode::CreateNew => {
                options.create_new(true);
            }
        }
        let file = options.open(path).map_err(fail)?;
        let direct = match log {
            true => open_direct(path).map_err(fail)?,
            false => None,
        };
        Ok(Self {
            path: path.to_owned(),
            syncs_ranges: AtomicBool::new(syncs_ranges(&file)),
            file,
            direct,
            direct_reads: OnceLock::new(),
        })
    }

    /// By way of the open file: its name may be another's by now.
    fn direct_reads(&self) -> Option<&fs::File> {
        let open = || {
            fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(format!("/proc/self/fd/{}", self.fd()))
                .ok()
        };
        self.direct_reads.get_or_init(open).as_ref()
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(super) fn direct(&self) -> Option<&fs::File> {
        self.direct.as_ref()
    }

    pub(super) fn fail(&self, action: &'static str, offset: u64, error: io::Error) -> DiskError {
        DiskError::io(action, &self.path, offset, error)
    }
}

/// Reads until `buf` is full or the file ends; an error with where it was.
pub(super) fn read_all(
    file: &fs::File,
    buf: &mut [u8],
    offset: u64,
) -> std::result::Result<usize, (u64, io::Error)> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((offset + done as u64, e)),
        }
    }
    Ok(done)
}

/// `None` where the file system cannot do direct I/O (EINVAL).
fn open_direct(path: &Path) -> io::Result<Option<fs::File>> {
    let opened = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a sync of a part of `file` commits the metadata of all of it and flushes
/// the disk's cache, and `sync_file_range` leaves nothing out. So do ext4
/// (`ext4_sync_file`) and XFS (`xfs_file_fsync`), from Linux 5.2 on, where
/// `sync_file_range` that waits before and after writes in the manner of a sync
/// (WB_SYNC_ALL). Of other file systems it is not known, and all is synced.
fn syncs_ranges(file: &fs::File) -> bool {
    const XFS_SUPER_MAGIC: libc::c_long = 0x5846_5342; // "XFSB"
    let mut system = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open and the buffer is of the right type; a
    // `statfs` is numbers only, so that zeroes are one as well.
    let kind = unsafe {
        libc::fstatfs(file.as_raw_fd(), system.as_mut_ptr());
        system.assume_init().f_type
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().ok());
    let release = (numbers.next().flatten(), numbers.next().flatten());
    (kind == libc::EXT4_SUPER_MAGIC || kind == XFS_SUPER_MAGIC) && release >= (Some(5), Some(2))
}

impl File for SystemFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64> {
        Ok(self
            .file
            .metadata()
            .map_err(|e| self.fail("stat", 0, e))?
            .len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        read_all(&self.file, buf, offset).map_err(|(at, e)| self.fail("read", at, e))
    }

    fn read_direct_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        if align::is_aligned(buf, offset)
            && let Some(file) = self.direct_reads()
        {
            match read_all(file, buf, offset) {
                // Some file systems refuse the read, and not the open.
                Err((_, e)) if e.raw_os_error() == Some(libc::EINVAL) => {}
                result => return result.map_err(|(at, e)| self.fail("read", at, e)),
            }
        }
        self.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(buf, offset)
            .map_err(|e| self.fail("write", offset, e))
    }

    fn sync(&self) -> Result<()> {
        if is_on(Mutation::FilesNotSynced) {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| self.fail("sync", 0, e))
    }

    fn write_back(&self, offset: u64, length: u64) -> Result<()> {
        let (Ok(start), Ok(count)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(self.fail("write back", offset, io::ErrorKind::FileTooLarge.into()));
        };
        let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        loop {
            // SAFETY: the descriptor is open for as long as `self.file` lives.
            if unsafe { libc::sync_file_range(self.fd(), start, count, how) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // A file system without it: the sync will do it all.
                Some(libc::ESPIPE | libc::ENOSYS) => {
                    self.syncs_ranges.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                _ => return Err(self.fail("write back", offset, error)),
            }
        }
    }

    fn sync_written_back(&self, map: &Map) -> Result<()> {
        if !self.syncs_ranges.load(Ordering::Relaxed) || is_on(Mutation::FilesNotSynced) {
            return self.sync();
        }
        map.sync_first_block().map_err(|e| self.fail("sync", 0, e))
    }

    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<()> {
        match &self.direct {
            Some(direct) if align::is_aligned(buf, offset) => direct
                .write_all_at(buf, offset)
                .map_err(|e| self.fail("write", offset, e)),
            _ => {
                self.write_at(buf, offset)?;
                self.sync()
            }
        }
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let (Ok(start), Ok(count)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(self.fail("allocate", offset, io::ErrorKind::FileTooLarge.into()));
        };
        loop {
            // SAFETY: the descriptor is open for as long as `self.file` lives.
            if unsafe { libc::fallocate(self.fd(), 0, start, count) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Without fallocate the file grows with a hole; a full disk then
                // shows itself at the write.
                Some(libc::EOPNOTSUPP) => {
                    let end = offset + length;
                    return match self.len()? < end {
                        true => self.truncate(end),
                        false => Ok(()),
                    };
                }
                _ => return Err(self.fail("allocate", offset, error)),
            }
        }
    }

    fn truncate(&self, length: u64) -> Result<()> {
        self.file
            .set_len(length)
            .map_err(|e| self.fail("truncate", length, e))
    }

    fn map(&self, reserve_bytes: usize) -> Result<Map> {
        let region = Region::new(Some(self.fd()), reserve_bytes)
            .map_err(|e| self.fail("map", 0, e))?
            .guarded(&self.path.to_string_lossy());
        Ok(Map::new(Arc::new(region), reserve_bytes))
    }
}
