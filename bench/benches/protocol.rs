//! Encoding and decoding of the frames of one pipelined read: 64 puts, and the
//! replies to 64 gets.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::{Random, random_keys, value};
use varve_protocol::{
    Decoder, Flags, Frame, Request, Step, decode_reply, encode_frame, encode_get_reply, opcode,
};
use varve_types::{KeyValueRef, PutRequest, RangeResponse, ResponseHeader};

const FRAMES: u64 = 64;

fn encode_puts(out: &mut Vec<u8>, keys: &[[u8; 19]], value: &[u8]) {
    for (id, key) in keys.iter().enumerate() {
        let put = PutRequest {
            key,
            value,
            ..PutRequest::default()
        };
        encode_frame(out, opcode::PUT, Flags::NONE, id as u64, |out| {
            put.encode(out)
        });
    }
}

fn encode_gets(out: &mut Vec<u8>, keys: &[[u8; 19]], value: &[u8]) {
    let header = ResponseHeader::default();
    for (id, key) in keys.iter().enumerate() {
        let kv = KeyValueRef {
            key,
            value,
            mod_revision: 7,
            ..KeyValueRef::default()
        };
        encode_get_reply(out, id as u64, &header, Some(kv));
    }
}

fn each_frame(mut bytes: &[u8], mut take: impl FnMut(Frame<'_>)) {
    let mut decoder = Decoder::new(1 << 20);
    while let Step::Frame(frame, used) = decoder.step(bytes).expect("our own frames") {
        take(frame);
        bytes = &bytes[used..];
    }
}

fn bench_frames(criterion: &mut Criterion) {
    let keys = random_keys(FRAMES as usize);
    let value = value(&mut Random(1));
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    encode_puts(&mut puts, &keys, &value);
    encode_gets(&mut gets, &keys, &value);

    let mut group = criterion.benchmark_group("protocol");
    group.throughput(Throughput::Elements(FRAMES));
    let mut out = Vec::with_capacity(puts.len().max(gets.len()));
    group.bench_function("encode-put", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_puts(&mut out, &keys, &value);
            black_box(out.len());
        });
    });
    group.bench_function("decode-put", |bencher| {
        bencher.iter(|| {
            each_frame(&puts, |frame| {
                black_box(Request::from_frame(&frame).expect("a put"));
            });
        });
    });
    group.bench_function("encode-get-reply", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_gets(&mut out, &keys, &value);
            black_box(out.len());
        });
    });
    group.bench_function("decode-get-reply", |bencher| {
        bencher.iter(|| {
            each_frame(&gets, |frame| {
                let reply = decode_reply::<RangeResponse>(frame.body);
                black_box(reply.expect("a range response"));
            });
        });
    });
}

criterion_group!(benches, bench_frames);
criterion_main!(benches);
