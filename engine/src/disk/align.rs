//! Buffers that may bypass the page cache.
#![allow(unsafe_code)] // aligned memory has no safe owner in std

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The unit of log writes and of direct I/O. A torn later write cannot hurt an
/// earlier block.
pub const BLOCK_BYTES: usize = 4096;

/// `length` rounded up to whole blocks.
pub const fn round_up(length: usize) -> usize {
    length.next_multiple_of(BLOCK_BYTES)
}

/// Whether a write of `buf` at `offset` may bypass the page cache.
pub fn is_aligned(buf: &[u8], offset: u64) -> bool {
    (buf.as_ptr() as usize).is_multiple_of(BLOCK_BYTES)
        && buf.len().is_multiple_of(BLOCK_BYTES)
        && offset.is_multiple_of(BLOCK_BYTES as u64)
}

/// Bytes that start at a multiple of [`BLOCK_BYTES`] in memory. Grows as a `Vec`
/// does; everything beyond the length up to the capacity is initialised.
#[derive(Debug)]
pub struct AlignedBuf {
    start: NonNull<u8>,
    length: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its memory as a Vec<u8> does.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer; allocates nothing.
    pub const fn new() -> Self {
        Self {
            start: NonNull::dangling(),
            length: 0,
            capacity: 0,
        }
    }

    /// Empty, with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut buf = Self::new();
        buf.reserve(capacity);
        buf
    }

    /// `length` zeroes.
    pub fn zeroed(length: usize) -> Self {
        let mut buf = Self::with_capacity(length);
        buf.length = length;
        buf
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES).expect("buffer under half the address space")
    }

    /// Makes room for `additional` more bytes.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self
            .length
            .checked_add(additional)
            .expect("buffer fits the address space");
        if needed <= self.capacity {
            return;
        }
        let capacity = round_up(needed.max(self.capacity * 2));
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size over 0, as needed > self.capacity >= 0.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        // SAFETY: both ranges hold at least `length` bytes and are distinct allocations.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), start.as_ptr(), self.length) };
        let length = self.length;
        self.release();
        *self = Self {
            start,
            length,
            capacity,
        };
    }

    fn release(&mut self) {
        if self.capacity > 0 {
            // SAFETY: allocated in `reserve` with this very layout, released once:
            // capacity is 0 afterwards.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) };
            self.capacity = 0;
            self.length = 0;
        }
    }

    /// Sets the length; new bytes are zero.
    pub fn resize(&mut self, length: usize) {
        if length > self.length {
            let old = self.length;
            self.reserve(length - old);
            self.length = length;
            self[old..].fill(0);
        } else {
            self.length = length;
        }
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let old = self.length;
        self.length += bytes.len();
        self[old..].copy_from_slice(bytes);
    }

    /// Drops what is in it and keeps the memory.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Bytes it can hold without allocating.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        self.release();
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length <= capacity` bytes from `start` are allocated and initialised
        // (alloc_zeroed); an empty buffer is a dangling pointer with length 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_aligned_and_keeps_its_bytes() {
        let mut buf = AlignedBuf::new();
        assert!(buf.is_empty());
        for round in 0..3000u32 {
            buf.extend_from_slice(&round.to_le_bytes());
        }
        assert!(is_aligned(&buf[..BLOCK_BYTES], 0));
        assert_eq!(buf.len(), 12_000);
        assert_eq!(buf[4 * 2999..], 2999u32.to_le_bytes());
        buf.resize(4);
        buf.resize(8);
        assert_eq!(buf[..], [0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!is_aligned(&buf, 0), "8 bytes are no block");
    }
}
