//! A snapshot in a file: the chunks of the stream, each after its length.
//!
//! `magic "varvsnap" | format u32 | crc32c u32`, the checksum over what comes
//! before it; then `length u32 | chunk` for each chunk, little-endian. A chunk has
//! a checksum of its own, which a wrong length does not pass. The file ends with
//! the last chunk.

use std::io::{self, Read, Write};

use super::error::MvccError;
use super::snapshot::SnapshotInfo;
use super::snapshot_check::SnapshotCheck;

pub(super) const MAGIC: [u8; 8] = *b"varvsnap";
pub(super) const FORMAT: u32 = 1;
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const LENGTH_BYTES: usize = 4;

/// Longest chunk that is read: far above one with the longest value that a request
/// can carry.
const MAX_CHUNK_BYTES: u32 = 256 << 20;

/// Why a snapshot file cannot be written or read; offsets count from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFileError {
    /// The system failed.
    #[error("at offset {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// It does not begin as such a file does.
    #[error("it is not a snapshot of varve, or its first {HEADER_BYTES} bytes are damaged")]
    NotASnapshot,
    /// It is of a format that is not known here.
    #[error("it is of format {0}, this version reads {FORMAT}; use the version that wrote it")]
    Format(u32),
    /// It ends too early.
    #[error("it is cut off: at offset {offset} {needed} more bytes were due, there are {left}")]
    Cut {
        /// Where the part begins that is not whole.
        offset: u64,
        /// Bytes that the part has.
        needed: u64,
        /// Bytes that there are.
        left: u64,
    },
    /// A length that no chunk has.
    #[error("damaged at offset {offset}: a chunk of {length} bytes")]
    Length {
        /// Where the length is.
        offset: u64,
        /// What it says.
        length: u32,
    },
    /// A chunk is not what it should be, or the chunks are not a whole.
    #[error("damaged at offset {offset}: {source}")]
    Chunk {
        /// Where the chunk begins, or the file's end.
        offset: u64,
        /// What is wrong.
        source: MvccError,
    },
}

/// Writes a snapshot file, verifying what it is given.
#[derive(Debug)]
pub struct SnapshotFileWriter<W> {
    output: W,
    offset: u64,
    check: SnapshotCheck,
}

impl<W: Write> SnapshotFileWriter<W> {
    /// Starts the file that `output` becomes.
    pub fn new(output: W) -> Result<Self, SnapshotFileError> {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let crc = crc32c::crc32c(&header[..12]);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        let mut writer = Self {
            output,
            offset: 0,
            check: SnapshotCheck::default(),
        };
        writer.write(&header)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotFileError> {
        let offset = self.offset;
        self.output
            .write_all(bytes)
            .map_err(|source| SnapshotFileError::Io { offset, source })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Appends the next chunk of the stream.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), SnapshotFileError> {
        let offset = self.offset;
        self.check
            .accept(chunk, &mut |_, _, _| Ok(()))
            .map_err(|source| SnapshotFileError::Chunk { offset, source })?;
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        if length > MAX_CHUNK_BYTES {
            return Err(SnapshotFileError::Length { offset, length });
        }
        self.write(&length.to_le_bytes())?;
        self.write(chunk)
    }

    /// Verifies that it was all; the output, and what the snapshot is of.
    pub fn finish(self) -> Result<(W, SnapshotInfo), SnapshotFileError> {
        let offset = self.offset;
        let info = self
            .check
            .finish()
            .map_err(|source| SnapshotFileError::Chunk { offset, source })?;
        Ok((self.output, info))
    }
}

/// Reads a snapshot file, one chunk in memory at a time.
#[derive(Debug)]
pub struct SnapshotFileReader<R> {
    input: R,
    length: u64,
    offset: u64,
}

impl<R: Read> SnapshotFileReader<R> {
    /// Reads the beginning of a file of `length` bytes.
    pub fn new(input: R, length: u64) -> Result<Self, SnapshotFileError> {
        let mut reader = Self {
            input,
            length,
            offset: 0,
        };
        if length < HEADER_BYTES as u64 {
            return Err(SnapshotFileError::NotASnapshot);
        }
        let mut header = [0; HEADER_BYTES];
        reader.fill(&mut header)?;
        let [.., f0, f1, f2, f3, c0, c1, c2, c3] = header;
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        if header[..8] != MAGIC || crc32c::crc32c(&header[..12]) != crc {
            return Err(SnapshotFileError::NotASnapshot);
        }
        match u32::from_le_bytes([f0, f1, f2, f3]) {
            FORMAT => Ok(reader),
            other => Err(SnapshotFileError::Format(other)),
        }
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.length
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotFileError> {
        let (offset, needed) = (self.offset, bytes.len() as u64);
        let left = self.length - offset;
        if left < needed {
            return Err(SnapshotFileError::Cut {
                offset,
                needed,
                left,
            });
        }
        self.input
            .read_exact(bytes)
            .map_err(|source| SnapshotFileError::Io { offset, source })?;
        self.offset += needed;
        Ok(())
    }

    fn next_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<bool, SnapshotFileError> {
        if self.offset == self.length {
            return Ok(false);
        }
        let offset = self.offset;
        let mut length = [0; LENGTH_BYTES];
        self.fill(&mut length)?;
        let length = u32::from_le_bytes(length);
        let (needed, left) = (u64::from(length), self.length - self.offset);
        if needed > left {
            return Err(SnapshotFileError::Cut {
                offset,
                needed,
                left,
            });
        }
        if length > MAX_CHUNK_BYTES {
            return Err(SnapshotFileError::Length { offset, length });
        }
        chunk.resize(length as usize, 0);
        self.fill(chunk)?;
        Ok(true)
    }

    /// Gives all chunks to `take`, and where in the file each begins to its errors.
    pub fn chunks(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), MvccError>,
    ) -> Result<(), SnapshotFileError> {
        let mut chunk = Vec::new();
        loop {
            let offset = self.offset;
            if !self.next_chunk(&mut chunk)? {
                return Ok(());
            }
            take(&chunk).map_err(|source| SnapshotFileError::Chunk { offset, source })?;
        }
    }

    /// Verifies the rest of the file: what it holds.
    pub fn verify(mut self) -> Result<SnapshotCheck, SnapshotFileError> {
        let mut check = SnapshotCheck::default();
        self.chunks(|chunk| check.accept(chunk, &mut |_, _, _| Ok(())))?;
        let offset = self.offset;
        check
            .finish()
            .map_err(|source| SnapshotFileError::Chunk { offset, source })?;
        Ok(check)
    }
}
