//! The B+tree against crashes, faults, damage and readers beside the writer.

use std::path::Path;

use varve_engine::backend::conformance::Traits;
use varve_engine::backend::{Backend, Result};
use varve_engine::btree::page::MAX_KEY_BYTES;
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::{Disk, SimDisk};

mod bulk;
mod cold;
mod crash;
mod damage;
mod faults;
#[path = "../hooked/mod.rs"]
mod hooked;
mod inline;
mod inspect;
mod put_all;
mod readers;
mod scrub;
mod vacuum;

const TRAITS: Traits = Traits {
    durable: true,
    max_key_bytes: MAX_KEY_BYTES,
};

fn path() -> &'static Path {
    Path::new("/data/store")
}

fn new_disk(recording: bool) -> SimDisk {
    let disk = if recording {
        SimDisk::recording()
    } else {
        SimDisk::new()
    };
    let dir = path().parent().expect("a directory");
    disk.create_dir(dir).expect("a directory can be made");
    disk.sync_dir(Path::new("/"))
        .expect("directories can be synced");
    disk
}

/// Opens the store with a small reservation: tests hold many.
fn open(disk: &SimDisk) -> Result<Btree> {
    let options = Options { map_bytes: 1 << 28 };
    Btree::open(disk, path(), options)
}

/// The integrity check that ends every test.
fn check(store: &dyn Backend) {
    store.check().expect("the store passes its integrity check");
}
