//! Frames: a fixed header, a body, and how a byte stream is cut into them.
//!
//! Invariants: nothing of a frame is looked at before its checksum held, except
//! what is needed to find its end; a length is held against the limit before a
//! single byte of the body has to be buffered; the decoder copies nothing.

use bytes::{Buf, Bytes, BytesMut};

use crate::FrameError;

/// First two bytes of every frame. The first is no ASCII letter (HTTP) and not 0x16 (TLS).
pub const MAGIC: [u8; 2] = [0xd6, b'V'];
/// Version of the framing and of the bodies.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_SIZE: usize = 24;
/// What a request's body may have over `--max-request-bytes`, as in etcd.
pub const REQUEST_OVERHEAD: usize = 512 * 1024;
/// Bytes of body past which a server cuts a reply into several frames.
pub const REPLY_CHUNK: usize = 1024 * 1024;
/// Longest body a client accepts by default: a chunk may exceed [`REPLY_CHUNK`] by one entry.
pub const DEFAULT_REPLY_LIMIT: usize = 256 * 1024 * 1024;
/// Longest body that members accept from each other by default.
pub const DEFAULT_PEER_LIMIT: usize = 64 * 1024 * 1024;

const LENGTH_AT: usize = 16;
const CRC_AT: usize = 20;

/// The flags of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u16);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Sent by the side that was asked.
    pub const REPLY: Self = Self(1);
    /// The last frame of a stream.
    pub const END: Self = Self(2);
    /// The body is an error.
    pub const ERROR: Self = Self(4);
    /// The answer goes on in the next frame with this request id.
    pub const MORE: Self = Self(8);
    const ALL: u16 = 15;

    /// The bits.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The flags with these bits; bits that have no meaning are refused.
    pub fn from_bits(bits: u16) -> Option<Self> {
        (bits & !Self::ALL == 0).then_some(Self(bits))
    }

    /// Whether every flag of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    /// See [`crate::opcode`].
    pub opcode: u8,
    /// The flags.
    pub flags: Flags,
    /// Chosen by the side that asks; replies carry it.
    pub request_id: u64,
    /// Bytes of the body.
    pub body_length: u32,
}

/// A frame, borrowed from the buffer it was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: FrameHeader,
    /// The body.
    pub body: &'a [u8],
}

/// A frame that shares the buffer it was read into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedFrame {
    /// The header.
    pub header: FrameHeader,
    /// The body.
    pub body: Bytes,
}

/// Starts a frame at the end of `out`; append the body, then call [`finish_frame`].
#[inline]
pub fn begin_frame(out: &mut Vec<u8>, opcode: u8, flags: Flags, request_id: u64) -> usize {
    let start = out.len();
    let mut header = [0; HEADER_SIZE];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = VERSION;
    header[3] = opcode;
    header[4..6].copy_from_slice(&flags.0.to_le_bytes());
    header[8..LENGTH_AT].copy_from_slice(&request_id.to_le_bytes());
    out.extend_from_slice(&header);
    start
}

/// Fills in length and checksum of the frame that was begun at `start`.
#[inline]
pub fn finish_frame(out: &mut [u8], start: usize) {
    let frame = &mut out[start..];
    // Senders keep bodies far below 4 GiB; see the limits above.
    let length = (frame.len() - HEADER_SIZE) as u32;
    frame[LENGTH_AT..CRC_AT].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(frame);
    frame[CRC_AT..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
}

/// Appends a frame whose body `body` writes.
#[inline]
pub fn encode_frame(
    out: &mut Vec<u8>,
    opcode: u8,
    flags: Flags,
    request_id: u64,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = begin_frame(out, opcode, flags, request_id);
    body(out);
    finish_frame(out, start);
}

#[inline]
fn checksum(frame: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&frame[..CRC_AT]);
    crc32c::crc32c_append(crc, &frame[HEADER_SIZE..])
}

/// What the decoder found at the start of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// A whole frame in the first `usize` bytes.
    Frame(Frame<'a>, usize),
    /// A frame with a body over the limit. The first `usize` bytes are done with, and the decoder
    /// will skip the rest of it as it arrives: answer the request with an error and go on.
    TooLarge(FrameHeader, usize),
    /// The first `usize` bytes belong to a frame that is being skipped.
    Skipped(usize),
    /// Nothing whole: at least this many bytes are needed, counted from the input's start.
    NeedMore(usize),
}

/// Cuts a byte stream into frames.
///
/// Feed it the unread bytes, drop as many as [`Step`] says, repeat until
/// [`Step::NeedMore`]. After an error the stream has no known frame boundary
/// any more: close the connection.
#[derive(Debug, Clone)]
pub struct Decoder {
    limit: usize,
    skip: usize,
}

impl Decoder {
    /// A decoder for bodies of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, skip: 0 }
    }

    /// A decoder for a client port with this `--max-request-bytes`.
    pub fn for_requests(max_request_bytes: usize) -> Self {
        Self::new(max_request_bytes.saturating_add(REQUEST_OVERHEAD))
    }

    /// Longest body it takes, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Looks at the start of `input`.
    #[inline]
    pub fn step<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, FrameError> {
        if self.skip > 0 {
            let skipped = self.skip.min(input.len());
            self.skip -= skipped;
            return Ok(match skipped {
                0 => Step::NeedMore(1),
                _ => Step::Skipped(skipped),
            });
        }
        let Some(header_bytes) = input.first_chunk::<HEADER_SIZE>() else {
            check_start(input)?;
            return Ok(Step::NeedMore(HEADER_SIZE));
        };
        check_start(header_bytes)?;
        let [_, _, _, opcode, f0, f1, r0, r1, ids @ ..] = header_bytes;
        let bits = u16::from_le_bytes([*f0, *f1]);
        let (Some(flags), 0) = (Flags::from_bits(bits), u16::from_le_bytes([*r0, *r1])) else {
            return Err(FrameError::ReservedBits { flags: bits });
        };
        let [
            i0,
            i1,
            i2,
            i3,
            i4,
            i5,
            i6,
            i7,
            l0,
            l1,
            l2,
            l3,
            c0,
            c1,
            c2,
            c3,
        ] = *ids;
        let header = FrameHeader {
            opcode: *opcode,
            flags,
            request_id: u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]),
            body_length: u32::from_le_bytes([l0, l1, l2, l3]),
        };
        let length = header.body_length as usize;
        if length > self.limit {
            self.skip = length;
            return Ok(Step::TooLarge(header, HEADER_SIZE));
        }
        let total = HEADER_SIZE + length;
        let Some(frame) = input.get(..total) else {
            return Ok(Step::NeedMore(total));
        };
        let (expected, actual) = (u32::from_le_bytes([c0, c1, c2, c3]), checksum(frame));
        if expected != actual {
            return Err(FrameError::BadChecksum { expected, actual });
        }
        let body = &frame[HEADER_SIZE..];
        Ok(Step::Frame(Frame { header, body }, total))
    }

    /// Takes the next frame out of `buffer`, if one is whole. A frame over the limit is an error.
    pub fn next_owned(&mut self, buffer: &mut BytesMut) -> Result<Option<OwnedFrame>, FrameError> {
        let (header, total) = match self.step(buffer)? {
            Step::Frame(frame, total) => (frame.header, total),
            Step::NeedMore(_) => return Ok(None),
            Step::TooLarge(header, _) => {
                return Err(FrameError::TooLarge {
                    length: header.body_length,
                    limit: self.limit,
                });
            }
            // `skip` is only ever set together with the error above, which ends the stream.
            Step::Skipped(_) => return Ok(None),
        };
        let mut frame = buffer.split_to(total);
        frame.advance(HEADER_SIZE);
        Ok(Some(OwnedFrame {
            header,
            body: frame.freeze(),
        }))
    }

    /// Says whether a stream may end here, with `rest` unread.
    pub fn finish(&self, rest: &[u8]) -> Result<(), FrameError> {
        match rest.len() + self.skip {
            0 => Ok(()),
            missing_from => Err(FrameError::Truncated {
                buffered: missing_from,
            }),
        }
    }
}

/// Refuses what cannot become a frame, from the first byte on.
fn check_start(input: &[u8]) -> Result<(), FrameError> {
    let magic = &input[..input.len().min(MAGIC.len())];
    if !MAGIC.starts_with(magic) {
        let mut found = [0; 2];
        found[..magic.len()].copy_from_slice(magic);
        return Err(FrameError::BadMagic { found });
    }
    match input.get(2) {
        Some(&version) if version != VERSION => Err(FrameError::UnsupportedVersion { version }),
        _ => Ok(()),
    }
}
