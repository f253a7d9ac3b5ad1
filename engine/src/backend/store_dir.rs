//! What the engines from other crates keep beside their own files.
//!
//! - `LOCK` is held for as long as the store is open, so that two processes
//!   never open one store.
//! - `CHECKPOINT` says which engine the directory belongs to and how far the
//!   last checkpoint applied. A store that comes up with less than that has
//!   lost what the write-ahead log no longer holds: it is refused, not served.
//!
//! `CHECKPOINT` is written beside the old one and renamed over it, so one of
//! the two is whole at any time. It is there before anything else of a store
//! is, marked as of a store in the making, so that a crash in the middle of
//! that is told from a store whose record went missing.
//!
//! Layout, little-endian: magic (8 bytes), version u32, engine's name (16
//! bytes, zero-padded), 1 where the store is made and 0 before u8, applied term
//! u64 and index u64, bytes of data u64, payload length u32, payload, crc32c of
//! all before it u32.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Applied, BackendError, Result};

const LOCK: &str = "LOCK";
const CHECKPOINT: &str = "CHECKPOINT";
const NEW_CHECKPOINT: &str = "CHECKPOINT.new";

const MAGIC: &[u8; 8] = b"VARVECKP";
const VERSION: u32 = 1;
const NAME_BYTES: usize = 16;
const HEADER_BYTES: usize = 8 + 4 + NAME_BYTES + 1 + 8 + 8 + 8 + 4;
const CRC_BYTES: usize = 4;

/// A checkpoint, as `CHECKPOINT` holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Checkpoint {
    /// How far it applies.
    pub(super) applied: Applied,
    /// Bytes of the engine's data file at that time; 0 where it has many.
    pub(super) data_bytes: u64,
    /// What the engine needs to get back to it.
    pub(super) payload: Vec<u8>,
}

/// An engine's directory, locked.
#[derive(Debug)]
pub(super) struct StoreDir {
    engine: &'static str,
    path: PathBuf,
    _lock: File,
}

impl StoreDir {
    /// Locks the directory, making it where there is none, and reads its last
    /// checkpoint. There is none in a new store: the directory is then empty of
    /// the engine's files.
    pub(super) fn open(engine: &'static str, path: &Path) -> Result<(Self, Option<Checkpoint>)> {
        fs::create_dir_all(path).map_err(|source| io_error("creating", path, source))?;
        let lock_path = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| io_error("opening", &lock_path, source))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => BackendError::Other {
                engine,
                message: format!(
                    "{}: the store is open already, in this process or another",
                    path.display()
                ),
            },
            TryLockError::Error(source) => io_error("locking", &lock_path, source),
        })?;
        let dir = Self {
            engine,
            path: path.to_owned(),
            _lock: lock,
        };
        let checkpoint = match dir.read()? {
            Some((true, checkpoint)) => Some(checkpoint),
            Some((false, _)) => {
                dir.clear()?;
                None
            }
            None => {
                dir.refuse_strangers()?;
                dir.replace(false, &Checkpoint::default())?;
                None
            }
        };
        Ok((dir, checkpoint))
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self) -> Result<Option<(bool, Checkpoint)>> {
        let path = self.path.join(CHECKPOINT);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("reading", &path, source)),
        };
        decode(self.engine, &bytes)
            .map(Some)
            .map_err(|what| BackendError::Foreign { path, what })
    }

    /// Calls `each` with what lies in the directory beside this module's files.
    fn others(&self, mut each: impl FnMut(&Path) -> Result<()>) -> Result<()> {
        let reading = |source| io_error("listing", &self.path, source);
        for entry in fs::read_dir(&self.path).map_err(reading)? {
            let entry = entry.map_err(reading)?;
            let name = entry.file_name();
            if ![LOCK, CHECKPOINT, NEW_CHECKPOINT]
                .iter()
                .any(|own| name == **own)
            {
                each(&entry.path())?;
            }
        }
        Ok(())
    }

    fn refuse_strangers(&self) -> Result<()> {
        self.others(|path| {
            Err(BackendError::Foreign {
                path: path.to_owned(),
                what: format!(
                    "there are files here but no {CHECKPOINT}: not a store of Varve's, or the \
                     record was removed; set the directory aside"
                ),
            })
        })
    }

    /// Removes what a crash left of a store in the making.
    fn clear(&self) -> Result<()> {
        self.others(|path| {
            let removed = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
            removed.map_err(|source| io_error("removing", path, source))
        })
    }

    /// Makes `checkpoint` the last one, durably. On an error the one before it,
    /// or this one, is the last.
    pub(super) fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        self.replace(true, checkpoint)
    }

    fn replace(&self, made: bool, checkpoint: &Checkpoint) -> Result<()> {
        let (path, new) = (self.path.join(CHECKPOINT), self.path.join(NEW_CHECKPOINT));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&encode(self.engine, made, checkpoint))?;
            file.sync_all()
        });
        written.map_err(|source| io_error("writing", &new, source))?;
        fs::rename(&new, &path).map_err(|source| io_error("renaming", &new, source))?;
        // The directory's other entries become durable with it.
        File::open(&self.path)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| io_error("syncing", &self.path, source))
    }

    /// Refuses a store that came up with less than its last checkpoint.
    pub(super) fn verify(&self, checkpoint: &Checkpoint, recovered: Applied) -> Result<()> {
        let promised = checkpoint.applied;
        if recovered.index > promised.index || recovered == promised {
            return Ok(());
        }
        Err(BackendError::Other {
            engine: self.engine,
            message: format!(
                "{}: the store is damaged: it came up as of log entry {} of term {}, but its last \
                 checkpoint was as of entry {} of term {}; set the directory aside and restore it \
                 from another member or from a snapshot",
                self.path.display(),
                recovered.index,
                recovered.term,
                promised.index,
                promised.term,
            ),
        })
    }
}

/// An error of the file system.
pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> BackendError {
    BackendError::Io {
        action,
        path: path.to_owned(),
        offset: 0,
        source,
    }
}

fn padded(engine: &str) -> [u8; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    for (to, from) in name.iter_mut().zip(engine.bytes()) {
        *to = from;
    }
    name
}

fn encode(engine: &str, made: bool, checkpoint: &Checkpoint) -> Vec<u8> {
    let payload = &checkpoint.payload;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len() + CRC_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&padded(engine));
    bytes.push(u8::from(made));
    bytes.extend_from_slice(&checkpoint.applied.term.to_le_bytes());
    bytes.extend_from_slice(&checkpoint.applied.index.to_le_bytes());
    bytes.extend_from_slice(&checkpoint.data_bytes.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads the file, or says what it is instead.
fn decode(engine: &str, bytes: &[u8]) -> std::result::Result<(bool, Checkpoint), String> {
    let (version, name, made, checkpoint) = parse(bytes).ok_or(
        "not a whole checkpoint record: the store is damaged; set the directory aside and \
         restore it from another member or from a snapshot",
    )?;
    if version != VERSION {
        return Err(format!(
            "checkpoint record of version {version}; this build reads version {VERSION}"
        ));
    }
    if name != padded(engine) {
        let name = String::from_utf8_lossy(&name);
        return Err(format!(
            "the store belongs to the engine {:?}, not to {engine:?}",
            name.trim_end_matches('\0')
        ));
    }
    Ok((made, checkpoint))
}

/// Version, engine, whether the store is made, and the checkpoint.
fn parse(bytes: &[u8]) -> Option<(u32, [u8; NAME_BYTES], bool, Checkpoint)> {
    let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_first_chunk::<NAME_BYTES>()?;
    let (made, rest) = rest.split_first()?;
    let (term, rest) = rest.split_first_chunk::<8>()?;
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let (data_bytes, rest) = rest.split_first_chunk::<8>()?;
    let (length, payload) = rest.split_first_chunk::<4>()?;
    if magic != MAGIC
        || crc32c::crc32c(body) != u32::from_le_bytes(*crc)
        || payload.len() != u32::from_le_bytes(*length) as usize
    {
        return None;
    }
    let checkpoint = Checkpoint {
        applied: Applied {
            term: u64::from_le_bytes(*term),
            index: u64::from_le_bytes(*index),
        },
        data_bytes: u64::from_le_bytes(*data_bytes),
        payload: payload.to_vec(),
    };
    Some((u32::from_le_bytes(*version), *name, *made != 0, checkpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Tested = std::result::Result<(), Box<dyn std::error::Error>>;

    fn sample() -> Checkpoint {
        Checkpoint {
            applied: Applied { term: 3, index: 77 },
            data_bytes: 4096,
            payload: b"payload".to_vec(),
        }
    }

    #[test]
    fn comes_back_and_is_locked() -> Tested {
        let temp = tempfile::tempdir()?;
        let path = temp.path().join("store");
        let (dir, none) = StoreDir::open("one", &path)?;
        assert_eq!(none, None);
        dir.write(&Checkpoint::default())?;
        dir.write(&sample())?;
        let message = StoreDir::open("one", &path)
            .expect_err("locked")
            .to_string();
        assert!(message.contains("open already"), "{message}");
        drop(dir);
        assert_eq!(StoreDir::open("one", &path)?.1, Some(sample()));
        let message = StoreDir::open("two", &path)
            .expect_err("foreign")
            .to_string();
        assert!(
            message.contains("belongs to the engine \"one\""),
            "{message}"
        );
        Ok(())
    }

    #[test]
    fn a_crash_while_making_it_leaves_nothing_and_strangers_stay() -> Tested {
        let temp = tempfile::tempdir()?;
        drop(StoreDir::open("one", temp.path())?);
        fs::write(temp.path().join("data"), "half")?;
        fs::create_dir(temp.path().join("more"))?;
        let (dir, none) = StoreDir::open("one", temp.path())?;
        assert_eq!(none, None);
        assert!(!temp.path().join("data").exists() && !temp.path().join("more").exists());
        drop(dir);
        fs::write(temp.path().join("data"), "mine")?;
        fs::remove_file(temp.path().join(CHECKPOINT))?;
        let message = StoreDir::open("one", temp.path())
            .expect_err("foreign")
            .to_string();
        assert!(message.contains("no CHECKPOINT"), "{message}");
        assert!(temp.path().join("data").exists());
        Ok(())
    }

    #[test]
    fn any_damage_is_found() {
        let whole = encode("one", true, &sample());
        assert_eq!(decode("one", &whole), Ok((true, sample())));
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 0x10;
            assert!(decode("one", &bytes).is_err(), "byte {position}");
            assert!(
                decode("one", &whole[..position]).is_err(),
                "cut at {position}"
            );
        }
    }

    #[test]
    fn a_store_that_lost_its_checkpoint_is_refused() -> Tested {
        let temp = tempfile::tempdir()?;
        let (dir, _) = StoreDir::open("one", temp.path())?;
        for (term, index, fits) in [(3, 77, true), (3, 78, true), (3, 76, false), (2, 77, false)] {
            let recovered = Applied { term, index };
            assert_eq!(dir.verify(&sample(), recovered).is_ok(), fits);
        }
        Ok(())
    }
}
