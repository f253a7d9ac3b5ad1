//! Which files are meant, and whether anybody uses them.

use std::fs::{File, TryLockError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use varve_engine::disk::frozen::FrozenDisk;
use varve_engine::wal::inspect::{Item, walk};
use varve_raft::inspect::summary;

use super::{TargetArgs, failed};
use crate::failure::Failure;
use crate::output::to_stderr;

/// The file that a process which uses the directory holds a lock on.
const LOCK_FILE: &str = "lock";

/// The files of a data directory, or one store's file.
pub(super) struct Target {
    store: Option<PathBuf>,
    wal: Option<PathBuf>,
    path: PathBuf,
    /// Whether a process has the directory open: what is read may change meanwhile.
    pub(super) is_in_use: bool,
    /// Keeps a node from starting on it meanwhile.
    _lock: Option<File>,
}

impl Target {
    pub(super) fn find(args: &TargetArgs) -> Result<Self, Failure> {
        let path = &args.path;
        if !path.exists() {
            return Err(failed(format!(
                "{}: no such file or directory",
                path.display()
            )));
        }
        let mut target = Self {
            store: None,
            wal: args.wal_dir.clone(),
            path: path.clone(),
            is_in_use: false,
            _lock: None,
        };
        let directory = match path.is_dir() {
            true => path.as_path(),
            false => {
                target.store = Some(path.clone());
                path.parent().unwrap_or(Path::new("."))
            }
        };
        target.lock(directory)?;
        if !path.is_dir() {
            return Ok(target);
        }
        let names = names(path)?;
        if target.wal.is_none() {
            let own = path.join("wal");
            let is_log = names.iter().any(|name| name.ends_with(".wal"));
            target.wal = match own.is_dir() {
                true => Some(own),
                false => is_log.then(|| path.clone()),
            };
        }
        target.store = store_of(path, &names, target.wal.as_deref());
        Ok(target)
    }

    fn lock(&mut self, directory: &Path) -> Result<(), Failure> {
        let path = directory.join(LOCK_FILE);
        let Ok(file) = File::open(&path) else {
            return Ok(()); // nobody ever used it, or it is a copy
        };
        match file.try_lock_shared() {
            Ok(()) => self._lock = Some(file),
            Err(TryLockError::WouldBlock) => {
                self.is_in_use = true;
                to_stderr(&format!(
                    "warning: a process uses {}: what is shown changes meanwhile, and what looks \
                     damaged may only be on its way",
                    directory.display()
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(failed(format!("lock {}: {error}", path.display())));
            }
        }
        Ok(())
    }

    pub(super) fn store(&self) -> Result<&Path, Failure> {
        let missing = || {
            failed(format!(
                "{}: there is no B+tree store (store-NUMBER.db or tree.btree) here",
                self.path.display()
            ))
        };
        self.store.as_deref().ok_or_else(missing)
    }

    pub(super) fn wal(&self) -> Result<&Path, Failure> {
        let missing = || {
            failed(format!(
                "{}: there is no log here; --wal-dir names the directory of one",
                self.path.display()
            ))
        };
        self.wal.as_deref().ok_or_else(missing)
    }

    /// Whether there is a log to look at.
    pub(super) fn has_wal(&self) -> bool {
        self.wal.is_some()
    }
}

fn names(directory: &Path) -> Result<Vec<String>, Failure> {
    let reading = |error| failed(format!("list {}: {error}", directory.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(reading)? {
        names.extend(entry.map_err(reading)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// The store in use: the one that the log's newest marker names, or the newest file.
fn store_of(directory: &Path, names: &[String], wal: Option<&Path>) -> Option<PathBuf> {
    let is_there = |name: &String| names.contains(name);
    let named = wal.and_then(newest_marker);
    let named = named.map(|number| format!("store-{number:06}.db"));
    if let Some(name) = named.filter(is_there) {
        return Some(directory.join(name));
    }
    let newest = names
        .iter()
        .rfind(|name| name.starts_with("store-") && name.ends_with(".db"));
    let embedded = names.iter().find(|name| *name == "tree.btree");
    newest.or(embedded).map(|name| directory.join(name))
}

fn newest_marker(wal: &Path) -> Option<u64> {
    let mut newest = None;
    let walked = walk(&FrozenDisk::new(), wal, &mut |item| {
        if let Item::Record {
            header, payload, ..
        } = item
            && let Ok(summary) = summary(header.lsn, header.kind, payload)
        {
            newest = summary.store.or(newest);
        }
        ControlFlow::Continue(())
    });
    walked.ok().and(newest)
}
