//! What a node asks of the network.

use bytes::Bytes;

use crate::error::RaftError;
use crate::membership::Membership;

/// What the receiver of a snapshot is told first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotAnnouncement {
    /// No other snapshot's; the same when a broken transfer goes on.
    pub id: u64,
    /// Raft index it is of.
    pub index: u64,
    /// Raft term of that index.
    pub term: u64,
    /// Encoded; opaque to the transport.
    pub message: Bytes,
}

/// How sending a snapshot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// The receiver has taken all of it in.
    Delivered,
    /// The connection did not come about or broke, or the receiver is busy: it may
    /// go on later.
    Broken,
    /// The receiver does not want it.
    Refused,
}

/// Yields a snapshot's chunks. Pulling may read from the store: not on an async worker.
pub trait SnapshotStream: Send {
    /// What the receiver is told first.
    fn announcement(&self) -> SnapshotAnnouncement;

    /// Goes on at the receiver's position, as [`SnapshotReceiver::position`] gave it;
    /// the number of the chunk that comes next.
    ///
    /// [`SnapshotReceiver::position`]: crate::SnapshotReceiver::position
    fn go_on_from(&mut self, position: &[u8]) -> Result<u64, RaftError>;

    /// The next chunk; `None` after the last.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, RaftError>;

    /// Reports how it ended; call it once.
    fn finished(self: Box<Self>, outcome: SnapshotOutcome);
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
        stream.finished(SnapshotOutcome::Broken);
    }
}
