//! Opening a store: which of two states, and what is free.
//!
//! | meta pages | what is done |
//! |---|---|
//! | both blank, nothing after them | a new store is made |
//! | both blank, but pages after them | error: damaged |
//! | at least one valid | the one with the higher sequence number |
//! | none valid, one was once | error: damaged |
//! | none valid, another program's or version's | error: foreign |
//!
//! An older meta page that wins because the newer one is damaged may lead to
//! pages that were recycled since: their birth gives them away.

use std::path::Path;
use std::sync::Arc;

use super::free_map::FreeMap;
use super::meta::{Found, META_PAGES, Meta};
use super::page::PAGE_BYTES;
use super::pager::{BatchToken, Pager, disk_error};
use super::space::Space;
use super::store::{Keeper, Shared};
use crate::backend::{BackendError, Result};
use crate::disk::{Disk, File, OpenMode};

/// Pages that a new file has.
const NEW_PAGES: u64 = 64;

/// What can be chosen when a store is opened.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes of addresses that are reserved: the file can grow up to that
    /// without moving. A larger file gets twice its size.
    pub map_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { map_bytes: 1 << 40 }
    }
}

pub(super) fn open(disk: &dyn Disk, path: &Path, options: Options) -> Result<Shared> {
    let file = disk.open(path, OpenMode::Create).map_err(disk_error)?;
    let found = [read_meta(&*file, 0)?, read_meta(&*file, 1)?];
    let meta = match choose(&*file, &found)? {
        Some(meta) => {
            // After a failed sync the kernel may show a page that the disk does
            // not have. What is built on it must not begin before it is there.
            let offset = meta.page() * PAGE_BYTES as u64;
            file.write_at(&meta.encode(), offset).map_err(disk_error)?;
            file.sync().map_err(disk_error)?;
            meta
        }
        None => create(disk, &*file)?,
    };
    let bytes = file.len().map_err(disk_error)?;
    let end = bytes / PAGE_BYTES as u64;
    let map_bytes = options.map_bytes.max(2 * bytes as usize);
    let pager = Pager::new(file, map_bytes, meta.state.number)?;
    let token = BatchToken::new(meta.state.number);
    let missing = |page| {
        let what = format!(
            "is missing: the store has {} pages, its file only {end}",
            meta.end
        );
        pager.damaged(page, what)
    };
    let free_map = FreeMap::load(pager.working(&token), meta.directory, meta.end);
    let free_map = free_map.map_err(|error| match error {
        BackendError::Damaged { page, .. } if page >= end => missing(page),
        error => error,
    })?;
    // A vacuum may have cut free pages off since the checkpoint, but no others.
    if let Some(page) = (end..meta.end).find(|page| free_map.is_used(*page)) {
        return Err(missing(page));
    }
    // Pages that the file grew by after the checkpoint are in no bitmap: free.
    let space = Space::new(pager.end(), META_PAGES, free_map.live(), |page| {
        free_map.is_used(page)
    });
    Ok(Shared::new(pager, space, Keeper { meta, free_map }))
}

fn read_meta(file: &dyn File, page: u64) -> Result<Found> {
    let mut bytes = [0; PAGE_BYTES];
    file.read_at(&mut bytes, page * PAGE_BYTES as u64)
        .map_err(disk_error)?;
    Ok(Meta::decode(&bytes, page))
}

/// The meta page that counts; `None` for a store that is to be made.
fn choose(file: &dyn File, found: &[Found; 2]) -> Result<Option<Meta>> {
    let valid = found.iter().filter_map(|found| match found {
        Found::Valid(meta) => Some(**meta),
        _ => None,
    });
    if let Some(meta) = valid.max_by_key(|meta| meta.sequence) {
        for (page, found) in found.iter().enumerate() {
            if let Found::Invalid(what) | Found::Foreign(what) = found {
                tracing::warn!(
                    "{}: page {page} is damaged: {what}; the power went while it was written, or \
                     it has rotted since; going on from the checkpoint in the other meta page",
                    file.path().display()
                );
            }
        }
        return Ok(Some(meta));
    }
    for (page, found) in found.iter().enumerate() {
        if let Found::Invalid(what) = found {
            return Err(damaged(file, page as u64, what.clone()));
        }
    }
    for found in found {
        if let Found::Foreign(what) = found {
            return Err(BackendError::Foreign {
                path: file.path().to_owned(),
                what: what.clone(),
            });
        }
    }
    if has_data(file)? {
        return Err(damaged(
            file,
            0,
            "is blank, but the file has data".to_owned(),
        ));
    }
    Ok(None)
}

/// Whether a file with blank meta pages has anything after them. The making of
/// a store that was cut short leaves nothing there.
fn has_data(file: &dyn File) -> Result<bool> {
    let mut bytes = [0; PAGE_BYTES];
    for page in META_PAGES..NEW_PAGES {
        let read = file.read_at(&mut bytes, page * PAGE_BYTES as u64);
        let read = read.map_err(disk_error)?;
        if bytes[..read].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn create(disk: &dyn Disk, file: &dyn File) -> Result<Meta> {
    let meta = Meta {
        end: NEW_PAGES,
        ..Meta::default()
    };
    file.allocate(0, NEW_PAGES * PAGE_BYTES as u64)
        .map_err(disk_error)?;
    // The length first: the meta page speaks of it.
    file.sync().map_err(disk_error)?;
    file.write_at(&meta.encode(), 0).map_err(disk_error)?;
    file.sync().map_err(disk_error)?;
    let directory = match file.path().parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    disk.sync_dir(directory).map_err(disk_error)?;
    Ok(meta)
}

fn damaged(file: &dyn File, page: u64, what: String) -> BackendError {
    BackendError::Damaged {
        path: file.path().to_owned(),
        page,
        what,
    }
}

/// As the result of `open` is shared between handles and snapshots.
pub(super) fn open_shared(disk: &dyn Disk, path: &Path, options: Options) -> Result<Arc<Shared>> {
    open(disk, path, options).map(Arc::new)
}
