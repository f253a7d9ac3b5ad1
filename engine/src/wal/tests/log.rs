//! What a log does when nothing goes wrong.

use super::*;

#[test]
fn what_was_committed_is_read_back() {
    let disk = SimDisk::new();
    let (mut wal, recovered, _) = open(&disk).unwrap();
    assert_eq!(
        (recovered.case, recovered.start_lsn),
        (Case::New, FIRST_LSN)
    );
    let mut expected = Vec::new();
    let mut group = Group::new();
    for round in 0..50u8 {
        group.clear();
        let mut offsets = Vec::new();
        for part in 0..=round % 5 {
            let kind = 1 + part;
            let payload = vec![round; usize::from(part) * 700 + 1];
            let offset = group.push(kind, &[&payload[..1], &payload[1..]]).unwrap();
            offsets.push((offset, kind, payload));
        }
        let committed = wal.commit(&mut group).unwrap();
        expected.extend(
            offsets
                .into_iter()
                .map(|(o, k, p)| (committed.first_lsn + o, k, p)),
        );
        assert_eq!(committed.end_lsn, wal.next_lsn());
    }
    check_reader(&wal, &expected);
    assert!(
        wal.stats()
            .rotations
            .load(std::sync::atomic::Ordering::Relaxed)
            > 3
    );
    drop(wal);
    let (wal, recovered, records) = open(&disk).unwrap();
    assert_eq!(records, expected);
    assert!(recovered.half_prepared && recovered.truncated_bytes == 0);
    check_reader(&wal, &expected);
    let middle = expected[3].0 + 8;
    assert!(matches!(
        wal.reader().read(middle),
        Err(WalError::DamagedRecord { .. })
    ));
    let past = wal.next_lsn();
    assert!(matches!(
        wal.reader().read(past),
        Err(WalError::OutOfRange { .. })
    ));
    assert!(matches!(
        wal.reader().read(0),
        Err(WalError::OutOfRange { .. })
    ));
}

#[test]
fn released_segments_go_and_are_used_again() {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    let mut at = Vec::new();
    for round in 0..60u8 {
        at.push(commit(&mut wal, &[&[round; 5000]]).first_lsn);
        if round >= 20 {
            wal.release(at[usize::from(round) - 20]);
        }
    }
    let names = disk.list(dir()).unwrap();
    assert!(names.len() <= 8, "{names:?}");
    assert!(
        wal.reader()
            .read(at[0])
            .unwrap_err()
            .to_string()
            .contains("no record at lsn 4096")
    );
    assert_eq!(wal.reader().read(at[45]).unwrap().1, [45; 5000]);
    drop(wal);
    let (wal, recovered, records) = open(&disk).unwrap();
    assert_eq!(records.last().unwrap().2, [59; 5000]);
    assert!(recovered.start_lsn > FIRST_LSN && recovered.start_lsn <= at[39]);
    assert_eq!(
        wal.reader().range(),
        (recovered.start_lsn, recovered.end_lsn)
    );
}

#[test]
fn large_records_get_a_larger_segment_and_too_large_ones_an_error() {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    let large = vec![7; 2 << 20];
    commit(&mut wal, &[b"before"]);
    let lsn = commit(&mut wal, &[&large]).first_lsn;
    commit(&mut wal, &[b"after"]);
    assert_eq!(wal.reader().read(lsn).unwrap().1, large);
    let mut group = Group::new();
    let error = group
        .push(1, &[&vec![0; MAX_PAYLOAD_BYTES + 1]])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "log: record of 4194305 bytes is over the limit of 4194304"
    );
    group.push(1, &[&vec![0; MAX_PAYLOAD_BYTES]]).unwrap();
    let error = group.push(1, &[&vec![0; MAX_PAYLOAD_BYTES]]).unwrap_err();
    assert!(matches!(error, WalError::TooLarge { what: "group", .. }));
    assert_eq!(group.records(), 1);
    wal.commit(&mut group).unwrap();
    drop(wal);
    let (_, _, records) = open(&disk).unwrap();
    assert_eq!(records.len(), 4);
    assert_eq!(records[1].2, large);
}

#[test]
fn an_empty_group_costs_nothing() {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    let before = disk.sync_count();
    let committed = wal.commit(&mut Group::new()).unwrap();
    assert_eq!(
        (committed.first_lsn, committed.end_lsn),
        (FIRST_LSN, FIRST_LSN)
    );
    wal.sync_mark().unwrap();
    assert_eq!(disk.sync_count(), before, "nothing to mark in a new log");
    commit(&mut wal, &[b"x"]);
    wal.sync_mark().unwrap();
    wal.sync_mark().unwrap();
    assert_eq!(disk.sync_count(), before + 2, "one commit, one mark");
}

#[test]
fn works_on_real_files() {
    for name in crate::disk::NAMES {
        let opened = crate::disk::by_name(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = WalConfig {
            segment_bytes: 1 << 20,
            prepare_in_background: true,
            ..config()
        };
        let mut expected = Vec::new();
        for round in 0..2 {
            let mut records = Vec::new();
            let (mut wal, _) = Wal::open(
                opened.disk.clone(),
                &dir.path().join("wal"),
                config.clone(),
                IDENTITY,
                &mut |lsn, kind, payload| records.push((lsn, kind, payload.to_vec())),
            )
            .unwrap();
            assert_eq!(records, expected, "round {round}");
            for number in 0..60u8 {
                let payload = vec![number; 50_000];
                expected.push((commit(&mut wal, &[&payload]).first_lsn, 1, payload));
            }
            check_reader(&wal, &expected);
            let keep = expected.len() / 2;
            wal.release(expected[keep].0);
            let start = wal.reader().range().0;
            expected.retain(|(lsn, ..)| *lsn >= start);
        }
    }
}
