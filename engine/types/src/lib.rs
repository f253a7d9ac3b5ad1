//! Varve's data model: keys, values, revisions, requests, responses and their
//! byte encoding. No I/O, no dependencies beyond error derivation.
//!
//! The encoding of a request is the same on the wire and in the Raft log, so
//! that a node moves a client's bytes into the log without rewriting them.
//! Integers are little-endian and fixed in width; byte strings carry a `u32`
//! length. Field meanings and defaults follow etcd's `rpc.proto`.

mod alarm;
mod codec;
mod command;
mod error;
mod key_range;
mod request;
mod response;
mod view;

pub use alarm::{Alarm, AlarmAction, AlarmKind, AlarmRequest, AlarmResponse};
pub use codec::{DecodeError, Reader, flags, put_bytes, put_count, put_i64};
pub use command::{Command, Commands, MemberAttributes, opcode, push_command};
pub use error::ApiError;
pub use key_range::KeyRange;
pub use request::{
    CompactionRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest,
    RangeRequest, RequestOp, SortOrder, SortTarget, TxnRequest,
};
pub use response::{
    DeleteRangeResponse, Event, EventKind, KeyValue, PutResponse, RangeResponse, ResponseHeader,
    ResponseOp, TxnResponse,
};
pub use view::{EventRef, KeyValueRef};

/// Longest key a node accepts, in bytes: what every engine can hold, since
/// members may run different ones and must agree on what they refuse.
pub const MAX_KEY_BYTES: usize = 1920;
/// Default of `--max-request-bytes`: the longest request a node accepts, in bytes (1.5 MiB).
pub const DEFAULT_MAX_REQUEST_BYTES: usize = 1_572_864;
/// Most bytes of keys and values in the reply to one write (64 MiB). Members
/// refuse a write whose previous values are more, so they must agree on it: it
/// is no setting, and another value is another version of the log.
pub const MAX_REPLY_BYTES: usize = 64 << 20;
/// Default of `--max-txn-ops`.
pub const DEFAULT_MAX_TXN_OPS: usize = 128;
/// How deep transactions may nest.
pub const MAX_TXN_DEPTH: usize = 16;
