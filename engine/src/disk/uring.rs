//! io_uring.
//!
//! Only the group commit goes through a ring: it is the one operation where a
//! system call less, or two operations in one submission, can be measured.
//! Everything else is [`super::psync`]'s.
//!
//! A durable write is one submission: a WRITE on the direct, O_DSYNC descriptor
//! where buffer and offset are aligned, else a WRITE linked to an FSYNC of data.
//! Each file makes its ring at the first durable write, with its descriptors
//! registered. Buffers are not registered: they change with every group, and
//! pinning one costs under a microsecond beside a write of a hundred.
#![allow(unsafe_code)] // submissions refer to memory of ours

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::psync::{PsyncDisk, SystemFile};
use super::{Disk, DiskError, File, Map, OpenMode, Result, align};

/// Entries of a ring: a durable write takes two at most.
const RING_ENTRIES: u32 = 4;

/// Real files with the group commit through io_uring.
#[derive(Debug, Clone, Copy)]
pub struct UringDisk {
    names: PsyncDisk,
}

impl UringDisk {
    /// The disk, if this kernel allows io_uring (containers' seccomp profiles
    /// answer EPERM or ENOSYS) and knows the operations that are needed.
    pub fn probe() -> io::Result<Self> {
        let refused =
            |e: io::Error| io::Error::new(e.kind(), format!("io_uring is not available: {e}"));
        let ring = IoUring::new(RING_ENTRIES).map_err(refused)?;
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(refused)?;
        for (code, name) in [
            (opcode::Write::CODE, "WRITE"),
            (opcode::Fsync::CODE, "FSYNC"),
        ] {
            if !probe.is_supported(code) {
                let missing = format!("this kernel's io_uring does not know {name}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, missing));
            }
        }
        Ok(Self {
            names: PsyncDisk::new(),
        })
    }
}

impl Disk for UringDisk {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        Ok(Arc::new(UringFile::new(SystemFile::open(
            path, mode, false,
        )?)))
    }

    fn open_log(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        Ok(Arc::new(UringFile::new(SystemFile::open(
            path, mode, true,
        )?)))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.names.exists(path)
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.names.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        self.names.create_dir(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.names.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.names.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.names.sync_dir(dir)
    }
}

struct UringFile {
    file: SystemFile,
    ring: Mutex<RingState>,
}

enum RingState {
    /// No durable write yet.
    Unused,
    Ready(Box<Ring>),
    /// The kernel gave no ring (out of locked memory or descriptors, usually):
    /// this file goes on with plain system calls.
    Refused,
}

impl std::fmt::Debug for UringFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringFile")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl UringFile {
    fn new(file: SystemFile) -> Self {
        Self {
            file,
            ring: Mutex::new(RingState::Unused),
        }
    }
}

impl File for UringFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn read_direct_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_direct_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync()
    }

    fn write_back(&self, offset: u64, length: u64) -> Result<()> {
        self.file.write_back(offset, length)
    }

    fn sync_written_back(&self, map: &Map) -> Result<()> {
        self.file.sync_written_back(map)
    }

    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<()> {
        // A panic while the lock was held left no submission behind: `write`
        // reaps what it submits before it returns, and does not panic.
        let mut state = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, RingState::Unused) {
            *state = match Ring::new(&self.file) {
                Ok(ring) => RingState::Ready(Box::new(ring)),
                Err(_) => RingState::Refused,
            };
        }
        let RingState::Ready(ring) = &mut *state else {
            drop(state);
            return self.file.write_durable(buf, offset);
        };
        let direct = ring.has_direct && align::is_aligned(buf, offset);
        match ring.write(buf, offset, direct) {
            Ok(written) if written == buf.len() => Ok(()),
            // A short write also broke the link to the sync: the rest, and the sync of
            // all of it, the plain way.
            Ok(written) => {
                self.file
                    .write_at(&buf[written..], offset + written as u64)?;
                self.file.sync()
            }
            Err((action, error)) => {
                // The kernel took nothing, but the entry with the buffer's address is
                // still queued: the ring must go before the buffer does.
                if action == SUBMIT {
                    *state = RingState::Refused;
                }
                Err(DiskError::io(action, self.path(), offset, error))
            }
        }
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.file.allocate(offset, length)
    }

    fn truncate(&self, length: u64) -> Result<()> {
        self.file.truncate(length)
    }

    fn map(&self, reserve_bytes: usize) -> Result<Map> {
        self.file.map(reserve_bytes)
    }
}

/// Index of the buffered descriptor among the registered ones.
const BUFFERED: types::Fixed = types::Fixed(0);
/// Index of the direct descriptor, where there is one.
const DIRECT: types::Fixed = types::Fixed(1);

/// `user_data` of the write and of the sync.
const WRITE: u64 = 1;
const SYNC: u64 = 2;

/// The action that failed if the kernel did not take the operations.
const SUBMIT: &str = "submit";

/// A ring with the file's descriptors registered. Nothing is in flight between
/// two calls.
struct Ring {
    ring: IoUring,
    has_direct: bool,
}

impl Ring {
    fn new(file: &SystemFile) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(RING_ENTRIES)
            // A kernel before 5.19 does not know the flag.
            .or_else(|_| IoUring::new(RING_ENTRIES))?;
        let direct = file.direct().map(AsRawFd::as_raw_fd);
        match direct {
            Some(direct) => ring.submitter().register_files(&[file.fd(), direct])?,
            None => ring.submitter().register_files(&[file.fd()])?,
        }
        Ok(Self {
            ring,
            has_direct: direct.is_some(),
        })
    }

    /// Writes and syncs; how many bytes were written. With fewer than all, the
    /// sync has not been done.
    fn write(
        &mut self,
        buf: &[u8],
        offset: u64,
        direct: bool,
    ) -> std::result::Result<usize, (&'static str, io::Error)> {
        let Ok(length) = u32::try_from(buf.len()) else {
            return Err(("write", io::ErrorKind::FileTooLarge.into()));
        };
        let target = if direct { DIRECT } else { BUFFERED };
        let write = opcode::Write::new(target, buf.as_ptr(), length)
            .offset(offset)
            .build()
            .user_data(WRITE);
        let sync = opcode::Fsync::new(BUFFERED)
            .flags(types::FsyncFlags::DATASYNC)
            .build()
            .user_data(SYNC);
        let count = if direct { 1 } else { 2 };
        {
            let mut queue = self.ring.submission();
            // SAFETY: `buf` outlives the operations: `reap` returns only after all that
            // was submitted has completed. The descriptors are registered.
            let pushed = unsafe {
                match direct {
                    true => queue.push(&write),
                    false => queue
                        .push(&write.flags(squeue::Flags::IO_LINK))
                        .and_then(|()| queue.push(&sync)),
                }
            };
            debug_assert!(
                pushed.is_ok(),
                "the queue has room for {RING_ENTRIES} and is empty"
            );
        }
        let [written, synced] = self.reap(count).map_err(|e| (SUBMIT, e))?;
        let written = check(written).map_err(|e| ("write", e))?;
        if written == buf.len() && !direct {
            check(synced).map_err(|e| ("sync", e))?;
        }
        Ok(written)
    }

    /// Submits what is queued and waits for all of it; the results of the write
    /// and of the sync.
    fn reap(&mut self, count: usize) -> io::Result<[i32; 2]> {
        let mut results = [0; 2];
        let mut done = 0;
        while done < count {
            if let Err(error) = self.ring.submit_and_wait(count - done) {
                let waiting = self.ring.submission().len();
                if waiting == count {
                    if !retries(&error) {
                        return Err(error);
                    }
                } else {
                    // Something is in flight and must end before the buffer may go; its
                    // completion shows itself in shared memory.
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
            for completion in self.ring.completion() {
                match completion.user_data() {
                    WRITE => results[0] = completion.result(),
                    _ => results[1] = completion.result(),
                }
                done += 1;
            }
        }
        Ok(results)
    }
}

fn retries(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

fn check(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
