//! Small text files of a data directory that are read, and replaced, as a whole: after a
//! crash there is the former one or the new one.

use std::path::Path;

use varve_engine::disk::{Disk, OpenMode};

use crate::error::RaftError;

/// No such file is longer; of one that is, no more is read.
const MAX_BYTES: u64 = 1 << 20;

/// What the next one is called until it takes the place of the former.
pub(crate) fn name_of_next(name: &str) -> String {
    format!("{name}.new")
}

/// Puts `text` in the place of what the file `name` held, durably.
pub(crate) fn replace(
    disk: &dyn Disk,
    directory: &Path,
    name: &str,
    text: &str,
) -> Result<(), RaftError> {
    let next = directory.join(name_of_next(name));
    let file = disk.open(&next, OpenMode::Create)?;
    file.truncate(0)?;
    file.write_at(text.as_bytes(), 0)?;
    file.sync()?;
    disk.rename(&next, &directory.join(name))?;
    Ok(disk.sync_dir(directory)?)
}

/// Reads the file at `path`. Bytes that are no text come as U+FFFD.
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<String, RaftError> {
    let file = disk.open(path, OpenMode::Existing)?;
    let mut bytes = vec![0; file.len()?.min(MAX_BYTES) as usize];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}
