//! redb, used directly: a commit of the default durability for each batch.

use std::path::Path;

use ::redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};

use super::args::DataArgs;
use super::row::{Change, Row, Snapshot, Work, failed};
use crate::error::Result;

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("table");

struct Redb {
    database: Database,
}

pub(super) fn open(path: &Path, args: &DataArgs) -> Result<Box<dyn Row>> {
    std::fs::create_dir_all(path).map_err(failed("redb"))?;
    let mut builder = Database::builder();
    builder.set_cache_size((args.cache_mib << 20) as usize);
    let database = builder.create(path.join("data.redb"));
    let database = database.map_err(failed("redb"))?;
    let txn = database.begin_write().map_err(failed("redb"))?;
    txn.open_table(TABLE).map_err(failed("redb"))?;
    txn.commit().map_err(failed("redb"))?;
    Ok(Box::new(Redb { database }))
}

impl Row for Redb {
    fn durability(&self) -> &'static str {
        "commit synced"
    }

    fn write(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let txn = self.database.begin_write().map_err(failed("redb"))?;
        {
            let mut table = txn.open_table(TABLE).map_err(failed("redb"))?;
            for change in changes {
                match change.value {
                    Some(value) => drop(table.insert(change.key, value).map_err(failed("redb"))?),
                    None => drop(table.remove(change.key).map_err(failed("redb"))?),
                }
            }
        }
        txn.commit().map_err(failed("redb"))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn read(&self, work: &mut Work<'_>) -> Result<()> {
        let txn = self.database.begin_read().map_err(failed("redb"))?;
        let table = txn.open_table(TABLE).map_err(failed("redb"))?;
        work(&Reader { table })
    }

    fn compact(&mut self) -> Result<Option<&'static str>> {
        while self.database.compact().map_err(failed("redb"))? {}
        Ok(Some("compact(), offline"))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct Reader {
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Snapshot for Reader {
    fn get(&self, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.table.get(key).map_err(failed("redb"))?;
        if let Some(value) = &value {
            found(value.value());
        }
        Ok(value.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let range = self.table.range::<&[u8]>(from..).map_err(failed("redb"))?;
        for entry in range.take(limit) {
            let (key, value) = entry.map_err(failed("redb"))?;
            visit(key.value(), value.value());
        }
        Ok(())
    }
}
