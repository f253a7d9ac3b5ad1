//! Snapshots of a member's store for clients.
//!
//! A snapshot is a stream: its frames carry the request id of the
//! [`crate::opcode::SNAPSHOT`] frame that opened it, and one chunk each.

use varve_types::{DecodeError, Reader};

/// Asks for a snapshot of the store of the member that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotRequest {
    /// Bytes of frames that may be sent before the first [`SnapshotCreditRequest`];
    /// 0 turns flow control off.
    pub credit: u32,
}

impl SnapshotRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.credit.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            credit: reader.u32("snapshot credit")?,
        })
    }
}

/// Lets a snapshot send more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotCreditRequest {
    /// Request id of the snapshot.
    pub snapshot: u64,
    /// Bytes more.
    pub bytes: u32,
}

impl SnapshotCreditRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.snapshot.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            snapshot: reader.u64("snapshot")?,
            bytes: reader.u32("snapshot credit")?,
        })
    }
}
