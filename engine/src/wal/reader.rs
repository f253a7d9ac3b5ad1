//! Reading back, beside the writer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::record::{self, HEADER_BYTES};
use super::segment::Segment;
use super::{Lsn, Result, WalError};

/// Bytes read at first: most records fit.
const FIRST_READ_BYTES: usize = 4096;

/// What the writer shares with its readers. The list changes only at rotation
/// and release.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) segments: RwLock<Vec<Arc<Segment>>>,
    /// Everything below is committed.
    pub(super) end_lsn: AtomicU64,
}

impl Shared {
    /// The segments; no panic leaves the list half-changed.
    pub(super) fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Vec<Arc<Segment>>)) {
        change(
            &mut self
                .segments
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn segment_of(&self, lsn: Lsn) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let after = segments.partition_point(|segment| segment.base_lsn <= lsn);
        segments.get(after.checked_sub(1)?).cloned()
    }

    fn start_lsn(&self) -> Lsn {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.first().map_or(0, |segment| segment.base_lsn)
    }
}

/// Reads committed records back. Cheap to clone, for any thread.
#[derive(Debug, Clone)]
pub struct WalReader {
    pub(super) shared: Arc<Shared>,
}

impl WalReader {
    /// The record at `lsn`: kind and payload, verified by its checksum.
    pub fn read(&self, lsn: Lsn) -> Result<(u8, Vec<u8>)> {
        let mut payload = Vec::new();
        let kind = self.read_into(lsn, &mut payload)?;
        Ok((kind, payload))
    }

    /// As [`WalReader::read`], into a buffer that is used again; its kind.
    pub fn read_into(&self, lsn: Lsn, payload: &mut Vec<u8>) -> Result<u8> {
        let end = self.shared.end_lsn.load(Ordering::Acquire);
        let Some(segment) = self.shared.segment_of(lsn).filter(|_| lsn < end) else {
            return Err(self.out_of_range(lsn, end));
        };
        let offset = segment.offset_of(lsn);
        payload.resize(FIRST_READ_BYTES, 0);
        let mut read = segment.file.read_at(payload, offset)?;
        let damaged = |flaw: record::Flaw| {
            // Meanwhile released and used again: then it is not damage.
            match self.shared.segment_of(lsn) {
                Some(now) if now.number == segment.number => WalError::DamagedRecord {
                    path: segment.path.clone(),
                    offset,
                    lsn,
                    what: flaw.as_str(),
                },
                _ => self.out_of_range(lsn, end),
            }
        };
        let header = record::decode_header(&payload[..read], lsn).map_err(damaged)?;
        let length = HEADER_BYTES + header.length as usize;
        if length > read {
            payload.resize(length, 0);
            read = segment.file.read_at(payload, offset)?;
        }
        record::decode_record(&payload[..read], lsn).map_err(damaged)?;
        payload.truncate(length);
        payload.drain(..HEADER_BYTES);
        Ok(header.kind)
    }

    /// The first position held and the end of what is committed.
    pub fn range(&self) -> (Lsn, Lsn) {
        (
            self.shared.start_lsn(),
            self.shared.end_lsn.load(Ordering::Acquire),
        )
    }

    fn out_of_range(&self, lsn: Lsn, end: Lsn) -> WalError {
        WalError::OutOfRange {
            lsn,
            start: self.shared.start_lsn(),
            end,
        }
    }
}
