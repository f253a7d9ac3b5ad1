//! fjall, used directly: a batch for each batch, its journal synced.

use std::path::Path;

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::args::DataArgs;
use super::row::{Change, Row, Snapshot, Work, failed};
use crate::error::Result;

struct Fjall {
    keyspace: Keyspace,
    database: Database,
}

pub(super) fn open(path: &Path, args: &DataArgs) -> Result<Box<dyn Row>> {
    let builder = Database::builder(path).cache_size(args.cache_mib << 20);
    let database = builder.open().map_err(failed("fjall"))?;
    let keyspace = database.keyspace("keyspace", KeyspaceCreateOptions::default);
    let keyspace = keyspace.map_err(failed("fjall"))?;
    Ok(Box::new(Fjall { keyspace, database }))
}

impl Row for Fjall {
    fn durability(&self) -> &'static str {
        "journal synced"
    }

    fn write(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let batch = self.database.batch();
        let mut batch = batch.durability(Some(PersistMode::SyncData));
        for change in changes {
            match change.value {
                Some(value) => batch.insert(&self.keyspace, change.key, value),
                None => batch.remove(&self.keyspace, change.key),
            }
        }
        batch.commit().map_err(failed("fjall"))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn read(&self, work: &mut Work<'_>) -> Result<()> {
        let snapshot = self.database.snapshot();
        work(&Reader {
            row: self,
            snapshot,
        })
    }

    fn compact(&mut self) -> Result<Option<&'static str>> {
        let rotated = self.keyspace.rotate_memtable_and_wait();
        rotated.map_err(failed("fjall"))?;
        self.keyspace.major_compact().map_err(failed("fjall"))?;
        Ok(Some("major compaction"))
    }

    fn close(self: Box<Self>) -> Result<()> {
        let persisted = self.database.persist(PersistMode::SyncAll);
        persisted.map_err(failed("fjall"))
    }
}

struct Reader<'r> {
    row: &'r Fjall,
    snapshot: ::fjall::Snapshot,
}

impl Snapshot for Reader<'_> {
    fn get(&self, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.snapshot.get(&self.row.keyspace, key);
        let value = value.map_err(failed("fjall"))?;
        if let Some(value) = &value {
            found(value);
        }
        Ok(value.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let range = self.snapshot.range::<&[u8], _>(&self.row.keyspace, from..);
        for entry in range.take(limit) {
            let (key, value) = entry.into_inner().map_err(failed("fjall"))?;
            visit(&key, &value);
        }
        Ok(())
    }
}
