//! Snapshots between members, the sender's side.
//!
//! A follower whose next entry the leader's log does not hold any more gets the
//! whole store instead. Raft's own message carries only what it is of; the bulk
//! streams beside the messages:
//!
//! | what | bytes |
//! |---|---|
//! | announcement | `[u8 version = 1]` and the message (see [`crate::wire`]) |
//! | chunks | of the store's logical snapshot, any engine's |
//!
//! The receiver ([`crate::loading`]) says where it wants to go on, which is at the
//! start unless it has some of this very snapshot. So a transfer that broke goes on:
//! its view is kept for [`KEEP`], and as long as the log still begins before it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::eraftpb::Message;
use varve_engine::mvcc::{SnapshotPosition, SnapshotSource, View};
use varve_types::Reader;

use crate::error::RaftError;
use crate::meta;
use crate::transport::{SnapshotAnnouncement, SnapshotOutcome, SnapshotStream};
use crate::wire;

/// First byte of an announcement.
pub(crate) const VERSION: u8 = 1;

/// How long the state that a broken transfer was of is kept: it holds pages that
/// could be used again.
const KEEP: Duration = Duration::from_secs(120);

/// A state of the store that a member is sent.
pub(crate) struct Offer {
    announcement: SnapshotAnnouncement,
    view: Arc<View>,
}

impl Offer {
    /// `view` as the snapshot that `message` announces. The view may be newer than
    /// what raft-rs asked for; the message then says so. `id` is no other's.
    pub(crate) fn new(mut message: Message, view: Arc<View>, id: u64) -> Result<Self, RaftError> {
        let Some(members) = meta::members(&view)? else {
            return Err(RaftError::Snapshot("the store has no members".to_owned()));
        };
        let applied = view.applied();
        let metadata = message.mut_snapshot().mut_metadata();
        if applied.index < metadata.index {
            return Err(RaftError::Snapshot(format!(
                "the store applies to {}, not yet to {}",
                applied.index, metadata.index
            )));
        }
        (metadata.index, metadata.term) = (applied.index, applied.term);
        metadata.set_conf_state(members.conf_state());
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&wire::encode(&message));
        let announcement = SnapshotAnnouncement {
            id,
            index: applied.index,
            term: applied.term,
            message: Bytes::from(bytes),
        };
        Ok(Self { announcement, view })
    }

    /// The log entry up to which it applies.
    pub(crate) fn index(&self) -> u64 {
        self.announcement.index
    }
}

/// What is kept of transfers that broke, by member.
#[derive(Default)]
pub(crate) struct Offers(Mutex<HashMap<u64, (Arc<Offer>, Instant)>>);

impl Offers {
    /// What member `to` was sent before its transfer broke, if a log that begins at
    /// `first` leads on from there.
    pub(crate) fn take(&self, to: u64, first: u64) -> Option<Arc<Offer>> {
        let (offer, _) = self.lock().remove(&to)?;
        (offer.index() + 1 >= first).then_some(offer)
    }

    /// Keeps what member `to` was sent.
    pub(crate) fn keep(&self, to: u64, offer: Arc<Offer>) {
        self.lock().insert(to, (offer, Instant::now() + KEEP));
    }

    /// Lets go of what was kept long enough.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        self.lock().retain(|_, (_, until)| *until > now);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Arc<Offer>, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Told once how a transfer ended.
pub(crate) type Report = Box<dyn FnOnce(Arc<Offer>, SnapshotOutcome) + Send>;

/// One snapshot on its way out.
pub(crate) struct Outgoing {
    offer: Arc<Offer>,
    source: SnapshotSource,
    chunk_bytes: usize,
    report: Option<Report>,
}

impl Outgoing {
    /// Streams `offer` in chunks of about this size.
    pub(crate) fn new(offer: Arc<Offer>, chunk_bytes: usize, report: Report) -> Self {
        Self {
            source: SnapshotSource::new(offer.view.clone()),
            offer,
            chunk_bytes,
            report: Some(report),
        }
    }
}

impl SnapshotStream for Outgoing {
    fn announcement(&self) -> SnapshotAnnouncement {
        self.offer.announcement.clone()
    }

    fn go_on_from(&mut self, position: &[u8]) -> Result<u64, RaftError> {
        let mut reader = Reader::new(position);
        let decoded = SnapshotPosition::decode(&mut reader)
            .and_then(|position| reader.finish().map(|()| position))
            .map_err(|error| RaftError::Snapshot(format!("the receiver's position: {error}")))?;
        let chunks = decoded.chunks;
        self.source = SnapshotSource::resume(self.offer.view.clone(), decoded);
        Ok(chunks)
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, RaftError> {
        Ok(self.source.next_chunk(self.chunk_bytes)?.map(Bytes::from))
    }

    fn finished(mut self: Box<Self>, outcome: SnapshotOutcome) {
        if let Some(report) = self.report.take() {
            report(self.offer.clone(), outcome);
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Some(report) = self.report.take() {
            report(self.offer.clone(), SnapshotOutcome::Broken);
        }
    }
}
