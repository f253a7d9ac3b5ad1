//! Answers of writes that return data: what a client asks for at one time does
//! not decide how much memory the node takes.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use common::{Cluster, wait_until};
use varve_protocol::{Decoder, Flags, OwnedFrame, Request, decode_reply, encode_frame};
use varve_types::{
    PutRequest, PutResponse, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};

struct Raw {
    stream: TcpStream,
    decoder: Decoder,
    buffer: BytesMut,
}

impl Raw {
    fn connect(node: &Cluster) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", node.members[0].client_port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self {
            stream,
            decoder: Decoder::new(64 << 20),
            buffer: BytesMut::new(),
        }
    }

    /// Sends all in one write, numbered from 0.
    fn send<'a>(&mut self, requests: impl Iterator<Item = Request<'a>>) {
        let mut out = Vec::new();
        for (id, request) in (0..).zip(requests) {
            encode_frame(&mut out, request.opcode(), Flags::NONE, id, |out| {
                request.encode(out)
            });
        }
        self.stream.write_all(&out).unwrap();
    }

    /// The next answer's request id and body, joined from its frames.
    fn next(&mut self) -> (u64, Vec<u8>) {
        let mut body = Vec::new();
        loop {
            let frame = self.frame();
            body.extend_from_slice(&frame.body);
            if !frame.header.flags.has(Flags::MORE) {
                return (frame.header.request_id, body);
            }
        }
    }

    fn frame(&mut self) -> OwnedFrame {
        let mut bytes = vec![0; 1 << 20];
        loop {
            if let Some(frame) = self.decoder.next_owned(&mut self.buffer).unwrap() {
                assert!(!frame.header.flags.has(Flags::ERROR), "{frame:?}");
                return frame;
            }
            let count = self.stream.read(&mut bytes).unwrap();
            assert!(count > 0, "the connection ended");
            self.buffer.extend_from_slice(&bytes[..count]);
        }
    }
}

#[test]
fn large_answers_asked_for_at_one_time_are_made_one_after_the_other() {
    const KEYS: usize = 16;
    const VALUE: usize = 1 << 20;
    const TXNS: u64 = 40;
    let node = Cluster::start(1, &["--disk", "psync"]);
    let member = &node.members[0];
    let mut raw = Raw::connect(&node);
    let value = vec![b'v'; VALUE];
    let names: Vec<_> = (0..KEYS).map(|number| format!("k{number:02}")).collect();
    raw.send(names.iter().map(|name| {
        Request::Put(PutRequest {
            key: name.as_bytes(),
            value: &value,
            ..PutRequest::default()
        })
    }));
    for _ in 0..KEYS {
        raw.next();
    }
    let proposals = member.metric("varve_proposals_total");
    let before = member.anonymous_bytes();
    let range = RangeRequest {
        key: b"k",
        range_end: b"l",
        ..RangeRequest::default()
    };
    let put = PutRequest {
        key: b"other",
        ..PutRequest::default()
    };
    let txn = TxnRequest {
        success: vec![RequestOp::Put(put), RequestOp::Range(range)],
        ..TxnRequest::default()
    };
    raw.send((0..TXNS).map(|_| Request::Txn(txn.clone())));
    wait_until("an answer", || {
        member.metric("varve_proposals_total") > proposals
    });
    // Nothing is read: all that is made now waits in the node's memory.
    let mut most = 0;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(50));
        most = most.max(member.anonymous_bytes().saturating_sub(before));
    }
    assert!(most < 8 * KEYS * VALUE, "{} MiB are held", most >> 20);
    for id in 0..TXNS {
        let (found, body) = raw.next();
        assert_eq!(found, id);
        let (_, reply) = decode_reply::<TxnResponse>(&body).unwrap();
        let [ResponseOp::Put(_), ResponseOp::Range(range)] = &reply.responses[..] else {
            panic!("{reply:?}");
        };
        assert_eq!((range.kvs.len(), range.more), (KEYS, false));
        assert!(range.kvs.iter().all(|kv| kv.value == value));
    }
    let made = member.metric("varve_proposals_total") - proposals;
    assert_eq!(made as u64, TXNS, "each answer may be as large as any");
}

#[test]
fn a_pause_for_small_answers_loses_no_request() {
    let node = Cluster::start(1, &[]);
    let mut raw = Raw::connect(&node);
    let values: Vec<_> = (0..300).map(|number| format!("value {number}")).collect();
    raw.send(values.iter().map(|value| {
        Request::Put(PutRequest {
            key: b"same",
            value: value.as_bytes(),
            prev_kv: true,
            ..PutRequest::default()
        })
    }));
    let mut before: Option<&String> = None;
    for (id, value) in (0..).zip(&values) {
        let (found, body) = raw.next();
        assert_eq!(found, id);
        let (_, reply) = decode_reply::<PutResponse>(&body).unwrap();
        let previous = reply.prev_kv.map(|kv| String::from_utf8(kv.value).unwrap());
        assert_eq!(previous.as_ref(), before);
        before = Some(value);
    }
    let made = node.members[0].metric("varve_proposals_total");
    assert!(made > 5.0, "only {made} proposals");
}
