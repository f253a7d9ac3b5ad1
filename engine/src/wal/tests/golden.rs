//! The exact bytes on disk, as made by another program from the page of the format.

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn bytes_of_segment_header_and_records() {
    let disk = SimDisk::new();
    let (mut wal, _, _) = open(&disk).unwrap();
    let mut group = Group::new();
    group.push(1, &[b"hello"]).unwrap();
    group.push(0xEF, &[b"12345678"]).unwrap();
    wal.commit(&mut group).unwrap();
    wal.sync_mark().unwrap();
    let mut bytes = vec![0; 3 * 4096];
    file(&disk, &segment(1))
        .read_exact_at(&mut bytes, 0)
        .unwrap();
    let header = "564152564557414c010000000000000001000000000000000010000000000000c100000000000000310000000000000000000000baa095cc";
    assert_eq!(hex(&bytes[..56]), header);
    assert!(bytes[56..4096].iter().all(|byte| *byte == 0));
    let first = "0500000001000000001000000000000000100000000000000000000003843a1768656c6c6f000000";
    assert_eq!(hex(&bytes[4096..4096 + 40]), first);
    let second = "08000000ef0100002810000000000000001000000000000003843a17363ad7bd3132333435363738";
    assert_eq!(hex(&bytes[4096 + 40..4096 + 80]), second);
    assert!(bytes[4096 + 80..8192].iter().all(|byte| *byte == 0));
    let mark = "00000000fe01000000200000000000000020000000000000363ad7bd094ab6f6";
    assert_eq!(hex(&bytes[8192..8192 + 32]), mark);
}
