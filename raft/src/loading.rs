//! Snapshots between members, the receiver's side.
//!
//! Chunks are loaded into a new store file beside the live one, which is made
//! durable, and only then is Raft's message stepped; [`crate::ready`] records it in
//! the log, and then the applier goes on with the new store.
//!
//! # Invariants
//! 1. At most one store is being loaded; beside it there is at most one that was
//!    begun, and none while another is loaded.
//! 2. What is loaded and how far it came are in one batch, and now and then both
//!    become durable: a process that was killed goes on
//!    from there. A broken connection costs nothing that was taken in.
//! 3. No marker names a store before it is whole and durable, so that a crash at any
//!    moment leaves either the old store or the new one in use.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use varve_engine::backend::Backend;
use varve_engine::mvcc::{SnapshotSink, Store};
use varve_types::{Reader, put_bytes};

use crate::error::RaftError;
use crate::membership::Membership;
use crate::meta;
use crate::snapshot::VERSION;
use crate::stores::StoreFiles;
use crate::wire;

/// How long a store that was begun waits to be gone on with.
const KEEP: Duration = Duration::from_secs(600);

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

/// A store that was begun, and where it comes from.
struct Begun {
    label: Label,
    store_number: u64,
    backend: Arc<dyn Backend>,
    sink: SnapshotSink,
    /// Bytes loaded since its last checkpoint.
    unsaved: usize,
}

impl Begun {
    /// In a new store.
    fn new(label: Label, store_number: u64, files: &StoreFiles) -> Result<Self, RaftError> {
        let backend = files.open(store_number)?;
        Ok(Self {
            sink: SnapshotSink::labelled(backend.clone(), &label.encode())?,
            label,
            store_number,
            backend,
            unsaved: 0,
        })
    }

    fn load(&mut self, chunk: &[u8], checkpoint_bytes: usize) -> Result<(), RaftError> {
        self.sink.push(chunk)?;
        self.unsaved += chunk.len();
        if self.unsaved >= checkpoint_bytes {
            self.backend.checkpoint()?;
            self.unsaved = 0;
        }
        Ok(())
    }
}

/// Which snapshot a store that was begun is of; kept in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    from: u64,
    id: u64,
    message: Bytes,
}

impl Label {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        put_bytes(&mut out, &self.message);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let label = Self {
            from: reader.u64("sender").ok()?,
            id: reader.u64("snapshot id").ok()?,
            message: Bytes::copy_from_slice(reader.bytes("message").ok()?),
        };
        reader.finish().ok()?;
        Some(label)
    }
}

/// Who may load a snapshot: one at a time.
#[derive(Default)]
pub(crate) struct Loading {
    is_taken: AtomicBool,
    /// Number of the next store file.
    next_store: AtomicU64,
    /// Bytes loaded between two checkpoints of a new store.
    checkpoint_bytes: usize,
    /// What a broken transfer left, and until when it is kept.
    begun: Mutex<Option<(Begun, Instant)>>,
}

impl Loading {
    /// Looks at the store files that a former process left beside the one in use,
    /// `current`: keeps the newest if it is one that was begun, and removes the others.
    /// There will be a checkpoint of a new one each `checkpoint_bytes`.
    pub(crate) fn recover(
        files: &StoreFiles,
        current: u64,
        checkpoint_bytes: usize,
    ) -> Result<Self, RaftError> {
        let mut numbers = files.numbers()?;
        numbers.sort_unstable();
        let next = numbers.last().map_or(current, |last| *last.max(&current)) + 1;
        let loading = Self {
            next_store: AtomicU64::new(next),
            checkpoint_bytes,
            ..Self::default()
        };
        while let Some(number) = numbers.pop() {
            if number == current {
                continue;
            }
            if number > current && !loading.has_begun() {
                match reopen(files, number) {
                    Ok(Some(begun)) => {
                        let position = begun.sink.position();
                        tracing::info!(
                            "store {number} holds {} chunks of a snapshot from member {:x}",
                            position.chunks,
                            begun.label.from
                        );
                        loading.keep(begun);
                        continue;
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!("store {number} was begun: {error}"),
                }
            }
            tracing::info!("removing the leftover store {number}");
            files.remove(number)?;
        }
        Ok(loading)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Begun, Instant)>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_begun(&self) -> bool {
        self.lock().is_some()
    }

    fn keep(&self, begun: Begun) {
        *self.lock() = Some((begun, Instant::now() + KEEP));
    }

    fn permit(self: &Arc<Self>) -> Option<Permit> {
        let free = !self.is_taken.swap(true, Ordering::AcqRel);
        free.then(|| Permit(self.clone()))
    }

    /// Removes a store that was begun and not gone on with.
    pub(crate) fn expire(self: &Arc<Self>, files: &StoreFiles) {
        let now = Instant::now();
        let is_due = self.lock().as_ref().is_some_and(|(_, until)| *until <= now);
        // Whoever has the permit decides about it.
        if is_due && let Some(_permit) = self.permit() {
            let begun = self.lock().take();
            if let Some((begun, _)) = begun {
                tracing::info!("store {} was not gone on with", begun.store_number);
                remove(begun, files);
            }
        }
    }
}

fn reopen(files: &StoreFiles, number: u64) -> Result<Option<Begun>, RaftError> {
    let backend = files.open(number)?;
    let Some((sink, label)) = SnapshotSink::resume(backend.clone())? else {
        return Ok(None);
    };
    let label = Label::decode(&label)
        .ok_or_else(|| RaftError::Snapshot("it does not say what it is of".to_owned()))?;
    Ok(Some(Begun {
        label,
        store_number: number,
        backend,
        sink,
        unsaved: 0,
    }))
}

fn remove(begun: Begun, files: &StoreFiles) {
    let number = begun.store_number;
    drop(begun);
    if let Err(error) = files.remove(number) {
        tracing::warn!("cannot remove the abandoned store {number}: {error}");
    }
}

/// Gives the turn back when dropped.
pub(crate) struct Permit(Arc<Loading>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Release);
    }
}

/// One snapshot on its way in. Dropped before its end, it is kept to be gone on with.
pub(crate) struct Incoming {
    message: Message,
    files: StoreFiles,
    loading: Arc<Loading>,
    begun: Option<Begun>,
    /// Taken when it ends; after `begun` is put back.
    permit: Option<Permit>,
    /// Chunks that were there already.
    resumed_at: u64,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("resumed_at", &self.resumed_at)
            .finish_non_exhaustive()
    }
}

impl Incoming {
    /// For snapshot `id`, which member `from` announced with `message` to this one,
    /// which has applied up to `applied`. [`RaftError::SnapshotBusy`]: another is
    /// being loaded.
    pub(crate) fn begin(
        (from, id): (u64, u64),
        message: &Bytes,
        (own_id, applied): (u64, u64),
        files: StoreFiles,
        loading: Arc<Loading>,
    ) -> Result<Self, RaftError> {
        let refused = |what: &str| Err(RaftError::Snapshot(what.to_owned()));
        if message.first() != Some(&VERSION) {
            return refused("it is not of a version that this node reads");
        }
        let decoded = wire::decode(&message.slice(1..))
            .map_err(|error| RaftError::Snapshot(error.to_string()))?;
        let metadata = decoded.get_snapshot().get_metadata();
        if decoded.get_msg_type() != MessageType::MsgSnapshot
            || decoded.from != from
            || decoded.to != own_id
        {
            return refused("it is not for this member");
        }
        if metadata.index <= applied {
            return refused("this member is past it already");
        }
        let index = metadata.index;
        let Some(permit) = loading.permit() else {
            return Err(RaftError::SnapshotBusy);
        };
        let label = Label {
            from,
            id,
            message: message.clone(),
        };
        let kept = loading.lock().take().map(|(begun, _)| begun);
        let begun = match kept {
            // The message names the term of its sending, so the id decides.
            Some(begun) if (begun.label.from, begun.label.id) == (from, id) => begun,
            other => {
                if let Some(other) = other {
                    remove(other, &files);
                }
                let store_number = loading.next_store.fetch_add(1, Ordering::Relaxed);
                files.remove(store_number)?;
                match Begun::new(label, store_number, &files) {
                    Ok(begun) => begun,
                    Err(error) => {
                        // The next attempt has another number: on a full disk each would
                        // leave a file.
                        if let Err(error) = files.remove(store_number) {
                            tracing::warn!("cannot remove the store {store_number}: {error}");
                        }
                        return Err(error);
                    }
                }
            }
        };
        let resumed_at = begun.sink.position().chunks;
        let number = begun.store_number;
        match resumed_at {
            0 => tracing::info!(
                "loading a snapshot of index {index} from member {from:x} into store {number}"
            ),
            chunks => tracing::info!(
                "going on with a snapshot of index {index} from member {from:x} in store \
                 {number}: {chunks} chunks are there"
            ),
        }
        Ok(Self {
            message: decoded,
            files,
            loading,
            begun: Some(begun),
            permit: Some(permit),
            resumed_at,
        })
    }

    /// How many chunks were there already.
    pub(crate) fn resumed_at(&self) -> u64 {
        self.resumed_at
    }

    /// Where to go on, for the sender.
    pub(crate) fn position(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(begun) = &self.begun {
            begun.sink.position().encode(&mut out);
        }
        out
    }

    /// Takes the next chunk.
    pub(crate) fn chunk(&mut self, bytes: &Bytes) -> Result<(), RaftError> {
        let Some(begun) = &mut self.begun else {
            return Err(RaftError::Snapshot("it has ended".to_owned()));
        };
        let result = begun.load(bytes, self.loading.checkpoint_bytes);
        // The disk is needed for what is in use.
        if let Err(error) = &result
            && error.is_no_space()
            && let Some(begun) = self.begun.take()
        {
            remove(begun, &self.files);
        }
        result
    }

    /// After the last chunk: verifies what was loaded and makes it durable. If it is
    /// not what was announced it is removed.
    pub(crate) fn finish(mut self) -> Result<LoadedStore, RaftError> {
        let (Some(begun), Some(permit)) = (self.begun.take(), self.permit.take()) else {
            return Err(RaftError::Snapshot("it has ended".to_owned()));
        };
        let Begun {
            store_number,
            backend,
            sink,
            ..
        } = begun;
        let message = std::mem::take(&mut self.message);
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
        if let Some(begun) = self.begun.take() {
            // One without a chunk is of no use to anyone.
            match begun.sink.position().chunks {
                0 => remove(begun, &self.files),
                _ => self.loading.keep(begun),
            }
        }
        self.permit = None;
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use raft::eraftpb::Snapshot;
    use varve_engine::backend::BackendError;
    use varve_engine::disk::{Disk, OpenMode, SimDisk};

    use super::*;

    #[test]
    fn a_store_that_cannot_be_begun_leaves_no_file() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        disk.create_dir(Path::new("/data")).unwrap();
        let (opening, error) = (disk.clone(), "no space left");
        let opener = move |path: &Path| -> Result<Arc<dyn Backend>, BackendError> {
            opening.open(path, OpenMode::Create).unwrap();
            Err(BackendError::Other {
                engine: "test",
                message: error.to_owned(),
            })
        };
        let files = StoreFiles::new(PathBuf::from("/data"), disk, Arc::new(opener));
        let loading = Arc::new(Loading::recover(&files, 1, 1 << 20).unwrap());
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to) = (2, 1);
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = 9;
        message.set_snapshot(snapshot);
        let bytes = [&[VERSION][..], &wire::encode(&message)].concat();
        for id in 0..3 {
            let (files, loading) = (files.clone(), loading.clone());
            let begun = Incoming::begin((2, id), &bytes.clone().into(), (1, 3), files, loading);
            let text = begun.unwrap_err().to_string();
            assert!(text.contains(error), "{text}");
        }
        assert_eq!(files.numbers().unwrap(), []);
    }
}
