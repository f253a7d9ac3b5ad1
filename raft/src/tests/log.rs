//! The log as raft-rs sees it.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry};
use raft::{Error, GetEntriesContext, Storage, StorageError};
use varve_engine::disk::SimDisk;
use varve_engine::wal::{Group, Wal};

use super::wal;
use crate::log::{self, RaftLog};
use crate::record;

fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index,
        term,
        data: Bytes::from(vec![index as u8; 100]),
        ..Entry::default()
    }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term)).collect()
}

/// Appends, and makes durable.
fn write(log: &mut RaftLog, wal: &mut Wal, entries: &[Entry]) {
    log.append(entries);
    let mut group = Group::new();
    let offsets: Vec<u64> = entries
        .iter()
        .map(|entry| record::push_entry(&mut group, entry).unwrap())
        .collect();
    let committed = wal.commit(&mut group).unwrap();
    for (entry, offset) in entries.iter().zip(offsets) {
        log.set_durable(entry.index, entry.term, committed.first_lsn + offset);
    }
}

fn read(log: &RaftLog, low: u64, high: u64, max: Option<u64>) -> raft::Result<Vec<u64>> {
    let entries = log.entries(low, high, max, GetEntriesContext::empty(false))?;
    for entry in &entries {
        assert!(entry.data.iter().all(|byte| *byte == entry.index as u8));
    }
    Ok(entries.iter().map(|entry| entry.index).collect())
}

/// The log after entry 10 of term 2, with a cache of about three entries.
fn open() -> (RaftLog, Wal) {
    let wal = wal(&SimDisk::new());
    (RaftLog::new((10, 2), 500, wal.reader()), wal)
}

#[test]
fn bounds_and_terms() {
    let (mut log, mut wal) = open();
    assert_eq!((log.first_index(), log.last_index()), (Ok(11), Ok(10)));
    assert_eq!(log.term(10), Ok(2));
    write(&mut log, &mut wal, &entries(11..=15, 3));
    assert_eq!((log.first_index(), log.last_index()), (Ok(11), Ok(15)));
    assert_eq!(log.term(15), Ok(3));
    assert_eq!(log.term(9), Err(Error::Store(StorageError::Compacted)));
    assert_eq!(log.term(16), Err(Error::Store(StorageError::Unavailable)));
    assert_eq!(
        read(&log, 10, 12, None),
        Err(Error::Store(StorageError::Compacted))
    );
    assert_eq!(
        read(&log, 11, 17, None),
        Err(Error::Store(StorageError::Unavailable))
    );
}

#[test]
fn at_least_one_entry_whatever_the_limit() {
    let (mut log, mut wal) = open();
    write(&mut log, &mut wal, &entries(11..=15, 3));
    assert_eq!(read(&log, 11, 16, None).unwrap(), [11, 12, 13, 14, 15]);
    for low in 11..=15 {
        assert_eq!(read(&log, low, 16, Some(0)).unwrap(), [low]);
    }
    assert_eq!(read(&log, 11, 16, Some(400)).unwrap(), [11, 12]);
}

#[test]
fn what_left_the_cache_is_read_back() {
    let (mut log, mut wal) = open();
    write(&mut log, &mut wal, &entries(11..=30, 3));
    log.set_handed(30);
    // Across the edge between disk and cache, and on either side of it.
    for (low, high) in [(11, 31), (11, 13), (27, 30), (30, 31)] {
        let expected: Vec<u64> = (low..high).collect();
        assert_eq!(read(&log, low, high, None).unwrap(), expected);
    }
    assert_eq!(read(&log, 11, 31, Some(350)).unwrap(), [11, 12]);
}

#[test]
fn what_is_not_durable_or_not_handed_out_stays_in_memory() {
    let (mut log, mut wal) = open();
    log.append(&entries(11..=30, 3));
    log.set_handed(30);
    assert_eq!(
        read(&log, 11, 31, None).unwrap().len(),
        20,
        "nothing is on disk to read back"
    );
    let (mut log2, _) = open();
    write(&mut log2, &mut wal, &entries(11..=30, 3));
    drop(wal);
    assert_eq!(read(&log2, 11, 31, None).unwrap().len(), 20);
}

#[test]
fn a_conflicting_entry_voids_the_rest() {
    let (mut log, mut wal) = open();
    write(&mut log, &mut wal, &entries(11..=15, 3));
    let old = log.slot(13).unwrap();
    log.append(&entries(13..=13, 4));
    assert_eq!(log.last_index(), Ok(13));
    assert_eq!(log.slot(13).unwrap().lsn, 0);
    // The record of the voided entry completes late.
    log.set_durable(13, 3, old.lsn);
    assert_eq!(log.slot(13).unwrap().lsn, 0);
    log.set_durable(13, 4, 99_999);
    assert_eq!(log.slot(13).unwrap().lsn, 99_999);
    assert_eq!(read(&log, 11, 14, None).unwrap(), [11, 12, 13]);
}

#[test]
fn compaction_and_reset() {
    let (mut log, mut wal) = open();
    write(&mut log, &mut wal, &entries(11..=20, 3));
    log.compact(14);
    assert_eq!(
        (log.first(), log.last(), log.term_at(14)),
        (15, 20, Some(3))
    );
    assert_eq!(log.term_at(13), None);
    log.compact(13);
    assert_eq!(log.first(), 15, "it only goes forward");
    assert_eq!(read(&log, 15, 21, None).unwrap().len(), 6);
    log.compact(20);
    assert_eq!(
        (log.first(), log.last(), log.term_at(20)),
        (21, 20, Some(3))
    );
    log.reset(50, 7);
    assert_eq!(
        (log.first(), log.last(), log.term_at(50)),
        (51, 50, Some(7))
    );
    write(&mut log, &mut wal, &entries(51..=52, 8));
    assert_eq!(read(&log, 51, 53, None).unwrap(), [51, 52]);
}

#[test]
fn bytes_decide_how_much_is_kept() {
    let (mut log, mut wal) = open();
    write(&mut log, &mut wal, &entries(11..=20, 3));
    assert_eq!(log.index_with_bytes(20, u64::MAX), 10);
    assert_eq!(log.index_with_bytes(20, 0), 20);
    assert_eq!(log.index_with_bytes(20, 400), 18);
}

#[test]
fn followers_that_lag_wait_for_a_fetch() {
    let (mut log, mut wal) = open();
    write(&mut log, &mut wal, &entries(11..=30, 3));
    log.set_handed(30);
    let waits = Err(Error::Store(StorageError::LogTemporarilyUnavailable));
    assert_eq!(
        log.entries(12, 31, 400, GetEntriesContext::empty(true)),
        waits
    );
    assert_eq!(
        log.entries(12, 31, 400, GetEntriesContext::empty(true)),
        waits
    );
    let fetches = log.take_fetches();
    assert_eq!(fetches.len(), 1, "one is enough for both");
    assert_eq!(fetches[0].positions.len(), 2, "as far as the limit goes");
    let fetched: Vec<Entry> = (fetches[0].low..)
        .zip(&fetches[0].positions)
        .map(|(index, lsn)| log::read_entry(&wal.reader(), *lsn, index).unwrap())
        .collect();
    assert!(log.fetched(12, fetched.clone()).is_some());
    let entries = log
        .entries(12, 31, 400, GetEntriesContext::empty(true))
        .unwrap();
    assert_eq!(entries, fetched);
    // What was voided meanwhile, or could not be read, is not used.
    for answer in [vec![], vec![entry(12, 2)]] {
        assert_eq!(
            log.entries(12, 31, 400, GetEntriesContext::empty(true)),
            waits
        );
        assert_eq!(log.take_fetches().len(), 1);
        assert!(log.fetched(12, answer).is_none());
    }
}

#[test]
fn a_snapshot_is_of_what_is_applied() {
    let (mut log, mut wal) = open();
    let unavailable = Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
    assert_eq!(log.snapshot(0, 1), unavailable);
    write(&mut log, &mut wal, &entries(11..=20, 3));
    let conf_state = ConfState::from((vec![1, 2], vec![]));
    log.set_applied(15, conf_state.clone());
    let snapshot = log.snapshot(0, 1).unwrap();
    assert_eq!(snapshot.get_metadata().index, 15);
    assert_eq!(snapshot.get_metadata().term, 3);
    assert_eq!(*snapshot.get_metadata().get_conf_state(), conf_state);
    assert_eq!(log.snapshot(16, 1), unavailable);
}
