//! Names and contents together, and the power that may go.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use varve_engine::disk::sim::Rng;

use super::content::{Content, Mark};
use super::names::Names;
use super::{Keeps, Lost};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether syncs come to an end.
#[derive(Debug, Default)]
pub(super) struct Power {
    state: Mutex<PowerState>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum PowerState {
    #[default]
    On,
    /// Syncs wait.
    Cut,
    /// Syncs fail: there is nobody left to be misled.
    Released,
}

impl Power {
    pub(super) fn cut(&self) {
        *lock(&self.state) = PowerState::Cut;
    }

    pub(super) fn release(&self) {
        let mut state = lock(&self.state);
        if *state == PowerState::Cut {
            *state = PowerState::Released;
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn restore(&self) {
        *lock(&self.state) = PowerState::On;
    }

    /// Does it if there is power, and nothing can take the power meanwhile.
    fn if_on(&self, done: impl FnOnce()) -> bool {
        let state = lock(&self.state);
        let is_on = *state == PowerState::On;
        if is_on {
            done();
        }
        is_on
    }

    /// What a sync says that did not come to an end before the power went.
    fn fail_when_released(&self) -> io::Error {
        let mut state = lock(&self.state);
        while *state == PowerState::Cut {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Errno::IO.into()
    }
}

/// What stat(2) wants to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) is_directory: bool,
    pub(super) length: u64,
    pub(super) blocks: u64,
    pub(super) mode: u32,
}

/// One file system: files by number in a folder, all else in memory.
#[derive(Debug)]
pub(super) struct Image {
    folder: PathBuf,
    names: Mutex<Names>,
    files: Mutex<BTreeMap<u64, Arc<Content>>>,
    /// Taken last: after the names, the files, and a file's content.
    power: Power,
}

impl Image {
    /// An empty one.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            names: Mutex::default(),
            files: Mutex::default(),
            power: Power::default(),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn power(&self) -> &Power {
        &self.power
    }

    /// Never held while the disk below is waited for.
    pub(super) fn names(&self) -> MutexGuard<'_, Names> {
        lock(&self.names)
    }

    pub(super) fn file(&self, inode: u64) -> io::Result<Arc<Content>> {
        let file = lock(&self.files).get(&inode).cloned();
        file.ok_or_else(|| match self.names().directory_mode(inode) {
            Some(_) => Errno::ISDIR.into(),
            None => Errno::NOENT.into(),
        })
    }

    pub(super) fn attributes(&self, inode: u64) -> io::Result<Attributes> {
        if let Some(mode) = self.names().directory_mode(inode) {
            return Ok(Attributes {
                is_directory: true,
                length: 4096,
                blocks: 8,
                mode,
            });
        }
        let metadata = self.file(inode)?.file().metadata()?;
        Ok(Attributes {
            is_directory: false,
            length: metadata.len(),
            blocks: std::os::unix::fs::MetadataExt::blocks(&metadata),
            mode: metadata.permissions().mode() & 0o7777,
        })
    }

    pub(super) fn set_mode(&self, inode: u64, mode: u32) -> io::Result<()> {
        let mode = mode & 0o7777;
        if self.names().directory_mode(inode).is_some() {
            self.names().set_directory_mode(inode, mode);
            return Ok(());
        }
        let file = self.file(inode)?;
        file.file()
            .set_permissions(std::fs::Permissions::from_mode(mode))
    }

    pub(super) fn lookup(&self, parent: u64, name: &OsStr) -> io::Result<u64> {
        let found = self.names().find(parent, name);
        found.ok_or_else(|| Errno::NOENT.into())
    }

    /// Makes a file.
    pub(super) fn create(&self, parent: u64, name: &OsStr, mode: u32) -> io::Result<u64> {
        let inode = self.names().number();
        let path = self.path(inode);
        let file = self.again_with_space(|| Content::create(&path))?;
        let mode = std::fs::Permissions::from_mode(mode & 0o7777);
        file.file().set_permissions(mode)?;
        // Nobody sees one without the other.
        let mut names = self.names();
        lock(&self.files).insert(inode, Arc::new(file));
        names.set(parent, name, inode);
        Ok(inode)
    }

    pub(super) fn make_directory(&self, parent: u64, name: &OsStr, mode: u32) -> io::Result<u64> {
        let mut names = self.names();
        let inode = names.number();
        names.make_directory(inode, mode & 0o7777);
        names.set(parent, name, inode);
        Ok(inode)
    }

    pub(super) fn remove(&self, parent: u64, name: &OsStr, directory: bool) -> io::Result<()> {
        let mut names = self.names();
        let inode = names.find(parent, name).ok_or(Errno::NOENT)?;
        check_removable(&names, inode, directory)?;
        names.remove(parent, name, inode);
        Ok(())
    }

    pub(super) fn rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        may_replace: bool,
    ) -> io::Result<()> {
        let mut names = self.names();
        let inode = names.find(from.0, from.1).ok_or(Errno::NOENT)?;
        if let Some(replaced) = names.find(to.0, to.1) {
            if !may_replace {
                return Err(Errno::EXIST.into());
            }
            check_removable(&names, replaced, names.directory_mode(inode).is_some())?;
        }
        names.rename(from, to, inode);
        Ok(())
    }

    /// Does what takes space; if there is none, once more with that of files that are
    /// removed: a full file system commits its journal for that.
    pub(super) fn again_with_space<T>(
        &self,
        mut action: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        match action() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let committed = {
                    let mut names = self.names();
                    self.power.if_on(|| names.all_synced())
                };
                match committed && self.collect()? > 0 {
                    true => action(),
                    false => Err(error),
                }
            }
            result => result,
        }
    }

    /// fsync(2) of a file.
    pub(super) fn sync(&self, inode: u64) -> io::Result<()> {
        let file = self.file(inode)?;
        let mark = file.mark();
        file.file().sync_data()?;
        let mut is_done = false;
        file.synced(mark, |done| is_done = self.power.if_on(done));
        self.done_or_cut(is_done)
    }

    /// What was written with O_DSYNC before the mark: that, and nothing else.
    pub(super) fn sync_range(
        &self,
        inode: u64,
        offset: u64,
        length: u64,
        mark: Mark,
    ) -> io::Result<()> {
        let file = self.file(inode)?;
        file.file().sync_data()?;
        let mut is_done = false;
        let range = offset..offset + length;
        file.range_synced(mark, &range, |done| is_done = self.power.if_on(done));
        self.done_or_cut(is_done)
    }

    /// fsync(2) of a directory.
    pub(super) fn sync_directory(&self, inode: u64) -> io::Result<()> {
        let is_done = {
            let mut names = self.names();
            self.power.if_on(|| names.synced(inode))
        };
        self.done_or_cut(is_done)?;
        self.collect()?;
        Ok(())
    }

    fn done_or_cut(&self, is_done: bool) -> io::Result<()> {
        match is_done {
            true => Ok(()),
            false => Err(self.power.fail_when_released()),
        }
    }

    /// The kernel lets go of references.
    pub(super) fn forget(&self, inode: u64, count: u64) {
        self.names().forget(inode, count);
        // What cannot be removed now is with the next sync of a directory.
        let _ = self.collect();
    }

    /// Removes files that nothing leads to any more; how many.
    fn collect(&self) -> io::Result<usize> {
        let gone: Vec<u64> = {
            let mut names = self.names();
            let in_use = names.in_use();
            names.retain_directories(&in_use);
            let mut files = lock(&self.files);
            let gone = files
                .iter()
                .filter(|(inode, file)| !in_use.contains(inode) && Arc::strong_count(file) == 1);
            let gone: Vec<u64> = gone.map(|(inode, _)| *inode).collect();
            for inode in &gone {
                files.remove(inode);
            }
            gone
        };
        for inode in &gone {
            std::fs::remove_file(self.path(*inode))?;
        }
        Ok(gone.len())
    }

    fn path(&self, inode: u64) -> PathBuf {
        self.folder.join(inode.to_string())
    }

    /// The power was lost, and nobody uses the image: what is left of it.
    pub(super) fn lose(&self, rng: &mut Rng, keeps: Keeps) -> io::Result<Lost> {
        let mut lost = Lost::default();
        let files: Vec<_> = lock(&self.files).values().cloned().collect();
        for file in files {
            lost.bytes += file.lose(rng, keeps)?;
        }
        lost.names = self.names().lose(rng, keeps);
        self.collect()?;
        Ok(lost)
    }
}

fn check_removable(names: &Names, inode: u64, directory: bool) -> io::Result<()> {
    match (names.directory_mode(inode).is_some(), directory) {
        (true, false) => Err(Errno::ISDIR.into()),
        (false, true) => Err(Errno::NOTDIR.into()),
        (true, true) if names.list(inode).is_some_and(|names| !names.is_empty()) => {
            Err(Errno::NOTEMPTY.into())
        }
        _ => Ok(()),
    }
}
