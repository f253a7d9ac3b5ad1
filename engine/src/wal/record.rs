//! The bytes of a record, and of a group of records.
//!
//! ```text
//! offset  size
//!      0     4  length of the payload
//!      4     1  kind: 1..=239 the user's, 254 mark, 255 seal; 0 is no record
//!      5     1  flags: bit 0 last record of its group
//!      6     2  0
//!      8     8  lsn of this record
//!     16     8  durable lsn: everything below was durable when this was written
//!     24     4  checksum field of the record before
//!     28     4  crc32c of bytes 0..28 and the payload
//!     32        payload, zeroes up to a multiple of 8
//! ```
//! Little-endian. A group is records back to back, padded with zeroes to a
//! multiple of 4096, so that writing the next group touches no byte of it.

use super::Lsn;
use crate::disk::{BLOCK_BYTES, align};

/// Kinds of records from 1 to this are the user's; those above are the log's own.
pub const MAX_KIND: u8 = 0xEF;

/// Most bytes of one record's payload.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

/// Most bytes of one group, with headers and padding.
pub const MAX_GROUP_BYTES: usize = 8 << 20;

/// Tells what was acknowledged before it from a torn tail.
pub(super) const KIND_MARK: u8 = 0xFE;

/// The last record of a segment that has a successor.
pub(super) const KIND_SEAL: u8 = 0xFF;

/// Bytes of a record before its payload.
pub(super) const HEADER_BYTES: usize = 32;

/// The flag of a group's last record.
pub(super) const FLAG_GROUP_END: u8 = 1;

const ALIGN: usize = 8;

const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGN));
const _: () = assert!(MAX_PAYLOAD_BYTES + HEADER_BYTES <= MAX_GROUP_BYTES);
const _: () = assert!(MAX_GROUP_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(MAX_KIND < KIND_MARK);

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub length: u32,
    /// What the payload is.
    pub kind: u8,
    /// Bit 0: last record of its group.
    pub flags: u8,
    /// Position of the record.
    pub lsn: Lsn,
    /// Everything below was durable when this was written.
    pub durable_lsn: Lsn,
    /// Checksum of the record before.
    pub prev_crc: u32,
    /// Checksum of header and payload.
    pub crc: u32,
}

/// Why bytes are not the record that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// Zeroes.
    Empty,
    /// The bytes end before the record does.
    Short,
    /// The header makes no sense.
    Header,
    /// It is a record of another position.
    Position,
    /// The checksum does not match.
    Checksum,
    /// It does not follow the record before it.
    Chain,
    /// The group is longer than a group can be.
    GroupLength,
}

impl Flaw {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "zeroes in place of a record",
            Self::Short => "the file ends within the record",
            Self::Header => "the header makes no sense",
            Self::Position => "a record of another position",
            Self::Checksum => "the checksum does not match",
            Self::Chain => "it does not follow the record before it",
            Self::GroupLength => "the group does not end",
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The lsn field of a header at the start of `bytes`, which has 16 bytes or more.
pub(super) fn lsn_field(bytes: &[u8]) -> Lsn {
    u64_at(bytes, 8)
}

/// Bytes of a record with a payload of `length`, padding included.
pub(super) const fn record_bytes(length: usize) -> usize {
    HEADER_BYTES + length.next_multiple_of(ALIGN)
}

impl Header {
    /// Writes the header into the first bytes of `record` and fills in the
    /// checksum over it and the payload behind it. Returns the checksum.
    pub(super) fn seal(&self, record: &mut [u8]) -> u32 {
        record[0..4].copy_from_slice(&self.length.to_le_bytes());
        record[4] = self.kind;
        record[5] = self.flags;
        record[6..8].fill(0);
        record[8..16].copy_from_slice(&self.lsn.to_le_bytes());
        record[16..24].copy_from_slice(&self.durable_lsn.to_le_bytes());
        record[24..28].copy_from_slice(&self.prev_crc.to_le_bytes());
        let crc = checksum(record, self.length as usize);
        record[28..32].copy_from_slice(&crc.to_le_bytes());
        crc
    }
}

fn checksum(record: &[u8], length: usize) -> u32 {
    let head = crc32c::crc32c(&record[..28]);
    crc32c::crc32c_append(head, &record[HEADER_BYTES..HEADER_BYTES + length])
}

/// The header of the record that starts `bytes`, if it can be one of position
/// `lsn`. Looks at nothing but the header.
pub fn decode_header(bytes: &[u8], lsn: Lsn) -> Result<Header, Flaw> {
    if bytes.len() < HEADER_BYTES {
        return Err(Flaw::Short);
    }
    if bytes[..HEADER_BYTES].iter().all(|byte| *byte == 0) {
        return Err(Flaw::Empty);
    }
    let header = Header {
        length: u32_at(bytes, 0),
        kind: bytes[4],
        flags: bytes[5],
        lsn: lsn_field(bytes),
        durable_lsn: u64_at(bytes, 16),
        prev_crc: u32_at(bytes, 24),
        crc: u32_at(bytes, 28),
    };
    if header.lsn != lsn {
        return Err(Flaw::Position);
    }
    let known_kind = match header.kind {
        0 => false,
        1..=MAX_KIND | KIND_MARK | KIND_SEAL => true,
        _ => false,
    };
    let sane = header.length as usize <= MAX_PAYLOAD_BYTES
        && known_kind
        && header.flags & !FLAG_GROUP_END == 0
        && bytes[6..8] == [0, 0]
        && header.durable_lsn <= lsn;
    if sane { Ok(header) } else { Err(Flaw::Header) }
}

/// The record of position `lsn` that starts `bytes`: header and payload, verified.
/// `Short` means that more bytes may make it whole.
pub fn decode_record(bytes: &[u8], lsn: Lsn) -> Result<(Header, &[u8]), Flaw> {
    let header = decode_header(bytes, lsn)?;
    let length = header.length as usize;
    if bytes.len() < HEADER_BYTES + length {
        return Err(Flaw::Short);
    }
    if checksum(bytes, length) != header.crc {
        return Err(Flaw::Checksum);
    }
    Ok((header, &bytes[HEADER_BYTES..HEADER_BYTES + length]))
}

/// What starts at a group's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScan {
    /// A whole group.
    Whole(WholeGroup),
    /// The bytes end within the group.
    NeedMore,
    /// Not a whole group.
    Bad(BadGroup),
}

/// What is known of a whole group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeGroup {
    /// Its bytes without padding.
    pub bytes: usize,
    /// The kind of its last record.
    pub last_kind: u8,
    /// The checksum of its last record, which the next group chains to.
    pub last_crc: u32,
}

/// What is known where there is no whole group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadGroup {
    /// Offset of the first record that is not whole.
    pub offset: usize,
    /// What is wrong with it.
    pub flaw: Flaw,
    /// Whole records before it.
    pub whole: usize,
}

impl WholeGroup {
    /// Bytes from its start to the next group's.
    pub(super) fn padded_bytes(&self) -> u64 {
        align::round_up(self.bytes) as u64
    }
}

/// Looks at the group of position `lsn` that starts `bytes`; `prev_crc` is the
/// checksum of the record before it, `None` to take its own word for that.
pub fn decode_group(bytes: &[u8], lsn: Lsn, prev_crc: Option<u32>) -> GroupScan {
    let (mut offset, mut whole, mut prev_crc) = (0, 0, prev_crc);
    loop {
        let bad = |flaw| {
            GroupScan::Bad(BadGroup {
                offset,
                flaw,
                whole,
            })
        };
        let rest = bytes.get(offset..).unwrap_or_default();
        let header = match decode_record(rest, lsn.wrapping_add(offset as u64)) {
            Ok((header, _)) => header,
            Err(Flaw::Short) => return GroupScan::NeedMore,
            Err(flaw) => return bad(flaw),
        };
        if prev_crc.is_some_and(|crc| crc != header.prev_crc) {
            return bad(Flaw::Chain);
        }
        let end = offset + record_bytes(header.length as usize);
        if end > MAX_GROUP_BYTES {
            return bad(Flaw::GroupLength);
        }
        if header.flags & FLAG_GROUP_END != 0 {
            return GroupScan::Whole(WholeGroup {
                bytes: end,
                last_kind: header.kind,
                last_crc: header.crc,
            });
        }
        prev_crc = Some(header.crc);
        offset = end;
        whole += 1;
    }
}

/// The records of a whole group: offset, kind and payload.
pub(super) fn records_of(group: &[u8]) -> impl Iterator<Item = (usize, u8, &[u8])> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = group
            .get(offset..)
            .filter(|rest| rest.len() >= HEADER_BYTES)?;
        let length = u32_at(rest, 0) as usize;
        let payload = rest.get(HEADER_BYTES..HEADER_BYTES + length)?;
        let record = (offset, rest[4], payload);
        offset += record_bytes(length);
        Some(record)
    })
}
