//! What survives a power loss.
//!
//! # Invariants
//! 1. The durable image of a file changes only by a sync, of the file, of a range
//!    or of what was written back; the durable names only by the sync of their
//!    directory.
//! 2. Pending changes are kept in order, and none of them overlaps bytes that
//!    became durable later: a crash never brings back older bytes over newer
//!    durable ones.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rng::Rng;

/// The unit that a disk writes as a whole.
pub(super) const SECTOR_BYTES: u64 = 512;

pub(super) type Inode = usize;

/// One operation, as recorded.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Create {
        path: PathBuf,
        inode: Inode,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    CreateDir {
        path: PathBuf,
    },
    SyncDir {
        dir: PathBuf,
    },
    Write {
        inode: Inode,
        offset: u64,
        data: Arc<[u8]>,
    },
    Truncate {
        inode: Inode,
        length: u64,
    },
    Grow {
        inode: Inode,
        length: u64,
    },
    Sync {
        inode: Inode,
    },
    SyncRange {
        inode: Inode,
        range: Range<u64>,
    },
    /// The range is handed to the disk, which may keep it in its cache.
    WriteBack {
        inode: Inode,
        range: Range<u64>,
    },
    /// The disk's cache and the metadata become durable.
    Flush {
        inode: Inode,
    },
    SyncFailed {
        inode: Inode,
    },
    Corrupt {
        inode: Inode,
        offset: u64,
        xor: u8,
    },
    Mark,
}

/// A change that is not durable yet.
#[derive(Debug, Clone)]
enum Pending {
    Write {
        offset: u64,
        data: Arc<[u8]>,
        at: Whereabouts,
    },
    Truncate(u64),
    Grow(u64),
}

/// How far a write that is not durable has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    PageCache,
    DiskCache,
    /// A sync failed after it: no later sync makes it durable.
    Poisoned,
}

/// One file on the platter.
#[derive(Debug, Clone, Default)]
struct Platter {
    durable: Arc<Vec<u8>>,
    pending: Vec<Pending>,
}

/// A file as it is found after the crash.
pub(super) type Image = Arc<Vec<u8>>;

/// The platters and the durable names.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    files: Vec<Platter>,
    names: BTreeMap<PathBuf, Inode>,
    pending_names: Vec<Op>,
    dirs: BTreeSet<PathBuf>,
}

impl Model {
    /// Everything in it is durable. The inodes are numbered in order of `files`.
    pub(super) fn durable(files: &BTreeMap<PathBuf, Image>, dirs: &BTreeSet<PathBuf>) -> Self {
        Self {
            files: files
                .values()
                .map(|image| Platter {
                    durable: image.clone(),
                    pending: Vec::new(),
                })
                .collect(),
            names: files.keys().cloned().zip(0..).collect(),
            pending_names: Vec::new(),
            dirs: dirs.clone(),
        }
    }

    /// Follows one operation.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { inode, .. } => {
                if self.files.len() <= *inode {
                    self.files.resize_with(inode + 1, Platter::default);
                }
                self.pending_names.push(op.clone());
            }
            Op::Rename { .. } | Op::Remove { .. } => self.pending_names.push(op.clone()),
            // Directories are made once, before anything is stored in them: no crash
            // of interest lies there.
            Op::CreateDir { path } => {
                self.dirs.insert(path.clone());
            }
            Op::SyncDir { dir } => self.sync_dir(dir),
            Op::Write {
                inode,
                offset,
                data,
            } => self.files[*inode].pending.push(Pending::Write {
                offset: *offset,
                data: data.clone(),
                at: Whereabouts::PageCache,
            }),
            Op::Truncate { inode, length } => {
                self.files[*inode].pending.push(Pending::Truncate(*length));
            }
            Op::Grow { inode, length } => self.files[*inode].pending.push(Pending::Grow(*length)),
            Op::Sync { inode } => self.files[*inode].sync(&(0..u64::MAX)),
            Op::SyncRange { inode, range } => self.files[*inode].sync(range),
            Op::WriteBack { inode, range } => self.files[*inode].write_back(range),
            Op::Flush { inode } => self.files[*inode].flush(),
            Op::SyncFailed { inode } => self.files[*inode].poison(),
            Op::Corrupt { inode, offset, xor } => self.files[*inode].corrupt(*offset, *xor),
            Op::Mark => {}
        }
    }

    fn sync_dir(&mut self, dir: &Path) {
        let pending = std::mem::take(&mut self.pending_names);
        for op in pending {
            if parent_of(&op) == Some(dir) {
                apply_name(&mut self.names, &op);
            } else {
                self.pending_names.push(op);
            }
        }
        let reachable: BTreeSet<Inode> = self
            .names
            .values()
            .copied()
            .chain(self.pending_names.iter().filter_map(|op| match op {
                Op::Create { inode, .. } => Some(*inode),
                _ => None,
            }))
            .collect();
        for (inode, file) in self.files.iter_mut().enumerate() {
            if !reachable.contains(&inode) {
                *file = Platter::default();
            }
        }
    }

    /// What is found after a power loss now. Seed 0 loses all that is pending,
    /// seed 1 keeps all of it.
    pub(super) fn crash(&self, seed: u64) -> (BTreeMap<PathBuf, Image>, BTreeSet<PathBuf>) {
        let mut choice = Choice::new(seed);
        let mut names = self.names.clone();
        for op in &self.pending_names {
            if choice.keeps() {
                apply_name(&mut names, op);
            }
        }
        let files = names
            .into_iter()
            .map(|(path, inode)| (path, self.files[inode].crash(&mut choice)))
            .collect();
        (files, self.dirs.clone())
    }
}

fn parent_of(op: &Op) -> Option<&Path> {
    match op {
        Op::Create { path, .. } | Op::Remove { path } => path.parent(),
        Op::Rename { to, .. } => to.parent(),
        _ => None,
    }
}

/// Applies a change of names, unless one that it builds on was lost.
fn apply_name(names: &mut BTreeMap<PathBuf, Inode>, op: &Op) {
    match op {
        Op::Create { path, inode } => {
            names.entry(path.clone()).or_insert(*inode);
        }
        Op::Remove { path } => {
            names.remove(path);
        }
        Op::Rename { from, to } => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        _ => {}
    }
}

impl Platter {
    /// Makes what is pending within `range` durable, and all changes of length.
    fn sync(&mut self, range: &Range<u64>) {
        split(&mut self.pending, range);
        self.make_durable(|change| change.overlaps(range));
    }

    /// Hands what is pending within `range` to the disk.
    fn write_back(&mut self, range: &Range<u64>) {
        split(&mut self.pending, range);
        for change in self.pending.iter_mut().filter(|it| it.overlaps(range)) {
            if let Pending::Write { at, .. } = change
                && *at == Whereabouts::PageCache
            {
                *at = Whereabouts::DiskCache;
            }
        }
    }

    /// Makes durable what the disk has, and all changes of length.
    fn flush(&mut self) {
        self.make_durable(|change| {
            matches!(
                change,
                Pending::Write {
                    at: Whereabouts::DiskCache,
                    ..
                }
            )
        });
    }

    fn make_durable(&mut self, is_due: impl Fn(&Pending) -> bool) {
        let pending = std::mem::take(&mut self.pending);
        let durable = Arc::make_mut(&mut self.durable);
        for change in pending {
            match &change {
                Pending::Write { offset, data, at }
                    if *at != Whereabouts::Poisoned && is_due(&change) =>
                {
                    write(durable, *offset, data);
                    clip(&mut self.pending, *offset..offset + data.len() as u64);
                }
                Pending::Write { .. } => self.pending.push(change),
                Pending::Truncate(length) => {
                    durable.resize(*length as usize, 0);
                    clip(&mut self.pending, *length..u64::MAX);
                }
                Pending::Grow(length) => grow(durable, *length),
            }
        }
    }

    fn poison(&mut self) {
        for change in &mut self.pending {
            if let Pending::Write { at, .. } = change {
                *at = Whereabouts::Poisoned;
            }
        }
    }

    fn corrupt(&mut self, offset: u64, xor: u8) {
        if let Some(byte) = Arc::make_mut(&mut self.durable).get_mut(offset as usize) {
            *byte ^= xor;
        }
        for change in &mut self.pending {
            if let Pending::Write {
                offset: start,
                data,
                ..
            } = change
                && let Some(at) = offset.checked_sub(*start)
                && let Some(byte) = Arc::make_mut(data).get_mut(at as usize)
            {
                *byte ^= xor;
            }
        }
    }

    fn crash(&self, choice: &mut Choice) -> Image {
        if self.pending.is_empty() {
            return self.durable.clone();
        }
        let mut image = Vec::clone(&self.durable);
        for change in &self.pending {
            match change {
                Pending::Write { offset, data, .. } => choice.write(&mut image, *offset, data),
                Pending::Truncate(length) if choice.keeps() => image.resize(*length as usize, 0),
                Pending::Grow(length) if choice.keeps() => grow(&mut image, *length),
                Pending::Truncate(_) | Pending::Grow(_) => {}
            }
        }
        Arc::new(image)
    }
}

impl Pending {
    /// Whether it writes to some of `range`.
    fn overlaps(&self, range: &Range<u64>) -> bool {
        match self {
            Self::Write { offset, data, .. } => {
                *offset < range.end && offset + data.len() as u64 > range.start
            }
            Self::Truncate(_) | Self::Grow(_) => false,
        }
    }
}

/// Cuts pending writes in two where `range` begins and ends.
fn split(pending: &mut Vec<Pending>, range: &Range<u64>) {
    for border in [range.start, range.end] {
        for change in std::mem::take(pending) {
            match change {
                Pending::Write { offset, data, at }
                    if offset < border && border < offset + data.len() as u64 =>
                {
                    let (left, right) = data.split_at((border - offset) as usize);
                    for (offset, data) in [(offset, left), (border, right)] {
                        let data = data.into();
                        pending.push(Pending::Write { offset, data, at });
                    }
                }
                change => pending.push(change),
            }
        }
    }
}

/// Takes the bytes of `range` out of the pending writes.
fn clip(pending: &mut Vec<Pending>, range: Range<u64>) {
    if pending.iter().any(|change| change.overlaps(&range)) {
        split(pending, &range);
        pending.retain(|change| !change.overlaps(&range));
    }
}

fn grow(image: &mut Vec<u8>, length: u64) {
    if image.len() < length as usize {
        image.resize(length as usize, 0);
    }
}

fn write(image: &mut Vec<u8>, offset: u64, data: &[u8]) {
    grow(image, offset + data.len() as u64);
    image[offset as usize..offset as usize + data.len()].copy_from_slice(data);
}

/// The seeded decisions of one crash.
struct Choice {
    seed: u64,
    rng: Rng,
    /// How many of a hundred changes survive.
    keep_percent: u64,
}

impl Choice {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let keep_percent = [10, 50, 90][rng.below(3) as usize];
        Self {
            seed,
            rng,
            keep_percent,
        }
    }

    fn keeps(&mut self) -> bool {
        match self.seed {
            0 => false,
            1 => true,
            _ => self.rng.chance(self.keep_percent),
        }
    }

    /// A write is lost, kept, cut short, or kept in some of its sectors.
    fn write(&mut self, image: &mut Vec<u8>, offset: u64, data: &[u8]) {
        match self.seed {
            0 => return,
            1 => return write(image, offset, data),
            _ => {}
        }
        let sectors = sectors_of(offset, data.len() as u64);
        let count = sectors.clone().count() as u64;
        let manner = self.rng.below(4);
        let cut = self.rng.below(count + 1);
        let whole = self.rng.chance(self.keep_percent);
        let mut kept_all = true;
        for (index, sector) in sectors.enumerate() {
            let keep = match manner {
                0 => whole,
                1 => (index as u64) < cut,
                2 => (index as u64) >= cut,
                _ => self.rng.chance(self.keep_percent),
            };
            if keep {
                let from = (sector.start - offset) as usize;
                let to = (sector.end - offset) as usize;
                write(image, sector.start, &data[from..to]);
            }
            kept_all &= keep;
        }
        // The length is metadata and may survive without the bytes.
        if !kept_all && self.rng.chance(50) {
            grow(image, offset + data.len() as u64);
        }
    }
}

/// The parts of a write that fall into one sector each.
fn sectors_of(offset: u64, length: u64) -> impl Iterator<Item = Range<u64>> + Clone {
    let end = offset + length;
    let first = offset / SECTOR_BYTES;
    let last = end.div_ceil(SECTOR_BYTES);
    (first..last).map(move |sector| {
        (sector * SECTOR_BYTES).max(offset)..((sector + 1) * SECTOR_BYTES).min(end)
    })
}
