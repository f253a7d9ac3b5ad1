//! Varve's rows: the plain map and the revisioned store, each behind its log.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use varve_engine::backend::Direction;
use varve_engine::db::{Db, DbError, Kv, KvSnapshot, Options, Pending, WriteBatch};
use varve_engine::mvcc::View;
use varve_types::KeyRange;

use super::args::DataArgs;
use super::row::{Change, Row, Snapshot, Sorted, Work, failed, write_parts};
use crate::error::Result;

const DURABILITY: &str = "log synced";

fn options(engine: &str, args: &DataArgs) -> Options {
    let checkpoint_log_bytes = args.checkpoint_log_mib << 20;
    Options {
        engine: engine.to_owned(),
        checkpoint_log_bytes,
        max_log_bytes: checkpoint_log_bytes.saturating_mul(4),
        // The bound is that of batches.
        max_in_flight_bytes: 1 << 30,
        ..Options::default()
    }
}

/// Batches on their way, no more than allowed.
struct Window<T> {
    pending: VecDeque<Pending<T>>,
    most: usize,
    batch: WriteBatch,
}

impl<T> Window<T> {
    fn new(args: &DataArgs) -> Self {
        Self {
            pending: VecDeque::new(),
            most: args.in_flight,
            batch: WriteBatch::new(),
        }
    }

    fn write(
        &mut self,
        changes: &[Change<'_>],
        submit: impl FnOnce(&WriteBatch) -> std::result::Result<Pending<T>, DbError>,
    ) -> std::result::Result<(), DbError> {
        self.batch.clear();
        for change in changes {
            match change.value {
                Some(value) => self.batch.put(change.key, value)?,
                None => self.batch.delete(change.key)?,
            }
        }
        self.pending.push_back(submit(&self.batch)?);
        while self.pending.len() >= self.most
            && let Some(oldest) = self.pending.pop_front()
        {
            oldest.wait()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> std::result::Result<(), DbError> {
        while let Some(oldest) = self.pending.pop_front() {
            oldest.wait()?;
        }
        Ok(())
    }
}

struct MapRow {
    kv: Kv,
    window: Window<()>,
}

/// The plain map on an engine.
pub(super) fn open_map(engine: &str, path: &Path, args: &DataArgs) -> Result<Box<dyn Row>> {
    let kv = Kv::open(path, options(engine, args)).map_err(failed("btree"))?;
    Ok(Box::new(MapRow {
        kv,
        window: Window::new(args),
    }))
}

impl Row for MapRow {
    fn durability(&self) -> &'static str {
        DURABILITY
    }

    fn write(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let Self { kv, window } = self;
        let written = window.write(changes, |batch| kv.submit(batch));
        written.map_err(failed("btree"))
    }

    fn finish(&mut self) -> Result<()> {
        self.window.finish().map_err(failed("btree"))
    }

    fn load_sorted(&mut self, entries: &mut Sorted<'_>) -> Result<()> {
        let loaded = self.kv.load_sorted(entries);
        loaded.map(drop).map_err(failed("btree"))
    }

    fn read(&self, work: &mut Work<'_>) -> Result<()> {
        work(&self.kv.snapshot().map_err(failed("btree"))?)
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.kv.checkpoint().map_err(failed("btree"))
    }

    fn compact(&mut self) -> Result<Option<&'static str>> {
        self.kv.vacuum().map_err(failed("btree"))?;
        self.checkpoint()?;
        Ok(Some("vacuum, online"))
    }

    fn check(&self) -> Result<()> {
        self.kv.check().map(drop).map_err(failed("btree"))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.kv.close().map_err(failed("btree"))
    }
}

impl Snapshot for KvSnapshot {
    fn get(&self, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = KvSnapshot::get(self, key).map_err(failed("btree"))?;
        if let Some(value) = &value {
            found(value);
        }
        Ok(value.is_some())
    }

    fn count(&self) -> Result<Option<u64>> {
        let sums = self.sums(KeyRange::From(b"")).map_err(failed("btree"))?;
        Ok(Some(sums.entries))
    }

    fn scan(&self, from: &[u8], limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut left = limit;
        let range = KeyRange::From(from);
        let scanned = KvSnapshot::scan(self, range, Direction::Forward, &mut |key, value| {
            visit(key, value);
            left -= 1;
            flow(left)
        });
        scanned.map_err(failed("btree"))
    }
}

fn flow(left: usize) -> ControlFlow<()> {
    match left {
        0 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

struct RevisionedRow {
    db: Db,
    window: Window<varve_engine::db::Written>,
    marked: i64,
}

/// The revisioned store on an engine.
pub(super) fn open_revisioned(engine: &str, path: &Path, args: &DataArgs) -> Result<Box<dyn Row>> {
    let db = Db::open(path, options(engine, args)).map_err(failed("varve"))?;
    Ok(Box::new(RevisionedRow {
        db,
        window: Window::new(args),
        marked: 0,
    }))
}

impl Row for RevisionedRow {
    fn durability(&self) -> &'static str {
        DURABILITY
    }

    fn write(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let Self { db, window, .. } = self;
        let written = window.write(changes, |batch| db.submit(batch));
        written.map_err(failed("varve"))
    }

    fn finish(&mut self) -> Result<()> {
        self.window.finish().map_err(failed("varve"))
    }

    fn load_sorted(&mut self, entries: &mut Sorted<'_>) -> Result<()> {
        // As large as a batch can be is slower: there are some on their way.
        write_parts(entries, &mut |changes| {
            changes
                .chunks(1000)
                .try_for_each(|changes| self.write(changes))
        })?;
        self.finish()
    }

    fn read(&self, work: &mut Work<'_>) -> Result<()> {
        let view = self.db.view();
        work(&AtRevision { view, revision: 0 })
    }

    fn mark_revision(&mut self) -> bool {
        self.marked = self.db.revision();
        true
    }

    fn read_marked(&self, work: &mut Work<'_>) -> Result<()> {
        let (view, revision) = (self.db.view(), self.marked);
        work(&AtRevision { view, revision })
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.db.checkpoint().map_err(failed("varve"))
    }

    fn compact(&mut self) -> Result<Option<&'static str>> {
        self.db
            .compact(self.db.revision())
            .map_err(failed("varve"))?;
        while self.db.view().compaction_pending() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.db.vacuum().map_err(failed("varve"))?;
        self.checkpoint()?;
        Ok(Some("compaction, vacuum, online"))
    }

    fn check(&self) -> Result<()> {
        self.db.check().map(drop).map_err(failed("varve"))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.close().map_err(failed("varve"))
    }
}

struct AtRevision {
    view: Arc<View>,
    /// 0 for the newest.
    revision: i64,
}

impl Snapshot for AtRevision {
    fn get(&self, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let got = self
            .view
            .get_at(key, self.revision, |kv| found(kv.value))
            .map_err(failed("varve"))?;
        Ok(got.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let mut left = limit;
        let range = KeyRange::From(from);
        let scanned = self
            .view
            .scan(range, self.revision, Direction::Forward, &mut |kv| {
                visit(kv.key, kv.value);
                left -= 1;
                flow(left)
            });
        scanned.map_err(failed("varve"))
    }
}
