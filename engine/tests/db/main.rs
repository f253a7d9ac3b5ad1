//! The embedded database: what is acknowledged is there after an open, whatever
//! ended the process; what belongs apart is refused; writers share syncs;
//! readers keep their revision; log and memory are bounded.

use std::path::Path;
use std::sync::Arc;

use varve_engine::db::{Db, DbError, Kv, Options};
use varve_engine::disk::{Disk, SimDisk};
use varve_engine::wal::WalConfig;
use varve_engine::{backend, btree};

mod bounds;
mod crash;
#[path = "../hooked/mod.rs"]
mod hooked;
mod load;
mod reads;
mod refusals;
mod reopen;
mod slow;
mod writers;

fn dir() -> &'static Path {
    Path::new("/data")
}

fn wal_dir() -> &'static Path {
    Path::new("/data/wal")
}

/// Small enough for many stores and many segments.
fn options() -> Options {
    Options {
        backend: backend::Options {
            btree: btree::Options { map_bytes: 1 << 28 },
            ..backend::Options::default()
        },
        wal: WalConfig {
            segment_bytes: 16 * 4096,
            spare_segments: 1,
            prepare_in_background: false,
        },
        ..Options::default()
    }
}

fn db_on(disk: &SimDisk) -> Result<Db, DbError> {
    db_with(disk, options())
}

fn db_with(disk: &SimDisk, options: Options) -> Result<Db, DbError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Db::open_on(&disk, dir(), options)
}

fn kv_on(disk: &SimDisk) -> Result<Kv, DbError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Kv::open_on(&disk, dir(), options())
}

fn value(db: &Db, key: &[u8]) -> Option<Vec<u8>> {
    db.get(key).unwrap().map(|kv| kv.value)
}
