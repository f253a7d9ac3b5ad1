//! A file in the address space.
#![allow(unsafe_code)] // access to memory that the kernel shares

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use super::sigbus;

/// A stretch of mapped addresses; unmapped when the last user lets go.
#[derive(Debug)]
pub(super) struct Region {
    /// Whether the memory is a file's pages, and not anonymous.
    is_file: bool,
    /// Before `map`, so that the SIGBUS handler never names freed addresses.
    guard: Option<sigbus::Guard>,
    map: MmapRaw,
}

impl Region {
    /// Maps `fd` shared and writable, or anonymous memory where there is none.
    pub(super) fn new(fd: Option<RawFd>, length: usize) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.len(length).no_reserve_swap();
        let map = match fd {
            Some(fd) => options.map_raw(fd)?,
            None => options.map_anon()?.into(),
        };
        Ok(Self {
            is_file: fd.is_some(),
            guard: None,
            map,
        })
    }

    /// Maps `fd` for this process alone: what is written to it stays in memory.
    pub(super) fn private(fd: RawFd, length: usize) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.len(length).no_reserve_swap();
        // SAFETY: the bytes may change while they are looked at, if another process
        // writes to the file, as through a shared map; see `Map`.
        let map = unsafe { options.map_copy(fd)? }.into();
        // Not a file's pages: to unmap them would lose what was written.
        Ok(Self {
            is_file: false,
            guard: None,
            map,
        })
    }

    /// Names the region for the SIGBUS handler.
    pub(super) fn guarded(mut self, name: &str) -> Self {
        self.guard = sigbus::register(self.base() as usize, self.length(), name);
        self
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    pub(super) fn length(&self) -> usize {
        self.map.len()
    }
}

/// A file's bytes as memory: shared and writable. Cloning shares the mapping.
#[derive(Debug, Clone)]
pub struct Map {
    region: Arc<Region>,
    length: usize,
}

impl Map {
    pub(super) fn new(region: Arc<Region>, length: usize) -> Self {
        debug_assert!(length <= region.length());
        Self { region, length }
    }

    /// Bytes of reserved addresses, which may be more than the file has.
    pub fn reserved_bytes(&self) -> usize {
        self.length
    }

    /// The address of the file's first byte. Stays the same for the life of the
    /// map, whatever the file's length does.
    pub fn base(&self) -> *mut u8 {
        self.region.base()
    }

    /// The bytes `offset..offset + length`.
    ///
    /// # Safety
    /// The file must be at least that long for as long as the slice lives
    /// (else SIGBUS), and nothing may write to these bytes meanwhile.
    ///
    /// # Panics
    /// If the range is outside the reservation.
    pub unsafe fn slice(&self, offset: usize, length: usize) -> &[u8] {
        self.check(offset, length);
        // SAFETY: within the reservation (checked); length of the file and absence
        // of writers are the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base().add(offset), length) }
    }

    /// The bytes `offset..offset + length`, to be changed in place.
    ///
    /// # Safety
    /// The file must be at least that long for as long as the slice lives
    /// (else SIGBUS), and nothing else may read or write these bytes meanwhile.
    ///
    /// # Panics
    /// If the range is outside the reservation.
    #[allow(clippy::mut_from_ref)] // the map is shared memory; exclusiveness is per range
    pub unsafe fn slice_mut(&self, offset: usize, length: usize) -> &mut [u8] {
        self.check(offset, length);
        // SAFETY: within the reservation (checked); exclusiveness and the length of
        // the file are the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base().add(offset), length) }
    }

    /// Takes the range out of this process's page tables, which costs one flush
    /// of the processors' translations. Writing back pages that are mapped and
    /// dirty costs one for each of them. Nothing is lost: the pages stay in the
    /// page cache, and the next access maps them again.
    ///
    /// # Panics
    /// If the range is outside the reservation.
    pub fn unmap_for_write_back(&self, offset: usize, length: usize) {
        self.check(offset, length);
        self.advise(offset, length, libc::MADV_DONTNEED);
    }

    /// Syncs the file's first [`super::BLOCK_BYTES`], the file's metadata, and what
    /// the disk holds in its cache (msync with MS_SYNC is an fdatasync of a range).
    pub(super) fn sync_first_block(&self) -> io::Result<()> {
        self.check(0, super::BLOCK_BYTES);
        // SAFETY: within the reservation (checked); changes no byte.
        match unsafe { libc::msync(self.base().cast(), super::BLOCK_BYTES, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Says that pages are used in no order: one that is not in memory is read
    /// alone. The kernel would else read its neighbours too (`read_ahead_kb` of
    /// the disk, 8 MiB on some), and with less memory than data push out what
    /// is needed next.
    pub fn expect_random_access(&self) {
        self.advise(0, self.length, libc::MADV_RANDOM);
    }

    /// Has the range read into memory, without waiting for it.
    ///
    /// # Panics
    /// If the range is outside the reservation.
    pub fn will_need(&self, offset: usize, length: usize) {
        self.check(offset, length);
        self.advise(offset, length, libc::MADV_WILLNEED);
    }

    /// Whether the page of the system at `offset` is in memory: reading it would
    /// not wait for the disk.
    ///
    /// # Panics
    /// If the page is outside the reservation.
    pub fn is_resident(&self, offset: usize) -> bool {
        self.check(offset, 1);
        if !self.region.is_file {
            return true;
        }
        let mut state = 0u8;
        // SAFETY: within the reservation (checked); one byte is written for the
        // one page that a byte lies in.
        let done = unsafe { libc::mincore(self.base().add(offset).cast(), 1, &raw mut state) };
        done != 0 || state & 1 == 1
    }

    fn advise(&self, offset: usize, length: usize, advice: libc::c_int) {
        if self.region.is_file {
            // SAFETY: within the reservation (checked by the callers). On a shared
            // mapping of a file these advices change no byte that anyone reads, only
            // how and when it gets there; where one is refused all goes on without it.
            unsafe { libc::madvise(self.base().add(offset).cast(), length, advice) };
        }
    }

    fn check(&self, offset: usize, length: usize) {
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        assert!(
            inside,
            "bytes {offset}+{length} are outside the map of {} bytes",
            self.length
        );
    }
}
