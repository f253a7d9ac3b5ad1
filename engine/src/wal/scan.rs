//! Walking over the bytes of one segment.

use super::Lsn;
use super::record::{
    self, BadGroup, Flaw, GroupScan, HEADER_BYTES as RECORD_HEADER_BYTES, MAX_GROUP_BYTES,
    WholeGroup, decode_group,
};
use super::segment::{HEADER_BYTES, Segment};
use crate::disk::{AlignedBuf, BLOCK_BYTES, DiskError};

type Result<T> = std::result::Result<T, DiskError>;

/// Bytes read at a time, through the page cache: an open goes over the whole of the last
/// segment, which is not in memory where the log was written past the page cache, and
/// large reads keep a disk busy.
const WINDOW_BYTES: usize = 4 << 20;
/// The same from the device, beside other work.
const DIRECT_WINDOW_BYTES: usize = 256 << 10;

/// A part of a segment in memory.
pub(super) struct Window<'s> {
    segment: &'s Segment,
    /// Offset in the file of the first byte of `bytes`.
    start: u64,
    bytes: AlignedBuf,
    /// Whether the device is asked, and not the page cache.
    direct: bool,
}

impl<'s> Window<'s> {
    pub(super) fn new(segment: &'s Segment) -> Self {
        Self {
            segment,
            start: 0,
            bytes: AlignedBuf::new(),
            direct: false,
        }
    }

    /// One that reads what the device has.
    pub(super) fn direct(segment: &'s Segment) -> Self {
        Self {
            direct: true,
            ..Self::new(segment)
        }
    }

    /// The bytes from `offset` on: `length` of them, fewer only at the end of the
    /// file.
    fn at(&mut self, offset: u64, length: usize) -> Result<&[u8]> {
        let have_from = offset >= self.start;
        let end = self.start + self.bytes.len() as u64;
        let wanted_end = (offset + length as u64).min(self.segment.file_bytes);
        if !have_from || wanted_end > end {
            let at_once = match self.direct {
                true => DIRECT_WINDOW_BYTES,
                false => WINDOW_BYTES,
            };
            let left = self.segment.file_bytes.saturating_sub(offset) as usize;
            let count = length.max(at_once.min(left.next_multiple_of(BLOCK_BYTES)));
            self.bytes.resize(count);
            let read = match self.direct {
                true => self.segment.file.read_direct_at(&mut self.bytes, offset)?,
                false => self.segment.file.read_at(&mut self.bytes, offset)?,
            };
            self.bytes.resize(read);
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        let to = (from + length).min(self.bytes.len());
        Ok(&self.bytes[from.min(to)..to])
    }

    /// The group at `lsn`, with its bytes, if there is a whole one.
    pub(super) fn group(
        &mut self,
        lsn: Lsn,
        prev_crc: Option<u32>,
    ) -> Result<std::result::Result<(WholeGroup, &[u8]), BadGroup>> {
        let offset = self.segment.offset_of(lsn);
        let mut length = BLOCK_BYTES;
        loop {
            let bytes = self.at(offset, length)?;
            let at_end = bytes.len() < length;
            match decode_group(bytes, lsn, prev_crc) {
                GroupScan::NeedMore if !at_end => length *= 2,
                GroupScan::NeedMore => {
                    return Ok(Err(BadGroup {
                        offset: 0,
                        flaw: Flaw::Short,
                        whole: 0,
                    }));
                }
                GroupScan::Whole(whole) => {
                    let group = self.at(offset, length)?;
                    return Ok(Ok((whole, &group[..whole.bytes])));
                }
                GroupScan::Bad(bad) => return Ok(Err(bad)),
            }
        }
    }

    /// The first block at or after `from` where a whole record of just that
    /// position starts which was written when `durable` was durable already
    /// (`durable_lsn` over it).
    pub(super) fn find_evidence(&mut self, from: Lsn, durable: Lsn) -> Result<Option<Lsn>> {
        let mut lsn = align_lsn(from);
        while lsn < self.segment.limit_lsn() {
            let offset = self.segment.offset_of(lsn);
            let head = self.at(offset, RECORD_HEADER_BYTES)?;
            if let Ok(header) = record::decode_header(head, lsn)
                && header.durable_lsn > durable
            {
                let length = RECORD_HEADER_BYTES + header.length as usize;
                if record::decode_record(self.at(offset, length)?, lsn).is_ok() {
                    return Ok(Some(lsn));
                }
            }
            lsn += BLOCK_BYTES as u64;
        }
        Ok(None)
    }

    /// What is in the bytes that a group from `from` on may have touched.
    pub(super) fn leftover(&mut self, from: Lsn) -> Result<Leftover> {
        let mut leftover = Leftover {
            zero: true,
            records: None,
        };
        let end = (from + MAX_GROUP_BYTES as u64).min(self.segment.limit_lsn());
        let mut lsn = from;
        while lsn < end {
            let block = self.at(self.segment.offset_of(lsn), BLOCK_BYTES)?;
            if block.is_empty() {
                break;
            }
            if block.iter().any(|byte| *byte != 0) {
                leftover.zero = false;
                let found = (0..block.len().saturating_sub(15))
                    .step_by(8)
                    .any(|at| record::lsn_field(&block[at..]) == lsn + at as u64);
                if found {
                    let start = leftover.records.map_or(lsn, |(start, _)| start);
                    leftover.records = Some((start, lsn + block.len() as u64));
                }
            }
            lsn += BLOCK_BYTES as u64;
        }
        Ok(leftover)
    }

    /// The whole groups from `from` on, up to the first that is not: their
    /// records, and where they end.
    pub(super) fn whole_after(&mut self, from: Lsn) -> Result<(u64, Lsn)> {
        let (mut lsn, mut prev_crc, mut records) = (from, None, 0);
        while lsn < self.segment.limit_lsn() {
            let Ok((whole, group)) = self.group(lsn, prev_crc)? else {
                break;
            };
            records += user_records(group);
            prev_crc = Some(whole.last_crc);
            lsn += whole.padded_bytes();
        }
        Ok((records, lsn))
    }
}

/// The first block of a segment without header where a whole record of position
/// `least` or later starts: its offset and its position.
pub(super) fn find_any_record(file: &Segment, least: Lsn) -> Result<Option<(u64, Lsn)>> {
    // The base of the segment is not known, so positions are taken from the records.
    let mut window = Window::new(file);
    for offset in (HEADER_BYTES..file.file_bytes).step_by(BLOCK_BYTES) {
        let head = window.at(offset, RECORD_HEADER_BYTES)?;
        if head.len() < RECORD_HEADER_BYTES {
            break;
        }
        let lsn = record::lsn_field(head);
        let Ok(header) = record::decode_header(head, lsn) else {
            continue;
        };
        if lsn < least {
            continue;
        }
        let length = RECORD_HEADER_BYTES + header.length as usize;
        if record::decode_record(window.at(offset, length)?, lsn).is_ok() {
            return Ok(Some((offset, lsn)));
        }
    }
    Ok(None)
}

/// What was found behind the end of the log.
pub(super) struct Leftover {
    /// Nothing but zeroes.
    pub(super) zero: bool,
    /// The blocks, from and to, in which something looks like a record of its
    /// very position: what a group that was cut has left.
    pub(super) records: Option<(Lsn, Lsn)>,
}

pub(super) fn user_records(group: &[u8]) -> u64 {
    record::records_of(group)
        .filter(|(_, kind, _)| *kind <= record::MAX_KIND)
        .count() as u64
}

fn align_lsn(lsn: Lsn) -> Lsn {
    lsn.next_multiple_of(BLOCK_BYTES as u64)
}

const _: () = assert!(HEADER_BYTES as usize == BLOCK_BYTES);
