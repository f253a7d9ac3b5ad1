//! Segment files: names and headers.
//!
//! ```text
//! offset  size
//!      0     8  "VARVEWAL"
//!      8     4  format version
//!     12     4  0
//!     16     8  number of the segment, as in its name
//!     24     8  lsn of the first byte after this block
//!     32     8  cluster id
//!     40     8  member id
//!     48     4  checksum field of the last record of the segment before
//!     52     4  crc32c of bytes 0..52
//!     56        zeroes up to 4096
//! ```
//! The first 56 bytes are laid out like this in every version.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Identity, Lsn};
use crate::disk::{AlignedBuf, BLOCK_BYTES, File};

/// The format that this program reads and writes.
pub(super) const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"VARVEWAL";

/// Bytes of a segment before its first record.
pub(super) const HEADER_BYTES: u64 = BLOCK_BYTES as u64;

const FIELD_BYTES: usize = 56;
const _: () = assert!(FIELD_BYTES <= BLOCK_BYTES);

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) version: u32,
    pub(super) number: u64,
    pub(super) base_lsn: Lsn,
    pub(super) identity: Identity,
    pub(super) prev_crc: u32,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> AlignedBuf {
        let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
        block[0..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&self.version.to_le_bytes());
        block[16..24].copy_from_slice(&self.number.to_le_bytes());
        block[24..32].copy_from_slice(&self.base_lsn.to_le_bytes());
        block[32..40].copy_from_slice(&self.identity.cluster_id.to_le_bytes());
        block[40..48].copy_from_slice(&self.identity.member_id.to_le_bytes());
        block[48..52].copy_from_slice(&self.prev_crc.to_le_bytes());
        let crc = crc32c::crc32c(&block[..52]);
        block[52..56].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// The header, or `None` if its bytes are not whole.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FIELD_BYTES] = bytes.get(..FIELD_BYTES)?.try_into().ok()?;
        let u32_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let header = Self {
            version: u32_at(8),
            number: u64_at(16),
            base_lsn: u64_at(24),
            identity: Identity {
                cluster_id: u64_at(32),
                member_id: u64_at(40),
            },
            prev_crc: u32_at(48),
        };
        let whole = bytes[..8] == MAGIC
            && crc32c::crc32c(&bytes[..52]) == u32_at(52)
            && header.base_lsn.is_multiple_of(BLOCK_BYTES as u64)
            && header.base_lsn > 0;
        whole.then_some(header)
    }
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) base_lsn: Lsn,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    /// Bytes of the file.
    pub(super) file_bytes: u64,
}

impl Segment {
    /// Where in the file `lsn` is.
    pub(super) fn offset_of(&self, lsn: Lsn) -> u64 {
        HEADER_BYTES + (lsn - self.base_lsn)
    }

    /// The lsn after the last byte that fits.
    pub(super) fn limit_lsn(&self) -> Lsn {
        self.base_lsn
            .saturating_add(self.file_bytes.saturating_sub(HEADER_BYTES))
    }
}

pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.wal"))
}

pub(super) fn spare_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.spare"))
}

/// The number in the name of a segment with the extension `kind`.
pub(super) fn number_of(name: &str, kind: &str) -> Option<u64> {
    let digits = name.strip_suffix(kind)?.strip_suffix('.')?;
    (digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}
