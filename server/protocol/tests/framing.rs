//! The exact bytes of frames, and what becomes of bytes that are not frames.

use varve_protocol::peer::PeerFrame;
use varve_protocol::{
    Decoder, ErrorCode, Flags, FrameError, HEADER_SIZE, MAGIC, REPLY_CHUNK, RangeWriter, Request,
    RequestError, Step, VERSION, WireError, encode_connection_error, encode_error, encode_frame,
    encode_put_reply, fuzz, opcode,
};
use varve_types::{ApiError, KeyValueRef, PutRequest, ResponseHeader};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put_frame() -> Vec<u8> {
    let mut wire = Vec::new();
    let put = Request::Put(PutRequest {
        key: b"foo",
        value: b"bar",
        ..PutRequest::default()
    });
    encode_frame(&mut wire, put.opcode(), Flags::NONE, 1, |out| {
        put.encode(out)
    });
    wire
}

#[test]
fn golden_put_and_reply() {
    assert_eq!(
        hex(&put_frame()),
        // magic, version, opcode, flags, reserved; request id; length, checksum
        "d656010200000000010000000000000017000000aecce0a0".to_owned()
            // flags, lease, key, value
            + "00" + "0000000000000000" + "03000000666f6f" + "03000000626172"
    );
    let header = ResponseHeader {
        cluster_id: 0xcdf8_1819_4e3a_8c32,
        member_id: 0x8e9e_05c5_2164_694d,
        revision: 2,
        raft_term: 2,
    };
    let mut wire = Vec::new();
    encode_put_reply(&mut wire, 1, &header);
    assert_eq!(
        hex(&wire),
        "d6560102010000000100000000000000210000000478c526".to_owned()
            + "328c3a4e1918f8cd"
            + "4d696421c5059e8e"
            + "0200000000000000"
            + "0200000000000000"
            + "00"
    );
}

#[test]
fn golden_error() {
    let mut wire = Vec::new();
    encode_error(&mut wire, opcode::RANGE, 258, &WireError::compacted(5));
    assert_eq!(
        hex(&wire),
        "d6560101050000000201000000000000440000007abdfb5f".to_owned()
            + "0a00"
            + "0500000000000000"
            + "36000000"
            + &hex(ApiError::Compacted.to_string().as_bytes())
    );
}

#[test]
fn not_http() {
    for start in ["GET ", "POST", "PUT ", "HEAD", "DELETE", "OPTIONS", "PRI *"] {
        assert_ne!(start.as_bytes()[0], MAGIC[0]);
        let error = Decoder::new(100).step(start.as_bytes()).unwrap_err();
        assert!(matches!(error, FrameError::BadMagic { .. }), "{error}");
        assert_eq!(WireError::from(&error).code, ErrorCode::BadFrame);
    }
}

#[test]
fn every_bit_is_guarded() {
    let wire = put_frame();
    for bit in 0..wire.len() * 8 {
        let mut broken = wire.clone();
        broken[bit / 8] ^= 1 << (bit % 8);
        let outcome = Decoder::new(1000)
            .step(&broken)
            .map(|step| format!("{step:?}"));
        match (bit / 8, outcome) {
            (0..2, Err(FrameError::BadMagic { .. })) => {}
            (2, Err(FrameError::UnsupportedVersion { .. })) => {}
            (4..8, Err(FrameError::ReservedBits { .. })) => {}
            // A length that is off by a few bytes asks for more, or for too many.
            (16..20, Ok(step)) => {
                assert!(
                    step.starts_with("NeedMore") || step.starts_with("TooLarge"),
                    "{step}"
                );
            }
            (_, Err(FrameError::BadChecksum { .. })) => {}
            (byte, other) => panic!("bit {} of byte {byte}: {other:?}", bit % 8),
        }
    }
}

#[test]
fn garbage_is_refused_at_the_first_byte() {
    assert_eq!(
        Decoder::new(10).step(b"\x16\x03"),
        Err(FrameError::BadMagic {
            found: [0x16, 0x03]
        })
    );
    assert_eq!(
        Decoder::new(10).step(&[MAGIC[0], MAGIC[1], VERSION + 1]),
        Err(FrameError::UnsupportedVersion {
            version: VERSION + 1
        })
    );
}

#[test]
fn oversized_is_skipped_without_being_buffered() {
    let mut wire = Vec::new();
    encode_frame(&mut wire, opcode::PUT, Flags::NONE, 3, |out| {
        out.extend_from_slice(&[7; 5000]);
    });
    wire.extend(put_frame());
    let mut decoder = Decoder::for_requests(0);
    assert_eq!(decoder.limit(), 512 * 1024);
    decoder = Decoder::new(4999);
    // The header alone is enough to know.
    let Step::TooLarge(header, used) = decoder.step(&wire[..HEADER_SIZE]).unwrap() else {
        panic!("not refused");
    };
    assert_eq!(
        (header.request_id, header.body_length, used),
        (3, 5000, HEADER_SIZE)
    );
    let mut rest = &wire[used..];
    assert_eq!(decoder.step(&[]), Ok(Step::NeedMore(1)));
    assert!(decoder.finish(&[]).is_err());
    assert_eq!(decoder.step(&rest[..3000]), Ok(Step::Skipped(3000)));
    rest = &rest[3000..];
    assert_eq!(decoder.step(rest), Ok(Step::Skipped(2000)));
    rest = &rest[2000..];
    let Step::Frame(frame, used) = decoder.step(rest).unwrap() else {
        panic!("the next frame is lost");
    };
    assert_eq!((frame.header.request_id, used), (1, rest.len()));
    assert_eq!(decoder.finish(&[]), Ok(()));
    let error = FrameError::TooLarge {
        length: 5000,
        limit: 4999,
    };
    assert_eq!(
        WireError::from(&error).api(),
        Some(ApiError::RequestTooLarge)
    );
}

#[test]
fn truncated_streams_are_noticed() {
    let wire = put_frame();
    let decoder = Decoder::new(100);
    assert_eq!(decoder.finish(&[]), Ok(()));
    assert_eq!(
        decoder.finish(&wire[..9]),
        Err(FrameError::Truncated { buffered: 9 })
    );
}

#[test]
fn requests_that_are_none() {
    let decode = |opcode, flags, body: &[u8]| {
        let mut wire = Vec::new();
        encode_frame(&mut wire, opcode, flags, 1, |out| {
            out.extend_from_slice(body)
        });
        let Step::Frame(frame, _) = Decoder::new(100).step(&wire).unwrap() else {
            panic!("not a frame");
        };
        Request::from_frame(&frame).map(|_| ()).unwrap_err()
    };
    assert_eq!(
        decode(200, Flags::NONE, b""),
        RequestError::UnknownOpcode(200)
    );
    // A member's attributes come through the log only.
    assert_eq!(
        decode(varve_types::opcode::MEMBER_ATTRIBUTES, Flags::NONE, b""),
        RequestError::UnknownOpcode(6)
    );
    assert!(matches!(
        decode(opcode::PING, Flags::REPLY, b""),
        RequestError::NotARequest { .. }
    ));
    let malformed = decode(opcode::PUT, Flags::NONE, b"\0");
    assert_eq!(malformed.to_string(), "opcode 2: malformed lease at byte 1");
    assert_eq!(WireError::from(&malformed).code, ErrorCode::MalformedBody);
}

#[test]
fn long_ranges_leave_in_chunks() {
    let value = vec![1; 300_000];
    let mut out = b"before".to_vec();
    let mut writer = RangeWriter::new(&mut out, 4, ResponseHeader::default());
    let mut sent = Vec::new();
    for _ in 0..20 {
        writer.push(KeyValueRef {
            key: b"key",
            value: &value,
            ..KeyValueRef::default()
        });
        // The connection may send what is complete while the rest is being read.
        if writer.complete_bytes() > 0 {
            sent.extend(writer.take_complete());
        }
    }
    writer.finish(20, false);
    assert!(out.len() <= REPLY_CHUNK + 301_000);
    sent.extend(out);
    let mut wire = sent.strip_prefix(b"before").unwrap();
    let (mut frames, mut keys) = (0, 0);
    let mut decoder = Decoder::new(REPLY_CHUNK + 301_000);
    while let Step::Frame(frame, used) = decoder.step(wire).unwrap() {
        frames += 1;
        let (_, range) =
            varve_protocol::decode_reply::<varve_types::RangeResponse>(frame.body).unwrap();
        keys += range.kvs.len();
        wire = &wire[used..];
        assert_eq!(frame.header.flags.has(Flags::MORE), !wire.is_empty());
        assert_eq!(range.count, if wire.is_empty() { 20 } else { 0 });
    }
    assert_eq!((frames, keys), (5, 20));
}

/// A small generator, so that a failure can be run again from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn the_corpus_is_whole() {
    let corpus = fuzz::corpus();
    assert_eq!(fuzz::repair(&corpus), corpus);
    let mut seen = [false; 256];
    let (mut wire, mut frames) = (&corpus[..], 0);
    while let Ok(Step::Frame(frame, used)) = Decoder::new(1 << 16).step(wire) {
        seen[usize::from(frame.header.opcode)] = true;
        wire = &wire[used..];
        frames += 1;
    }
    assert_eq!(fuzz::decode_stream(&corpus), frames);
    // Each frame that there is: add a new one to `fuzz::corpus`.
    for opcode in 0..=255 {
        let is_request = Request::decode(opcode, b"") != Err(RequestError::UnknownOpcode(opcode));
        let is_peer = !matches!(
            PeerFrame::decode(opcode, b""),
            Err(RequestError::UnknownOpcode(_))
        );
        assert_eq!(
            seen[usize::from(opcode)],
            is_request || is_peer,
            "opcode {opcode}"
        );
    }
}

#[test]
fn mutations_never_panic() {
    let mut corpus = put_frame();
    corpus.extend(fuzz::corpus());
    encode_connection_error(&mut corpus, &WireError::from(ApiError::TooManyRequests));
    for seed in 1..=20_000u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = corpus.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let end = (at + random.below(40)).min(bytes.len());
                    bytes.drain(at..end.max(at));
                    bytes.push(0xff);
                }
            }
        }
        let outcome = std::panic::catch_unwind(|| {
            fuzz::decode_stream(&bytes);
            fuzz::decode_stream(&fuzz::repair(&bytes));
        });
        assert!(outcome.is_ok(), "seed {seed}");
        // And the bodies behind broken checksums.
        let body = bytes.get(HEADER_SIZE..).unwrap_or_default();
        for opcode in 0..=140 {
            if seed % 141 == u64::from(opcode) {
                fuzz::decode_body(opcode, body);
            }
        }
    }
}
