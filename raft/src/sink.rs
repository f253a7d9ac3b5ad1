//! How answers get back to those who asked.
//!
//! A sink is called exactly once, and must not block: it encodes, hands over to its
//! connection, and wakes it once. It may be called from any thread of the node or from
//! the one that handed it in, also before that call returns.

use std::sync::Arc;

use bytes::Bytes;
use varve_engine::mvcc::{Reply, View};
use varve_types::ApiError;

use crate::membership::Membership;

/// The answers to one proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The member's Raft term, for response headers.
    pub term: u64,
    /// One for each command, in their order.
    pub replies: Vec<Reply>,
    /// Whether nothing else waits for the thread that brings it, so that it may as
    /// well write to a socket, if that does not block.
    pub is_alone: bool,
}

/// Takes the answers of a proposal.
pub trait ReplySink: Send {
    /// All commands were applied; the batch they were in is published.
    fn complete(self: Box<Self>, completion: Completion);

    /// The proposal was not done, or (timeouts, `Stopped`) may be done later.
    fn refuse(self: Box<Self>, error: ApiError);
}

/// Takes a view that a linearizable read may be answered from.
pub trait ReadSink: Send {
    /// `view` holds everything that was acknowledged before the read came in.
    fn ready(self: Box<Self>, view: Arc<View>, term: u64);

    /// The read cannot be served.
    fn refuse(self: Box<Self>, error: ApiError);
}

/// Takes the outcome of a change of the membership or of the leader.
pub trait ChangeSink: Send {
    /// The members after it, or why it was not made. After a timeout it may be
    /// made later.
    fn done(self: Box<Self>, outcome: Result<Arc<Membership>, ApiError>);
}

/// Is told when compacted history is gone from this member. Dropped untold when the
/// node stops before.
pub trait RemovalSink: Send {
    /// What was compacted when the sink was handed in has been removed.
    fn removed(self: Box<Self>);
}

/// Is told when a member has given back the space that was free. Dropped untold when
/// the node stops before.
pub trait DefragmentSink: Send {
    /// It is done, or cannot be done now.
    fn done(self: Box<Self>, outcome: Result<(), ApiError>);
}

/// Commands for the log, all from one client connection.
pub struct Proposal {
    /// For each command `[u32 length of the rest][u8 opcode][body]`.
    pub commands: Bytes,
    /// How many commands that are.
    pub count: u32,
    /// The most that the answers may hold of keys and values
    /// ([`varve_engine::mvcc::reply_bytes`] of each command).
    pub reply_bytes: usize,
    /// Who gets the answers.
    pub sink: Box<dyn ReplySink>,
}

impl std::fmt::Debug for Proposal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proposal")
            .field("bytes", &self.commands.len())
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}
