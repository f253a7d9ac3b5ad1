//! A disk in memory, with a crash model and injected faults.
//!
//! # The crash model
//! - Nothing written is durable before a sync of the file; a durable write makes
//!   only its own bytes durable.
//! - A creation, rename or removal is durable only after a sync of its directory,
//!   whatever syncs the file itself had. (Directories themselves are durable at
//!   once.)
//! - At a power loss each 512-byte sector of each pending write is on the platter
//!   or not, in any combination, so writes are lost, torn and reordered. Bytes
//!   written through a map are pending writes as well.
//! - A changed length may survive without the bytes, or be lost.
//! - After a failed sync, what was pending stays so, and no later sync helps.
//!
//! Lock order: there is one lock, held for one operation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskError, File, OpenMode, Result};

mod content;
mod fault;
mod file;
mod model;
mod rng;
#[cfg(test)]
mod tests;

pub use fault::{Fault, FaultOn};
pub use rng::Rng;

use content::Content;
use fault::Faults;
use file::SimFile;
use model::{Image, Inode, Model, Op};

/// A disk in memory. Clones share the disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    names: BTreeMap<PathBuf, Inode>,
    dirs: BTreeSet<PathBuf>,
    files: Vec<Node>,
    history: History,
    faults: Faults,
    capacity: Option<u64>,
    syncs: u64,
}

/// A file as programs see it.
#[derive(Debug)]
struct Node {
    content: Content,
    handles: usize,
    linked: bool,
}

/// What is known about the platter.
#[derive(Debug)]
enum History {
    /// Its state now.
    Now(Model),
    /// Every operation since the start, and the state after some of them, kept
    /// because crash states are mostly asked for in order.
    Recorded {
        start: Model,
        ops: Vec<Op>,
        replayed: usize,
        replay: Model,
    },
}

impl SimDisk {
    /// An empty disk that records no operations ([`SimDisk::crash_now`] works,
    /// [`SimDisk::crash`] only at the present point).
    pub fn new() -> Self {
        Self::from_images(&BTreeMap::new(), &BTreeSet::new(), false)
    }

    /// An empty disk that records every operation from now on.
    pub fn recording() -> Self {
        Self::from_images(&BTreeMap::new(), &BTreeSet::new(), true)
    }

    /// A disk that holds what is durable or pending here now, all of it durable,
    /// and records from now on. Faults are not taken over.
    pub fn fork_recording(&self) -> Self {
        let (files, dirs) = self.lock().crash(1);
        Self::from_images(&files, &dirs, true)
    }

    fn from_images(
        images: &BTreeMap<PathBuf, Image>,
        dirs: &BTreeSet<PathBuf>,
        recording: bool,
    ) -> Self {
        let model = Model::durable(images, dirs);
        let history = match recording {
            true => History::Recorded {
                start: model.clone(),
                ops: Vec::new(),
                replayed: 0,
                replay: model,
            },
            false => History::Now(model),
        };
        let node = |image: &Image| Node {
            content: Content::Heap(Vec::clone(image)),
            handles: 0,
            linked: true,
        };
        let state = State {
            names: images.keys().cloned().zip(0..).collect(),
            dirs: dirs.clone(),
            files: images.values().map(node).collect(),
            history,
            faults: Faults::default(),
            capacity: None,
            syncs: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a test thread must not hide the state from the others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of operations recorded so far, those of maps included. What was
    /// acknowledged by now must be there after a crash at any prefix of at least
    /// this many operations.
    pub fn op_count(&self) -> usize {
        let mut state = self.lock();
        state.take_map_writes();
        match &state.history {
            History::Now(_) => 0,
            History::Recorded { ops, .. } => ops.len(),
        }
    }

    /// Records the state of mapped files as it is now, as an operation: a point
    /// at which the kernel may write pages back. (Every other operation does so
    /// too.)
    pub fn mark(&self) {
        let mut state = self.lock();
        state.take_map_writes();
        state.record(Op::Mark);
    }

    /// The disk as it may be after a power loss when the first `prefix`
    /// operations were done. Seed 0 loses everything unsynced, seed 1 keeps
    /// everything, any other seed decides for each sector of each unsynced write
    /// and for each unsynced rename, creation, removal and change of length. The
    /// new disk records nothing and has no faults. Cheapest with `prefix` rising
    /// from call to call.
    pub fn crash(&self, prefix: usize, seed: u64) -> Self {
        let mut state = self.lock();
        state.take_map_writes();
        let (files, dirs) = match &mut state.history {
            History::Now(model) => model.crash(seed),
            History::Recorded {
                start,
                ops,
                replayed,
                replay,
            } => {
                if *replayed > prefix {
                    *replay = start.clone();
                    *replayed = 0;
                }
                let prefix = prefix.min(ops.len());
                for op in &ops[*replayed..prefix] {
                    replay.apply(op);
                }
                *replayed = prefix;
                // The same seed decides differently at different points.
                let mixed = match seed {
                    0 | 1 => seed,
                    _ => Rng::new(seed ^ (prefix as u64).rotate_left(32)).next_u64() | 2,
                };
                replay.crash(mixed)
            }
        };
        Self::from_images(&files, &dirs, false)
    }

    /// As [`SimDisk::crash`], at the present point; works without recording.
    pub fn crash_now(&self, seed: u64) -> Self {
        let (files, dirs) = self.lock().crash(seed);
        Self::from_images(&files, &dirs, false)
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.add(fault);
    }

    /// Faults that have not hit yet, or hit for ever.
    pub fn fault_count(&self) -> usize {
        self.lock().faults.count()
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Limits the bytes of all files together; growing past it is ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Bytes of all files together.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Flips bits of a stored byte, on the platter and in the cache.
    pub fn corrupt(&self, path: &Path, offset: u64, xor: u8) -> Result<()> {
        let mut state = self.lock();
        let inode = state
            .find(path)
            .map_err(|e| DiskError::io("corrupt", path, offset, e))?;
        state.take_map_writes();
        state.files[inode].content.corrupt(offset, xor);
        state.record(Op::Corrupt { inode, offset, xor });
        Ok(())
    }

    /// Number of syncs of files so far, those of durable writes and of what was
    /// written back included.
    pub fn sync_count(&self) -> u64 {
        self.lock().syncs
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn find(&self, path: &Path) -> io::Result<Inode> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn has_dir(&self, dir: &Path) -> bool {
        dir.as_os_str().is_empty() || dir == Path::new("/") || self.dirs.contains(dir)
    }

    fn record(&mut self, op: Op) {
        match &mut self.history {
            History::Now(model) => model.apply(&op),
            History::Recorded { ops, .. } => ops.push(op),
        }
    }

    /// Turns what was written through maps into recorded writes. While recording,
    /// each operation is a point at which a crash may find them.
    fn take_map_writes(&mut self) {
        for inode in 0..self.files.len() {
            self.take_map_writes_of(inode, 0..u64::MAX);
        }
    }

    /// As [`State::take_map_writes`], before an operation that concerns `range` only: what
    /// was written elsewhere can be taken later, unless it is recorded when it was there.
    fn take_map_writes_in(&mut self, inode: Inode, range: Range<u64>) {
        match self.history {
            History::Recorded { .. } => self.take_map_writes(),
            History::Now(_) => self.take_map_writes_of(inode, range),
        }
    }

    fn take_map_writes_of(&mut self, inode: Inode, range: Range<u64>) {
        for (offset, data) in self.files[inode].content.take_map_writes(range) {
            self.record(Op::Write {
                inode,
                offset,
                data,
            });
        }
    }

    fn crash(&mut self, seed: u64) -> (BTreeMap<PathBuf, Image>, BTreeSet<PathBuf>) {
        self.take_map_writes();
        match &mut self.history {
            History::Now(model) => model.crash(seed),
            History::Recorded {
                ops,
                replayed,
                replay,
                ..
            } => {
                for op in &ops[*replayed..] {
                    replay.apply(op);
                }
                *replayed = ops.len();
                replay.crash(seed)
            }
        }
    }

    fn used_bytes(&self) -> u64 {
        self.files
            .iter()
            .map(|node| node.content.len() as u64)
            .sum()
    }

    /// Whether the file may get that long.
    fn check_growth(&self, inode: Inode, length: u64) -> io::Result<()> {
        let content = &self.files[inode].content;
        let added = length.saturating_sub(content.len() as u64);
        if length > content.limit() as u64 {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        match self.capacity {
            Some(capacity) if added > 0 && self.used_bytes() + added > capacity => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, inode: Inode, path: &Path, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset
            .checked_add(buf.len() as u64)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        self.check_growth(inode, end)?;
        self.take_map_writes_in(inode, offset..end);
        let fault = self.faults.check(FaultOn::Write, path);
        let written = match fault {
            Ok(()) => buf,
            Err(_) => &buf[..buf.len() / 2],
        };
        if !written.is_empty() {
            self.files[inode].content.write(written, offset);
            self.record(Op::Write {
                inode,
                offset,
                data: written.into(),
            });
        }
        fault
    }

    fn sync(&mut self, inode: Inode, path: &Path, done: Op) -> io::Result<()> {
        self.syncs += u64::from(!matches!(done, Op::WriteBack { .. }));
        let range = match &done {
            Op::WriteBack { range, .. } | Op::SyncRange { range, .. } => range.clone(),
            _ => 0..u64::MAX,
        };
        self.take_map_writes_in(inode, range);
        let fault = self.faults.check(FaultOn::Sync, path);
        self.record(if fault.is_ok() {
            done
        } else {
            Op::SyncFailed { inode }
        });
        fault
    }

    /// Lets go of the bytes of a file that nobody can reach any more.
    fn tidy(&mut self, inode: Inode) {
        let node = &mut self.files[inode];
        if !node.linked && node.handles == 0 {
            node.content = Content::Heap(Vec::new());
        }
    }

    fn unlink(&mut self, inode: Inode) {
        self.files[inode].linked = false;
        self.tidy(inode);
    }
}

impl Disk for SimDisk {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let fail = |kind: io::ErrorKind| Err(DiskError::io("open", path, 0, kind.into()));
        let mut state = self.lock();
        let faulty = |error| DiskError::io("open", path, 0, error);
        state.faults.check(FaultOn::Open, path).map_err(faulty)?;
        let inode = match (state.names.get(path).copied(), mode) {
            (Some(_), OpenMode::CreateNew) => return fail(io::ErrorKind::AlreadyExists),
            (Some(inode), _) => inode,
            (None, OpenMode::Existing) => return fail(io::ErrorKind::NotFound),
            (None, _) => {
                if !path.parent().is_some_and(|dir| state.has_dir(dir)) {
                    return fail(io::ErrorKind::NotFound);
                }
                let inode = state.files.len();
                let content = Content::Heap(Vec::new());
                state.files.push(Node {
                    content,
                    handles: 0,
                    linked: true,
                });
                state.names.insert(path.to_owned(), inode);
                state.take_map_writes();
                state.record(Op::Create {
                    path: path.to_owned(),
                    inode,
                });
                inode
            }
        };
        state.files[inode].handles += 1;
        Ok(Arc::new(SimFile::new(self.clone(), inode, path)))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let state = self.lock();
        Ok(state.names.contains_key(path) || state.has_dir(path))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let state = self.lock();
        if !state.has_dir(dir) {
            return Err(DiskError::io(
                "list",
                dir,
                0,
                io::ErrorKind::NotFound.into(),
            ));
        }
        let inside = |path: &&PathBuf| path.parent() == Some(dir);
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Ok(state.names.keys().filter(inside).filter_map(name).collect())
    }

    fn create_dir(&self, dir: &Path) -> Result<()> {
        let mut state = self.lock();
        for dir in dir.ancestors() {
            if !state.has_dir(dir) {
                state.dirs.insert(dir.to_owned());
                state.record(Op::CreateDir {
                    path: dir.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.lock();
        let fault = state.faults.check(FaultOn::Rename, from);
        let inode = fault
            .and_then(|()| state.find(from))
            .map_err(|e| DiskError::io("rename", from, 0, e))?;
        if !to.parent().is_some_and(|dir| state.has_dir(dir)) {
            return Err(DiskError::io(
                "rename",
                to,
                0,
                io::ErrorKind::NotFound.into(),
            ));
        }
        if from == to {
            return Ok(());
        }
        state.names.remove(from);
        if let Some(replaced) = state.names.insert(to.to_owned(), inode) {
            state.unlink(replaced);
        }
        state.take_map_writes();
        state.record(Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.lock();
        let fault = state.faults.check(FaultOn::Remove, path);
        let inode = fault
            .and_then(|()| state.find(path))
            .map_err(|e| DiskError::io("remove", path, 0, e))?;
        state.names.remove(path);
        state.take_map_writes();
        state.unlink(inode);
        state.record(Op::Remove {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let mut state = self.lock();
        let fail = |e| DiskError::io("sync dir", dir, 0, e);
        if !state.has_dir(dir) {
            return Err(fail(io::ErrorKind::NotFound.into()));
        }
        state.faults.check(FaultOn::SyncDir, dir).map_err(fail)?;
        state.take_map_writes();
        state.record(Op::SyncDir {
            dir: dir.to_owned(),
        });
        Ok(())
    }
}
