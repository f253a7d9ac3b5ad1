//! What is asked of every engine, and which there are.

use std::path::Path;

use super::args::DataArgs;
use super::data::Key;
use super::varve;
use crate::error::{BenchError, Result};

/// One change of a batch: a value, or none to delete the key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
}

/// Entries in the order of their keys.
pub(crate) type Sorted<'s> = dyn Iterator<Item = (Key, Vec<u8>)> + 's;

/// Entries of one batch of a bulk load, where the engine has no other way.
const BULK_BATCH: usize = 10_000;

/// A state that is read from.
pub(crate) trait Snapshot {
    /// Passes the value of `key` to `found`, as little copied as the engine
    /// allows; whether it is there.
    fn get(&self, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// How many entries there are, where the engine knows without a walk.
    fn count(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Visits up to `limit` entries from `from` on.
    fn scan(&self, from: &[u8], limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;
}

/// What is done with a snapshot.
pub(crate) type Work<'w> = dyn FnMut(&dyn Snapshot) -> Result<()> + 'w;

/// An open store, used as its users would.
pub(crate) trait Row {
    /// When a batch counts as done, for the table.
    fn durability(&self) -> &'static str;

    /// Writes a batch. It is done, in the sense of [`Row::durability`], when this
    /// or a later call of [`Row::finish`] returns.
    fn write(&mut self, changes: &[Change<'_>]) -> Result<()>;

    /// Waits until all batches are done.
    fn finish(&mut self) -> Result<()>;

    /// Fills an empty store with what is sorted, in the way that the engine offers for
    /// that; all of it is done when this returns.
    fn load_sorted(&mut self, entries: &mut Sorted<'_>) -> Result<()> {
        write_parts(entries, &mut |changes| self.write(changes))?;
        self.finish()
    }

    /// Reads from the newest state, all of `work` from one.
    fn read(&self, work: &mut Work<'_>) -> Result<()>;

    /// Remembers the newest state's revision; whether there are such.
    fn mark_revision(&mut self) -> bool {
        false
    }

    /// Reads from the state that was marked.
    fn read_marked(&self, _work: &mut Work<'_>) -> Result<()> {
        Ok(())
    }

    /// Makes what is written durable in the store itself, where a log is before it.
    fn checkpoint(&mut self) -> Result<()> {
        Ok(())
    }

    /// Lets go of old versions and gives space back, as far as the engine can;
    /// what was done, for the table.
    fn compact(&mut self) -> Result<Option<&'static str>> {
        Ok(None)
    }

    /// The engine's own integrity check, where it has one.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Ends, as cleanly as the engine can.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Writes entries in large batches.
pub(crate) fn write_parts(
    entries: &mut Sorted<'_>,
    write: &mut dyn FnMut(&[Change<'_>]) -> Result<()>,
) -> Result<()> {
    loop {
        let part: Vec<_> = entries.take(BULK_BATCH).collect();
        if part.is_empty() {
            return Ok(());
        }
        let changes: Vec<_> = part
            .iter()
            .map(|(key, value)| Change {
                key,
                value: Some(value),
            })
            .collect();
        write(&changes)?;
    }
}

/// Opens a row in a folder.
type Opener = fn(&Path, &DataArgs) -> Result<Box<dyn Row>>;

/// A row that is built in.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) open: Opener,
}

/// The rows, in the order of the table.
pub(crate) const KINDS: &[Kind] = &[
    Kind {
        name: "btree",
        open: |path, args| varve::open_map("btree", path, args),
    },
    Kind {
        name: "memory",
        open: |path, args| varve::open_map("memory", path, args),
    },
    Kind {
        name: "varve",
        open: |path, args| varve::open_revisioned("btree", path, args),
    },
    #[cfg(feature = "engines")]
    Kind {
        name: "lmdb",
        open: |path, _| super::lmdb::open(path, super::lmdb::Mode::Synced),
    },
    #[cfg(feature = "engines")]
    Kind {
        name: "lmdb-nosync",
        open: |path, _| super::lmdb::open(path, super::lmdb::Mode::NoSync),
    },
    #[cfg(feature = "engines")]
    Kind {
        name: "redb",
        open: super::redb::open,
    },
    #[cfg(feature = "engines")]
    Kind {
        name: "fjall",
        open: super::fjall::open,
    },
];

/// Opens the row `name`, also `varve-ENGINE` for the revisioned store on another
/// engine.
pub(crate) fn open(name: &str, path: &Path, args: &DataArgs) -> Result<Box<dyn Row>> {
    if let Some(kind) = KINDS.iter().find(|kind| kind.name == name) {
        return (kind.open)(path, args);
    }
    match name.strip_prefix("varve-") {
        Some(engine) => varve::open_revisioned(engine, path, args),
        None => {
            let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            Err(BenchError::Usage(format!(
                "there is no row {name:?}: the rows are {}{}",
                names.join(", "),
                if cfg!(feature = "engines") {
                    ""
                } else {
                    "; build with --features engines for LMDB, redb and fjall"
                }
            )))
        }
    }
}

/// An error of the row `name`.
pub(crate) fn failed<E: std::fmt::Display>(name: &'static str) -> impl Fn(E) -> BenchError {
    move |error| BenchError::Engine {
        name,
        what: error.to_string(),
    }
}
