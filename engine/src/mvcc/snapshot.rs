//! Logical snapshots: sorted key/value streams that any engine can load.
//!
//! A snapshot is a sequence of chunks:
//! `crc32c u32 | number u64 | kind u8 | body`, little-endian, the checksum over
//! everything after it. The first chunk says what follows ([`SnapshotInfo`]),
//! the last how much it was; between them are entries in the order of tree and
//! key: `tree u8 | key length | value length | key | value`, lengths in LEB128.
//! META comes last: a store that was left half loaded has no state.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use varve_types::Reader;

use super::error::{MvccError, Result};
use super::keys::LOADING;
use super::snapshot_check::SnapshotCheck;
use super::view::View;
use super::{DEAD, LATEST, LOG, META, varint};
use crate::backend::{Applied, Backend, Batch, Direction, Entry, TreeId};
use crate::mutations::{Mutation, is_on};

pub(super) const ORDER: [TreeId; 4] = [LATEST, DEAD, LOG, META];
const FORMAT: u8 = 1;
pub(super) const CRC_BYTES: usize = 4;

pub(super) const KIND_INFO: u8 = 0;
pub(super) const KIND_ENTRIES: u8 = 1;
pub(super) const KIND_END: u8 = 2;

/// What a snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotInfo {
    /// The log entry up to which it applies.
    pub applied: Applied,
    /// Its revision.
    pub revision: i64,
    /// Its compacted revision.
    pub compacted: i64,
    /// Hash of its live state.
    pub hash: u128,
}

impl SnapshotInfo {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&self.applied.term.to_le_bytes());
        out.extend_from_slice(&self.applied.index.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.compacted.to_le_bytes());
        out.extend_from_slice(&self.hash.to_le_bytes());
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let mut read = || {
            let format = reader.u8("format")?;
            let info = Self {
                applied: Applied {
                    term: reader.u64("term")?,
                    index: reader.u64("index")?,
                },
                revision: reader.i64("revision")?,
                compacted: reader.i64("compacted revision")?,
                hash: {
                    let low = reader.u64("hash")?;
                    u128::from(reader.u64("hash")?) << 64 | u128::from(low)
                },
            };
            reader.finish()?;
            Ok((format, info))
        };
        let (format, info) =
            read().map_err(|error: varve_types::DecodeError| refused(error.to_string()))?;
        if format != FORMAT {
            return Err(refused(format!(
                "format {format}, this version reads {FORMAT}; load it with the version that wrote it"
            )));
        }
        Ok(info)
    }
}

pub(super) fn refused(what: impl Into<String>) -> MvccError {
    MvccError::Snapshot(what.into())
}

/// Where a transfer stands: how many chunks the receiver has, and their last entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotPosition {
    /// Chunks received.
    pub chunks: u64,
    /// Tree and key of the last entry received.
    pub after: Option<(u8, Vec<u8>)>,
}

/// Streams a view as chunks of bytes, each with its own checksum.
pub struct SnapshotSource {
    view: Arc<View>,
    position: SnapshotPosition,
    done: bool,
}

impl SnapshotSource {
    /// Starts at the beginning.
    pub fn new(view: Arc<View>) -> Self {
        Self::resume(view, SnapshotPosition::default())
    }

    /// Goes on after a broken transfer. The view must be the one the transfer began with.
    pub fn resume(view: Arc<View>, position: SnapshotPosition) -> Self {
        Self {
            view,
            position,
            done: false,
        }
    }

    /// What is being streamed.
    pub fn info(&self) -> SnapshotInfo {
        SnapshotInfo {
            applied: self.view.applied(),
            revision: self.view.revision(),
            compacted: self.view.compacted(),
            hash: self.view.hash(),
        }
    }

    /// Whether the last chunk has been given.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The next chunk of about `max_bytes` (one entry may be larger), or `None` at the end.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        if self.done {
            return Ok(None);
        }
        let mut chunk = vec![0; CRC_BYTES];
        chunk.extend_from_slice(&self.position.chunks.to_le_bytes());
        chunk.push(KIND_ENTRIES);
        let body_at = chunk.len();
        if self.position.chunks == 0 {
            chunk[body_at - 1] = KIND_INFO;
            self.info().encode(&mut chunk);
        } else {
            self.entries(&mut chunk, max_bytes)?;
            if chunk.len() == body_at {
                chunk[body_at - 1] = KIND_END;
                self.counts(&mut chunk)?;
                self.done = true;
            }
        }
        let crc = crc32c::crc32c(&chunk[CRC_BYTES..]);
        chunk[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.position.chunks += 1;
        Ok(Some(chunk))
    }

    fn entries(&mut self, chunk: &mut Vec<u8>, max_bytes: usize) -> Result<()> {
        let after = self.position.after.take();
        let first = after.as_ref().map_or(0, |(tree, _)| place(*tree));
        let mut last: Option<(u8, Vec<u8>)> = None;
        for (number, tree) in ORDER.iter().enumerate().skip(first) {
            let start = match &after {
                Some((_, key)) if number == first => Bound::Excluded(&key[..]),
                _ => Bound::Unbounded,
            };
            let visit = &mut |key: &[u8], value: &[u8]| {
                chunk.push(tree.0);
                varint::put(chunk, key.len() as u64);
                varint::put(chunk, value.len() as u64);
                chunk.extend_from_slice(key);
                chunk.extend_from_slice(value);
                if chunk.len() >= max_bytes {
                    last = Some((tree.0, key.to_vec()));
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            };
            let bounds = (start, Bound::Unbounded);
            self.view
                .read()
                .scan(*tree, bounds, Direction::Forward, visit)?;
            if last.is_some() {
                break;
            }
        }
        // Past everything there is only META's end.
        self.position.after = last.or_else(|| Some((END_OF_ENTRIES, Vec::new())));
        Ok(())
    }

    fn counts(&self, chunk: &mut Vec<u8>) -> Result<()> {
        for tree in ORDER {
            let sums = self
                .view
                .read()
                .sums(tree, (Bound::Unbounded, Bound::Unbounded))?;
            chunk.extend_from_slice(&sums.entries.to_le_bytes());
        }
        Ok(())
    }
}

/// In a position, in the place of a tree: all entries are through.
const END_OF_ENTRIES: u8 = u8::MAX;

/// Place of a tree in the stream; past the last one for what is none of them.
pub(super) fn place(tree: u8) -> usize {
    ORDER
        .iter()
        .position(|known| known.0 == tree)
        .unwrap_or(ORDER.len())
}

/// Loads chunks into an empty backend.
pub struct SnapshotSink {
    backend: Arc<dyn Backend>,
    check: SnapshotCheck,
    /// The caller's word for what is being loaded.
    label: Vec<u8>,
}

impl SnapshotSink {
    /// Starts to load into `backend`, which must be empty.
    pub fn new(backend: Arc<dyn Backend>) -> Result<Self> {
        Self::labelled(backend, &[])
    }

    /// The same; `label` is kept with the progress, for [`SnapshotSink::resume`].
    pub fn labelled(backend: Arc<dyn Backend>, label: &[u8]) -> Result<Self> {
        let snapshot = backend.snapshot()?;
        for tree in ORDER {
            let sums = snapshot.sums(tree, (Bound::Unbounded, Bound::Unbounded))?;
            if sums.entries > 0 {
                return Err(refused(
                    "the store to load into is not empty; remove it first",
                ));
            }
        }
        Ok(Self {
            backend,
            check: SnapshotCheck::default(),
            label: label.to_vec(),
        })
    }

    /// Goes on with what a former process loaded into `backend`, as of its last
    /// checkpoint; and the label. `None` if that is nothing.
    pub fn resume(backend: Arc<dyn Backend>) -> Result<Option<(Self, Vec<u8>)>> {
        let progress = match backend.snapshot()?.get(META, LOADING)? {
            Some(bytes) if !bytes.is_empty() => SnapshotCheck::decode(&bytes)?,
            _ => return Ok(None),
        };
        let (check, label) = progress;
        let sink = Self {
            backend,
            check,
            label: label.clone(),
        };
        Ok(Some((sink, label)))
    }

    /// What is being loaded, known after the first chunk.
    pub fn info(&self) -> Option<SnapshotInfo> {
        self.check.info()
    }

    /// Loads the next chunk. A damaged or misplaced chunk is refused and changes
    /// nothing, so that it can be sent again.
    pub fn push(&mut self, chunk: &[u8]) -> Result<()> {
        let mut check = self.check.clone();
        let mut batch = self.backend.begin()?;
        // The stream is sorted: each tree's part of a chunk is appended as a whole.
        let mut parts: Vec<(TreeId, Vec<Entry<'_>>)> = Vec::new();
        check.accept(chunk, &mut |tree, key, value| {
            match parts.last_mut() {
                Some((last, entries)) if *last == tree => entries.push((key, value)),
                _ => parts.push((tree, vec![(key, value)])),
            }
            Ok(())
        })?;
        for (tree, entries) in &parts {
            batch.append(*tree, entries)?;
        }
        if !check.is_complete {
            batch.put(META, LOADING, &check.encode(&self.label))?;
            batch.publish(Applied::default())?;
        }
        self.check = check;
        Ok(())
    }

    /// Where to go on after a broken transfer.
    pub fn position(&self) -> SnapshotPosition {
        self.check.position.clone()
    }

    /// Verifies counts and hash and publishes the loaded state. Fails if chunks
    /// are missing; what was loaded is then no store and has to be removed.
    pub fn finish(self) -> Result<SnapshotInfo> {
        let info = self.check.finish()?;
        let mut batch = self.backend.begin()?;
        for (tree, count) in ORDER.into_iter().zip(self.check.counts) {
            let own = u64::from(tree == META);
            let sums = batch.sums(tree, (Bound::Unbounded, Bound::Unbounded))?;
            if sums.entries != count + own {
                return Err(refused(format!(
                    "tree {} holds {} entries after loading {count}",
                    tree.0, sums.entries
                )));
            }
        }
        batch.delete(META, LOADING)?;
        if is_on(Mutation::SnapshotMissesKey) {
            lose_a_key(&mut *batch)?;
        }
        batch.publish(info.applied)?;
        Ok(info)
    }
}

/// The deliberate bug.
fn lose_a_key(batch: &mut dyn Batch) -> Result<()> {
    let mut first = None;
    let visit = &mut |key: &[u8], _: &[u8]| {
        first = Some(key.to_vec());
        ControlFlow::Break(())
    };
    let all = (Bound::Unbounded, Bound::Unbounded);
    batch.scan(LATEST, all, Direction::Forward, visit)?;
    if let Some(key) = first {
        batch.delete(LATEST, &key)?;
    }
    Ok(())
}
