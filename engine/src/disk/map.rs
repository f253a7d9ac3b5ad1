//! A file in the address space.
#![allow(unsafe_code)] // mmap, and access to memory that the kernel shares

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::sigbus;

/// A stretch of mapped addresses; unmapped when the last user lets go.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    length: usize,
    guard: Option<sigbus::Guard>,
}

// SAFETY: the region is plain memory; who may touch which bytes of it when is the
// duty of the callers of the unsafe accessors of `Map`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `fd` shared and writable, or anonymous memory where there is none.
    pub(super) fn new(fd: Option<libc::c_int>, length: usize) -> io::Result<Self> {
        let flags = match fd {
            Some(_) => libc::MAP_SHARED | libc::MAP_NORESERVE,
            None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd.unwrap_or(-1),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::other("the kernel mapped at address 0"))?;
        Ok(Self {
            base,
            length,
            guard: None,
        })
    }

    /// Names the region for the SIGBUS handler.
    pub(super) fn guarded(mut self, name: &str) -> Self {
        self.guard = sigbus::register(self.base.as_ptr() as usize, self.length, name);
        self
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // The name goes first, so that the handler never names freed addresses.
        self.guard = None;
        // SAFETY: mapped in `new` with this length and not unmapped since; whoever
        // still uses the addresses holds an Arc of this region.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
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
