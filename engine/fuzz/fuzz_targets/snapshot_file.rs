//! Snapshot files from any bytes, as they come and with checksums put right: no
//! panic, and verifying says what loading says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_engine::mvcc::fuzz::{read_snapshot, repair};

fuzz_target!(|data: &[u8]| {
    read_snapshot(data);
    read_snapshot(&repair(data));
});
