//! Watches.
//!
//! A watch is a stream: everything about it carries the request id of the
//! [`crate::opcode::WATCH`] frame that opened it.

use varve_types::{DecodeError, Event, KeyRange, Reader, flags, put_bytes, put_count, put_i64};

use crate::WireError;

/// Opens a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchRequest<'a> {
    /// First key.
    pub key: &'a [u8],
    /// See [`KeyRange`].
    pub range_end: &'a [u8],
    /// First revision of interest; 0 is the next one.
    pub start_revision: i64,
    /// Send the former state of each key too.
    pub prev_kv: bool,
    /// Say from time to time how far an idle watch has come.
    pub progress_notify: bool,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletions.
    pub no_delete: bool,
    /// Bytes of event frames that may be sent before the first
    /// [`WatchCreditRequest`]; 0 turns flow control of this watch off.
    pub credit: u32,
}

impl<'a> WatchRequest<'a> {
    /// The keys it names.
    pub fn range(&self) -> KeyRange<'a> {
        KeyRange::new(self.key, self.range_end)
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([
            self.prev_kv,
            self.progress_notify,
            self.no_put,
            self.no_delete,
        ]));
        put_i64(out, self.start_revision);
        out.extend_from_slice(&self.credit.to_le_bytes());
        put_bytes(out, self.key);
        put_bytes(out, self.range_end);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let bits = reader.u8("watch flags")?;
        Ok(Self {
            prev_kv: bits & 1 != 0,
            progress_notify: bits & 2 != 0,
            no_put: bits & 4 != 0,
            no_delete: bits & 8 != 0,
            start_revision: reader.i64("start_revision")?,
            credit: reader.u32("credit")?,
            key: reader.bytes("key")?,
            range_end: reader.bytes("range_end")?,
        })
    }
}

/// Ends a watch. Answered only by the watch's own last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchCancelRequest {
    /// Request id of the watch.
    pub watch: u64,
}

impl WatchCancelRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.watch.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            watch: reader.u64("watch")?,
        })
    }
}

/// Asks how far the connection's watches have come; answered with an empty body behind the
/// response header once all of them have sent everything up to the header's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchProgressRequest;

impl WatchProgressRequest {
    /// Appends the encoding.
    pub fn encode(&self, _out: &mut Vec<u8>) {}

    /// Reads one encoding.
    pub fn decode(_reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

/// Lets a watch send more. Not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WatchCreditRequest {
    /// Request id of the watch.
    pub watch: u64,
    /// Further bytes of event frames (their bodies) that may be sent.
    pub bytes: u32,
}

impl WatchCreditRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.watch.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            watch: reader.u64("watch")?,
            bytes: reader.u32("bytes")?,
        })
    }
}

/// One frame of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchResponse {
    /// The watch is there; the header's revision is the store's.
    Created,
    /// Events by revision. Revisions are never torn apart: where one does not fit into a frame,
    /// the frame carries [`crate::Flags::MORE`], and the next one goes on with the same revision.
    Events(Vec<Event>),
    /// Everything up to the header's revision has been sent.
    Progress,
    /// The watch is over; the frame carries [`crate::Flags::END`].
    Canceled(WireError),
}

impl WatchResponse {
    const CREATED: u8 = 0;
    const EVENTS: u8 = 1;
    const PROGRESS: u8 = 2;
    const CANCELED: u8 = 3;

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Created => out.push(Self::CREATED),
            Self::Events(events) => {
                out.push(Self::EVENTS);
                put_count(out, events.len());
                for event in events {
                    event.encode(out);
                }
            }
            Self::Progress => out.push(Self::PROGRESS),
            Self::Canceled(error) => {
                out.push(Self::CANCELED);
                error.encode(out);
            }
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        // A kind byte, a key-value and the presence of a former one.
        const EVENT_LEAST_SIZE: usize = 1 + varve_types::KeyValue::LEAST_SIZE + 1;
        Ok(match reader.u8("watch response")? {
            Self::CREATED => Self::Created,
            Self::EVENTS => {
                let count = reader.count(EVENT_LEAST_SIZE, "event count")?;
                let events = (0..count).map(|_| Event::decode(reader));
                Self::Events(events.collect::<Result<_, _>>()?)
            }
            Self::PROGRESS => Self::Progress,
            Self::CANCELED => Self::Canceled(WireError::decode(reader)?),
            _ => return Err(reader.error("watch response")),
        })
    }
}
