//! The client and peer ports under bad input, at the level of bytes: each case is
//! answered with a typed error, and the node goes on.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use common::{Cluster, get, http_get, put};
use varve_protocol::peer::{Channel, PeerFrame, PeerHello, Refusal, encode_hello};
use varve_protocol::{
    Decoder, ErrorCode, Flags, HEADER_SIZE, OwnedFrame, Request, WireError, begin_frame,
    decode_reply, encode_frame, finish_frame, opcode,
};
use varve_types::{
    ApiError, MAX_KEY_BYTES, PutRequest, PutResponse, RangeRequest, RangeResponse, Reader,
    RequestOp, TxnRequest,
};

/// One node for the tests that run at one time: that it survives them all is the
/// point. It goes with the last of them.
fn node() -> Arc<Cluster> {
    static NODE: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut shared = NODE.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let node = Arc::new(Cluster::start(1, &[]));
        *shared = Arc::downgrade(&node);
        node
    })
}

/// The node still works, over both protocols.
async fn assert_serves(node: &Cluster) {
    let client = node.client();
    put(&client, "alive", "yes").await.unwrap();
    assert_eq!(get(&client, "alive").await.as_deref(), Some("yes"));
    assert!(
        http_get(node.members[0].client_port, "/health")
            .0
            .contains(" 200 ")
    );
}

/// A connection that speaks in bytes.
struct Raw {
    stream: TcpStream,
    decoder: Decoder,
    buffer: bytes::BytesMut,
}

impl Raw {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            stream,
            decoder: Decoder::new(64 << 20),
            buffer: bytes::BytesMut::new(),
        }
    }

    fn client(node: &Cluster) -> Self {
        Self::connect(node.members[0].client_port)
    }

    fn peer(node: &Cluster) -> Self {
        Self::connect(node.members[0].peer_port)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn request(&mut self, id: u64, request: &Request<'_>) {
        let mut out = Vec::new();
        encode_frame(&mut out, request.opcode(), Flags::NONE, id, |out| {
            request.encode(out)
        });
        self.send(&out);
    }

    /// The next frame; `None` at the end of the connection.
    fn next(&mut self) -> Option<OwnedFrame> {
        loop {
            if let Some(frame) = self.decoder.next_owned(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn error(&mut self) -> (u64, WireError) {
        let frame = self.next().expect("an error frame");
        assert!(frame.header.flags.has(Flags::ERROR), "{frame:?}");
        let error = WireError::decode(&mut Reader::new(&frame.body)).unwrap();
        (frame.header.request_id, error)
    }

    /// A last frame with this error, and the end of the connection.
    fn assert_closed_with(&mut self, code: ErrorCode) {
        let (_, error) = self.error();
        assert_eq!(error.code, code, "{error}");
        assert_eq!(self.next(), None);
    }

    /// The connection still answers.
    fn assert_serves(&mut self) {
        let range = RangeRequest {
            key: b"no such key",
            ..RangeRequest::default()
        };
        self.request(999, &Request::Range(range));
        let frame = self.next().unwrap();
        assert_eq!(frame.header.request_id, 999);
        let (_, reply) = decode_reply::<RangeResponse>(&frame.body).unwrap();
        assert_eq!(reply.count, 0);
    }
}

fn put_of<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Put(PutRequest {
        key,
        value,
        ..PutRequest::default()
    })
}

#[tokio::test]
async fn garbage_on_the_client_port() {
    let node = node();
    for garbage in [
        &b"\x00\x01\x02\x03 this is no protocol"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n",
        &[0xff; 100_000],
    ] {
        let mut raw = Raw::client(&node);
        raw.send(garbage);
        raw.assert_closed_with(ErrorCode::BadFrame);
    }
    // What looks like HTTP is answered as such.
    let mut raw = Raw::client(&node);
    raw.send(b"NONSENSE\r\n\r\n");
    let mut answer = String::new();
    raw.stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_serves(&node).await;
}

#[tokio::test]
async fn damaged_frames() {
    let node = node();
    let mut frame = Vec::new();
    encode_frame(&mut frame, opcode::PUT, Flags::NONE, 7, |out| {
        put_of(b"k", b"v").encode(out);
    });
    // A bit of the body, a bit of the header, reserved flags, another version.
    for (at, code) in [
        (frame.len() - 1, ErrorCode::BadFrame),
        (9, ErrorCode::BadFrame),
        (5, ErrorCode::BadFrame),
        (2, ErrorCode::UnsupportedVersion),
    ] {
        let mut damaged = frame.clone();
        damaged[at] ^= 0x40;
        let mut raw = Raw::client(&node);
        raw.send(&damaged);
        raw.assert_closed_with(code);
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn truncated_frames() {
    let node = node();
    let mut frame = Vec::new();
    encode_frame(&mut frame, opcode::PUT, Flags::NONE, 7, |out| {
        put_of(b"truncated", b"value").encode(out);
    });
    for length in 1..frame.len() {
        let mut raw = Raw::client(&node);
        raw.send(&frame[..length]);
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        raw.assert_closed_with(ErrorCode::BadFrame);
    }
    // The same in small pieces is a frame after all.
    let mut raw = Raw::client(&node);
    for byte in &frame {
        raw.send(std::slice::from_ref(byte));
    }
    let reply = raw.next().unwrap();
    assert_eq!(reply.header.request_id, 7);
    decode_reply::<PutResponse>(&reply.body).unwrap();
    assert_serves(&node).await;
}

#[tokio::test]
async fn unknown_opcodes_and_malformed_bodies() {
    let node = node();
    let mut raw = Raw::client(&node);
    for (opcode, flags, body, code) in [
        (200, Flags::NONE, &b""[..], ErrorCode::UnknownOpcode),
        (
            opcode::PEER_HELLO,
            Flags::NONE,
            b"",
            ErrorCode::UnknownOpcode,
        ),
        (opcode::PUT, Flags::REPLY, b"", ErrorCode::UnknownOpcode),
        (opcode::PUT, Flags::NONE, b"", ErrorCode::MalformedBody),
        (
            opcode::PUT,
            Flags::NONE,
            &[0xff; 30],
            ErrorCode::MalformedBody,
        ),
        (
            opcode::TXN,
            Flags::NONE,
            &[0xff; 12],
            ErrorCode::MalformedBody,
        ),
        (opcode::WATCH, Flags::NONE, &[1], ErrorCode::MalformedBody),
        (opcode::RANGE, Flags::NONE, b"", ErrorCode::MalformedBody),
        (
            opcode::RANGE,
            Flags::NONE,
            &[0; 80],
            ErrorCode::MalformedBody,
        ),
    ] {
        let mut frame = Vec::new();
        encode_frame(&mut frame, opcode, flags, 42, |out| {
            out.extend_from_slice(body)
        });
        raw.send(&frame);
        let (id, error) = raw.error();
        assert_eq!((id, error.code), (42, code), "{opcode}: {error}");
    }
    raw.request(43, &Request::Range(RangeRequest::default()));
    let (id, error) = raw.error();
    assert_eq!((id, error.api()), (43, Some(ApiError::KeyNotProvided)));
    // Frames were whole, so the connection goes on.
    raw.assert_serves();
}

#[tokio::test]
async fn unknown_sort_options_are_said_as_etcd_does() {
    let node = node();
    let mut raw = Raw::client(&node);
    let range = RangeRequest {
        key: b"k",
        ..RangeRequest::default()
    };
    // The bytes behind the flags are the sort's order and target.
    for (at, value) in [(1, 3), (1, 255), (2, 5), (2, 255)] {
        let mut body = Vec::new();
        range.encode(&mut body);
        body[at] = value;
        let txn = Request::Txn(TxnRequest {
            success: vec![RequestOp::Range(range)],
            ..TxnRequest::default()
        });
        let mut txn_body = Vec::new();
        txn.encode(&mut txn_body);
        let mut plain = Vec::new();
        range.encode(&mut plain);
        let start = txn_body
            .windows(plain.len())
            .position(|bytes| bytes == plain)
            .unwrap();
        txn_body[start + at] = value;
        for (opcode, body) in [(opcode::RANGE, &body), (opcode::TXN, &txn_body)] {
            let mut frame = Vec::new();
            encode_frame(&mut frame, opcode, Flags::NONE, 44, |out| {
                out.extend_from_slice(body);
            });
            raw.send(&frame);
            let (id, error) = raw.error();
            assert_eq!((id, error.api()), (44, Some(ApiError::InvalidSortOption)));
            assert_eq!(error.to_string(), "etcdserver: invalid sort option");
        }
    }
    raw.assert_serves();
}

#[tokio::test]
async fn limits_of_keys_values_and_frames() {
    let node = node();
    let mut raw = Raw::client(&node);
    let limit = varve_types::DEFAULT_MAX_REQUEST_BYTES;
    let value = vec![b'v'; limit];
    raw.request(1, &put_of(b"big", &value));
    let (id, error) = raw.error();
    assert_eq!((id, error.api()), (1, Some(ApiError::RequestTooLarge)));
    assert_eq!(error.message, "etcdserver: request is too large");

    // A frame over the limit of frames is skipped as it arrives.
    let mut frame = Vec::new();
    let start = begin_frame(&mut frame, opcode::PUT, Flags::NONE, 2);
    frame.resize(start + HEADER_SIZE + 4 * limit, 0);
    finish_frame(&mut frame, start);
    raw.send(&frame);
    let (id, error) = raw.error();
    assert_eq!((id, error.api()), (2, Some(ApiError::RequestTooLarge)));

    let key = vec![b'k'; MAX_KEY_BYTES + 1];
    raw.request(3, &put_of(&key, b"v"));
    let (id, error) = raw.error();
    assert_eq!(id, 3);
    assert!(error.message.contains("too large"), "{error}");
    raw.request(4, &put_of(b"", b"v"));
    let (_, error) = raw.error();
    assert_eq!(error.message, "etcdserver: key is not provided");
    raw.assert_serves();

    // Just below the limits it works, and the value comes back whole.
    let value = vec![b'v'; limit - 1000];
    raw.request(5, &put_of(b"big", &value));
    assert_eq!(raw.next().unwrap().header.request_id, 5);
    let client = node.client();
    assert_eq!(client.get(b"big").await.unwrap().unwrap().value, value);
}

#[test]
fn a_request_without_a_key_is_refused_without_a_quorum() {
    let mut pair = Cluster::start(2, &[]);
    pair.members[1].kill();
    let mut raw = Raw::client(&pair);
    for count_only in [false, true] {
        raw.request(
            1,
            &Request::Range(RangeRequest {
                range_end: b"z",
                count_only,
                ..RangeRequest::default()
            }),
        );
        // Else after the time of a request, as one that timed out.
        let (_, error) = raw.error();
        assert_eq!(error.message, "etcdserver: key is not provided");
    }
    raw.request(2, &put_of(b"", b"v"));
    let (_, error) = raw.error();
    assert_eq!(error.message, "etcdserver: key is not provided");
}

#[tokio::test]
async fn garbage_on_the_peer_port() {
    let node = node();
    let mut raw = Raw::peer(&node);
    raw.send(b"\x00\x01garbage");
    let frame = raw.next().expect("a refusal");
    let refused = PeerFrame::decode(frame.header.opcode, &frame.body).unwrap();
    assert!(matches!(refused, PeerFrame::Refused(_)), "{refused:?}");
    assert_eq!(raw.next(), None);

    // A client that took the wrong port.
    let mut raw = Raw::peer(&node);
    raw.request(1, &put_of(b"k", b"v"));
    let frame = raw.next().expect("a refusal");
    assert_eq!(frame.header.opcode, opcode::PEER_REFUSED);

    let (status, body) = http_get(node.members[0].peer_port, "/nothing");
    assert!(status.contains(" 404 "), "{status} {body}");
    assert_serves(&node).await;
}

#[tokio::test]
async fn members_of_other_clusters_are_refused() {
    let node = node();
    let status = node
        .client()
        .status(&node.members[0].endpoint())
        .await
        .unwrap();
    let (cluster, member) = (status.header.cluster_id, status.header.member_id);
    let hello = |cluster_id, from, to| PeerHello {
        peer_urls: Vec::new(),
        cluster_id,
        from,
        to,
        channel: Channel::Messages,
        server_version: "test".to_owned(),
    };
    for (hello, expected) in [
        (
            hello(0xbad, 1, member),
            Refusal::ClusterMismatch {
                ours: cluster,
                theirs: 0xbad,
            },
        ),
        (
            hello(cluster, 1, 0xbad),
            Refusal::MemberMismatch {
                ours: member,
                wanted: 0xbad,
            },
        ),
        (
            hello(cluster, 0xbad, member),
            Refusal::UnknownMember { member: 0xbad },
        ),
    ] {
        let mut raw = Raw::peer(&node);
        let mut out = Vec::new();
        encode_hello(&mut out, &hello);
        raw.send(&out);
        let frame = raw.next().expect("a refusal");
        match PeerFrame::decode(frame.header.opcode, &frame.body).unwrap() {
            PeerFrame::Refused(refusal) => assert_eq!(refusal, expected),
            other => panic!("{other:?}"),
        }
        assert_eq!(raw.next(), None);
    }
    assert_serves(&node).await;
}

#[tokio::test]
async fn a_newer_connection_of_a_member_ends_the_older_one() {
    // From here on the second member is this test.
    let mut pair = Cluster::start(2, &[]);
    pair.members[1].kill();
    let member = &pair.members[0];
    let status = member.client().status(&member.endpoint()).await.unwrap();
    let to = status.header.member_id;
    let members = member.client().member_list(false).await.unwrap();
    let mut members = members.body.members.iter().map(|member| member.id);
    let hello = PeerHello {
        peer_urls: Vec::new(),
        cluster_id: status.header.cluster_id,
        from: members.find(|id| *id != to).unwrap(),
        to,
        channel: Channel::Messages,
        server_version: "test".to_owned(),
    };
    let connect = || {
        let mut raw = Raw::peer(&pair);
        let mut out = Vec::new();
        encode_hello(&mut out, &hello);
        raw.send(&out);
        let frame = raw.next().expect("a hello");
        let answer = PeerFrame::decode(frame.header.opcode, &frame.body).unwrap();
        assert!(matches!(answer, PeerFrame::Hello(_)), "{answer:?}");
        raw
    };
    // Neither says a word after the hello, as one whose host is gone would not.
    let mut older = connect();
    // Somebody asks whether it is still there: a timer of the kind 02 runs for the socket.
    let local = older.stream.local_addr().unwrap().port();
    let timer = timer_of(member.peer_port, local);
    assert!(timer.starts_with("02:"), "{timer}");
    let mut newer = connect();
    assert_eq!(older.next(), None);
    let patience = Some(Duration::from_millis(300));
    newer.stream.set_read_timeout(patience).unwrap();
    let error = newer.stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);

    let client = Raw::client(&pair);
    let local = client.stream.local_addr().unwrap().port();
    common::wait_until("the node asks for a sign of life of clients", || {
        timer_of(member.client_port, local).starts_with("02:")
    });
}

/// The kernel's timer of the accepted end of a connection: its kind and when it is due.
fn timer_of(local: u16, remote: u16) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    let mut lines = table.lines().map(|line| line.split_whitespace());
    lines
        .find_map(|mut fields| {
            let is_it = fields.nth(1)?.ends_with(&local) && fields.next()?.ends_with(&remote);
            is_it.then(|| fields.nth(2).unwrap().to_owned())
        })
        .unwrap_or_default()
}

#[tokio::test]
async fn http_on_the_client_port() {
    let node = node();
    let port = node.members[0].client_port;
    let (status, body) = http_get(port, "/version");
    assert!(status.contains(" 200 "), "{status}");
    assert!(body.contains("\"etcdserver\":\""), "{body}");
    assert!(http_get(port, "/nothing").0.contains(" 404 "));
    let mut raw = Raw::client(&node);
    raw.send(b"POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    raw.stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.to_lowercase().contains("allow: get"), "{answer}");

    assert_serves(&node).await;
    let (_, page) = http_get(port, "/metrics");
    for name in [
        "etcd_disk_wal_fsync_duration_seconds_count",
        "varve_wal_batch_records_count",
        "varve_apply_duration_seconds_count",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_pending",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_has_leader 1",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_debugging_mvcc_keys_total",
        "etcd_debugging_mvcc_watcher_total",
        "varve_requests_total{kind=\"put\"}",
        "varve_request_duration_seconds_bucket{kind=\"put\",le=\"+Inf\"}",
    ] {
        assert!(page.contains(&format!("\n{name}")), "no {name} in {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_answers_slows_down_itself_alone() {
    let node = node();
    let before = node.members[0].anonymous_bytes();
    let key = vec![b'k'; 200];
    let mut frames = Vec::new();
    for id in 0..1000 {
        // A long key, so that the answer to a read is about as long as the request.
        let range = RangeRequest {
            key: b"big answers",
            range_end: b"c",
            ..RangeRequest::default()
        };
        let request = if id % 2 == 0 {
            put_of(&key, b"v")
        } else {
            Request::Range(range)
        };
        encode_frame(&mut frames, request.opcode(), Flags::NONE, id, |out| {
            request.encode(out);
        });
    }
    put(&node.client(), "big answers/1", &"x".repeat(100_000))
        .await
        .unwrap();
    let port = node.members[0].client_port;
    let stuck = tokio::task::spawn_blocking(move || {
        let mut raw = Raw::connect(port);
        raw.stream
            .set_write_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let mut sent = 0;
        while sent < 1 << 30 {
            match raw.stream.write(&frames) {
                Ok(count) => sent += count,
                Err(error) => return (error.kind(), raw),
            }
        }
        panic!("the node took {sent} bytes of requests whose answers nobody read");
    });
    let (error, raw) = stuck.await.unwrap();
    assert!(
        matches!(error, ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    assert_serves(&node).await;
    let grown = node.members[0].anonymous_bytes().saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MiB more in memory");
    drop(raw);
    assert_serves(&node).await;
}
