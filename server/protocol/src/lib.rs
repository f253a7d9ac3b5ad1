//! The bytes that Varve's nodes and clients exchange, as `server/PROTOCOL.md`
//! specifies them. No I/O: everything works on buffers.
//!
//! A reader feeds the bytes it has to a [`Decoder`], which finds [`Frame`]s
//! without copying them; [`Request::from_frame`] reads a request and
//! [`decode_reply`] a reply. Requests of the data model have the encoding of
//! `varve_types`, so that a node can put a body into its log as it came.

mod error;
mod frame;
pub mod fuzz;
mod message;
pub mod opcode;
pub mod peer;
mod reply;

pub use error::{ErrorCode, FrameError, RequestError, WireError};
pub use frame::{
    DEFAULT_PEER_LIMIT, DEFAULT_REPLY_LIMIT, Decoder, Flags, Frame, FrameHeader, HEADER_SIZE,
    MAGIC, OwnedFrame, REPLY_CHUNK, REQUEST_OVERHEAD, Step, VERSION, begin_frame, encode_frame,
    finish_frame,
};
pub use message::{
    Empty, HashKvRequest, HashKvResponse, HelloRequest, HelloResponse, Member, MemberAddRequest,
    MemberAddResponse, MemberIdRequest, MemberListRequest, MemberListResponse, MemberUpdateRequest,
    Reply, Request, SnapshotCreditRequest, SnapshotRequest, SpaceLine, SpaceRequest, SpaceResponse,
    StatusResponse, WatchCancelRequest, WatchCreditRequest, WatchProgressRequest, WatchRequest,
    WatchResponse, decode_reply,
};
pub use reply::{
    EventsWriter, RangeWriter, encode_connection_error, encode_error, encode_get_reply,
    encode_put_reply, encode_reply, encode_snapshot_part, encode_watch,
};
