//! Tests of the log, on the simulated disk unless they say otherwise.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::disk::sim::Rng;
use crate::disk::{Disk, File, OpenMode, SimDisk};

mod cases;
mod committer;
mod crash;
mod faults;
mod golden;
mod inspect;
mod log;
mod mutation;
mod scrub;

pub(super) const IDENTITY: Identity = Identity {
    cluster_id: 0xC1,
    member_id: 0x31,
};

/// A segment of 16 blocks: header, 14 of records, seal.
pub(super) const SEGMENT_BYTES: u64 = 16 * 4096;

pub(super) fn dir() -> &'static Path {
    Path::new("/data/wal")
}

pub(super) fn config() -> WalConfig {
    WalConfig {
        segment_bytes: SEGMENT_BYTES,
        spare_segments: 1,
        prepare_in_background: false,
    }
}

/// A record as read back.
pub(super) type Record = (Lsn, u8, Vec<u8>);

/// Opens the log; the records that it holds.
pub(super) fn open(disk: &SimDisk) -> Result<(Wal, Recovered, Vec<Record>)> {
    open_as(disk, IDENTITY)
}

pub(super) fn open_as(disk: &SimDisk, identity: Identity) -> Result<(Wal, Recovered, Vec<Record>)> {
    let mut records = Vec::new();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (wal, recovered) = Wal::open(
        disk,
        dir(),
        config(),
        identity,
        &mut |lsn, kind, payload| {
            records.push((lsn, kind, payload.to_vec()));
        },
    )?;
    assert_eq!(recovered.records, records.len() as u64);
    assert_eq!(recovered.end_lsn, wal.next_lsn());
    Ok((wal, recovered, records))
}

/// Commits a group of the payloads, all of kind 1.
pub(super) fn commit(wal: &mut Wal, payloads: &[&[u8]]) -> Committed {
    let mut group = Group::new();
    for payload in payloads {
        group.push(1, &[payload]).unwrap();
    }
    wal.commit(&mut group).unwrap()
}

pub(super) fn segment(number: u64) -> PathBuf {
    segment::segment_path(dir(), number)
}

pub(super) fn file(disk: &SimDisk, path: &Path) -> Arc<dyn File> {
    disk.open(path, OpenMode::Existing).unwrap()
}

/// Reads everything back through a reader too, and compares.
pub(super) fn check_reader(wal: &Wal, records: &[Record]) {
    let reader = wal.reader();
    for (lsn, kind, payload) in records {
        assert_eq!(
            reader.read(*lsn).unwrap(),
            (*kind, payload.clone()),
            "lsn {lsn}"
        );
    }
}
