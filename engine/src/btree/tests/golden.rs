//! The exact bytes of the format. If one of these fails, the format changed:
//! raise the version in `meta.rs` and say in `FORMAT.md` what is different.

use super::super::branch::Child;
use super::super::leaf::{LongValue, OverflowRef};
use super::super::meta::{Found, Meta};
use super::super::page::{Kind, PAGE_BYTES, Page, decode};
use super::super::state::{Root, State};
use super::{insert, leaf};
use crate::backend::{Applied, Sums};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All bytes of a page: checksum and the rest.
fn bytes_of(page: &Page) -> Vec<u8> {
    let mut bytes = page.stored_checksum().to_le_bytes().to_vec();
    bytes.extend_from_slice(page.span(4..PAGE_BYTES));
    bytes
}

fn sealed(mut page: Page, birth: u64, number: u64) -> Vec<u8> {
    page.identify(birth, number);
    page.seal(page.checksum());
    let bytes = bytes_of(&page);
    decode(&bytes, number).expect("a whole page");
    bytes
}

#[test]
fn leaf_page() {
    let mut page = leaf(b"key/");
    assert!(insert(&mut page, b"key/b", b"two"));
    assert!(insert(&mut page, b"key/abcdef", b""));
    let run = OverflowRef {
        page: 0x0102,
        birth: 0x1121,
        length: 70_000,
    };
    let long = LongValue::payload_of(run, b"ABC");
    let long = LongValue::decode(&long).encode(b"head ");
    page.insert_cell(2, (b"long", b"er"), &long, true);
    let bytes = sealed(page, 0x1122, 0x33);
    let expected = [
        "bcd03bbc",             // checksum
        "01000300cc0f00000400", // leaf, level 0, 3 slots, heap, garbage, prefix of 4
        "0100",                 // flags: overflow below
        "22110000000000003300000000000000",
        "6b65792f",         // the prefix "key/"
        "64636261f20f0600", // head "abcd", cell at 4082, suffix of 6
        "00000062fa0f0100",
        "676e6f6ccc0f0600",
    ];
    assert_eq!(hex(&bytes[..60]), expected.concat());
    let cells = [
        "1e806c6f6e676572", // 30 bytes, and the flag; "longer"
        "02010000000000002111000000000000701101000500",
        "6865616420414243", // "head " before the run, which starts with "ABC"
        "0000616263646566", // no payload, "abcdef"
        "03006274776f",     // 3 bytes, "b", "two"
    ];
    assert_eq!(hex(&bytes[0xfcc..]), cells.concat());
}

#[test]
fn branch_page() {
    let mut page = Page::zeroed();
    page.format(Kind::Branch, 1);
    let child = |page, has_overflow| Child {
        page,
        has_overflow,
        sums: Sums {
            entries: 5,
            bytes: 0x0607,
        },
    };
    page.insert_cell(0, (&[], &[]), &child(8, false).encode(), false);
    page.insert_cell(1, (b"m", &[]), &child(9, true).encode(), false);
    page.note_overflow_below();
    let bytes = sealed(page, 1, 2);
    assert_eq!(hex(&bytes[4..16]), "02010200cb0f000000000100");
    assert_eq!(hex(&bytes[32..48]), "00000000e60f00000000006dcb0f0100");
    let cells = [
        "18006d", // 24 bytes, "m"
        "0900000000000080",
        "0500000000000000",
        "0706000000000000",
        "1800",
        "0800000000000000",
        "0500000000000000",
        "0706000000000000",
    ];
    assert_eq!(hex(&bytes[0xfcb..]), cells.concat());
}

#[test]
fn overflow_page() {
    let mut page = Page::zeroed();
    page.format_run(0x0001_0203);
    page.identify(7, 9);
    assert_eq!(
        hex(&bytes_of(&page)[4..32]),
        "03000000030201000000000007000000000000000900000000000000"
    );
    assert_eq!(page.run_length(), 0x0001_0203);
}

#[test]
fn meta_page() {
    let mut state = State {
        number: 3,
        applied: Applied { term: 4, index: 5 },
        ..State::default()
    };
    state.roots[1] = Root {
        page: 0x10,
        sums: Sums {
            entries: 0x11,
            bytes: 0x12,
        },
    };
    let meta = Meta {
        sequence: 7,
        state,
        end: 64,
        directory: 9,
    };
    let bytes = meta.encode();
    let expected = [
        "5641525645425400", // "VARVEBT\0"
        "02000000",         // version
        "00100000",         // bytes of a page
        "0700000000000000",
        "0300000000000000",
        "04000000000000000500000000000000",
        "4000000000000000",
        "0900000000000000",
        "000000000000000000000000000000000000000000000000", // tree 0
        "100000000000000011000000000000001200000000000000", // tree 1
    ];
    assert_eq!(hex(&bytes[..112]), expected.concat());
    assert_eq!(hex(&bytes[508..512]), "6ded31a8");
    assert!(bytes[512..].iter().all(|byte| *byte == 0));
    assert_eq!(Meta::decode(&bytes, 1), Found::Valid(Box::new(meta)));
    assert!(matches!(Meta::decode(&bytes, 0), Found::Invalid(_)));
}

#[test]
fn meta_pages_of_others_are_told_apart() {
    let mut bytes = Meta::default().encode();
    let seal = |bytes: &mut [u8; PAGE_BYTES]| {
        let crc = crc32c::crc32c(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    };
    assert!(matches!(Meta::decode(&[0; PAGE_BYTES], 0), Found::Blank));
    assert!(matches!(
        Meta::decode(&[b'x'; PAGE_BYTES], 0),
        Found::Foreign(_)
    ));
    bytes[40] ^= 1;
    assert!(matches!(Meta::decode(&bytes, 0), Found::Invalid(_)));
    seal(&mut bytes);
    assert!(matches!(Meta::decode(&bytes, 0), Found::Valid(_)));
    bytes[8] = 3;
    seal(&mut bytes);
    assert!(matches!(Meta::decode(&bytes, 0), Found::Foreign(what) if what.contains("version 3")));
    bytes[8] = 2;
    bytes[13] = 0x20;
    seal(&mut bytes);
    assert!(matches!(Meta::decode(&bytes, 0), Found::Foreign(what) if what.contains("8192")));
}
