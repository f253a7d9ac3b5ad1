//! The scrub finds what rots in a sealed segment, and names it.

use super::*;
use crate::disk::sim::{Fault, FaultOn};

/// A log of some sealed segments.
fn filled(disk: &SimDisk) -> Wal {
    let (mut wal, _, _) = open(disk).unwrap();
    let mut group = Group::new();
    for round in 0..60u8 {
        group.clear();
        group.push(1, &[&vec![round; 3000]]).unwrap();
        wal.commit(&mut group).unwrap();
    }
    assert!(wal.reader().shared.segments().len() > 3);
    wal
}

/// A whole pass in steps of one group: what it found, and bytes read.
fn pass(scrub: &mut LogScrub, log: &WalReader) -> (Vec<String>, u64) {
    let (mut found, mut bytes) = (Vec::new(), 0);
    for _ in 0..1000 {
        let step = scrub.step(log, 1);
        bytes += step.read_bytes;
        found.extend(step.damage.map(|error| error.to_string()));
        if step.is_finished {
            return (found, bytes);
        }
    }
    panic!("the pass does not end");
}

#[test]
fn any_flipped_bit_of_a_sealed_segment_is_found_and_its_file_named() {
    let disk = SimDisk::new();
    let mut wal = filled(&disk);
    let log = wal.reader();
    let mut scrub = LogScrub::default();
    let (found, bytes) = pass(&mut scrub, &log);
    assert_eq!(found, [""; 0]);
    let segments = log.shared.segments();
    let headers = 4096 * (segments.len() as u64 - 1);
    assert_eq!(bytes, log.sealed_bytes() + headers);
    let mut random = Rng::new(1);
    let (mut flips, mut in_header) = (0, 0);
    while flips < 200 {
        let segment = &segments[random.below(segments.len() as u64 - 1) as usize];
        let at = match flips % 8 {
            0 => random.below(56),
            _ => random.below(segment.file_bytes),
        };
        let mut byte = [0];
        segment.file.read_at(&mut byte, at).unwrap();
        // Padding and the end of a header's block mean nothing.
        let block = at % 4096;
        let in_record = block < 32 + 3000 && (4096..4096 * 15).contains(&at);
        let header = at < 56;
        if !in_record && !header {
            continue;
        }
        let xor = 1 << random.below(8);
        disk.corrupt(&segment.path, at, xor).unwrap();
        let (found, _) = pass(&mut scrub, &log);
        let named = segment.path.display().to_string();
        assert!(
            found.len() == 1 && found[0].contains(&named),
            "{at}: {found:?}"
        );
        disk.corrupt(&segment.path, at, xor).unwrap();
        (flips, in_header) = (flips + 1, in_header + u32::from(header));
    }
    assert!(in_header > 0);
    assert_eq!(pass(&mut scrub, &log).0, [""; 0]);
    // What was let go is no concern of it, nor is what the disk cannot read there.
    let first = segments[0].path.clone();
    disk.corrupt(&first, 4100, 1).unwrap();
    wal.release(segments[1].base_lsn);
    assert_eq!(pass(&mut scrub, &log).0, [""; 0]);
    disk.inject(Fault {
        on: FaultOn::Read,
        after: 0,
        forever: false,
        path_contains: segments[1].path.display().to_string(),
        errno: libc::EIO,
    });
    let (found, _) = pass(&mut scrub, &log);
    assert!(found.len() == 1 && found[0].contains("read"), "{found:?}");
}
