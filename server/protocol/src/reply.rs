//! Writing replies, straight into the output buffer of a connection.

use varve_types::{EventRef, KeyValueRef, ResponseHeader};

use crate::message::Reply;
use crate::{
    Flags, HEADER_SIZE, REPLY_CHUNK, WatchResponse, WireError, begin_frame, encode_frame,
    finish_frame, opcode,
};

/// Appends a reply; one longer than [`REPLY_CHUNK`] leaves in several frames with
/// [`Flags::MORE`], whose bodies the receiver joins.
pub fn encode_reply<R: Reply>(
    out: &mut Vec<u8>,
    opcode: u8,
    request_id: u64,
    header: &ResponseHeader,
    reply: &R,
) {
    let start = begin_frame(out, opcode, Flags::REPLY, request_id);
    header.encode(out);
    reply.encode_reply(out);
    if out.len() - start - HEADER_SIZE <= REPLY_CHUNK {
        finish_frame(out, start);
    } else {
        let body = out.split_off(start + HEADER_SIZE);
        out.truncate(start);
        let chunks = body.len().div_ceil(REPLY_CHUNK);
        for (i, chunk) in body.chunks(REPLY_CHUNK).enumerate() {
            let more = if i + 1 < chunks {
                Flags::MORE
            } else {
                Flags::NONE
            };
            encode_frame(out, opcode, Flags::REPLY.with(more), request_id, |out| {
                out.extend_from_slice(chunk);
            });
        }
    }
}

/// Appends an error reply.
pub fn encode_error(out: &mut Vec<u8>, opcode: u8, request_id: u64, error: &WireError) {
    let flags = Flags::REPLY.with(Flags::ERROR);
    encode_frame(out, opcode, flags, request_id, |out| error.encode(out));
}

/// Appends the last frame of a connection that this side is about to close.
pub fn encode_connection_error(out: &mut Vec<u8>, error: &WireError) {
    let flags = Flags::REPLY.with(Flags::ERROR).with(Flags::END);
    encode_frame(out, opcode::CONNECTION, flags, 0, |out| error.encode(out));
}

/// Appends the reply to a put that does not return the former value.
#[inline]
pub fn encode_put_reply(out: &mut Vec<u8>, request_id: u64, header: &ResponseHeader) {
    encode_frame(out, opcode::PUT, Flags::REPLY, request_id, |out| {
        header.encode(out);
        out.push(0);
    });
}

/// Appends the reply to a read of one key.
#[inline]
pub fn encode_get_reply(
    out: &mut Vec<u8>,
    request_id: u64,
    header: &ResponseHeader,
    found: Option<KeyValueRef<'_>>,
) {
    let mut writer = RangeWriter::new(out, request_id, *header);
    if let Some(kv) = found {
        writer.push(kv);
    }
    writer.finish(i64::from(found.is_some()), false);
}

/// Appends a chunk of a snapshot, with [`Flags::END`] if it is the last one.
pub fn encode_snapshot_part(
    out: &mut Vec<u8>,
    request_id: u64,
    header: &ResponseHeader,
    chunk: &[u8],
    is_last: bool,
) {
    let end = if is_last { Flags::END } else { Flags::NONE };
    encode_frame(
        out,
        opcode::SNAPSHOT,
        Flags::REPLY.with(end),
        request_id,
        |out| {
            header.encode(out);
            out.extend_from_slice(chunk);
        },
    );
}

/// Writes the reply to a range, one key at a time, cutting it into frames.
///
/// Every frame but the last has [`Flags::MORE`] and is a range response of its
/// own, with its part of the keys; `more` and `count` hold in the last.
/// Between two keys the full part of `out` may be sent already: see
/// [`RangeWriter::complete_bytes`].
#[derive(Debug)]
pub struct RangeWriter<'o> {
    out: &'o mut Vec<u8>,
    request_id: u64,
    header: ResponseHeader,
    start: usize,
    keys: u32,
}

/// Where, counted from a frame's start, the range response's flags, count and key count are.
const RANGE_FLAGS_AT: usize = HEADER_SIZE + ResponseHeader::SIZE;
const RANGE_COUNT_AT: usize = RANGE_FLAGS_AT + 1;
const RANGE_KEYS_AT: usize = RANGE_COUNT_AT + 8;

impl<'o> RangeWriter<'o> {
    /// Starts a reply at the end of `out`.
    #[inline]
    pub fn new(out: &'o mut Vec<u8>, request_id: u64, header: ResponseHeader) -> Self {
        let mut writer = Self {
            out,
            request_id,
            header,
            start: 0,
            keys: 0,
        };
        writer.begin();
        writer
    }

    #[inline]
    fn begin(&mut self) {
        self.start = begin_frame(self.out, opcode::RANGE, Flags::REPLY, self.request_id);
        self.header.encode(self.out);
        self.out.extend_from_slice(&[0; 1 + 8 + 4]);
        self.keys = 0;
    }

    /// Adds a key.
    #[inline]
    pub fn push(&mut self, kv: KeyValueRef<'_>) {
        if self.out.len() - self.start >= REPLY_CHUNK {
            set_flags(self.out, self.start, Flags::REPLY.with(Flags::MORE));
            self.close();
            self.begin();
        }
        kv.encode(self.out);
        self.keys += 1;
    }

    fn close(&mut self) {
        self.out[self.start + RANGE_KEYS_AT..][..4].copy_from_slice(&self.keys.to_le_bytes());
        finish_frame(self.out, self.start);
    }

    /// How many bytes at the start of `out` are whole frames.
    pub fn complete_bytes(&self) -> usize {
        self.start
    }

    /// Takes those bytes out, so that they can be sent while the rest is read.
    pub fn take_complete(&mut self) -> Vec<u8> {
        let open = self.out.split_off(self.start);
        self.start = 0;
        std::mem::replace(self.out, open)
    }

    /// Ends what is written so far. The reply goes on in a frame of another writer with the same
    /// request id, once there is room for it.
    pub fn finish_part(mut self) {
        set_flags(self.out, self.start, Flags::REPLY.with(Flags::MORE));
        self.close();
    }

    /// Ends the reply.
    #[inline]
    pub fn finish(mut self, count: i64, more: bool) {
        let start = self.start;
        self.out[start + RANGE_FLAGS_AT] = u8::from(more);
        self.out[start + RANGE_COUNT_AT..][..8].copy_from_slice(&count.to_le_bytes());
        self.close();
    }
}

/// Appends a frame of a watch.
pub fn encode_watch(
    out: &mut Vec<u8>,
    watch: u64,
    header: &ResponseHeader,
    response: &WatchResponse,
) {
    let end = match response {
        WatchResponse::Canceled(_) => Flags::END,
        _ => Flags::NONE,
    };
    encode_frame(out, opcode::WATCH, Flags::REPLY.with(end), watch, |out| {
        header.encode(out);
        response.encode(out);
    });
}

/// Writes a frame of events, one at a time, straight into an output buffer.
#[derive(Debug)]
pub struct EventsWriter<'o> {
    out: &'o mut Vec<u8>,
    watch: u64,
    header: ResponseHeader,
    start: usize,
    events: u32,
}

/// Where, counted from a frame's start, the number of events is.
const EVENT_COUNT_AT: usize = HEADER_SIZE + ResponseHeader::SIZE + 1;

impl<'o> EventsWriter<'o> {
    /// Starts a frame of `watch` at the end of `out`.
    pub fn new(out: &'o mut Vec<u8>, watch: u64, header: &ResponseHeader) -> Self {
        let mut writer = Self {
            out,
            watch,
            header: *header,
            start: 0,
            events: 0,
        };
        writer.begin();
        writer
    }

    fn begin(&mut self) {
        self.start = begin_frame(self.out, opcode::WATCH, Flags::REPLY, self.watch);
        self.header.encode(self.out);
        WatchResponse::Events(Vec::new()).encode(self.out);
        self.events = 0;
    }

    /// Adds an event.
    #[inline]
    pub fn push(&mut self, event: &EventRef<'_>) {
        event.encode(self.out);
        self.events += 1;
    }

    /// Number of events so far.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Bytes of the body so far: what it costs in credit. Past [`REPLY_CHUNK`] it is time to
    /// finish.
    pub fn body_bytes(&self) -> usize {
        self.out.len() - self.start - HEADER_SIZE
    }

    /// Takes back what was written: there is nothing to send.
    pub fn abandon(self) {
        self.out.truncate(self.start);
    }

    /// Ends the frame and returns the credit it uses up. `more` says that the revision of the
    /// last event goes on in the next frame.
    pub fn finish(mut self, more: bool) -> usize {
        self.close(more)
    }

    /// Ends the frame in the middle of a revision, which goes on in the next one.
    /// Returns the credit that the ended frame uses up.
    pub fn cut(&mut self) -> usize {
        let credit = self.close(true);
        self.begin();
        credit
    }

    fn close(&mut self, more: bool) -> usize {
        let credit = self.body_bytes();
        if more {
            set_flags(self.out, self.start, Flags::REPLY.with(Flags::MORE));
        }
        let count = self.events.to_le_bytes();
        self.out[self.start + EVENT_COUNT_AT..][..4].copy_from_slice(&count);
        finish_frame(self.out, self.start);
        credit
    }
}

/// Changes the flags of a frame that was begun at `start`.
fn set_flags(out: &mut [u8], start: usize, flags: Flags) {
    const FLAGS_AT: usize = 4;
    out[start + FLAGS_AT..][..2].copy_from_slice(&flags.bits().to_le_bytes());
}
