//! What a node asks of the network.

use bytes::Bytes;

use crate::membership::Membership;

/// A part of a snapshot on its way to another member. Parts of one stream must
/// arrive in order; the stream's first carries everything the receiver needs to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// Encoded; opaque to the transport.
    pub bytes: Bytes,
    /// Whether it is the last.
    pub is_last: bool,
}

/// Yields a snapshot's parts. Pulling may read from the store: not on an async worker.
pub trait SnapshotStream: Send {
    /// The next part; `None` after the last, and after an error, which the node has logged.
    fn next_chunk(&mut self) -> Option<SnapshotChunk>;

    /// Reports whether the receiver has taken all parts in; call it once.
    fn finished(self: Box<Self>, delivered: bool);
}

/// Carries messages to other members, by member id.
///
/// No method may block. Messages to one member must arrive in the order they
/// were sent, at most once, or not at all (a proposal that came twice would be done
/// twice): raft-rs 0.7 takes reordered append responses badly,
/// so a connection that was replaced must be dropped with what it still holds.
pub trait Transport: Send {
    /// Sends encoded messages. A full queue drops them: Raft sends again.
    fn send(&mut self, to: u64, messages: Vec<Bytes>);

    /// The membership has changed: members were added, removed or moved.
    fn members_changed(&mut self, members: &Membership);

    /// Starts to send a snapshot beside the messages.
    fn send_snapshot(&mut self, to: u64, stream: Box<dyn SnapshotStream>);
}

/// The transport of a cluster of one: nobody is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn send(&mut self, _to: u64, _messages: Vec<Bytes>) {}

    fn members_changed(&mut self, _members: &Membership) {}

    fn send_snapshot(&mut self, _to: u64, stream: Box<dyn SnapshotStream>) {
        stream.finished(false);
    }
}
