//! LMDB, used directly through heed.

// heed makes opening unsafe: a map is only sound while no one else changes the
// file, and some flags give up safety after a power loss.
#![allow(unsafe_code)]

use std::ops::Bound;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, WithoutTls};

use super::row::{Change, Row, Snapshot, Sorted, Work, failed, write_parts};
use crate::error::Result;

type Env = heed::Env<WithoutTls>;

/// Addresses for the map; takes no memory.
const MAP_BYTES: usize = 1 << 38;

/// How commits are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// LMDB's default: a sync for each commit.
    Synced,
    /// `MDB_NOSYNC | MDB_WRITEMAP`: the system writes back when it likes, and a
    /// power loss may damage the file.
    NoSync,
}

struct Lmdb {
    env: Env,
    database: Database<'static, Bytes, Bytes>,
    mode: Mode,
}

pub(super) fn open(path: &Path, mode: Mode) -> Result<Box<dyn Row>> {
    let io = failed("lmdb");
    std::fs::create_dir_all(path).map_err(&io)?;
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_BYTES);
    let flags = match mode {
        Mode::Synced => EnvFlags::empty(),
        Mode::NoSync => EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP,
    };
    // SAFETY: the folder is this measurement's own, so nobody else changes the
    // file; what NO_SYNC loses on a power loss is removed in any case. With
    // WRITE_MAP a wild write of this process could damage the file, and the
    // check of every value read would show it.
    let env = unsafe { options.flags(flags).open(path) }.map_err(failed("lmdb"))?;
    let txn = env.read_txn().map_err(failed("lmdb"))?;
    let database = env
        .open_databases_and_commit(txn, |opener, txn| {
            opener
                .open_database::<Bytes, Bytes>(txn, None)
                .map(CommitOrAbort::<_, ()>::Commit)
        })
        .map_err(failed("lmdb"))?
        .unwrap_commit()
        .ok_or_else(|| failed("lmdb")("the file has no root database"))?;
    Ok(Box::new(Lmdb {
        env,
        database,
        mode,
    }))
}

impl Row for Lmdb {
    fn durability(&self) -> &'static str {
        match self.mode {
            Mode::Synced => "commit synced",
            Mode::NoSync => "none",
        }
    }

    fn write(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let mut txn = self.env.write_txn().map_err(failed("lmdb"))?;
        for change in changes {
            match change.value {
                Some(value) => self
                    .database
                    .put(&mut txn, change.key, value)
                    .map_err(failed("lmdb"))?,
                None => drop(
                    self.database
                        .delete(&mut txn, change.key)
                        .map_err(failed("lmdb"))?,
                ),
            }
        }
        txn.commit().map_err(failed("lmdb"))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn load_sorted(&mut self, entries: &mut Sorted<'_>) -> Result<()> {
        write_parts(entries, &mut |changes| {
            let mut txn = self.env.write_txn().map_err(failed("lmdb"))?;
            for change in changes {
                let value = change.value.unwrap_or_default();
                let flags = PutFlags::APPEND;
                self.database
                    .put_with_flags(&mut txn, flags, change.key, value)
                    .map_err(failed("lmdb"))?;
            }
            txn.commit().map_err(failed("lmdb"))
        })?;
        // What is done without syncs is not done before the last one.
        match self.mode {
            Mode::Synced => Ok(()),
            Mode::NoSync => self.env.force_sync().map_err(failed("lmdb")),
        }
    }

    fn read(&self, work: &mut Work<'_>) -> Result<()> {
        let txn = self.env.read_txn().map_err(failed("lmdb"))?;
        work(&Reader { row: self, txn })
    }

    fn close(self: Box<Self>) -> Result<()> {
        if self.mode == Mode::NoSync {
            self.env.force_sync().map_err(failed("lmdb"))?;
        }
        Ok(())
    }
}

struct Reader<'r> {
    row: &'r Lmdb,
    txn: RoTxn<'r, WithoutTls>,
}

impl Snapshot for Reader<'_> {
    fn get(&self, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.row.database.get(&self.txn, key);
        let value = value.map_err(failed("lmdb"))?;
        if let Some(value) = value {
            found(value);
        }
        Ok(value.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let bounds = (Bound::Included(from), Bound::Unbounded);
        let range = self.row.database.range(&self.txn, &bounds);
        for entry in range.map_err(failed("lmdb"))?.take(limit) {
            let (key, value) = entry.map_err(failed("lmdb"))?;
            visit(key, value);
        }
        Ok(())
    }
}
