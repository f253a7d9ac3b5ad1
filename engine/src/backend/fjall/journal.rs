//! Cuts what a power loss tore off the end of fjall's journal.
//!
//! What was written to a journal after its last sync reaches the disk in any
//! order, or not at all. fjall 3 cuts a journal where it can't be decoded, but
//! gives up on one whose last batches decode and have a wrong checksum: where
//! the lost blocks lie within one large value. A store that is whole up to its
//! last checkpoint would then not open. So each journal is gone over first,
//! batch by batch, by fjall's own checksums:
//!
//! | journal | after the last whole batch | what is done |
//! |---|---|---|
//! | any | nothing, or only zeros (preallocated) | nothing |
//! | the newest | anything else | torn: copied aside, then cut there |
//! | an older one | anything else | it was synced whole: damaged, refused |
//!
//! Whether the cut lost more than unsynced batches is decided when the store is
//! open, by what it then applies to; only then does the copy go.
//!
//! The format (fjall's `journal/entry.rs`): a batch is `1, items u32, sequence
//! u64`, the items, and `3, xxh3 of the items u64, "FJL" 3`; an item is `2,
//! type u8, compression u8, keyspace u64, key length u16, value length u32,
//! stored value length u32, key, stored value`, or, to clear a keyspace, `4,
//! keyspace u64`. Numbers are little-endian.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::backend::store_dir::io_error;
use crate::backend::{BackendError, Result};

const ASIDE: &str = "journal.aside";
const TRAILER: &[u8; 4] = b"FJL\x03";

/// What was cut, if anything, and where its copy is.
pub(super) struct Cut {
    aside: Option<PathBuf>,
}

impl Cut {
    /// Removes the copy, once the store has turned out whole without it.
    pub(super) fn forget(self) -> Result<()> {
        let Some(aside) = self.aside else {
            return Ok(());
        };
        fs::remove_file(&aside).map_err(|source| io_error("removing", &aside, source))
    }
}

/// Goes over the journals in `data`, fjall's directory, and cuts the newest
/// where it is torn; a copy of it is kept in `aside` until then.
pub(super) fn repair(data: &Path, aside: &Path) -> Result<Cut> {
    let journals = journals(data)?;
    let newest = journals.len().saturating_sub(1);
    for (position, path) in journals.iter().enumerate() {
        let scanned = File::open(path).and_then(|file| {
            let length = file.metadata()?.len();
            Scan::new(BufReader::with_capacity(1 << 16, file), length).end_of_whole()
        });
        let end = scanned.map_err(|source| io_error("reading", path, source))?;
        let Some(torn) = end else { continue };
        if position < newest {
            return Err(BackendError::Damaged {
                path: path.clone(),
                page: torn / 4096,
                what: format!(
                    "no whole batch at byte {torn} of a journal that was synced; set the \
                     directory aside and restore it from another member or from a snapshot"
                ),
            });
        }
        let copy = aside.join(ASIDE);
        let cut = fs::copy(path, &copy).and_then(|_| {
            File::open(&copy)?.sync_all()?;
            let file = File::options().write(true).open(path)?;
            file.set_len(torn)?;
            file.sync_all()
        });
        cut.map_err(|source| io_error("cutting", path, source))?;
        tracing::warn!(journal = %path.display(), at = torn, "cut the torn end of a journal");
        return Ok(Cut { aside: Some(copy) });
    }
    Ok(Cut { aside: None })
}

/// fjall's journals, the oldest first.
fn journals(data: &Path) -> Result<Vec<PathBuf>> {
    let listing = |source| io_error("listing", data, source);
    let entries = match fs::read_dir(data) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(listing(source)),
    };
    let mut journals = Vec::new();
    for entry in entries {
        let path = entry.map_err(listing)?.path();
        if path.extension().is_some_and(|extension| extension == "jnl")
            && let Some(number) = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse::<u64>().ok())
        {
            journals.push((number, path));
        }
    }
    journals.sort();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}

/// Why a batch ends before its end.
enum Stop {
    /// Not a batch as fjall writes them, or not all of it.
    Torn,
    /// The file could not be read.
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::Torn,
            _ => Self::Failed(error),
        }
    }
}

/// A pass over one journal.
struct Scan<R> {
    reader: R,
    /// Bytes read, of `length`.
    position: u64,
    length: u64,
    /// Of the items of the current batch.
    checksum: Xxh3,
}

impl<R: BufRead> Scan<R> {
    fn new(reader: R, length: u64) -> Self {
        Self {
            reader,
            position: 0,
            length,
            checksum: Xxh3::new(),
        }
    }

    /// Where the whole batches end, if anything but zeros comes after them.
    fn end_of_whole(mut self) -> io::Result<Option<u64>> {
        loop {
            let end = self.position;
            match self.batch() {
                Ok(true) => {}
                Ok(false) => return Ok((!self.only_zeros()?).then_some(end)),
                Err(Stop::Torn) => return Ok(Some(end)),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }

    /// Reads a batch; false where none begins.
    fn batch(&mut self) -> std::result::Result<bool, Stop> {
        match self.reader.fill_buf()?.first() {
            None | Some(0) => return Ok(false),
            Some(1) => {}
            Some(_) => return Err(Stop::Torn),
        }
        let [_, rest @ ..] = self.take::<13>()?;
        let items = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        self.checksum = Xxh3::new();
        for _ in 0..items {
            self.item()?;
        }
        let checksum = self.checksum.digest();
        let end = self.take::<13>()?;
        if end[0] == 3 && end[1..9] == checksum.to_le_bytes() && end[9..] == *TRAILER {
            Ok(true)
        } else {
            Err(Stop::Torn)
        }
    }

    fn item(&mut self) -> std::result::Result<(), Stop> {
        let [tag] = self.hashed::<1>()?;
        match tag {
            2 => {
                let header = self.hashed::<20>()?;
                let key_bytes = u16::from_le_bytes([header[10], header[11]]);
                let [.., a, b, c, d] = header;
                self.skip(u64::from(key_bytes) + u64::from(u32::from_le_bytes([a, b, c, d])))
            }
            4 => self.hashed::<8>().map(drop),
            _ => Err(Stop::Torn),
        }
    }

    fn take<const N: usize>(&mut self) -> std::result::Result<[u8; N], Stop> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn hashed<const N: usize>(&mut self) -> std::result::Result<[u8; N], Stop> {
        let bytes = self.take::<N>()?;
        self.checksum.update(&bytes);
        Ok(bytes)
    }

    /// Passes over key and value, which count for the checksum.
    fn skip(&mut self, mut bytes: u64) -> std::result::Result<(), Stop> {
        if bytes > self.length.saturating_sub(self.position) {
            return Err(Stop::Torn);
        }
        while bytes > 0 {
            let buffer = self.reader.fill_buf()?;
            let taken = buffer
                .len()
                .min(usize::try_from(bytes).unwrap_or(usize::MAX));
            if taken == 0 {
                return Err(Stop::Torn);
            }
            self.checksum.update(&buffer[..taken]);
            self.reader.consume(taken);
            self.position += taken as u64;
            bytes -= taken as u64;
        }
        Ok(())
    }

    fn only_zeros(&mut self) -> io::Result<bool> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(true);
            }
            if buffer.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            let length = buffer.len();
            self.reader.consume(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of `values`, as fjall writes it.
    fn batch(sequence: u64, values: &[&[u8]]) -> Vec<u8> {
        let mut items = Vec::new();
        for value in values {
            items.extend_from_slice(&[2, 0, 0]);
            items.extend_from_slice(&1u64.to_le_bytes());
            items.extend_from_slice(&3u16.to_le_bytes());
            items.extend_from_slice(&(value.len() as u32).to_le_bytes());
            items.extend_from_slice(&(value.len() as u32).to_le_bytes());
            items.extend_from_slice(b"key");
            items.extend_from_slice(value);
        }
        let mut bytes = vec![1];
        bytes.extend_from_slice(&(values.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&items);
        bytes.push(3);
        bytes.extend_from_slice(&xxhash_rust::xxh3::xxh3_64(&items).to_le_bytes());
        bytes.extend_from_slice(TRAILER);
        bytes
    }

    fn torn_at(bytes: &[u8]) -> Option<u64> {
        Scan::new(bytes, bytes.len() as u64)
            .end_of_whole()
            .expect("memory reads")
    }

    #[test]
    fn whole_journals_stay_and_any_damage_is_cut_before_its_batch() {
        let first = batch(1, &[b"one", &[7; 300]]);
        let whole = [first.clone(), batch(2, &[b"", b"two"])].concat();
        assert_eq!(torn_at(&[]), None);
        assert_eq!(torn_at(&whole), None);
        assert_eq!(torn_at(&[whole.clone(), vec![0; 5000]].concat()), None);
        let middle = first.len();
        for position in 0..whole.len() {
            // The item count and sequence number are not in fjall's checksum.
            let in_batch = position % middle;
            let begins = if position < middle { 0 } else { middle as u64 };
            if !(5..13).contains(&in_batch) {
                let mut bytes = whole.clone();
                bytes[position] ^= 0xff;
                assert_eq!(torn_at(&bytes), Some(begins), "byte {position}");
            }
            if position != 0 && position != middle {
                assert_eq!(
                    torn_at(&whole[..position]),
                    Some(begins),
                    "cut at {position}"
                );
            }
        }
        let zeroed = [vec![0; middle], batch(2, &[b"two"])].concat();
        assert_eq!(torn_at(&zeroed), Some(0));
    }

    #[test]
    fn a_cut_keeps_a_copy_and_older_journals_must_be_whole() -> Result<()> {
        let temp = tempfile::tempdir().expect("temporary directory");
        let data = temp.path().join("data");
        assert!(repair(&data, temp.path())?.aside.is_none());
        fs::create_dir(&data).expect("directory");
        let whole = batch(1, &[b"one"]);
        let torn = [whole.as_slice(), &[1, 9, 9]].concat();
        fs::write(data.join("9.jnl"), &whole).expect("write");
        fs::write(data.join("10.jnl"), &torn).expect("write");
        let cut = repair(&data, temp.path())?;
        assert_eq!(fs::read(data.join("10.jnl")).expect("read"), whole);
        let copy = temp.path().join(ASIDE);
        assert_eq!(fs::read(&copy).expect("read"), torn);
        cut.forget()?;
        assert!(!copy.exists());
        fs::write(data.join("9.jnl"), &torn).expect("write");
        let refused = repair(&data, temp.path())
            .err()
            .expect("refused")
            .to_string();
        assert!(
            refused.contains("9.jnl") && refused.contains("synced"),
            "{refused}"
        );
        Ok(())
    }
}
