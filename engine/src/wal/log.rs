//! The log itself: commit, rotation, release.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use super::keeper::{Keeper, Work};
use super::reader::Shared;
use super::record::{KIND_MARK, KIND_SEAL, MAX_GROUP_BYTES};
use super::recovery::{self, Visit};
use super::segment::{HEADER_BYTES, Segment, SegmentHeader, VERSION, number_of};
use super::{
    FIRST_LSN, Group, Identity, Lsn, Recovered, Result, WalConfig, WalError, WalReader, WalStats,
};
use crate::disk::{BLOCK_BYTES, Disk};
use crate::mutations::{Mutation, is_on};

/// Once less than this part of the last segment is left and there is no room for
/// another one, the log says that it is low on space.
const RESERVED_PART: u64 = 4;

/// Where a committed group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Position of the group's first record; a record's is this plus the offset
    /// that [`Group::push`] returned.
    pub first_lsn: Lsn,
    /// Everything below this is durable.
    pub end_lsn: Lsn,
}

/// An open log. One owner writes; [`WalReader`]s read beside it.
pub struct Wal {
    dir: PathBuf,
    identity: Identity,
    shared: Arc<Shared>,
    stats: Arc<WalStats>,
    keeper: Keeper,
    active: Arc<Segment>,
    /// Where the next group goes; a multiple of the block.
    end: Lsn,
    /// The checksum of the last record.
    prev_crc: u32,
    last_kind: u8,
    /// The text of the error that stopped the log.
    latched: Option<String>,
    /// For the log's own records.
    own: Group,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("dir", &self.dir)
            .field("end", &self.end)
            .field("latched", &self.latched)
            .finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens the log in `dir` (made if missing), cuts a torn tail, and calls
    /// `visit` with every record in order. What can be found, and what is done
    /// about it, is the table of [`super::Case`]. Where the log cannot go on, no
    /// file is changed (records may have been visited).
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: WalConfig,
        identity: Identity,
        visit: &mut Visit<'_>,
    ) -> Result<(Self, Recovered)> {
        disk.create_dir(dir)?;
        // Names of spare segments count only once they are durable.
        disk.sync_dir(dir)?;
        let found = recovery::recover(&*disk, dir, identity, visit)?;
        let stats = Arc::new(WalStats::default());
        let mut work = Work {
            disk,
            dir: dir.to_owned(),
            config,
            spares: found.spares,
            doomed: VecDeque::new(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        let (mut segments, mut recovered) = (found.segments, found.recovered);
        if segments.is_empty() {
            segments.push(Arc::new(first_segment(&mut work, identity)?));
            recovered.segments = 1;
        }
        let active = segments[segments.len() - 1].clone();
        stats
            .segments
            .store(segments.len() as u64, Ordering::Relaxed);
        stats
            .start_lsn
            .store(recovered.start_lsn, Ordering::Relaxed);
        stats.end_lsn.store(recovered.end_lsn, Ordering::Relaxed);
        let shared = Shared {
            segments: RwLock::new(segments),
            end_lsn: AtomicU64::new(recovered.end_lsn),
        };
        let mut wal = Self {
            dir: dir.to_owned(),
            identity,
            shared: Arc::new(shared),
            keeper: Keeper::new(work, stats.clone())?,
            stats,
            end: recovered.end_lsn,
            prev_crc: found.prev_crc,
            last_kind: found.last_kind,
            latched: None,
            own: Group::new(),
            active,
        };
        wal.keeper.prepare_ahead(wal.active.number + 1, wal.end);
        Ok((wal, recovered))
    }

    /// Whether the log in `dir`, which exists, still holds its first segment, or
    /// has none at all: nothing was released. Reads names only.
    pub fn holds_its_start(disk: &dyn Disk, dir: &Path) -> Result<bool> {
        let names = disk.list(dir)?;
        let numbers = names.iter().filter_map(|name| number_of(name, "wal"));
        Ok(numbers.min().is_none_or(|first| first == 1))
    }

    /// Where the next group goes, unless it needs a new segment.
    pub fn next_lsn(&self) -> Lsn {
        self.end
    }

    /// Writes the group and makes it durable, with one write and one sync (and two
    /// more where a segment is full). The group keeps its records; clear it before
    /// using it again. An empty group costs nothing. After an error every later call
    /// fails with [`WalError::Latched`], unless nothing was written: the group is
    /// too large, or there is no room for a new segment ([`WalError::NoSpace`]).
    pub fn commit(&mut self, group: &mut Group) -> Result<Committed> {
        self.check_latch()?;
        if group.is_empty() {
            return Ok(Committed {
                first_lsn: self.end,
                end_lsn: self.end,
            });
        }
        let bytes = group.padded_bytes();
        if bytes > MAX_GROUP_BYTES {
            return Err(WalError::TooLarge {
                what: "group",
                length: bytes,
                limit: MAX_GROUP_BYTES,
            });
        }
        let committed = self.commit_unlatched(group, bytes as u64);
        let committed = committed.map_err(|error| self.latch_unless_full(error));
        self.note_space();
        committed
    }

    fn commit_unlatched(&mut self, group: &mut Group, bytes: u64) -> Result<Committed> {
        let sealed = self.last_kind == KIND_SEAL;
        // Room for the seal must stay.
        if sealed || self.end + bytes + BLOCK_BYTES as u64 > self.active.limit_lsn() {
            self.rotate(bytes)?;
        }
        let first_lsn = self.append(group)?;
        self.stats.batch_records.record(group.records() as u64);
        self.stats.batch_bytes.record(bytes);
        // No more than a look, unless an earlier attempt failed.
        self.keeper.prepare_ahead(self.active.number + 1, self.end);
        Ok(Committed {
            first_lsn,
            end_lsn: self.end,
        })
    }

    /// Writes the group at the end of the active segment, where it has room.
    fn append(&mut self, group: &mut Group) -> Result<Lsn> {
        let first_lsn = self.end;
        let crc = group.finish(first_lsn, self.prev_crc, first_lsn);
        let offset = self.active.offset_of(first_lsn);
        let started = Instant::now();
        self.stats.writing.store(1, Ordering::Relaxed);
        let written = group.with_padding(|bytes| match is_on(Mutation::AckBeforeSync) {
            true => self.active.file.write_at(bytes, offset),
            false => self.active.file.write_durable(bytes, offset),
        });
        self.stats.writing.store(0, Ordering::Relaxed);
        written?;
        self.stats
            .sync_us
            .record(started.elapsed().as_micros() as u64);
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.prev_crc = crc;
        self.last_kind = group.last_kind();
        self.end = first_lsn + group.padded_bytes() as u64;
        self.stats.end_lsn.store(self.end, Ordering::Relaxed);
        self.shared.end_lsn.store(self.end, Ordering::Release);
        Ok(first_lsn)
    }

    /// Goes on in the next segment, which gets room for a group of `bytes`.
    fn rotate(&mut self, bytes: u64) -> Result<()> {
        let room = HEADER_BYTES + bytes + BLOCK_BYTES as u64;
        // The next one must be there before this one says that it has a successor.
        let next = self.keeper.take(self.active.number + 1, room);
        let next = next.map_err(no_space)?;
        if self.last_kind != KIND_SEAL {
            self.append_own(KIND_SEAL)?;
        }
        let segment = Segment {
            number: next.number,
            base_lsn: self.end,
            path: next.path,
            file: next.file,
            file_bytes: next.file_bytes,
        };
        write_header(&segment, self.identity, self.prev_crc)?;
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.active = Arc::new(segment);
        self.last_kind = 0;
        self.shared
            .change(|segments| segments.push(self.active.clone()));
        self.stats.rotations.fetch_add(1, Ordering::Relaxed);
        self.stats.segments.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn append_own(&mut self, kind: u8) -> Result<()> {
        let mut own = std::mem::take(&mut self.own);
        own.clear();
        let appended = own.push_any(kind, &[]).and_then(|_| self.append(&mut own));
        self.own = own;
        appended.map(drop)
    }

    /// Writes a mark that tells all that was committed before from a torn tail,
    /// unless the last record is one already. For idle moments and for shutdown.
    pub fn sync_mark(&mut self) -> Result<()> {
        self.check_latch()?;
        let full = self.end + 2 * BLOCK_BYTES as u64 > self.active.limit_lsn();
        if !self.wants_mark() {
            return Ok(());
        }
        // A full segment is sealed in place of a mark, once its successor is there.
        let done = if full {
            self.rotate(0)
        } else {
            self.append_own(KIND_MARK)
        };
        let done = done.map_err(|error| self.latch_unless_full(error));
        self.note_space();
        done
    }

    /// Tries again to prepare the next segment, where the disk was full.
    pub(super) fn retry_space(&mut self) {
        self.keeper.retry(self.active.number + 1, self.end);
        self.note_space();
    }

    /// Whether the next segment could not be prepared.
    pub(super) fn lacks_space(&self) -> bool {
        self.latched.is_none() && self.stats.prepare_failed.load(Ordering::Relaxed) != 0
    }

    /// Says early that there is no room, so that votes and what is on its way
    /// still find some.
    fn note_space(&self) {
        let left = self.active.limit_lsn().saturating_sub(self.end);
        let segment = self.active.limit_lsn() - self.active.base_lsn;
        let low = self.lacks_space() && left < segment / RESERVED_PART;
        self.stats
            .low_space
            .store(u64::from(low), Ordering::Relaxed);
    }

    /// Whether something was committed since the last mark.
    pub(super) fn wants_mark(&self) -> bool {
        self.latched.is_none() && !matches!(self.last_kind, KIND_MARK | KIND_SEAL | 0)
    }

    pub(super) fn stats_ref(&self) -> &WalStats {
        &self.stats
    }

    /// Everything below `lsn` is no longer needed: lets go of the segments that are
    /// wholly below it. Never waits long, never fails the log: what cannot be let
    /// go now is tried again at the next release.
    pub fn release(&mut self, lsn: Lsn) {
        let mut released = Vec::new();
        self.shared.change(|segments| {
            let count = segments
                .iter()
                .skip(1)
                .take_while(|next| next.base_lsn <= lsn)
                .count();
            released = segments.drain(..count).collect();
        });
        if released.is_empty() {
            return;
        }
        let start = self
            .shared
            .segments()
            .first()
            .map_or(0, |segment| segment.base_lsn);
        self.stats.start_lsn.store(start, Ordering::Relaxed);
        self.stats
            .segments
            .fetch_sub(released.len() as u64, Ordering::Relaxed);
        let files = released
            .iter()
            .map(|segment| (segment.number, segment.path.clone()));
        self.keeper.dispose(files.collect());
    }

    /// A reader.
    pub fn reader(&self) -> WalReader {
        WalReader {
            shared: self.shared.clone(),
        }
    }

    /// Counters.
    pub fn stats(&self) -> Arc<WalStats> {
        self.stats.clone()
    }

    fn check_latch(&self) -> Result<()> {
        match &self.latched {
            Some(text) => Err(WalError::Latched(text.clone())),
            None => Ok(()),
        }
    }

    fn latch_unless_full(&mut self, error: WalError) -> WalError {
        if !matches!(error, WalError::NoSpace(_)) {
            self.latched = Some(error.to_string());
            self.stats.latched.store(1, Ordering::Relaxed);
        }
        error
    }
}

/// A full disk while a segment is prepared, which is not part of the log yet.
fn no_space(error: WalError) -> WalError {
    match error {
        WalError::Disk(error) if error.is_no_space() => WalError::NoSpace(error),
        error => error,
    }
}

fn first_segment(work: &mut Work, identity: Identity) -> Result<Segment> {
    let made = work.prepare(1, 0)?;
    let segment = Segment {
        number: made.number,
        base_lsn: FIRST_LSN,
        path: made.path,
        file: made.file,
        file_bytes: made.file_bytes,
    };
    write_header(&segment, identity, 0)?;
    Ok(segment)
}

fn write_header(segment: &Segment, identity: Identity, prev_crc: u32) -> Result<()> {
    let header = SegmentHeader {
        version: VERSION,
        number: segment.number,
        base_lsn: segment.base_lsn,
        identity,
        prev_crc,
    };
    Ok(segment.file.write_durable(&header.encode(), 0)?)
}
