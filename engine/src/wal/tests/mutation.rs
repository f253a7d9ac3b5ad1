//! Bytes that are not what was written: seeded changes, and noise. Nothing
//! panics, and no content is made up.

use super::*;
use crate::wal::record::{GroupScan, WholeGroup, decode_group, decode_record};

fn seeds() -> std::ops::Range<u64> {
    let first = std::env::var("VARVE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    first..first + 3000
}

fn valid_group() -> (Vec<u8>, Lsn) {
    let disk = SimDisk::new();
    let (mut wal, ..) = open(&disk).unwrap();
    let first = commit(&mut wal, &[b"one", &[2; 100], b"", &[4; 600]]).first_lsn;
    let mut bytes = vec![0; 4096];
    file(&disk, &segment(1))
        .read_exact_at(&mut bytes, 4096)
        .unwrap();
    (bytes, first)
}

#[test]
fn changed_bytes_are_found() {
    let (bytes, lsn) = valid_group();
    let GroupScan::Whole(WholeGroup { bytes: length, .. }) = decode_group(&bytes, lsn, Some(0))
    else {
        panic!("the group is whole");
    };
    for seed in seeds() {
        let mut rng = Rng::new(seed);
        let mut changed = bytes.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(length as u64) as usize;
            changed[at] ^= 1 << rng.below(8);
        }
        if rng.chance(20) {
            changed.truncate(rng.below(length as u64) as usize);
        }
        let padding = |at: usize| bytes.get(at) == changed.get(at) || !covered(&bytes, at);
        if changed.len() == bytes.len() && (0..length).all(padding) {
            continue;
        }
        let scan = decode_group(&changed, lsn, Some(0));
        assert!(!matches!(scan, GroupScan::Whole(_)), "VARVE_SEED={seed}");
    }
}

/// Whether a checksum covers this byte: all but the padding of the payloads.
fn covered(group: &[u8], at: usize) -> bool {
    record::records_of(group)
        .any(|(offset, _, payload)| (offset..offset + 32 + payload.len()).contains(&at))
}

#[test]
fn noise_is_no_record() {
    for seed in seeds() {
        let mut rng = Rng::new(seed);
        let length = rng.below(200) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.next_u64() as u8).collect();
        let lsn = rng.next_u64();
        if let Some(field) = bytes.get_mut(8..16) {
            // As far as the position goes, it looks right.
            field.copy_from_slice(&lsn.to_le_bytes());
        }
        assert!(decode_record(&bytes, lsn).is_err(), "VARVE_SEED={seed}");
        assert!(!matches!(
            decode_group(&bytes, lsn, None),
            GroupScan::Whole(_)
        ));
    }
}

#[test]
fn a_log_with_changed_bytes_opens_or_says_why_not() {
    let disk = SimDisk::new();
    let (mut wal, ..) = open(&disk).unwrap();
    for n in 0..12u8 {
        commit(&mut wal, &[&[n; 3000], &[n; 3000]]);
    }
    drop(wal);
    let clean = open(&disk.crash_now(1)).unwrap().2;
    for seed in seeds().take(300) {
        let mut rng = Rng::new(seed);
        let changed = disk.crash_now(1);
        for _ in 0..=rng.below(3) {
            let number = 1 + rng.below(3);
            let offset = rng.below(SEGMENT_BYTES);
            changed
                .corrupt(&segment(number), offset, 1 << rng.below(8))
                .unwrap();
        }
        match open(&changed) {
            // Only the last group may be missing: nothing tells it from a torn one.
            Ok((_, _, records)) => {
                assert!(records.len() + 2 >= clean.len(), "VARVE_SEED={seed}");
                assert_eq!(records[..], clean[..records.len()], "VARVE_SEED={seed}");
            }
            Err(WalError::Unrecoverable { case, .. }) => assert!(
                matches!(case, Case::DamagedMiddle | Case::DamagedHeader),
                "VARVE_SEED={seed}: {case:?}"
            ),
            Err(error) => panic!("VARVE_SEED={seed}: {error}"),
        }
    }
}
