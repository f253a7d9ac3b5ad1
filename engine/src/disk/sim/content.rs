//! The bytes of a simulated file as programs see them.
#![allow(unsafe_code)] // shared memory with whoever holds a map of the file

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::super::map::{Map, Region};
use super::model::SECTOR_BYTES;

const PAGE_BYTES: usize = 4096;

/// A file's bytes: on the heap until someone maps it.
#[derive(Debug)]
pub(super) enum Content {
    Heap(Vec<u8>),
    Mapped(Mapped),
}

/// A file's bytes in a mapping that is shared with the program.
#[derive(Debug)]
pub(super) struct Mapped {
    region: Arc<Region>,
    length: usize,
    /// The bytes as last recorded; what differs was written through the map.
    shadow: Vec<u8>,
}

impl Content {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Heap(bytes) => bytes.len(),
            Self::Mapped(mapped) => mapped.length,
        }
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let count = buf.len().min(self.len() - start);
        match self {
            Self::Heap(bytes) => buf[..count].copy_from_slice(&bytes[start..start + count]),
            // SAFETY: start + count is within the length, which is within the region;
            // the copy is through raw pointers, as the program may hold the map.
            Self::Mapped(mapped) => unsafe {
                mapped
                    .region
                    .base()
                    .add(start)
                    .copy_to_nonoverlapping(buf.as_mut_ptr(), count);
            },
        }
        count
    }

    /// Writes within or beyond the length. The caller has made sure that it fits.
    pub(super) fn write(&mut self, buf: &[u8], offset: u64) {
        let start = offset as usize;
        let end = start + buf.len();
        if end > self.len() {
            self.resize(end);
        }
        match self {
            Self::Heap(bytes) => bytes[start..end].copy_from_slice(buf),
            Self::Mapped(mapped) => {
                mapped.shadow[start..end].copy_from_slice(buf);
                // SAFETY: `end` is within the length, which is within the region.
                unsafe {
                    mapped
                        .region
                        .base()
                        .add(start)
                        .copy_from_nonoverlapping(buf.as_ptr(), buf.len());
                }
            }
        }
    }

    /// Sets the length; the caller has made sure that it fits. New bytes are zero.
    pub(super) fn resize(&mut self, length: usize) {
        match self {
            Self::Heap(bytes) => bytes.resize(length, 0),
            Self::Mapped(mapped) => {
                let (old, new) = (mapped.length, length);
                let (from, to) = (old.min(new), old.max(new));
                // SAFETY: both lengths are within the region.
                unsafe { mapped.region.base().add(from).write_bytes(0, to - from) };
                mapped.shadow.resize(length, 0);
                mapped.length = length;
            }
        }
    }

    /// The longest that the file can get.
    pub(super) fn limit(&self) -> usize {
        match self {
            Self::Heap(_) => isize::MAX as usize,
            Self::Mapped(mapped) => mapped.region.length(),
        }
    }

    /// Flips bits of one byte, if the file has it.
    pub(super) fn corrupt(&mut self, offset: u64, xor: u8) {
        let mut byte = [0u8];
        if self.read(&mut byte, offset) == 1 {
            self.write(&[byte[0] ^ xor], offset);
        }
    }

    /// Maps the bytes. A second map must fit into the first one's reservation.
    pub(super) fn map(&mut self, reserve_bytes: usize) -> io::Result<Map> {
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if reserve_bytes == 0 || reserve_bytes < self.len() {
            return invalid("the reservation is shorter than the file");
        }
        if let Self::Heap(bytes) = self {
            let region = Region::new(None, reserve_bytes)?;
            // SAFETY: the fresh region holds at least `bytes.len()` bytes.
            unsafe {
                region
                    .base()
                    .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
            };
            *self = Self::Mapped(Mapped {
                region: Arc::new(region),
                length: bytes.len(),
                shadow: std::mem::take(bytes),
            });
        }
        match self {
            Self::Mapped(mapped) if reserve_bytes <= mapped.region.length() => {
                Ok(Map::new(mapped.region.clone(), reserve_bytes))
            }
            _ => invalid("the file is mapped already, with a smaller reservation"),
        }
    }

    /// What was written through the map since the last call to the pages of `range`,
    /// as sector-aligned runs in order.
    pub(super) fn take_map_writes(&mut self, range: Range<u64>) -> Vec<(u64, Arc<[u8]>)> {
        let Self::Mapped(mapped) = self else {
            return Vec::new();
        };
        let mut runs = Vec::new();
        let last = mapped.length.min(range.end as usize);
        let mut start = range.start as usize / PAGE_BYTES * PAGE_BYTES;
        while start < last {
            let end = (start + PAGE_BYTES).min(mapped.length);
            // SAFETY: `start..end` is within the shadow and within the region.
            let same = unsafe {
                libc::memcmp(
                    mapped.region.base().add(start).cast(),
                    mapped.shadow.as_ptr().add(start).cast(),
                    end - start,
                ) == 0
            };
            if !same {
                mapped.take_page_writes(start, end, &mut runs);
            }
            start = end;
        }
        runs
    }
}

impl Mapped {
    fn take_page_writes(&mut self, start: usize, end: usize, runs: &mut Vec<(u64, Arc<[u8]>)>) {
        let mut page = [0u8; PAGE_BYTES];
        let page = &mut page[..end - start];
        // SAFETY: `start..end` is within the region; raw copy as in `read`.
        unsafe {
            self.region
                .base()
                .add(start)
                .copy_to_nonoverlapping(page.as_mut_ptr(), page.len());
        }
        let shadow = &mut self.shadow[start..end];
        let mut run: Option<usize> = None;
        let sector = SECTOR_BYTES as usize;
        for at in (0..page.len()).step_by(sector) {
            let to = (at + sector).min(page.len());
            if page[at..to] != shadow[at..to] {
                run.get_or_insert(at);
            } else if let Some(from) = run.take() {
                runs.push(((start + from) as u64, page[from..at].into()));
            }
        }
        if let Some(from) = run {
            runs.push(((start + from) as u64, page[from..].into()));
        }
        shadow.copy_from_slice(page);
    }
}
