//! The copy-on-write B+tree: Varve's own storage engine.
//!
//! One mapped file of 4 KiB pages holds several trees. A batch copies every
//! page that it changes and, when it is *published*, becomes the state that new
//! readers see: no sync. A *checkpoint* makes the newest published state
//! durable: checksums, free map, sync, meta page, sync. Readers hold a state
//! without locks and delay only the recycling of its pages.
//!
//! From the bottom up: [`page`], `slotted`, `search`, `leaf` and `branch` are
//! the format of a page; `pager` and `readers` are the only places with unsafe
//! code, and say who may touch which page when; `bitmap`, `limbo`,
//! `space` and `free_map` know which pages are free; `read`, `sums`, `path`, `prefetch` go down a tree;
//! `write`, `put_all`, `bulk`, `split`, `spill`, `merge`, `delete_range` and `vacuum` change it; `batch`, `snapshot`,
//! `checkpoint`, `open`, `check`, `scrub` and `inspect` are what a user does with a store.
//! `engine/FORMAT.md` has the bytes.

use std::path::Path;
use std::sync::Arc;

use crate::backend::{
    Applied, Backend, Batch, CheckReport, Damage, Result, ScrubStep, Snapshot, Stats, VacuumExtent,
};
use crate::disk::Disk;

mod batch;
mod bitmap;
mod branch;
mod bulk;
mod cells;
mod check;
mod checkpoint;
mod delete_range;
mod free_map;
#[doc(hidden)]
pub mod fuzz;
pub mod inspect;
mod leaf;
mod limbo;
mod merge;
mod meta;
mod open;
pub mod page;
mod pager;
mod pages;
mod path;
mod prefetch;
mod put_all;
mod read;
mod readers;
mod scrub;
mod search;
mod slotted;
mod snapshot;
mod space;
mod spill;
mod split;
mod state;
mod store;
mod sums;
mod vacuum;
mod write;

#[cfg(test)]
mod tests;

pub use open::Options;

/// The name that `--engine` takes.
pub const NAME: &str = "btree";

/// A store. Clones share it.
#[derive(Debug, Clone)]
pub struct Btree {
    shared: Arc<store::Shared>,
}

impl Btree {
    /// Opens the store in the file `path`, or makes one there. What it holds is
    /// as of the last checkpoint.
    ///
    /// # Errors
    ///
    /// The disk's; `Foreign` for another program's file; `Damaged` where
    /// neither meta page, or the free map, can be read.
    pub fn open(disk: &dyn Disk, path: &Path, options: Options) -> Result<Self> {
        let shared = open::open_shared(disk, path, options)?;
        Ok(Self { shared })
    }
}

impl Backend for Btree {
    fn name(&self) -> &'static str {
        NAME
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>> {
        Ok(Arc::new(snapshot::BtreeSnapshot::new(&self.shared)))
    }

    fn begin(&self) -> Result<Box<dyn Batch + '_>> {
        Ok(Box::new(batch::WriteBatch::begin(&self.shared)?))
    }

    fn checkpoint(&self) -> Result<Applied> {
        checkpoint::checkpoint(&self.shared)
    }

    fn durable(&self) -> Applied {
        self.shared.durable().1
    }

    fn wants_checkpoint(&self, has_time: bool) -> bool {
        let is_cold = self.shared.is_cold();
        self.shared.space().wants_checkpoint(has_time, is_cold)
    }

    fn may_wait(&self) -> bool {
        self.shared.is_cold()
    }

    fn wants_vacuum(&self, idle: bool) -> bool {
        self.shared.space().wants_vacuum(idle)
    }

    fn start_vacuum(&self, extent: VacuumExtent) {
        self.shared.recycle_if_idle();
        self.shared.space().start_vacuum(extent);
    }

    fn vacuums(&self) -> bool {
        self.shared.space().vacuums()
    }

    fn stats(&self) -> Stats {
        self.shared.stats()
    }

    fn check(&self) -> Result<CheckReport> {
        check::check(&self.shared)
    }

    fn scrub_step(&self, budget_bytes: u64) -> ScrubStep {
        scrub::step(&self.shared, budget_bytes)
    }

    fn damage(&self) -> Damage {
        self.shared.pager().damage_log().damage()
    }
}
