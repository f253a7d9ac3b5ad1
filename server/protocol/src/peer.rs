//! Frames of the peer port. The framing is that of the client port; frames have
//! no replies in the sense of requests: each side sends when it has something.

use thiserror::Error;
use varve_types::{DecodeError, Reader, flags, put_bytes, put_count};

use crate::{Flags, RequestError, begin_frame, encode_frame, finish_frame, opcode};

/// What a peer connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Raft messages, from the side that connected to the other.
    #[default]
    Messages = 0,
    /// One snapshot, from the side that connected to the other.
    Snapshot = 1,
}

/// First frame of both sides of a peer connection: the side that connected speaks first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerHello {
    /// The sender's cluster.
    pub cluster_id: u64,
    /// The sender.
    pub from: u64,
    /// The member that the sender means to talk to.
    pub to: u64,
    /// What the connection is for.
    pub channel: Channel,
    /// Version of the sending node, for logs and for the cluster version.
    pub server_version: String,
    /// Where the sender is reached: the other side may not have heard of it yet.
    pub peer_urls: Vec<String>,
}

impl PeerHello {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for id in [self.cluster_id, self.from, self.to] {
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.push(self.channel as u8);
        put_bytes(out, self.server_version.as_bytes());
        put_count(out, self.peer_urls.len());
        for url in &self.peer_urls {
            put_bytes(out, url.as_bytes());
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            cluster_id: reader.u64("cluster_id")?,
            from: reader.u64("from")?,
            to: reader.u64("to")?,
            channel: match reader.u8("channel")? {
                0 => Channel::Messages,
                1 => Channel::Snapshot,
                _ => return Err(reader.error("channel")),
            },
            server_version: reader.string("server_version")?.to_owned(),
            peer_urls: {
                let count = reader.count(4, "peer_urls")?;
                (0..count)
                    .map(|_| reader.string("peer_urls").map(str::to_owned))
                    .collect::<Result<_, _>>()?
            },
        })
    }
}

/// Why a member closes a peer connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The two belong to different clusters.
    #[error("cluster ID mismatch (got {theirs:x} want {ours:x})")]
    ClusterMismatch {
        /// Cluster of the side that refuses.
        ours: u64,
        /// Cluster of the side that is refused.
        theirs: u64,
    },
    /// The connection was meant for another member.
    #[error("member ID mismatch (got {wanted:x} want {ours:x})")]
    MemberMismatch {
        /// The side that refuses.
        ours: u64,
        /// The member that the other side asked for.
        wanted: u64,
    },
    /// The member that connected has been removed from the cluster.
    #[error("the member has been permanently removed from the cluster (member {member:x})")]
    Removed {
        /// The removed member.
        member: u64,
    },
    /// The member that connected is not known to the cluster.
    #[error("member {member:x} is not known to the cluster")]
    UnknownMember {
        /// The unknown member.
        member: u64,
    },
    /// No common version of the protocol.
    #[error("peer protocol version is not supported ({0})")]
    Version(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Refusal {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (reason, first, second) = match self {
            Self::ClusterMismatch { ours, theirs } => (1, *ours, *theirs),
            Self::MemberMismatch { ours, wanted } => (2, *ours, *wanted),
            Self::Removed { member } => (3, *member, 0),
            Self::UnknownMember { member } => (4, *member, 0),
            Self::Version(_) => (5, 0, 0),
            Self::Other(_) => (0, 0, 0),
        };
        out.push(reason);
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&second.to_le_bytes());
        let text = match self {
            Self::Version(text) | Self::Other(text) => text.clone(),
            typed => typed.to_string(),
        };
        put_bytes(out, text.as_bytes());
    }

    /// Reads one encoding. A reason that this version does not know becomes [`Refusal::Other`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reason = reader.u8("refusal reason")?;
        let (first, second) = (reader.u64("refusal id")?, reader.u64("refusal id")?);
        let text = reader.string("refusal text")?.to_owned();
        Ok(match reason {
            1 => Self::ClusterMismatch {
                ours: first,
                theirs: second,
            },
            2 => Self::MemberMismatch {
                ours: first,
                wanted: second,
            },
            3 => Self::Removed { member: first },
            4 => Self::UnknownMember { member: first },
            5 => Self::Version(text),
            _ => Self::Other(text),
        })
    }
}

/// Start of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotBegin<'a> {
    /// Distinguishes this snapshot from others between the same two members.
    pub id: u64,
    /// Raft index it is of.
    pub index: u64,
    /// Raft term of that index.
    pub term: u64,
    /// Bytes of all chunks, as far as known; 0 is unknown.
    pub estimated_bytes: u64,
    /// The Raft message that announces it; opaque here.
    pub message: &'a [u8],
}

impl<'a> SnapshotBegin<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.id, self.index, self.term, self.estimated_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_bytes(out, self.message);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.u64("snapshot id")?,
            index: reader.u64("snapshot index")?,
            term: reader.u64("snapshot term")?,
            estimated_bytes: reader.u64("estimated_bytes")?,
            message: reader.bytes("snapshot message")?,
        })
    }
}

/// A piece of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotChunk<'a> {
    /// The snapshot.
    pub id: u64,
    /// Number of the piece, from 0, without gaps.
    pub sequence: u64,
    /// Its bytes; opaque here.
    pub data: &'a [u8],
}

impl<'a> SnapshotChunk<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        put_bytes(out, self.data);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.u64("snapshot id")?,
            sequence: reader.u64("chunk sequence")?,
            data: reader.bytes("chunk data")?,
        })
    }
}

/// End of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotEnd {
    /// The snapshot.
    pub id: u64,
    /// How many chunks it had.
    pub chunks: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// The store's hash at the snapshot's revision.
    pub hash: u128,
}

impl SnapshotEnd {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.id, self.chunks, self.bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.hash.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = reader.u64("snapshot id")?;
        let chunks = reader.u64("chunk count")?;
        let bytes = reader.u64("snapshot bytes")?;
        let (low, high) = (reader.u64("hash")?, reader.u64("hash")?);
        Ok(Self {
            id,
            chunks,
            bytes,
            hash: u128::from(high) << 64 | u128::from(low),
        })
    }
}

/// The receiver's answer to a begin (where to go on), to chunks (how far it is) and to the end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotAck {
    /// The snapshot.
    pub id: u64,
    /// The chunk wanted next: everything before it is kept safe.
    pub next: u64,
    /// Whether the whole snapshot is installed.
    pub installed: bool,
    /// Whether what failed may be tried again as it is.
    pub later: bool,
    /// What the sender needs to go on at `next`, in the answer to a begin; opaque here.
    pub position: Vec<u8>,
    /// Why it is given up; empty if it is not.
    pub failure: String,
}

impl SnapshotAck {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.installed, self.later]));
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.next.to_le_bytes());
        put_bytes(out, &self.position);
        put_bytes(out, self.failure.as_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = reader.u8("ack flags")?;
        Ok(Self {
            installed: flags & 1 != 0,
            later: flags & 2 != 0,
            id: reader.u64("snapshot id")?,
            next: reader.u64("next chunk")?,
            position: reader.bytes("position")?.to_vec(),
            failure: reader.string("failure")?.to_owned(),
        })
    }
}

/// Raft messages in a frame, each opaque bytes, read one after the other.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Messages<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let left = reader.count(4, "message count")?;
        let messages = Self {
            reader: reader.clone(),
            left,
        };
        // Walked once here, so that the iterator cannot meet a bad length.
        for _ in 0..left {
            reader.bytes("message")?;
        }
        Ok(messages)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        self.reader.bytes("message").ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Builds a frame of Raft messages in place.
#[derive(Debug)]
pub struct MessagesWriter<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    count_at: usize,
    count: u32,
}

impl<'o> MessagesWriter<'o> {
    /// Starts a frame at the end of `out`.
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        let start = begin_frame(out, opcode::PEER_MESSAGES, Flags::NONE, 0);
        let count_at = out.len();
        put_count(out, 0);
        Self {
            out,
            start,
            count_at,
            count: 0,
        }
    }

    /// Adds a message that `write` appends.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.out.len();
        put_count(self.out, 0);
        write(self.out);
        let length = (self.out.len() - at - 4) as u32;
        self.out[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
    }

    /// Bytes of the frame so far.
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Whether there is no message yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ends the frame.
    pub fn finish(self) {
        self.out[self.count_at..][..4].copy_from_slice(&self.count.to_le_bytes());
        finish_frame(self.out, self.start);
    }
}

/// A frame of the peer port.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PeerFrame<'a> {
    /// Who is there.
    Hello(PeerHello),
    /// Raft messages.
    Messages(Messages<'a>),
    /// Start of a snapshot.
    SnapshotBegin(SnapshotBegin<'a>),
    /// A piece of one.
    SnapshotChunk(SnapshotChunk<'a>),
    /// End of one.
    SnapshotEnd(SnapshotEnd),
    /// How far one is.
    SnapshotAck(SnapshotAck),
    /// The connection is being closed.
    Refused(Refusal),
}

impl<'a> PeerFrame<'a> {
    /// Reads a body that must fill `body`.
    pub fn decode(opcode: u8, body: &'a [u8]) -> Result<Self, RequestError> {
        let malformed = |source| RequestError::Malformed { opcode, source };
        let mut reader = Reader::new(body);
        let reader = &mut reader;
        let frame = match opcode {
            opcode::PEER_HELLO => PeerHello::decode(reader).map(Self::Hello),
            opcode::PEER_MESSAGES => Messages::decode(reader).map(Self::Messages),
            opcode::SNAPSHOT_BEGIN => SnapshotBegin::decode(reader).map(Self::SnapshotBegin),
            opcode::SNAPSHOT_CHUNK => SnapshotChunk::decode(reader).map(Self::SnapshotChunk),
            opcode::SNAPSHOT_END => SnapshotEnd::decode(reader).map(Self::SnapshotEnd),
            opcode::SNAPSHOT_ACK => SnapshotAck::decode(reader).map(Self::SnapshotAck),
            opcode::PEER_REFUSED => Refusal::decode(reader).map(Self::Refused),
            _ => return Err(RequestError::UnknownOpcode(opcode)),
        }
        .map_err(malformed)?;
        reader.finish().map_err(malformed)?;
        Ok(frame)
    }
}

macro_rules! peer_encoders {
    ($($(#[$doc:meta])* $name:ident($body:ty) = $opcode:path;)+) => {
        $($(#[$doc])*
        pub fn $name(out: &mut Vec<u8>, body: &$body) {
            encode_frame(out, $opcode, Flags::NONE, 0, |out| body.encode(out));
        })+
    };
}

peer_encoders! {
    /// Appends a hello frame.
    encode_hello(PeerHello) = opcode::PEER_HELLO;
    /// Appends the start of a snapshot.
    encode_snapshot_begin(SnapshotBegin<'_>) = opcode::SNAPSHOT_BEGIN;
    /// Appends a piece of a snapshot.
    encode_snapshot_chunk(SnapshotChunk<'_>) = opcode::SNAPSHOT_CHUNK;
    /// Appends the end of a snapshot.
    encode_snapshot_end(SnapshotEnd) = opcode::SNAPSHOT_END;
    /// Appends how far a snapshot is.
    encode_snapshot_ack(SnapshotAck) = opcode::SNAPSHOT_ACK;
    /// Appends a refusal; close the connection after it.
    encode_refusal(Refusal) = opcode::PEER_REFUSED;
}
