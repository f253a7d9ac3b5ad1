//! What goes into a replica, and what comes out of it.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use varve_engine::wal::{Committed, Group, Lsn};

use crate::change::{Change, Tagged};
use crate::changes::AppliedChange;
use crate::corruption::{Mark, State};
use crate::error::RaftError;
use crate::loading::LoadedStore;
use crate::log::Fetch;
use crate::membership::Membership;
use crate::proposals::Sinks;
use crate::sink::{ChangeSink, Proposal, ReadSink};
use crate::wire;

/// What happens to a replica.
pub(crate) enum Input {
    Propose(Proposal),
    Read(Box<dyn ReadSink>),
    /// Bytes from another member.
    Peer {
        from: u64,
        bytes: Bytes,
    },
    Unreachable(u64),
    /// A log write is durable; the group comes back for use again.
    Persisted {
        ticket: u64,
        committed: Committed,
        group: Group,
    },
    Applied {
        index: u64,
        membership: Option<Arc<Membership>>,
        changes: Vec<AppliedChange>,
        /// The state that the store came to.
        state: State,
    },
    /// What this member has where the leader's state is of.
    Compared {
        to: u64,
        mark: Mark,
    },
    /// A client asks for a change of the membership.
    Change(Change, Box<dyn ChangeSink>),
    /// A client asks for another leader.
    MoveLeader(u64, Box<dyn ChangeSink>),
    /// Another member says that this one has been removed.
    Removed,
    /// The store made everything up to this index durable.
    Checkpointed(u64),
    Tick,
    Fetched {
        low: u64,
        entries: Vec<Entry>,
    },
    SnapshotLoaded(Box<LoadedStore>),
    SnapshotSent {
        to: u64,
        delivered: bool,
    },
    /// Leadership goes to the member that is furthest.
    HandOver,
    /// The log takes no more writes.
    LogFailed(RaftError),
    Stop,
}

/// A log write to submit. Its completion comes back as [`Input::Persisted`].
pub(crate) struct LogWrite {
    pub(crate) ticket: u64,
    pub(crate) group: Group,
}

/// An entry to apply.
pub(crate) struct ToApply {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) data: EntryData,
    /// Of the proposals in it, if this member proposed them.
    pub(crate) sinks: Sinks,
    /// If it changes the membership.
    pub(crate) change: Option<ToChange>,
}

/// What an entry changes of the membership.
pub(crate) struct ToChange {
    pub(crate) tagged: Tagged,
    /// Of who asked for it here.
    pub(crate) sink: Option<Box<dyn ChangeSink>>,
}

/// An entry's bytes, or where to read them if too many wait already.
pub(crate) enum EntryData {
    Here(Bytes),
    At(Lsn),
}

/// Work for the applier, in order.
pub(crate) enum ApplyJob {
    Entries(Vec<ToApply>),
    /// Goes on with a store that another member sent.
    Install(Box<LoadedStore>),
    /// Compares the leader's state with this member's, once that is as far.
    Compare {
        from: u64,
        mark: Mark,
    },
}

/// What is to be done now, in any order but for `writes` and `apply` in theirs.
#[derive(Default)]
pub(crate) struct Output {
    pub(crate) writes: Vec<LogWrite>,
    pub(crate) messages: Vec<(u64, Vec<Bytes>)>,
    pub(crate) apply: Vec<ApplyJob>,
    /// Readers to serve from the newest published state.
    pub(crate) reads: Vec<Box<dyn ReadSink>>,
    /// Members to send a snapshot to, and the message that begins it.
    pub(crate) snapshots: Vec<(u64, Message)>,
    pub(crate) fetches: Vec<Fetch>,
    /// The log below this position is not needed any more.
    pub(crate) release: Option<Lsn>,
    /// A store that was loaded in vain.
    pub(crate) discard: Vec<LoadedStore>,
}

impl Output {
    pub(crate) fn send(&mut self, message: &Message) {
        self.send_bytes(message.to, wire::encode(message));
    }

    /// Sends messages; snapshots go a way of their own.
    pub(crate) fn send_all(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            match message.get_msg_type() {
                MessageType::MsgSnapshot => self.snapshots.push((message.to, message)),
                _ => self.send(&message),
            }
        }
    }

    pub(crate) fn send_bytes(&mut self, to: u64, bytes: Bytes) {
        match self.messages.iter_mut().find(|(known, _)| *known == to) {
            Some((_, messages)) => messages.push(bytes),
            None => self.messages.push((to, vec![bytes])),
        }
    }
}
