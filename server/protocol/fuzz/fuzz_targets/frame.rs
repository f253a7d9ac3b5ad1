//! Arbitrary bytes as a stream of frames, and as the body of every message: no panic, nothing
//! buffered over the limit, and what is read encodes to the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use varve_protocol::fuzz::{decode_body, decode_stream, repair};

fuzz_target!(|data: &[u8]| {
    decode_stream(data);
    decode_stream(&repair(data));
    if let Some((opcode, body)) = data.split_first() {
        decode_body(*opcode, body);
    }
});
