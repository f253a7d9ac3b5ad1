//! Failing disks: the error is named, and the log stops for good.

use super::*;
use crate::disk::sim::{Fault, FaultOn};

fn fault(on: FaultOn, errno: i32) -> Fault {
    Fault {
        on,
        after: 0,
        forever: false,
        path_contains: String::new(),
        errno,
    }
}

fn payload_group(byte: u8) -> Group {
    let mut group = Group::new();
    group.push(1, &[&[byte; 6000]]).unwrap();
    group
}

#[test]
fn a_failed_write_or_sync_latches() {
    let kinds = [
        (FaultOn::Write, libc::EIO, "write", "os error 5"),
        (FaultOn::Write, libc::ENOSPC, "write", "os error 28"),
        (FaultOn::Sync, libc::EIO, "sync", "os error 5"),
        (FaultOn::Sync, libc::ENOSPC, "sync", "os error 28"),
    ];
    for (on, errno, action, what) in kinds {
        let disk = SimDisk::new();
        let (mut wal, ..) = open(&disk).unwrap();
        let kept = commit(&mut wal, &[b"kept"]).first_lsn;
        disk.inject(fault(on, errno));
        let error = wal.commit(&mut payload_group(1)).unwrap_err().to_string();
        let place = format!("{action} /data/wal/0000000000000001.wal at offset 8192");
        assert!(error.contains(&place) && error.contains(what), "{error}");
        // The fault is gone, and still nothing is written: what the failed call left
        // on the platter is not known.
        for _ in 0..2 {
            let again = wal.commit(&mut payload_group(2)).unwrap_err();
            assert!(
                matches!(&again, WalError::Latched(text) if *text == error),
                "{again}"
            );
        }
        assert!(matches!(wal.sync_mark(), Err(WalError::Latched(_))));
        assert_eq!(
            wal.stats()
                .latched
                .load(std::sync::atomic::Ordering::Relaxed),
            1
        );
        assert_eq!(
            wal.reader().read(kept).unwrap().1,
            b"kept",
            "reading goes on"
        );
        drop(wal);
        for seed in 0..20 {
            let (_, _, records) = open(&disk.crash_now(seed)).unwrap();
            assert_eq!(records[0].2, b"kept");
            assert!(records.len() == 1 || records[1].2 == [1; 6000]);
        }
    }
}

/// After a failed sync the cache still shows what the disk does not have, and no
/// later sync writes it. Once recovery has shown a record it must stay.
#[test]
fn what_recovery_shows_after_a_failed_sync_survives_a_power_loss() {
    let disk = SimDisk::new();
    let (mut wal, ..) = open(&disk).unwrap();
    commit(&mut wal, &[b"kept"]);
    disk.inject(fault(FaultOn::Sync, libc::EIO));
    wal.commit(&mut payload_group(1)).unwrap_err();
    drop(wal);
    // The process starts again, the machine does not.
    let (wal, _, shown) = open(&disk).unwrap();
    assert_eq!(shown.len(), 2, "the cache has the failed group");
    drop(wal);
    for seed in 0..20 {
        let (_, _, records) = open(&disk.crash_now(seed)).unwrap();
        assert!(records == shown, "seed {seed}: {} records", records.len());
    }
}

/// As above, whichever sync failed: also those of segments that are made, sealed and
/// used again. What comes after it must survive as well.
#[test]
fn no_failed_sync_hides_anything_from_a_power_loss() {
    for after in 0..60 {
        let disk = SimDisk::new();
        let (mut wal, ..) = open(&disk).unwrap();
        let mut once = fault(FaultOn::Sync, libc::EIO);
        (once.after, once.forever) = (after, true);
        disk.inject(once);
        for byte in 0.. {
            match wal.commit(&mut payload_group(byte)) {
                Ok(committed) => wal.release(committed.first_lsn),
                Err(_) => break,
            }
        }
        drop(wal);
        disk.clear_faults();
        let (mut wal, _, shown) = open(&disk).unwrap();
        for seed in 0..8 {
            let (_, _, records) = open(&disk.crash_now(seed)).unwrap();
            assert!(records == shown, "after {after} syncs, seed {seed}");
        }
        for byte in 0..12 {
            let committed = wal.commit(&mut payload_group(byte)).unwrap();
            wal.release(committed.first_lsn);
            for seed in 0..4 {
                let (_, _, records) = open(&disk.crash_now(seed)).unwrap();
                let last = records.last().map(|record| record.0);
                assert_eq!(
                    last,
                    Some(committed.first_lsn),
                    "after {after}, seed {seed}"
                );
            }
        }
    }
}

fn stat(value: &std::sync::atomic::AtomicU64) -> u64 {
    value.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn a_full_disk_refuses_the_group_and_the_log_goes_on_when_there_is_room() {
    let disk = SimDisk::new();
    let (mut wal, ..) = open(&disk).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let (mut held, mut warned) = (0, 0);
    let error = loop {
        match wal.commit(&mut payload_group(held)) {
            Ok(_) => held += 1,
            Err(error) => break error,
        }
        warned += stat(&wal.stats().low_space);
    };
    assert!(matches!(error, WalError::NoSpace(_)), "{error}");
    let text = error.to_string();
    let place = "allocate /data/wal/0000000000000003.wal at offset 0: No space left on device";
    assert!(text.contains(place), "{text}");
    assert!(
        held >= 13,
        "the prepared segment was used up first: {held} groups"
    );
    assert!(warned >= 1, "it was said before");
    let stats = wal.stats();
    assert_eq!((stat(&stats.prepare_failed), stat(&stats.latched)), (1, 0));
    // Nothing of the segment that did not fit is left.
    assert!(
        !disk
            .list(dir())
            .unwrap()
            .contains(&"0000000000000003.wal".to_owned())
    );
    for _ in 0..3 {
        let again = wal.commit(&mut payload_group(held)).unwrap_err();
        assert!(matches!(again, WalError::NoSpace(_)), "{again}");
    }
    disk.set_capacity(None);
    wal.commit(&mut payload_group(held)).unwrap();
    assert_eq!(
        (stat(&stats.prepare_failed), stat(&stats.low_space)),
        (0, 0)
    );
    drop(wal);
    for seed in 0..20 {
        let (_, _, records) = open(&disk.crash_now(seed)).unwrap();
        let bytes: Vec<_> = records.iter().map(|record| record.2[0]).collect();
        assert_eq!(bytes, (0..=held).collect::<Vec<_>>());
    }
}

/// The disk has no room from the n-th call on, whatever call that is.
#[test]
fn a_disk_that_gets_full_at_any_call_of_preparing_loses_nothing() {
    for on in [FaultOn::Allocate, FaultOn::Write, FaultOn::Sync] {
        let mut hits = 0;
        for after in 0.. {
            let disk = SimDisk::new();
            let (mut wal, ..) = open(&disk).unwrap();
            disk.inject(Fault {
                after,
                forever: true,
                // Not the segments that are part of the log already.
                path_contains: "3.wal".to_owned(),
                ..fault(on, libc::ENOSPC)
            });
            let mut made = 0;
            let refused = (0..30).find_map(|byte| {
                let result = wal.commit(&mut payload_group(byte));
                made += u8::from(result.is_ok());
                result.err()
            });
            let Some(error) = refused else { break };
            if let WalError::NoSpace(_) = error {
                hits += 1;
                disk.clear_faults();
                wal.commit(&mut payload_group(made)).unwrap();
                made += 1;
            } else {
                // The segment was in use: what the disk has of it is not known.
                disk.clear_faults();
                let again = wal.commit(&mut payload_group(made)).unwrap_err();
                assert!(matches!(again, WalError::Latched(_)), "{again}");
            }
            drop(wal);
            for seed in 0..6 {
                let (_, _, records) = open(&disk.crash_now(seed)).unwrap();
                let kept = records.iter().zip(0..made);
                assert!(records.len() >= usize::from(made));
                assert!(kept.into_iter().all(|(record, byte)| record.2[0] == byte));
            }
        }
        assert!(hits > 0, "{on:?} never found a full disk");
    }
}

#[test]
fn a_full_disk_shows_before_the_log_is_full() {
    let disk = SimDisk::new();
    let (mut wal, ..) = open(&disk).unwrap();
    let failed = |wal: &Wal| {
        wal.stats()
            .prepare_failed
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    disk.set_capacity(Some(disk.used_bytes()));
    while wal
        .stats()
        .rotations
        .load(std::sync::atomic::Ordering::Relaxed)
        == 0
    {
        wal.commit(&mut payload_group(1)).unwrap();
    }
    assert_eq!(failed(&wal), 1);
    wal.commit(&mut payload_group(2)).unwrap();
    disk.set_capacity(None);
    wal.commit(&mut payload_group(3)).unwrap();
    assert_eq!(failed(&wal), 0, "tried again, and space was back");
}

#[test]
fn a_failed_read_is_an_error_and_changes_nothing() {
    let disk = SimDisk::new();
    let (mut wal, ..) = open(&disk).unwrap();
    let lsn = commit(&mut wal, &[b"x"]).first_lsn;
    disk.inject(fault(FaultOn::Read, libc::EIO));
    let error = wal.reader().read(lsn).unwrap_err();
    assert!(matches!(error, WalError::Disk(_)), "{error}");
    assert_eq!(wal.reader().read(lsn).unwrap().1, b"x");
    drop(wal);
    for after in 0..3 {
        disk.inject(Fault {
            after,
            ..fault(FaultOn::Read, libc::EIO)
        });
        assert!(
            matches!(open(&disk), Err(WalError::Disk(_))),
            "read {after}"
        );
        disk.clear_faults();
    }
    assert_eq!(open(&disk).unwrap().2.len(), 1);
}
