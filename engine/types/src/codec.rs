//! Reading and writing the primitive fields of every encoding.

use thiserror::Error;

use crate::ApiError;

/// Bytes that are not a valid encoding.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("malformed {what} at byte {offset}")]
pub struct DecodeError {
    /// The field that could not be read.
    pub what: &'static str,
    /// Where in the input it starts.
    pub offset: usize,
    /// The error of the API that says the same, where there is one.
    pub api: Option<ApiError>,
}

/// A cursor over encoded bytes; byte strings are borrowed, never copied.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    input: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self { input, position: 0 }
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.input.len() - self.position
    }

    /// An error that names `what` at the current position.
    pub fn error(&self, what: &'static str) -> DecodeError {
        DecodeError {
            what,
            offset: self.position,
            api: None,
        }
    }

    /// Fails if bytes are left over.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.remaining() == 0 {
            Ok(())
        } else {
            Err(self.error("trailing bytes"))
        }
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        if length > self.remaining() {
            return Err(self.error(what));
        }
        let start = self.position;
        self.position += length;
        Ok(&self.input[start..self.position])
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// A little-endian `u32`.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A little-endian `u64`.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A little-endian `i64`.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_le_bytes)
    }

    /// A `u32` length and that many bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.u32(what)? as usize;
        self.take(length, what)
    }

    /// A `u32` length and that many bytes of UTF-8.
    pub fn string(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let offset = self.position;
        std::str::from_utf8(self.bytes(what)?).map_err(|_| DecodeError {
            what,
            offset,
            api: None,
        })
    }

    /// A `u32` element count, refused when `least_size` bytes for each cannot be left.
    pub fn count(&mut self, least_size: usize, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.u32(what)? as usize;
        if count.saturating_mul(least_size) > self.remaining() {
            return Err(self.error(what));
        }
        Ok(count)
    }
}

/// Appends a `u32` length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends a `u32` element count or length.
pub fn put_count(out: &mut Vec<u8>, count: usize) {
    // Requests are bounded far below 4 GiB before they are encoded.
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

/// Appends a little-endian `i64`.
pub fn put_i64(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Packs booleans into a byte, the first in bit 0.
pub fn flags<const N: usize>(bits: [bool; N]) -> u8 {
    bits.iter()
        .enumerate()
        .fold(0, |byte, (i, bit)| byte | (u8::from(*bit) << i))
}
