//! The bytes of one file: what programs see, and what a power loss may take from it.
//!
//! # Invariants
//! 1. The file below holds what programs see. For each change that no sync has made
//!    durable, `pending` holds what was there before, oldest first.
//! 2. What is held for a change never covers bytes that became durable after it: a loss
//!    does not bring older bytes back over newer durable ones.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom};
use varve_engine::disk::sim::Rng;

use super::Keeps;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;
/// Bytes held of one file's past. With more, the oldest changes count as durable: the
/// system writes back by itself, too.
const HELD_BYTES: u64 = 64 << 20;
/// The largest piece of the past that is read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// One file.
#[derive(Debug)]
pub(super) struct Content {
    file: File,
    past: Mutex<Past>,
}

/// Held while the file is changed.
#[derive(Debug, Default)]
struct Past {
    pending: VecDeque<Change>,
    held_bytes: u64,
    /// Number of the next change.
    next: u64,
}

#[derive(Debug)]
struct Change {
    number: u64,
    /// What was there before: where, and the bytes.
    former: Vec<(u64, Vec<u8>)>,
    /// The length before, if that changed.
    former_length: Option<u64>,
    /// The range whose blocks were given or taken: such a change is lost or kept whole,
    /// and in order with the changes of the length.
    reshaped: Option<Range<u64>>,
}

impl Change {
    fn is_metadata(&self) -> bool {
        self.former_length.is_some() || self.reshaped.is_some()
    }

    fn held_bytes(&self) -> u64 {
        self.former.iter().map(|(_, b)| b.len() as u64).sum()
    }
}

/// Up to which change a sync reaches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(u64);

impl Content {
    /// A new file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(Self {
            file,
            past: Mutex::default(),
        })
    }

    /// The file below.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `length` bytes from `offset` on; fewer at the end.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let count = read_at_most(&self.file, &mut bytes, offset)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Writes, and says which change that was.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<Mark> {
        let mut past = self.past();
        let length = self.file.metadata()?.len();
        // Beyond the end there was nothing, which reads as zero.
        let mut former = vec![0; data.len()];
        read_at_most(&self.file, &mut former, offset)?;
        let end = offset + data.len() as u64;
        let mark = past.push(
            vec![(offset, former)],
            (end > length).then_some(length),
            None,
        );
        self.file.write_all_at(data, offset)?;
        Ok(mark)
    }

    pub(super) fn set_length(&self, length: u64) -> io::Result<()> {
        let mut past = self.past();
        let before = self.file.metadata()?.len();
        if before == length {
            return Ok(());
        }
        let cut = length.min(before)..before;
        let former = self.bytes_in(cut.clone())?;
        past.push(former, Some(before), Some(cut));
        self.file.set_len(length)
    }

    /// fallocate(2) in the ways that ext4 and FUSE both know.
    pub(super) fn allocate(&self, flags: FallocateFlags, range: Range<u64>) -> io::Result<()> {
        let mut past = self.past();
        let before = self.file.metadata()?.len();
        let keeps_length = flags.contains(FallocateFlags::KEEP_SIZE);
        let grows = range.end > before && !keeps_length;
        let clears = flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        if grows || clears {
            let former = match clears {
                true => self.bytes_in(range.start.min(before)..range.end.min(before))?,
                false => Vec::new(),
            };
            let reshaped = clears.then(|| range.clone());
            past.push(former, grows.then_some(before), reshaped);
        }
        let length = range.end - range.start;
        Ok(rustix::fs::fallocate(
            &self.file,
            flags,
            range.start,
            length,
        )?)
    }

    /// Everything in a range that is not a hole.
    fn bytes_in(&self, range: Range<u64>) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            at = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) if data < range.end => data,
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(at))?.min(range.end);
            while at < hole {
                let length = PIECE_BYTES.min(hole - at);
                pieces.push((at, self.read(at, length as usize)?));
                at += length;
            }
        }
        Ok(pieces)
    }

    /// What a sync that begins now reaches.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.past().next)
    }

    /// All changes before the mark are durable, if `is_done` still says so when nothing
    /// can change any more.
    pub(super) fn synced(&self, mark: Mark, is_done: impl FnOnce(&mut dyn FnMut())) {
        let mut past = self.past();
        is_done(&mut || {
            while past.pending.front().is_some_and(|c| c.number < mark.0) {
                past.forget_oldest();
            }
        });
    }

    /// These bytes, as the change before the mark wrote them, are durable, and what is
    /// needed to read them: nothing else. `is_done` as for [`Self::synced`].
    pub(super) fn range_synced(
        &self,
        mark: Mark,
        range: &Range<u64>,
        is_done: impl FnOnce(&mut dyn FnMut()),
    ) {
        let mut past = self.past();
        is_done(&mut || past.range_synced(mark, range));
    }

    /// The power was lost: drops pending changes. How many bytes changed back.
    pub(super) fn lose(&self, rng: &mut Rng, keeps: Keeps) -> io::Result<u64> {
        let mut past = self.past();
        past.held_bytes = 0;
        let pending = std::mem::take(&mut past.pending);
        let metadata = pending.iter().filter(|c| c.is_metadata()).count() as u64;
        let kept_metadata = match keeps {
            Keeps::Nothing => 0,
            Keeps::Everything => metadata,
            Keeps::Percent(_) => rng.below(metadata + 1),
        };
        let mut length = self.file.metadata()?.len();
        let mut undone = Undone::default();
        let mut place = metadata;
        for change in pending.into_iter().rev() {
            place -= u64::from(change.is_metadata());
            let is_lost = change.is_metadata() && place >= kept_metadata;
            if let Some(former) = change.former_length.filter(|_| is_lost) {
                length = former;
            }
            for (offset, bytes) in &change.former {
                match change.reshaped {
                    Some(_) if is_lost => undone.put_back(&self.file, *offset, bytes)?,
                    Some(_) => {}
                    None => undone.some(&self.file, *offset, bytes, rng, keeps)?,
                }
            }
            if let Some(range) = change.reshaped.filter(|_| !is_lost) {
                undone.reshaped.push(range);
            }
        }
        let grown = self.file.metadata()?.len();
        if grown != length {
            // Bytes that were put back beyond the end are among them.
            undone.bytes = undone.bytes.max(grown.abs_diff(length));
            self.file.set_len(length)?;
        }
        Ok(undone.bytes)
    }
}

impl Past {
    fn push(
        &mut self,
        former: Vec<(u64, Vec<u8>)>,
        former_length: Option<u64>,
        reshaped: Option<Range<u64>>,
    ) -> Mark {
        let change = Change {
            number: self.next,
            former,
            former_length,
            reshaped,
        };
        self.next += 1;
        self.held_bytes += change.held_bytes();
        self.pending.push_back(change);
        while self.held_bytes > HELD_BYTES {
            self.forget_oldest();
        }
        Mark(self.next)
    }

    fn forget_oldest(&mut self) {
        if let Some(change) = self.pending.pop_front() {
            self.held_bytes -= change.held_bytes();
        }
    }

    fn range_synced(&mut self, mark: Mark, range: &Range<u64>) {
        // To read the bytes, the length and the blocks of before are needed.
        let mut durable = vec![range.clone()];
        for change in self.pending.iter_mut().rev() {
            if change.number >= mark.0 {
                continue;
            }
            change.former_length = None;
            match change.reshaped.take() {
                Some(reshaped) => {
                    change.former.clear();
                    durable.push(reshaped);
                }
                None => {
                    for range in &durable {
                        subtract(&mut change.former, range);
                    }
                }
            }
        }
        self.pending
            .retain(|change| change.is_metadata() || !change.former.is_empty());
        self.held_bytes = self.pending.iter().map(Change::held_bytes).sum();
    }
}

/// Takes a range out of pieces.
fn subtract(pieces: &mut Vec<(u64, Vec<u8>)>, range: &Range<u64>) {
    let mut left = Vec::with_capacity(pieces.len());
    for (offset, bytes) in pieces.drain(..) {
        let end = offset + bytes.len() as u64;
        if range.end <= offset || end <= range.start {
            left.push((offset, bytes));
            continue;
        }
        if offset < range.start {
            left.push((offset, bytes[..(range.start - offset) as usize].to_vec()));
        }
        if range.end < end {
            left.push((range.end, bytes[(range.end - offset) as usize..].to_vec()));
        }
    }
    *pieces = left;
}

/// A file on its way back, the newest change first.
#[derive(Default)]
struct Undone {
    /// Sectors of which a newer version stays, so that older ones don't matter.
    settled: HashSet<u64>,
    /// Ranges in which a kept change of blocks came after what is looked at now. All
    /// lost ones came later still.
    reshaped: Vec<Range<u64>>,
    bytes: u64,
}

impl Undone {
    fn put_back(&mut self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (first, end) = (offset, offset + bytes.len() as u64);
        self.settled
            .retain(|sector| !overlaps(&sector_range(*sector), &(first..end)));
        self.bytes += bytes.len() as u64;
        file.write_all_at(bytes, offset)
    }

    /// A write is lost, kept, cut short, or kept in some of its sectors.
    fn some(
        &mut self,
        file: &File,
        offset: u64,
        bytes: &[u8],
        rng: &mut Rng,
        keeps: Keeps,
    ) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let sectors = offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
        let manner = rng.below(4);
        let cut = sectors.start + rng.below(sectors.end - sectors.start + 1);
        let is_whole = rng.chance(keeps.percent());
        for sector in sectors {
            let range = sector_range(sector);
            let is_settled = self.settled.contains(&sector)
                || self.reshaped.iter().any(|newer| overlaps(newer, &range));
            if is_settled {
                continue;
            }
            let stays = match (keeps, manner) {
                (Keeps::Nothing, _) => false,
                (Keeps::Everything, _) => true,
                (_, 0) => is_whole,
                (_, 1) => sector < cut,
                (_, 2) => sector >= cut,
                _ => rng.chance(keeps.percent()),
            };
            if stays {
                self.settled.insert(sector);
                continue;
            }
            let (from, to) = (range.start.max(offset), range.end.min(end));
            self.bytes += to - from;
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            file.write_all_at(part, from)?;
        }
        Ok(())
    }
}

fn sector_range(sector: u64) -> Range<u64> {
    sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Fills `bytes` as far as the file goes.
fn read_at_most(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
