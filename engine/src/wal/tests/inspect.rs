//! Looking at a log: everything that is there, and any bytes give an answer.

use std::ops::ControlFlow;

use super::*;
use crate::wal::inspect::{Item, check, identity, walk};

fn filled() -> (SimDisk, Vec<Record>) {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    let (mut group, mut records) = (Group::new(), Vec::new());
    for round in 0..40u8 {
        group.clear();
        let payload = vec![round; 100 * usize::from(round % 7)];
        let offset = group.push(1 + round % 3, &[&payload]).unwrap();
        let committed = wal.commit(&mut group).unwrap();
        records.push((committed.first_lsn + offset, 1 + round % 3, payload));
    }
    drop(wal);
    (disk, records)
}

/// Everything that a walk meets: records, segments, stops.
fn look(disk: &SimDisk) -> (Vec<Record>, usize, usize) {
    let (mut records, mut segments, mut stops) = (Vec::new(), 0, 0);
    walk(disk, dir(), &mut |item| {
        match item {
            Item::Segment(_) => segments += 1,
            Item::Stop { .. } => stops += 1,
            Item::Record {
                header, payload, ..
            } if header.kind <= MAX_KIND => {
                records.push((header.lsn, header.kind, payload.to_vec()));
            }
            Item::Record { .. } => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    (records, segments, stops)
}

#[test]
fn shows_all_records_and_changes_nothing() {
    let (disk, records) = filled();
    let syncs = disk.sync_count();
    let (found, segments, stops) = look(&disk);
    assert_eq!(found, records);
    assert!(
        segments > 3 && stops == 1,
        "{segments} segments, {stops} ends"
    );
    assert_eq!(identity(&disk, dir()).unwrap(), Some(IDENTITY));
    assert_eq!(disk.sync_count(), syncs);
    let copy = disk.crash_now(1);
    let recovered = check(&copy, dir(), IDENTITY, &mut |_, _, _| {}).unwrap();
    assert_eq!(recovered.records, records.len() as u64);
}

#[test]
fn any_bytes_give_an_answer() {
    let (disk, records) = filled();
    let names: Vec<String> = disk.list(dir()).unwrap();
    let mut random = Rng::new(4);
    let mut fewer = 0;
    for _ in 0..300 {
        let disk = disk.crash_now(1);
        let path = dir().join(&names[random.below(names.len() as u64) as usize]);
        let file = disk.open(&path, OpenMode::Existing).unwrap();
        let length = file.len().unwrap();
        for _ in 0..4 {
            let at = random.below(length);
            let in_header = random.below(3) == 0;
            let at = if in_header { at % 56 } else { at };
            file.write_at(&[random.next_u64() as u8], at).unwrap();
            if in_header {
                // A right checksum lets it through.
                let mut header = [0; 52];
                file.read_exact_at(&mut header, 0).unwrap();
                file.write_at(&crc32c::crc32c(&header).to_le_bytes(), 52)
                    .unwrap();
            }
        }
        if random.below(5) == 0 {
            file.truncate(random.below(length)).unwrap();
        }
        let (found, _, _) = look(&disk);
        assert!(found.len() <= records.len());
        fewer += usize::from(found.len() < records.len());
        let _ = check(&disk, dir(), IDENTITY, &mut |_, _, _| {});
    }
    assert!(fewer > 50, "{fewer}");
}
