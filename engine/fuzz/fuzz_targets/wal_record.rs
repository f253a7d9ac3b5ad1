//! The log's decoders on any bytes: no panic, and what they call whole is whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_engine::wal::record::{GroupScan, MAX_GROUP_BYTES, decode_group, decode_record};

fuzz_target!(|data: &[u8]| {
    // The position is part of the input; a record that names itself gets that far.
    let lsn = data.get(8..16).map_or(4096, |field| {
        u64::from_le_bytes(field.try_into().expect("eight bytes"))
    });
    if let Ok((header, payload)) = decode_record(data, lsn) {
        assert_eq!(header.length as usize, payload.len());
        assert!(header.lsn == lsn && header.durable_lsn <= lsn);
    }
    match decode_group(data, lsn, None) {
        GroupScan::Whole(whole) => assert!(whole.bytes <= MAX_GROUP_BYTES),
        GroupScan::Bad(bad) => assert!(bad.offset <= data.len()),
        GroupScan::NeedMore => assert!(data.len() < MAX_GROUP_BYTES + 64),
    }
});
