//! Snapshots between members.
//!
//! A follower whose next entry the leader's log does not hold any more gets the
//! whole store instead. Raft's own message carries only what it is of; the bulk
//! streams beside the messages:
//!
//! | part | bytes |
//! |---|---|
//! | first | `[u8 version = 1]` and the message (see [`crate::wire`]) |
//! | next ones | chunks of the store's logical snapshot, any engine's |
//! | last | empty |
//!
//! The receiver loads them into a new store file beside the live one, makes it
//! durable, and only then is the message stepped; [`crate::ready`] records it in
//! the log, and then the applier goes on with the new store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use varve_engine::mvcc::{SnapshotSink, SnapshotSource, Store, View};

use crate::error::RaftError;
use crate::membership::Membership;
use crate::meta;
use crate::stores::StoreFiles;
use crate::transport::{SnapshotChunk, SnapshotStream};
use crate::wire;

const VERSION: u8 = 1;

/// Bytes of one part.
const CHUNK_BYTES: usize = 1 << 20;

/// A store from another member, durable, that nobody uses yet.
pub(crate) struct LoadedStore {
    /// What it is of, as a message from its sender.
    pub(crate) message: Message,
    pub(crate) membership: Membership,
    pub(crate) store_number: u64,
    pub(crate) store: Store,
    /// Held so that only one is under way.
    pub(crate) _permit: Permit,
}

/// One snapshot on its way out.
pub(crate) struct Outgoing {
    first: Option<Bytes>,
    source: SnapshotSource,
    is_done: bool,
    report: Option<Box<dyn FnOnce(bool) + Send>>,
}

impl Outgoing {
    /// Streams `view` as the snapshot that `message` announces. The view may be
    /// newer than what raft-rs asked for; the message then says so.
    pub(crate) fn new(
        mut message: Message,
        view: Arc<View>,
        report: Box<dyn FnOnce(bool) + Send>,
    ) -> Result<Self, RaftError> {
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
        let mut first = vec![VERSION];
        first.extend_from_slice(&wire::encode(&message));
        Ok(Self {
            first: Some(Bytes::from(first)),
            source: SnapshotSource::new(view),
            is_done: false,
            report: Some(report),
        })
    }
}

impl SnapshotStream for Outgoing {
    fn next_chunk(&mut self) -> Option<SnapshotChunk> {
        if self.is_done {
            return None;
        }
        if let Some(bytes) = self.first.take() {
            return Some(SnapshotChunk {
                bytes,
                is_last: false,
            });
        }
        match self.source.next_chunk(CHUNK_BYTES) {
            Ok(Some(chunk)) => Some(SnapshotChunk {
                bytes: chunk.into(),
                is_last: false,
            }),
            Ok(None) => {
                self.is_done = true;
                Some(SnapshotChunk {
                    bytes: Bytes::new(),
                    is_last: true,
                })
            }
            Err(error) => {
                tracing::error!("snapshot for another member: {error}");
                self.is_done = true;
                None
            }
        }
    }

    fn finished(mut self: Box<Self>, delivered: bool) {
        if let Some(report) = self.report.take() {
            report(delivered);
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Some(report) = self.report.take() {
            report(false);
        }
    }
}

/// Who may load a snapshot: one at a time.
#[derive(Debug, Default)]
pub(crate) struct Loading {
    is_taken: AtomicBool,
    /// Number of the next store file.
    next_store: AtomicU64,
}

impl Loading {
    /// Store files get numbers from `next_store` on.
    pub(crate) fn new(next_store: u64) -> Self {
        Self {
            is_taken: AtomicBool::new(false),
            next_store: AtomicU64::new(next_store),
        }
    }

    fn permit(self: &Arc<Self>) -> Option<Permit> {
        let free = !self.is_taken.swap(true, Ordering::AcqRel);
        free.then(|| Permit(self.clone()))
    }
}

/// Gives the turn back when dropped.
pub(crate) struct Permit(Arc<Loading>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

/// One snapshot on its way in.
pub(crate) struct Incoming {
    from: u64,
    own_id: u64,
    applied: u64,
    files: StoreFiles,
    loading: Arc<Loading>,
    started: Option<Started>,
}

struct Started {
    message: Message,
    store_number: u64,
    backend: Arc<dyn varve_engine::backend::Backend>,
    sink: SnapshotSink,
    permit: Permit,
}

impl Incoming {
    /// For a stream from member `from` to this one, which has applied up to `applied`.
    pub(crate) fn new(
        from: u64,
        own_id: u64,
        applied: u64,
        files: StoreFiles,
        loading: Arc<Loading>,
    ) -> Self {
        Self {
            from,
            own_id,
            applied,
            files,
            loading,
            started: None,
        }
    }

    /// Takes the next part.
    pub(crate) fn chunk(&mut self, bytes: &Bytes) -> Result<(), RaftError> {
        match &mut self.started {
            None => self.start(bytes),
            Some(started) if !bytes.is_empty() => Ok(started.sink.push(bytes)?),
            Some(_) => Ok(()),
        }
    }

    fn start(&mut self, bytes: &Bytes) -> Result<(), RaftError> {
        let refused = |what: &str| Err(RaftError::Snapshot(what.to_owned()));
        if bytes.first() != Some(&VERSION) {
            return refused("it is not of a version that this node reads");
        }
        let message = wire::decode(&bytes.slice(1..))
            .map_err(|error| RaftError::Snapshot(error.to_string()))?;
        let metadata = message.get_snapshot().get_metadata();
        if message.get_msg_type() != MessageType::MsgSnapshot
            || message.from != self.from
            || message.to != self.own_id
        {
            return refused("it is not for this member");
        }
        if metadata.index <= self.applied {
            return refused("this member is past it already");
        }
        let Some(permit) = self.loading.permit() else {
            return refused("another one is being loaded");
        };
        let store_number = self.loading.next_store.fetch_add(1, Ordering::Relaxed);
        self.files.remove(store_number)?;
        let backend = self.files.open(store_number)?;
        let sink = SnapshotSink::new(backend.clone())?;
        tracing::info!(
            "loading a snapshot of index {} from member {:x} into store {store_number}",
            metadata.index,
            self.from
        );
        self.started = Some(Started {
            message,
            store_number,
            backend,
            sink,
            permit,
        });
        Ok(())
    }

    /// After the last part: verifies what was loaded and makes it durable.
    pub(crate) fn finish(mut self) -> Result<LoadedStore, RaftError> {
        let Some(started) = self.started.take() else {
            return Err(RaftError::Snapshot("it has no parts".to_owned()));
        };
        let Started {
            message,
            store_number,
            backend,
            sink,
            permit,
        } = started;
        let load = || {
            let info = sink.finish()?;
            let metadata = message.get_snapshot().get_metadata();
            if (info.applied.index, info.applied.term) != (metadata.index, metadata.term) {
                return Err(RaftError::Snapshot(format!(
                    "it applies to {}, but was announced as {}",
                    info.applied.index, metadata.index
                )));
            }
            backend.checkpoint()?;
            let store = Store::open(backend)?;
            let membership = meta::members(&store.view())?
                .ok_or_else(|| RaftError::Snapshot("it has no members".to_owned()))?;
            if membership.conf_state() != *metadata.get_conf_state() {
                return Err(RaftError::Snapshot(
                    "its members contradict each other".to_owned(),
                ));
            }
            Ok((store, membership))
        };
        match load() {
            Ok((store, membership)) => Ok(LoadedStore {
                message,
                membership: (*membership).clone(),
                store_number,
                store,
                _permit: permit,
            }),
            Err(error) => {
                self.files.remove(store_number)?;
                Err(error)
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(started) = self.started.take() {
            let number = started.store_number;
            drop(started.sink);
            drop(started.backend);
            if let Err(error) = self.files.remove(number) {
                tracing::warn!("cannot remove the abandoned store {number}: {error}");
            }
        }
    }
}
