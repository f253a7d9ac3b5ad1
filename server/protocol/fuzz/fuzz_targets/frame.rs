//! Decodes arbitrary bytes as a stream of frames:
//! `cargo fuzz run frame -- -max_total_time=60`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    varve_protocol::fuzz::decode_stream(input);
    if let Some((opcode, body)) = input.split_first() {
        varve_protocol::fuzz::decode_body(*opcode, body);
    }
});
