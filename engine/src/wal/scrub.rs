//! The scrub of the log: sealed segments are read again, as the disk has them,
//! and every group verified. What is in the last segment is young, and recovery
//! reads it first of all.

use std::sync::Arc;

use super::record::KIND_SEAL;
use super::scan::Window;
use super::segment::{HEADER_BYTES, Segment, SegmentHeader};
use super::{Lsn, WalError, WalReader};
use crate::disk::AlignedBuf;

/// How far a pass over the sealed segments is.
#[derive(Debug, Default)]
pub struct LogScrub {
    /// Everything below is done.
    lsn: Lsn,
    /// The checksum that the group there chains to; `None` at a segment's start.
    prev_crc: Option<u32>,
}

/// What one step did.
#[derive(Debug, Default)]
pub struct LogScrubStep {
    /// Bytes read.
    pub read_bytes: u64,
    /// Whether the pass is over; the next step begins a new one.
    pub is_finished: bool,
    /// What is damaged or cannot be read. The pass goes on behind that segment.
    pub damage: Option<WalError>,
    /// Where the damage is.
    pub lsn: Lsn,
}

/// A fault of the segment at hand, and where.
type Fault = (Lsn, WalError);

impl LogScrub {
    /// Goes on with the pass, about `budget` bytes, within one segment.
    pub fn step(&mut self, log: &WalReader, budget: u64) -> LogScrubStep {
        let mut step = LogScrubStep::default();
        let Some((segment, end)) = self.segment(log) else {
            *self = Self::default();
            step.is_finished = true;
            return step;
        };
        if let Err((lsn, error)) = self.walk(&segment, budget, end, &mut step.read_bytes) {
            // A segment that was let go meanwhile may be in use again.
            let segments = log.shared.segments();
            if segments.iter().any(|held| Arc::ptr_eq(held, &segment)) {
                (step.damage, step.lsn) = (Some(error), lsn);
            }
            (self.lsn, self.prev_crc) = (end, None);
        }
        step
    }

    /// The sealed segment that the pass is in, and where the next one starts.
    fn segment(&mut self, log: &WalReader) -> Option<(Arc<Segment>, Lsn)> {
        let segments = log.shared.segments();
        let pairs = segments.iter().zip(segments.iter().skip(1));
        let (segment, next) = pairs
            .into_iter()
            .find(|(_, next)| self.lsn < next.base_lsn)?;
        if self.lsn < segment.base_lsn {
            (self.lsn, self.prev_crc) = (segment.base_lsn, None);
        }
        Some((segment.clone(), next.base_lsn))
    }

    fn walk(
        &mut self,
        segment: &Segment,
        budget: u64,
        end: Lsn,
        read_bytes: &mut u64,
    ) -> Result<(), Fault> {
        let mut prev_crc = match self.prev_crc {
            Some(crc) => crc,
            None => {
                *read_bytes += HEADER_BYTES;
                header(segment)?.prev_crc
            }
        };
        let mut window = Window::direct(segment);
        // One group at least, whatever the budget: so a pass ends.
        loop {
            let group = window.group(self.lsn, Some(prev_crc));
            let group = group.map_err(|error| (self.lsn, WalError::Disk(error)))?;
            let (whole, _) = group.map_err(|bad| {
                let lsn = self.lsn + bad.offset as u64;
                (lsn, damaged(segment, lsn, bad.flaw.as_str()))
            })?;
            *read_bytes += whole.padded_bytes();
            self.lsn += whole.padded_bytes();
            prev_crc = whole.last_crc;
            self.prev_crc = Some(prev_crc);
            if whole.last_kind == KIND_SEAL {
                (self.lsn, self.prev_crc) = (end, None);
                return Ok(());
            }
            if self.lsn >= end {
                let lsn = self.lsn;
                return Err((lsn, damaged(segment, lsn, "the segment has no seal")));
            }
            if *read_bytes >= budget {
                return Ok(());
            }
        }
    }
}

fn header(segment: &Segment) -> Result<SegmentHeader, Fault> {
    let at = segment.base_lsn;
    let mut block = AlignedBuf::zeroed(HEADER_BYTES as usize);
    let read = segment.file.read_direct_at(&mut block, 0);
    let read = read.map_err(|error| (at, WalError::Disk(error)))?;
    let header = SegmentHeader::decode(&block[..read]);
    let header = header
        .filter(|header| header.number == segment.number && header.base_lsn == segment.base_lsn);
    header.ok_or_else(|| {
        let error = WalError::DamagedRecord {
            path: segment.path.clone(),
            offset: 0,
            lsn: at,
            what: "the segment's header is not the one that was written",
        };
        (at, error)
    })
}

fn damaged(segment: &Segment, lsn: Lsn, what: &'static str) -> WalError {
    WalError::DamagedRecord {
        path: segment.path.clone(),
        offset: segment.offset_of(lsn),
        lsn,
        what,
    }
}

impl WalReader {
    /// Bytes of the sealed segments, which a scrub reads.
    pub fn sealed_bytes(&self) -> u64 {
        let (segments, (start, _)) = (self.shared.segments(), self.range());
        segments
            .last()
            .map_or(0, |last| last.base_lsn.saturating_sub(start))
    }
}
