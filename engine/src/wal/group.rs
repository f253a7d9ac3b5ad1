//! Groups: the records that one write makes durable.

use super::record::{
    FLAG_GROUP_END, HEADER_BYTES, Header, MAX_GROUP_BYTES, MAX_KIND, MAX_PAYLOAD_BYTES,
    record_bytes, records_of,
};
use super::{Lsn, Result, WalError};
use crate::disk::{AlignedBuf, align};

/// Records that are to be committed together. Reusable: [`Group::clear`] keeps
/// the memory.
///
/// The bytes are laid out as on disk from the start, so that a commit only fills
/// in positions and checksums.
#[derive(Debug, Default)]
pub struct Group {
    buf: AlignedBuf,
    records: usize,
    last_kind: u8,
}

impl Group {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record whose payload is the concatenation of `parts`, and returns
    /// its offset in the group: its lsn will be the group's
    /// `first_lsn + offset`. Fails if the payload is longer than
    /// [`MAX_PAYLOAD_BYTES`] or the group would be longer than
    /// [`MAX_GROUP_BYTES`]; the group is then as before.
    ///
    /// # Panics
    /// If `kind` is 0 or above [`MAX_KIND`] (a mistake of the program, never of
    /// its input).
    pub fn push(&mut self, kind: u8, parts: &[&[u8]]) -> Result<u64> {
        assert!(
            (1..=MAX_KIND).contains(&kind),
            "kind {kind} is not the user's"
        );
        self.push_any(kind, parts)
    }

    /// As [`Group::push`], for the log's own kinds too.
    pub(super) fn push_any(&mut self, kind: u8, parts: &[&[u8]]) -> Result<u64> {
        let length = parts.iter().map(|part| part.len()).sum();
        if length > MAX_PAYLOAD_BYTES {
            return Err(WalError::TooLarge {
                what: "record",
                length,
                limit: MAX_PAYLOAD_BYTES,
            });
        }
        let offset = self.buf.len();
        let end = offset + record_bytes(length);
        if align::round_up(end) > MAX_GROUP_BYTES {
            let length = align::round_up(end);
            return Err(WalError::TooLarge {
                what: "group",
                length,
                limit: MAX_GROUP_BYTES,
            });
        }
        self.buf.reserve(end - offset);
        let mut head = [0; HEADER_BYTES];
        head[..4].copy_from_slice(&(length as u32).to_le_bytes());
        head[4] = kind;
        self.buf.extend_from_slice(&head);
        for part in parts {
            self.buf.extend_from_slice(part);
        }
        self.buf.resize(end);
        self.records += 1;
        self.last_kind = kind;
        Ok(offset as u64)
    }

    /// Appends the records of `other`; the offset at which they start.
    pub(super) fn append(&mut self, other: &Self) -> u64 {
        let offset = self.buf.len();
        self.buf.extend_from_slice(&other.buf);
        self.records += other.records;
        self.last_kind = other.last_kind;
        offset as u64
    }

    /// Whether the records of `other` fit into `limit` bytes with those here.
    pub(super) fn fits(&self, other: &Self, limit: usize) -> bool {
        align::round_up(self.buf.len() + other.buf.len()) <= limit
    }

    /// Fills in positions, the chain and the checksums; the checksum of the last
    /// record. Of an empty group, `prev_crc`.
    pub(super) fn finish(&mut self, first_lsn: Lsn, mut prev_crc: u32, durable_lsn: Lsn) -> u32 {
        let mut offset = 0;
        while offset < self.buf.len() {
            let record = &mut self.buf[offset..];
            let length = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            let end = offset + record_bytes(length as usize);
            let header = Header {
                length,
                kind: record[4],
                flags: 0,
                lsn: first_lsn + offset as u64,
                durable_lsn,
                prev_crc,
                crc: 0,
            };
            let flags = if end == self.buf.len() {
                FLAG_GROUP_END
            } else {
                0
            };
            prev_crc = Header { flags, ..header }.seal(&mut self.buf[offset..]);
            offset = end;
        }
        prev_crc
    }

    /// Calls `write` with the bytes, padded to whole blocks.
    pub(super) fn with_padding<T>(&mut self, write: impl FnOnce(&[u8]) -> T) -> T {
        let length = self.buf.len();
        self.buf.resize(align::round_up(length));
        let result = write(&self.buf);
        self.buf.resize(length);
        result
    }

    /// The kind of the last record, 0 if there is none.
    pub(super) fn last_kind(&self) -> u8 {
        self.last_kind
    }

    /// Bytes with padding.
    pub(super) fn padded_bytes(&self) -> usize {
        align::round_up(self.buf.len())
    }

    /// Number of records.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes of the records with their headers.
    pub fn bytes(&self) -> usize {
        self.buf.len()
    }

    /// The records: offset, kind and payload.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u8, &[u8])> {
        records_of(&self.buf).map(|(offset, kind, payload)| (offset as u64, kind, payload))
    }

    /// Removes all records.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.records = 0;
        self.last_kind = 0;
    }
}
