//! Requests and replies by opcode.

mod cluster;
mod node;
mod snapshot;
mod space;
mod watch;

pub use cluster::{MemberAddRequest, MemberAddResponse, MemberIdRequest, MemberUpdateRequest};
pub use node::{
    HashKvRequest, HashKvResponse, HelloRequest, HelloResponse, Member, MemberListRequest,
    MemberListResponse, StatusResponse,
};
pub use snapshot::{SnapshotCreditRequest, SnapshotRequest};
pub use space::{SpaceLine, SpaceRequest, SpaceResponse};
pub use watch::{
    WatchCancelRequest, WatchCreditRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};

use varve_types::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompareTarget, DecodeError, DeleteRangeRequest,
    DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, Reader, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse,
};

use crate::{Flags, Frame, RequestError, opcode};

/// A request without fields: ping, status and defragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Empty;

impl Empty {
    /// Appends the encoding: nothing.
    pub fn encode(&self, _out: &mut Vec<u8>) {}

    /// Reads one encoding: nothing.
    pub fn decode(_reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $opcode:path;)+) => {
        /// A request of the client port.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Request<'a> { $($(#[$doc])* $variant($body),)+ }

        impl<'a> Request<'a> {
            /// Its number.
            pub fn opcode(&self) -> u8 {
                match self { $(Self::$variant(_) => $opcode,)+ }
            }

            /// Appends the body.
            pub fn encode(&self, out: &mut Vec<u8>) {
                match self { $(Self::$variant(body) => body.encode(out),)+ }
            }

            /// Reads a body that must fill `body`.
            pub fn decode(opcode: u8, body: &'a [u8]) -> Result<Self, RequestError> {
                let mut reader = Reader::new(body);
                let malformed = |source| RequestError::Malformed { opcode, source };
                let request = match opcode {
                    $($opcode => Self::$variant(<$body>::decode(&mut reader).map_err(malformed)?),)+
                    _ => return Err(RequestError::UnknownOpcode(opcode)),
                };
                reader.finish().map_err(malformed)?;
                Ok(request)
            }
        }
    };
}

requests! {
    /// Read keys.
    Range(RangeRequest<'a>) = opcode::RANGE;
    /// Write a key.
    Put(PutRequest<'a>) = opcode::PUT;
    /// Delete keys.
    DeleteRange(DeleteRangeRequest<'a>) = opcode::DELETE_RANGE;
    /// A transaction.
    Txn(TxnRequest<'a>) = opcode::TXN;
    /// Drop history.
    Compaction(CompactionRequest) = opcode::COMPACTION;
    /// List, raise or end alarms.
    Alarm(AlarmRequest) = opcode::ALARM;
    /// Who is there.
    Hello(HelloRequest<'a>) = opcode::HELLO;
    /// Is anyone there.
    Ping(Empty) = opcode::PING;
    /// The member's state.
    Status(Empty) = opcode::STATUS;
    /// The store's hash.
    HashKv(HashKvRequest) = opcode::HASH_KV;
    /// The members.
    MemberList(MemberListRequest) = opcode::MEMBER_LIST;
    /// Keys and bytes by path component.
    Space(SpaceRequest<'a>) = opcode::SPACE;
    /// Add a member.
    MemberAdd(MemberAddRequest) = opcode::MEMBER_ADD;
    /// Remove a member.
    MemberRemove(MemberIdRequest) = opcode::MEMBER_REMOVE;
    /// Give a member other peer URLs.
    MemberUpdate(MemberUpdateRequest) = opcode::MEMBER_UPDATE;
    /// Give a learner its vote.
    MemberPromote(MemberIdRequest) = opcode::MEMBER_PROMOTE;
    /// Make another member the leader.
    MoveLeader(MemberIdRequest) = opcode::MOVE_LEADER;
    /// Give the member's free space back.
    Defragment(Empty) = opcode::DEFRAGMENT;
    /// A snapshot of the member.
    Snapshot(SnapshotRequest) = opcode::SNAPSHOT;
    /// Let a snapshot send more.
    SnapshotCredit(SnapshotCreditRequest) = opcode::SNAPSHOT_CREDIT;
    /// Open a watch.
    Watch(WatchRequest<'a>) = opcode::WATCH;
    /// End a watch.
    WatchCancel(WatchCancelRequest) = opcode::WATCH_CANCEL;
    /// Progress of the connection's watches.
    WatchProgress(WatchProgressRequest) = opcode::WATCH_PROGRESS;
    /// Let a watch send more.
    WatchCredit(WatchCreditRequest) = opcode::WATCH_CREDIT;
}

impl<'a> Request<'a> {
    /// Bytes of the keys and values in it; the encoding is longer by the fixed fields.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Range(range) => range.key.len() + range.range_end.len(),
            Self::Put(put) => put.key.len() + put.value.len(),
            Self::DeleteRange(delete) => delete.key.len() + delete.range_end.len(),
            Self::Txn(txn) => txn_bytes(txn),
            Self::Watch(watch) => watch.key.len() + watch.range_end.len(),
            Self::Space(space) => {
                let after = space.after.map_or(0, |(name, _)| name.len());
                space.prefix.len() + space.separator.len() + after
            }
            Self::Hello(hello) => hello.client.len(),
            Self::MemberAdd(add) => add.peer_urls.iter().map(String::len).sum(),
            Self::MemberUpdate(update) => update.peer_urls.iter().map(String::len).sum(),
            _ => 0,
        }
    }

    /// Reads the request in `frame`, which must have come in the direction of requests.
    pub fn from_frame(frame: &Frame<'a>) -> Result<Self, RequestError> {
        if frame.header.flags != Flags::NONE {
            return Err(RequestError::NotARequest {
                opcode: frame.header.opcode,
                flags: frame.header.flags.bits(),
            });
        }
        Self::decode(frame.header.opcode, frame.body)
    }
}

fn txn_bytes(txn: &TxnRequest<'_>) -> usize {
    let compares = txn.compare.iter().map(|compare| {
        let value = match compare.target {
            CompareTarget::Value(value) => value.len(),
            _ => 0,
        };
        compare.key.len() + compare.range_end.len() + value
    });
    let ops = txn.success.iter().chain(&txn.failure).map(|op| match op {
        RequestOp::Range(range) => range.key.len() + range.range_end.len(),
        RequestOp::Put(put) => put.key.len() + put.value.len(),
        RequestOp::DeleteRange(delete) => delete.key.len() + delete.range_end.len(),
        RequestOp::Txn(txn) => txn_bytes(txn),
    });
    compares.chain(ops).sum()
}

/// The part of a reply behind its [`ResponseHeader`].
pub trait Reply: Sized {
    /// Appends the encoding.
    fn encode_reply(&self, out: &mut Vec<u8>);

    /// Reads one encoding.
    fn decode_reply(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

macro_rules! replies {
    ($($name:ty),+ $(,)?) => {
        $(impl Reply for $name {
            fn encode_reply(&self, out: &mut Vec<u8>) {
                self.encode(out);
            }

            fn decode_reply(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Self::decode(reader)
            }
        })+
    };
}

replies!(
    Empty,
    AlarmResponse,
    RangeResponse,
    PutResponse,
    DeleteRangeResponse,
    TxnResponse,
    HelloResponse,
    StatusResponse,
    HashKvResponse,
    MemberListResponse,
    MemberAddResponse,
    SpaceResponse,
    WatchResponse,
);

/// Reads a reply's body, which must be filled.
pub fn decode_reply<R: Reply>(body: &[u8]) -> Result<(ResponseHeader, R), DecodeError> {
    let mut reader = Reader::new(body);
    let header = ResponseHeader::decode(&mut reader)?;
    let reply = R::decode_reply(&mut reader)?;
    reader.finish()?;
    Ok((header, reply))
}
