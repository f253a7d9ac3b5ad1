//! What the fuzz target and the mutation test run: decoding of arbitrary bytes.

use varve_types::{
    AlarmAction, AlarmKind, AlarmRequest, ApiError, CompactionRequest, Compare, CompareResult,
    CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Event, EventKind, KeyValue, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Reader, RequestOp, ResponseHeader, ResponseOp,
    TxnRequest, TxnResponse,
};

use crate::peer::{
    self, MessagesWriter, PeerFrame, PeerHello, Refusal, SnapshotAck, SnapshotBegin, SnapshotChunk,
    SnapshotEnd,
};
use crate::{
    Decoder, Empty, Flags, FrameError, HEADER_SIZE, HashKvRequest, HashKvResponse, HelloRequest,
    HelloResponse, MAGIC, Member, MemberAddRequest, MemberAddResponse, MemberIdRequest,
    MemberListRequest, MemberListResponse, MemberUpdateRequest, Request, SnapshotCreditRequest,
    SnapshotRequest, SpaceLine, SpaceRequest, SpaceResponse, StatusResponse, Step, VERSION,
    WatchCancelRequest, WatchCreditRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    WireError, decode_reply, encode_error, encode_frame, encode_reply, encode_snapshot_part,
    encode_watch, finish_frame, opcode,
};

/// Longest body that the run accepts, in bytes.
const LIMIT: usize = 64 * 1024;

/// Decodes `input` as a stream of frames, whole and in two pieces, and each body as every message
/// there is. Returns how many frames there were.
///
/// # Panics
///
/// If a frame is read differently when the stream arrives in pieces, or does not encode back to
/// the bytes it came from, or if a request does not survive encoding.
pub fn decode_stream(input: &[u8]) -> usize {
    let whole = frames(&[input]);
    let cut = input
        .first()
        .map_or(0, |byte| usize::from(*byte))
        .min(input.len());
    let pieces = frames(&[&input[..cut], &input[cut..]]);
    // The error may be found earlier in a piece, with fewer bytes to show, but it is the same one.
    let kind = |error: &Option<FrameError>| error.as_ref().map(std::mem::discriminant);
    assert_eq!(
        (whole.0, kind(&whole.1)),
        (pieces.0, kind(&pieces.1)),
        "the stream reads differently in pieces"
    );
    whole.0
}

/// The same bytes with each frame's magic, version and checksum put right, as far as the lengths in
/// them lead: chance alone does not find a checksum.
pub fn repair(input: &[u8]) -> Vec<u8> {
    let mut out = input.to_vec();
    let mut at = 0;
    while let Some(header) = out[at..].first_chunk::<HEADER_SIZE>() {
        let length = u32::from_le_bytes([header[16], header[17], header[18], header[19]]);
        // A length beyond the end is cut to what is there, so that the frame becomes whole.
        let length = (length as usize).min(out.len() - at - HEADER_SIZE);
        let end = at + HEADER_SIZE + length;
        let frame = &mut out[at..end];
        frame[..2].copy_from_slice(&MAGIC);
        frame[2] = VERSION;
        frame[5..8].fill(0);
        frame[4] &= 15;
        finish_frame(frame, 0);
        at = end;
    }
    out
}

/// Frames read, and the error that ended it.
fn frames(pieces: &[&[u8]]) -> (usize, Option<FrameError>) {
    let mut decoder = Decoder::new(LIMIT);
    let mut pending = Vec::new();
    let mut count = 0;
    for piece in pieces {
        pending.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match decoder.step(&pending[at..]) {
                Ok(Step::Frame(frame, used)) => {
                    let mut again = Vec::new();
                    let header = frame.header;
                    encode_frame(
                        &mut again,
                        header.opcode,
                        header.flags,
                        header.request_id,
                        |out| out.extend_from_slice(frame.body),
                    );
                    assert_eq!(again, pending[at..at + used]);
                    decode_body(header.opcode, frame.body);
                    count += 1;
                    at += used;
                }
                Ok(Step::TooLarge(_, used) | Step::Skipped(used)) => {
                    assert!(used > 0, "the decoder stands still");
                    at += used;
                }
                Ok(Step::NeedMore(total)) => {
                    assert!(total > pending.len() - at, "asks for what it has");
                    assert!(total <= HEADER_SIZE + LIMIT, "buffers over the limit");
                    break;
                }
                Err(error) => return (count, Some(error)),
            }
        }
        pending.drain(..at);
    }
    (count, None)
}

/// Reads a body as every message there is; none may panic.
pub fn decode_body(opcode: u8, body: &[u8]) {
    if let Ok(request) = Request::decode(opcode, body) {
        let mut again = Vec::new();
        request.encode(&mut again);
        assert_eq!(Request::decode(opcode, &again), Ok(request));
    }
    if let Ok(frame) = PeerFrame::decode(opcode, body) {
        exercise_peer_frame(opcode, frame);
    }
    let mut reader = Reader::new(body);
    if let Ok(error) = WireError::decode(&mut reader) {
        let mut again = Vec::new();
        error.encode(&mut again);
        assert_eq!(WireError::decode(&mut Reader::new(&again)), Ok(error));
    }
    macro_rules! replies {
        ($($reply:ty),+ $(,)?) => {
            $(if let Ok((header, reply)) = decode_reply::<$reply>(body) {
                let mut again = Vec::new();
                ResponseHeader::encode(&header, &mut again);
                reply.encode(&mut again);
                assert_eq!(decode_reply::<$reply>(&again), Ok((header, reply)));
            })+
        };
    }
    replies!(
        Empty,
        RangeResponse,
        PutResponse,
        DeleteRangeResponse,
        TxnResponse,
        HelloResponse,
        StatusResponse,
        HashKvResponse,
        MemberListResponse,
        MemberAddResponse,
        SpaceResponse,
        WatchResponse,
    );
}

/// A frame between members is the same after encoding.
fn exercise_peer_frame(opcode: u8, frame: PeerFrame<'_>) {
    let mut out = Vec::new();
    match &frame {
        PeerFrame::Hello(hello) => hello.encode(&mut out),
        PeerFrame::SnapshotBegin(begin) => begin.encode(&mut out),
        PeerFrame::SnapshotChunk(chunk) => chunk.encode(&mut out),
        PeerFrame::SnapshotEnd(end) => end.encode(&mut out),
        PeerFrame::SnapshotAck(ack) => ack.encode(&mut out),
        PeerFrame::Refused(refusal) => refusal.encode(&mut out),
        PeerFrame::Messages(messages) => {
            let announced = messages.size_hint().0;
            assert_eq!(messages.clone().count(), announced);
            return;
        }
    }
    let again = PeerFrame::decode(opcode, &out).expect("it was encoded here");
    let text = |frame: &PeerFrame<'_>| format!("{frame:?}");
    assert_eq!(text(&again), text(&frame));
}

/// A stream of valid frames of many kinds, to start from.
pub fn corpus() -> Vec<u8> {
    let mut out = Vec::new();
    let (key, range_end, value) = (&b"key"[..], &b"kez"[..], &b"value"[..]);
    let put = PutRequest {
        key,
        value,
        ..PutRequest::default()
    };
    let range = RangeRequest {
        key,
        range_end,
        ..RangeRequest::default()
    };
    let txn = TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal,
            target: CompareTarget::Value(value),
            key,
            range_end,
        }],
        success: vec![
            RequestOp::Put(put),
            RequestOp::Txn(TxnRequest {
                success: vec![RequestOp::Range(range)],
                ..TxnRequest::default()
            }),
        ],
        failure: vec![RequestOp::Range(range)],
    };
    let watch = WatchRequest {
        key,
        range_end,
        ..WatchRequest::default()
    };
    let requests = [
        Request::Put(put),
        Request::Range(range),
        Request::Txn(txn),
        Request::Watch(watch),
        Request::Alarm(AlarmRequest {
            action: AlarmAction::Deactivate,
            member_id: 3,
            kind: Some(AlarmKind::Corrupt),
        }),
        Request::MemberAdd(MemberAddRequest {
            peer_urls: vec!["http://127.0.0.1:2380".to_owned()],
            is_learner: true,
            is_promotable: true,
        }),
        Request::MemberUpdate(MemberUpdateRequest::default()),
        Request::DeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv: true,
        }),
        Request::Compaction(CompactionRequest {
            revision: 7,
            physical: true,
        }),
        Request::Hello(HelloRequest { client: "client" }),
        Request::Ping(Empty),
        Request::Status(Empty),
        Request::HashKv(HashKvRequest::default()),
        Request::MemberList(MemberListRequest::default()),
        Request::MemberRemove(MemberIdRequest { id: 7 }),
        Request::MemberPromote(MemberIdRequest { id: 7 }),
        Request::MoveLeader(MemberIdRequest { id: 7 }),
        Request::Space(SpaceRequest {
            prefix: b"/",
            separator: b"/",
            depth: 2,
            limit: 10,
            after: Some((key, true)),
        }),
        Request::Defragment(Empty),
        Request::Snapshot(SnapshotRequest { credit: 1 << 20 }),
        Request::SnapshotCredit(SnapshotCreditRequest {
            snapshot: 13,
            bytes: 1 << 20,
        }),
        Request::WatchCancel(WatchCancelRequest { watch: 4 }),
        Request::WatchProgress(WatchProgressRequest),
        Request::WatchCredit(WatchCreditRequest {
            watch: 4,
            bytes: 1 << 20,
        }),
    ];
    for (id, request) in (1..).zip(&requests) {
        encode_frame(&mut out, request.opcode(), Flags::NONE, id, |out| {
            request.encode(out);
        });
    }
    let header = ResponseHeader::default();
    let kv = KeyValue {
        key: key.to_vec(),
        value: value.to_vec(),
        ..KeyValue::default()
    };
    let found = RangeResponse {
        kvs: vec![kv.clone()],
        ..RangeResponse::default()
    };
    let deleted = DeleteRangeResponse {
        prev_kvs: vec![kv.clone()],
        ..DeleteRangeResponse::default()
    };
    let done = TxnResponse {
        succeeded: true,
        responses: vec![
            ResponseOp::Range(found.clone()),
            ResponseOp::DeleteRange(deleted),
            ResponseOp::Txn(TxnResponse::default()),
        ],
    };
    let members = MemberListResponse {
        members: vec![Member {
            name: "one".to_owned(),
            peer_urls: vec!["http://127.0.0.1:2380".to_owned()],
            ..Member::default()
        }],
    };
    let status = StatusResponse {
        errors: vec!["etcdserver: no leader".to_owned()],
        ..StatusResponse::default()
    };
    encode_reply(&mut out, opcode::RANGE, 2, &header, &found);
    encode_reply(&mut out, opcode::TXN, 3, &header, &done);
    encode_reply(&mut out, opcode::MEMBER_LIST, 4, &header, &members);
    let added = MemberAddResponse {
        member: Member::default(),
        members: members.members.clone(),
    };
    encode_reply(&mut out, opcode::MEMBER_ADD, 9, &header, &added);
    encode_reply(&mut out, opcode::STATUS, 5, &header, &status);
    encode_reply(
        &mut out,
        opcode::HASH_KV,
        6,
        &header,
        &HashKvResponse::default(),
    );
    encode_error(&mut out, opcode::PUT, 7, &ApiError::NoLeader.into());
    let events = WatchResponse::Events(vec![Event {
        kind: EventKind::Delete,
        prev_kv: Some(kv.clone()),
        kv,
    }]);
    encode_watch(&mut out, 8, &header, &events);
    let space = SpaceResponse {
        lines: vec![SpaceLine {
            name: b"/a/".to_vec(),
            is_directory: true,
            keys: 3,
            bytes: 4,
        }],
        more: true,
    };
    encode_reply(&mut out, opcode::SPACE, 10, &header, &space);
    encode_reply(&mut out, opcode::DEFRAGMENT, 11, &header, &Empty);
    encode_reply(
        &mut out,
        opcode::HELLO,
        12,
        &header,
        &HelloResponse::default(),
    );
    encode_snapshot_part(&mut out, 13, &header, b"chunk", false);
    encode_snapshot_part(&mut out, 13, &header, b"chunk", true);
    peer::encode_hello(&mut out, &PeerHello::default());
    peer::encode_snapshot_begin(&mut out, &SnapshotBegin::default());
    let chunk = SnapshotChunk {
        data: b"chunk",
        ..SnapshotChunk::default()
    };
    peer::encode_snapshot_chunk(&mut out, &chunk);
    peer::encode_snapshot_end(&mut out, &SnapshotEnd::default());
    let ack = SnapshotAck {
        failure: "no room".to_owned(),
        ..SnapshotAck::default()
    };
    peer::encode_snapshot_ack(&mut out, &ack);
    peer::encode_refusal(&mut out, &Refusal::Removed { member: 1 });
    let mut messages = MessagesWriter::new(&mut out);
    messages.push(|out| out.extend_from_slice(b"raft"));
    messages.finish();
    out
}
