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
use super::hash::record_hash;
use super::history::decode;
use super::keys::{LOADING, STATE};
use super::state::State;
use super::view::View;
use super::{DEAD, LATEST, LOG, META, varint};
use crate::backend::{Applied, Backend, Batch, Direction, TreeId};
use crate::mutations::{Mutation, is_on};

const ORDER: [TreeId; 4] = [LATEST, DEAD, LOG, META];
const FORMAT: u8 = 1;
const CRC_BYTES: usize = 4;

const KIND_INFO: u8 = 0;
const KIND_ENTRIES: u8 = 1;
const KIND_END: u8 = 2;

/// What a snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&self.applied.term.to_le_bytes());
        out.extend_from_slice(&self.applied.index.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.compacted.to_le_bytes());
        out.extend_from_slice(&self.hash.to_le_bytes());
    }

    fn decode(body: &[u8]) -> Result<Self> {
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

fn refused(what: impl Into<String>) -> MvccError {
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
fn place(tree: u8) -> usize {
    ORDER
        .iter()
        .position(|known| known.0 == tree)
        .unwrap_or(ORDER.len())
}

/// Loads chunks into an empty backend.
pub struct SnapshotSink {
    backend: Arc<dyn Backend>,
    position: SnapshotPosition,
    info: Option<SnapshotInfo>,
    counts: [u64; ORDER.len()],
    hash: u128,
    complete: bool,
}

impl SnapshotSink {
    /// Starts to load into `backend`, which must be empty.
    pub fn new(backend: Arc<dyn Backend>) -> Result<Self> {
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
            position: SnapshotPosition::default(),
            info: None,
            counts: [0; ORDER.len()],
            hash: 0,
            complete: false,
        })
    }

    /// What is being loaded, known after the first chunk.
    pub fn info(&self) -> Option<SnapshotInfo> {
        self.info
    }

    /// Loads the next chunk. A damaged or misplaced chunk is refused and changes
    /// nothing, so that it can be sent again.
    pub fn push(&mut self, chunk: &[u8]) -> Result<()> {
        let (crc, rest) = chunk
            .split_first_chunk::<CRC_BYTES>()
            .ok_or_else(|| refused("a chunk without a header"))?;
        if crc32c::crc32c(rest) != u32::from_le_bytes(*crc) {
            return Err(refused(format!(
                "chunk {} is damaged (checksum); send it again",
                self.position.chunks
            )));
        }
        let (number, rest) = rest
            .split_first_chunk::<8>()
            .ok_or_else(|| refused("a chunk without a header"))?;
        let number = u64::from_le_bytes(*number);
        if number != self.position.chunks || self.complete {
            return Err(refused(format!(
                "chunk {number} where {} was due",
                self.position.chunks
            )));
        }
        match rest {
            [KIND_INFO, body @ ..] if number == 0 => self.begin(body)?,
            [KIND_ENTRIES, body @ ..] if number > 0 => self.load(body)?,
            [KIND_END, body @ ..] if number > 0 => self.end(body)?,
            _ => return Err(refused(format!("chunk {number} is of an unknown kind"))),
        }
        self.position.chunks += 1;
        Ok(())
    }

    fn begin(&mut self, body: &[u8]) -> Result<()> {
        let info = SnapshotInfo::decode(body)?;
        let mut batch = self.backend.begin()?;
        batch.put(META, LOADING, &[])?;
        batch.publish(Applied::default())?;
        self.info = Some(info);
        Ok(())
    }

    fn load(&mut self, body: &[u8]) -> Result<()> {
        let mut counts = self.counts;
        let mut hash = self.hash;
        let mut after = self
            .position
            .after
            .as_ref()
            .map(|(tree, key)| (*tree, &key[..]));
        let mut batch = self.backend.begin()?;
        let mut input = body;
        while !input.is_empty() {
            let (tree, key, value) = take_entry(&mut input)
                .ok_or_else(|| refused("an entry is cut off; send the chunk again"))?;
            let number = place(tree);
            let count = counts
                .get_mut(number)
                .ok_or_else(|| refused(format!("an entry of tree {tree}, which is none")))?;
            let ordered =
                after.is_none_or(|(former, before)| (place(former), before) < (number, key));
            if !ordered {
                return Err(refused("entries are out of order"));
            }
            *count += 1;
            if ORDER[number] == LATEST {
                hash = hash.wrapping_add(record_hash(key, &decode(LATEST, key, value)?));
            }
            batch.put(ORDER[number], key, value)?;
            after = Some((tree, key));
        }
        let after = after.map(|(tree, key)| (tree, key.to_vec()));
        batch.publish(Applied::default())?;
        self.position.after = after;
        self.counts = counts;
        self.hash = hash;
        Ok(())
    }

    fn end(&mut self, body: &[u8]) -> Result<()> {
        let expected: Vec<u8> = self
            .counts
            .iter()
            .flat_map(|count| count.to_le_bytes())
            .collect();
        if body != expected {
            return Err(refused(format!(
                "holds other numbers of entries than were loaded ({:?}); load it again",
                self.counts
            )));
        }
        self.complete = true;
        Ok(())
    }

    /// Where to go on after a broken transfer.
    pub fn position(&self) -> SnapshotPosition {
        self.position.clone()
    }

    /// Verifies counts and hash and publishes the loaded state. Fails if chunks
    /// are missing; what was loaded is then no store and has to be removed.
    pub fn finish(self) -> Result<SnapshotInfo> {
        let (Some(info), true) = (self.info, self.complete) else {
            return Err(refused(format!(
                "ended after {} chunks, before its last one; load it again",
                self.position.chunks
            )));
        };
        if self.hash != info.hash {
            return Err(refused(format!(
                "hash {:032x} of what was loaded is not the {:032x} of the source",
                self.hash, info.hash
            )));
        }
        let mut batch = self.backend.begin()?;
        for (tree, count) in ORDER.into_iter().zip(self.counts) {
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
        let state = match batch.get(META, STATE)? {
            Some(bytes) => State::decode(&bytes)
                .ok_or_else(|| MvccError::damaged(META, STATE, "not a state of format 1"))?,
            None => State::default(),
        };
        if (state.revision, state.compacted, state.hash)
            != (info.revision, info.compacted, info.hash)
        {
            return Err(refused("the loaded state is not what the first chunk said"));
        }
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

fn take_entry<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8], &'a [u8])> {
    let tree = *varint::take_bytes(input, 1)?.first()?;
    let key_length = usize::try_from(varint::take(input)?).ok()?;
    let value_length = usize::try_from(varint::take(input)?).ok()?;
    let key = varint::take_bytes(input, key_length)?;
    let value = varint::take_bytes(input, value_length)?;
    Some((tree, key, value))
}
