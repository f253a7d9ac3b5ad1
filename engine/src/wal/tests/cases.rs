//! One test for each labelled case of recovery.

use super::*;

const BLOCK: u64 = 4096;

/// A log of five groups of two records each, and the positions of the groups.
fn five_groups() -> (SimDisk, Vec<Lsn>) {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    let at = (0..5u8)
        .map(|n| commit(&mut wal, &[&[n; 3000], &[n; 3000]]).first_lsn)
        .collect();
    (disk, at)
}

/// A log of several segments.
fn three_segments() -> SimDisk {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    for n in 0..20u8 {
        commit(&mut wal, &[&[n; 3000], &[n; 3000]]);
    }
    assert!(disk.exists(&segment(3)).unwrap());
    disk
}

/// Every byte of every file, to see that nothing was changed.
fn bytes_of(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let names = disk.list(dir()).unwrap();
    let read = |name: String| {
        let file = file(disk, &dir().join(&name));
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

/// Opens a log that cannot go on; the message.
fn refused(disk: &SimDisk, identity: Identity, expected: Case) -> String {
    let before = bytes_of(disk);
    let error = open_as(disk, identity).unwrap_err();
    assert!(bytes_of(disk) == before, "a file was changed");
    match &error {
        WalError::Unrecoverable { case, .. } => assert_eq!(*case, expected, "{error}"),
        _ => panic!("{error}"),
    }
    error.to_string()
}

fn write(disk: &SimDisk, number: u64, offset: u64, bytes: &[u8]) {
    file(disk, &segment(number))
        .write_at(bytes, offset)
        .unwrap();
}

/// Goes on writing after recovery, and sees that all is there after another.
fn goes_on(disk: &SimDisk, mut expected: Vec<Record>) {
    let (mut wal, _, records) = open(disk).unwrap();
    assert_eq!(records, expected);
    for n in 100..103u8 {
        let committed = commit(&mut wal, &[&[n; 10]]);
        expected.push((committed.first_lsn, 1, vec![n; 10]));
    }
    drop(wal);
    let (wal, recovered, records) = open(disk).unwrap();
    assert_eq!(records, expected);
    assert_eq!(recovered.truncated_bytes, 0);
    check_reader(&wal, &expected);
}

#[test]
fn new() {
    let disk = SimDisk::new();
    let (_, recovered, records) = open(&disk).unwrap();
    assert_eq!(recovered.case, Case::New);
    assert!(records.is_empty() && !recovered.half_prepared);
    let (_, recovered, _) = open(&disk).unwrap();
    assert_eq!(recovered.case, Case::CleanEnd);
    // The power went before the first segment had its header.
    write(&disk, 1, 0, &[0; 100]);
    disk.remove(&segment(2)).unwrap();
    let (_, recovered, records) = open(&disk).unwrap();
    assert_eq!((recovered.case, recovered.half_prepared), (Case::New, true));
    goes_on(&disk, records);
}

#[test]
fn clean_end() {
    let (disk, at) = five_groups();
    let (_, recovered, records) = open(&disk).unwrap();
    assert_eq!((recovered.case, records.len()), (Case::CleanEnd, 10));
    assert_eq!(recovered.end_lsn, at[4] + 2 * BLOCK);
    goes_on(&disk, records);
}

#[test]
fn stale_records() {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    let mut round = 0u8;
    // Until a segment that was used before is in use again, and not yet full.
    while wal
        .stats()
        .rotations
        .load(std::sync::atomic::Ordering::Relaxed)
        < 6
    {
        round += 1;
        let lsn = commit(&mut wal, &[&[round; 3000], &[round; 3000]]).first_lsn;
        wal.release(lsn);
    }
    drop(wal);
    let (_, recovered, records) = open(&disk).unwrap();
    assert_eq!(
        (recovered.case, recovered.truncated_bytes),
        (Case::StaleRecords, 0)
    );
    goes_on(&disk, records);
}

#[test]
fn torn_tail() {
    let (disk, at) = five_groups();
    // The last group's second block and half of its first never arrived.
    write(&disk, 1, at[4] + 1024, &[0; 8192 - 1024]);
    let (wal, recovered, records) = open(&disk).unwrap();
    assert_eq!(
        (recovered.case, recovered.truncated_bytes),
        (Case::TornTail, BLOCK)
    );
    assert_eq!((recovered.end_lsn, records.len()), (at[4], 8));
    drop(wal);
    let mut left = vec![1; 8192];
    file(&disk, &segment(1))
        .read_exact_at(&mut left, at[4])
        .unwrap();
    assert_eq!(left, [0; 8192], "the remains of the cut group are gone");
    goes_on(&disk, records);
}

#[test]
fn torn_group() {
    let (disk, at) = five_groups();
    // Reordered: the second record's end arrived, its middle did not.
    write(&disk, 1, at[4] + 3584, &[0; 512]);
    let (wal, recovered, records) = open(&disk).unwrap();
    assert_eq!((recovered.case, records.len()), (Case::TornGroup, 8));
    assert_eq!(recovered.end_lsn, at[4]);
    drop(wal);
    goes_on(&disk, records);
}

#[test]
fn remains_of_a_cut_group_never_continue_a_later_one() {
    // The same group is written again after the cut, and this time only its first
    // sector arrives: with the remains of the first attempt it would be whole.
    let (disk, at) = five_groups();
    let path = segment(1);
    let mut group = vec![0; 8192];
    file(&disk, &path).read_exact_at(&mut group, at[4]).unwrap();
    write(&disk, 1, at[4], &[0; 512]);
    drop(open(&disk).unwrap());
    write(&disk, 1, at[4], &group[..512]);
    let (_, recovered, records) = open(&disk).unwrap();
    assert_eq!((recovered.case, records.len()), (Case::TornTail, 8));
}

#[test]
fn half_prepared_segment() {
    let disk = three_segments();
    let last = disk.list(dir()).unwrap().len() as u64;
    assert!(disk.exists(&segment(last)).unwrap());
    let (_, recovered, records) = open(&disk).unwrap();
    assert!(recovered.half_prepared);
    assert_eq!(recovered.segments, last - 1);
    // Shorter than it should be, and with a torn header.
    file(&disk, &segment(last)).truncate(300).unwrap();
    write(&disk, last, 0, b"VARVEWAL and nothing of use");
    let (_, recovered, again) = open(&disk).unwrap();
    assert!(recovered.half_prepared);
    assert_eq!(again, records);
    // Sealed, and the power went before the successor had its header.
    let (mut wal, ..) = open(&disk).unwrap();
    let before = wal
        .stats()
        .rotations
        .load(std::sync::atomic::Ordering::Relaxed);
    while wal
        .stats()
        .rotations
        .load(std::sync::atomic::Ordering::Relaxed)
        == before
    {
        commit(&mut wal, &[&[9; 3000]]);
    }
    drop(wal);
    let (_, _, mut records) = open(&disk).unwrap();
    records.pop();
    disk.remove(&segment(last + 1)).unwrap();
    write(&disk, last, 0, &[0; 3 * 4096]);
    goes_on(&disk, records);
}

#[test]
fn damaged_middle() {
    let (clean, at) = five_groups();
    for (offset, xor) in [
        (at[2] + 100, 1),
        (at[2] + 8, 0x80),
        (at[1] + 3050, 0xFF),
        (at[0], 4),
    ] {
        let disk = clean.crash_now(1);
        disk.corrupt(&segment(1), offset, xor).unwrap();
        let message = refused(&disk, IDENTITY, Case::DamagedMiddle);
        assert!(message.contains("of segment 1 is damaged"), "{message}");
        assert!(
            message.contains("are whole. Nothing was changed"),
            "{message}"
        );
    }
    let disk = clean.crash_now(1);
    disk.corrupt(&segment(1), at[2] + 100, 1).unwrap();
    let message = refused(&disk, IDENTITY, Case::DamagedMiddle);
    let expected = format!(
        "log: /data/wal/0000000000000001.wal: record at offset {0} (lsn {0}) of segment 1 is \
         damaged: the checksum does not match. It had been synced; after it 4 records from lsn \
         {1} to {2} are whole. Records before it, up to lsn {0}, are whole. Nothing was changed: \
         set the directory aside and let the member be replaced",
        at[2],
        at[3],
        at[4] + 8192,
    );
    assert_eq!(message, expected);
    // A whole group lost to zeroes.
    write(&clean, 1, at[3], &[0; 8192]);
    refused(&clean, IDENTITY, Case::DamagedMiddle);
    // At the end of a segment that has a successor.
    let disk = three_segments();
    disk.corrupt(&segment(1), 13 * BLOCK + 1, 1).unwrap();
    let message = refused(&disk, IDENTITY, Case::DamagedMiddle);
    assert!(message.contains("segments 2 to 3 follow it"), "{message}");
}

#[test]
fn a_mark_tells_damage_of_the_last_group_from_a_torn_tail() {
    let (disk, at) = five_groups();
    let (mut wal, ..) = open(&disk).unwrap();
    wal.sync_mark().unwrap();
    drop(wal);
    disk.corrupt(&segment(1), at[4] + 100, 1).unwrap();
    refused(&disk, IDENTITY, Case::DamagedMiddle);
}

#[test]
fn damaged_header() {
    let disk = three_segments();
    for number in [1, 2, 3] {
        let disk = disk.crash_now(1);
        disk.corrupt(&segment(number), 20, 1).unwrap();
        refused(&disk, IDENTITY, Case::DamagedHeader);
        // The last one is not taken for one that is being prepared.
        disk.remove(&segment(4)).unwrap();
        let message = refused(&disk, IDENTITY, Case::DamagedHeader);
        assert!(message.contains("the header is damaged"), "{message}");
    }
    // The only one that is left.
    let disk = disk.crash_now(1);
    for number in [1, 2, 4] {
        disk.remove(&segment(number)).unwrap();
    }
    write(&disk, 3, 0, &[0; 4096]);
    refused(&disk, IDENTITY, Case::DamagedHeader);
    // A segment of another log of the same member in place of the second.
    let disk = three_segments();
    let other = SimDisk::new();
    let (mut wal, ..) = open(&other).unwrap();
    for _ in 0..20 {
        commit(&mut wal, &[&[200; 3000], &[200; 3000]]);
    }
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    file(&other, &segment(2))
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    write(&disk, 2, 0, &bytes);
    let message = refused(&disk, IDENTITY, Case::DamagedHeader);
    assert!(
        message.contains("does not follow the one before it"),
        "{message}"
    );
}

#[test]
fn missing_segment() {
    let disk = three_segments();
    let middle = disk.crash_now(1);
    middle.remove(&segment(2)).unwrap();
    let message = refused(&middle, IDENTITY, Case::MissingSegment);
    assert!(message.contains("segment 2 is missing"), "{message}");
    // The last one: its predecessor is sealed and says that there was one.
    disk.remove(&segment(4)).unwrap();
    disk.remove(&segment(3)).unwrap();
    let message = refused(&disk, IDENTITY, Case::MissingSegment);
    assert!(message.contains("segment 3 is missing"), "{message}");
}

#[test]
fn foreign_cluster() {
    let (disk, _) = five_groups();
    let other = Identity {
        cluster_id: 0xBAD,
        ..IDENTITY
    };
    let message = refused(&disk, other, Case::ForeignCluster);
    assert!(
        message.contains("the log of cluster c1, not of bad"),
        "{message}"
    );
}

#[test]
fn foreign_member() {
    let (disk, _) = five_groups();
    let other = Identity {
        member_id: 0xBAD,
        ..IDENTITY
    };
    let message = refused(&disk, other, Case::ForeignMember);
    assert!(
        message.contains("the log of member 31, not of bad"),
        "{message}"
    );
}

fn with_version(version: u32) -> SimDisk {
    let (disk, _) = five_groups();
    let header = segment::SegmentHeader {
        version,
        number: 1,
        base_lsn: FIRST_LSN,
        identity: IDENTITY,
        prev_crc: 0,
    };
    write(&disk, 1, 0, &header.encode());
    disk
}

#[test]
fn older_version() {
    let message = refused(&with_version(0), IDENTITY, Case::OlderVersion);
    assert!(
        message.contains("format 0 is older than this program's 1"),
        "{message}"
    );
}

#[test]
fn newer_version() {
    let message = refused(&with_version(2), IDENTITY, Case::NewerVersion);
    assert!(
        message.contains("format 2 is newer than this program's 1"),
        "{message}"
    );
}
