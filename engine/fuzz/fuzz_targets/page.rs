//! The B+tree's pages and meta pages from any bytes: no panic, and what
//! decodes can be used.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_engine::btree::fuzz::decode;

fuzz_target!(|data: &[u8]| {
    decode(data);
});
