//! Every message survives encoding, whatever is in it.

use proptest::prelude::*;
use varve_protocol::peer::{
    self, Channel, MessagesWriter, PeerFrame, PeerHello, Refusal, SnapshotAck, SnapshotBegin,
    SnapshotChunk, SnapshotEnd,
};
use varve_protocol::{
    Decoder, ErrorCode, EventsWriter, Flags, HashKvRequest, HashKvResponse, HelloRequest,
    HelloResponse, Member, MemberAddRequest, MemberAddResponse, MemberIdRequest, MemberListRequest,
    MemberListResponse, MemberUpdateRequest, OwnedFrame, RangeWriter, Reply, Request, SpaceLine,
    SpaceRequest, SpaceResponse, StatusResponse, Step, WatchCancelRequest, WatchCreditRequest,
    WatchProgressRequest, WatchRequest, WatchResponse, WireError, decode_reply, encode_error,
    encode_frame, encode_get_reply, encode_put_reply, encode_reply, encode_watch, opcode,
};
use varve_types::{
    CompactionRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest,
    DeleteRangeResponse, Event, EventKind, EventRef, KeyValue, KeyValueRef, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Reader, RequestOp, ResponseHeader, ResponseOp,
    SortOrder, SortTarget, TxnRequest, TxnResponse,
};

const LIMIT: usize = 64 << 20;

/// The frames in `wire`.
fn frames(wire: &[u8]) -> Vec<OwnedFrame> {
    let mut decoder = Decoder::new(LIMIT);
    let mut buffer = wire.into();
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_owned(&mut buffer).unwrap() {
        frames.push(frame);
    }
    assert!(buffer.is_empty());
    frames
}

fn one_frame(wire: &[u8]) -> OwnedFrame {
    let mut frames = frames(wire);
    assert_eq!(frames.len(), 1);
    frames.remove(0)
}

fn request_survives(request: &Request<'_>) {
    let mut wire = Vec::new();
    encode_frame(&mut wire, request.opcode(), Flags::NONE, 7, |out| {
        request.encode(out);
    });
    let Step::Frame(frame, used) = Decoder::new(LIMIT).step(&wire).unwrap() else {
        panic!("not a whole frame");
    };
    assert_eq!(used, wire.len());
    assert_eq!(frame.header.request_id, 7);
    assert_eq!(&Request::from_frame(&frame).unwrap(), request);
    for cut in [0, 1, 10, wire.len() - 1] {
        assert!(matches!(
            Decoder::new(LIMIT).step(&wire[..cut]).unwrap(),
            Step::NeedMore(_)
        ));
    }
    // A body with a byte too many or too few is refused.
    let mut longer = frame.body.to_vec();
    longer.push(0);
    assert!(Request::decode(request.opcode(), &longer).is_err());
    if let Some((_, shorter)) = frame.body.split_last() {
        assert!(Request::decode(request.opcode(), shorter).is_err());
    }
}

fn reply_survives<R: Reply + PartialEq + std::fmt::Debug>(reply: &R) {
    let header = ResponseHeader {
        cluster_id: u64::MAX,
        member_id: 2,
        revision: -3,
        raft_term: 4,
    };
    let mut wire = Vec::new();
    encode_reply(&mut wire, opcode::STATUS, 9, &header, reply);
    let frame = one_frame(&wire);
    assert_eq!(frame.header.flags, Flags::REPLY);
    let (header_again, again) = decode_reply::<R>(&frame.body).unwrap();
    assert_eq!((header_again, &again), (header, reply));
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
}

fn text() -> impl Strategy<Value = String> {
    ".{0,12}"
}

prop_compose! {
    fn key_value()(
        key in bytes(), value in bytes(), numbers in any::<[i64; 4]>(),
    ) -> KeyValue {
        let [create_revision, mod_revision, version, lease] = numbers;
        KeyValue { key, create_revision, mod_revision, version, value, lease }
    }
}

prop_compose! {
    fn event()(
        put in any::<bool>(), kv in key_value(), prev_kv in prop::option::of(key_value()),
    ) -> Event {
        let kind = if put { EventKind::Put } else { EventKind::Delete };
        Event { kind, kv, prev_kv }
    }
}

prop_compose! {
    fn member()(
        id in any::<u64>(), name in text(), is_learner in any::<bool>(),
        peer_urls in prop::collection::vec(text(), 0..3),
        client_urls in prop::collection::vec(text(), 0..3),
    ) -> Member {
        Member { id, name, peer_urls, client_urls, is_learner }
    }
}

prop_compose! {
    fn status()(
        sizes in any::<[i64; 3]>(), numbers in any::<[u64; 4]>(), is_learner in any::<bool>(),
        version in text(), storage_version in text(), engine in text(),
        errors in prop::collection::vec(text(), 0..3),
    ) -> StatusResponse {
        StatusResponse {
            version, storage_version, engine,
            db_size: sizes[0], db_size_in_use: sizes[1], db_size_quota: sizes[2],
            leader: numbers[0], raft_index: numbers[1], raft_term: numbers[2],
            raft_applied_index: numbers[3], is_learner, errors,
        }
    }
}

fn range_response() -> impl Strategy<Value = RangeResponse> {
    let kvs = prop::collection::vec(key_value(), 0..4);
    (kvs, any::<bool>(), any::<i64>()).prop_map(|(kvs, more, count)| RangeResponse {
        kvs,
        more,
        count,
    })
}

fn response_op() -> impl Strategy<Value = ResponseOp> {
    let kvs = prop::collection::vec(key_value(), 0..4);
    let leaf = prop_oneof![
        range_response().prop_map(ResponseOp::Range),
        prop::option::of(key_value()).prop_map(|prev_kv| ResponseOp::Put(PutResponse { prev_kv })),
        (any::<i64>(), kvs).prop_map(|(deleted, prev_kvs)| {
            ResponseOp::DeleteRange(DeleteRangeResponse { deleted, prev_kvs })
        }),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        (any::<bool>(), prop::collection::vec(inner, 0..4)).prop_map(|(succeeded, responses)| {
            ResponseOp::Txn(TxnResponse {
                succeeded,
                responses,
            })
        })
    })
}

proptest! {
    #[test]
    fn requests(
        key in bytes(), range_end in bytes(), value in bytes(), numbers in any::<[i64; 6]>(),
        bits in any::<[bool; 4]>(), choice in 0usize..5, credit in any::<u32>(), name in text(),
    ) {
        let range = RangeRequest {
            key: &key,
            range_end: &range_end,
            limit: numbers[0],
            revision: numbers[1],
            sort_order: [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][choice % 3],
            sort_target: [
                SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod,
                SortTarget::Value,
            ][choice],
            serializable: bits[0],
            keys_only: bits[1],
            count_only: bits[2],
            min_mod_revision: numbers[2],
            max_mod_revision: numbers[3],
            min_create_revision: numbers[4],
            max_create_revision: numbers[5],
        };
        let put = PutRequest {
            key: &key,
            value: &value,
            lease: numbers[0],
            prev_kv: bits[0],
            ignore_value: bits[1],
            ignore_lease: bits[2],
        };
        let delete = DeleteRangeRequest { key: &key, range_end: &range_end, prev_kv: bits[0] };
        let target = [
            CompareTarget::Version(numbers[0]), CompareTarget::Create(numbers[1]),
            CompareTarget::Mod(numbers[2]), CompareTarget::Value(&value),
            CompareTarget::Lease(numbers[3]),
        ][choice];
        let result = [
            CompareResult::Equal, CompareResult::Greater, CompareResult::Less,
            CompareResult::NotEqual,
        ][choice % 4];
        let inner = TxnRequest {
            compare: vec![Compare { result, target, key: &key, range_end: &range_end }; choice],
            success: vec![RequestOp::Put(put), RequestOp::Range(range)],
            failure: vec![RequestOp::DeleteRange(delete)],
        };
        let txn = TxnRequest {
            success: vec![RequestOp::Txn(inner.clone()), RequestOp::Range(range)],
            ..inner
        };
        for request in [
            Request::Range(range),
            Request::Put(put),
            Request::DeleteRange(delete),
            Request::Txn(txn),
            Request::Compaction(CompactionRequest { revision: numbers[0], physical: bits[0] }),
            Request::Hello(HelloRequest { client: &name }),
            Request::Ping(varve_protocol::Empty),
            Request::Status(varve_protocol::Empty),
            Request::Defragment(varve_protocol::Empty),
            Request::Alarm(varve_types::AlarmRequest {
                action: varve_types::AlarmAction::Deactivate,
                member_id: 7,
                kind: Some(varve_types::AlarmKind::Corrupt),
            }),
            Request::HashKv(HashKvRequest { revision: numbers[0] }),
            Request::MemberList(MemberListRequest { linearizable: bits[0] }),
            Request::Space(SpaceRequest {
                prefix: &key,
                separator: &range_end,
                depth: credit,
                limit: !credit,
                after: bits[0].then_some((&key[..], bits[1])),
            }),
            Request::MemberAdd(MemberAddRequest {
                peer_urls: vec![name.clone(), String::new()], is_learner: bits[0],
                is_promotable: bits[1],
            }),
            Request::MemberRemove(MemberIdRequest { id: numbers[0] as u64 }),
            Request::MemberUpdate(MemberUpdateRequest {
                id: numbers[0] as u64, peer_urls: vec![name.clone()],
            }),
            Request::MemberPromote(MemberIdRequest { id: numbers[0] as u64 }),
            Request::MoveLeader(MemberIdRequest { id: numbers[0] as u64 }),
            Request::Snapshot(varve_protocol::SnapshotRequest { credit }),
            Request::SnapshotCredit(varve_protocol::SnapshotCreditRequest {
                snapshot: numbers[0] as u64, bytes: credit,
            }),
            Request::Watch(WatchRequest {
                key: &key,
                range_end: &range_end,
                start_revision: numbers[0],
                prev_kv: bits[0],
                progress_notify: bits[1],
                no_put: bits[2],
                no_delete: bits[3],
                credit,
            }),
            Request::WatchCancel(WatchCancelRequest { watch: numbers[0] as u64 }),
            Request::WatchProgress(WatchProgressRequest),
            Request::WatchCredit(WatchCreditRequest { watch: numbers[0] as u64, bytes: credit }),
        ] {
            request_survives(&request);
        }
    }

    #[test]
    fn replies(
        range in range_response(), ops in prop::collection::vec(response_op(), 0..4),
        kv in prop::option::of(key_value()), number in any::<i64>(), succeeded in any::<bool>(),
        kvs in prop::collection::vec(key_value(), 0..4), status in status(),
        names in any::<[u8; 3]>(), hash in any::<u128>(),
        members in prop::collection::vec(member(), 0..4),
    ) {
        reply_survives(&range);
        reply_survives(&PutResponse { prev_kv: kv });
        reply_survives(&DeleteRangeResponse { deleted: number, prev_kvs: kvs });
        reply_survives(&TxnResponse { succeeded, responses: ops });
        reply_survives(&status);
        reply_survives(&HelloResponse {
            server_version: names[0].to_string(),
            cluster_version: names[1].to_string(),
            member_name: names[2].to_string(),
            max_request_bytes: number as u64,
        });
        reply_survives(&HashKvResponse { hash, hash_revision: number, compact_revision: !number });
        let member = members.first().cloned().unwrap_or_default();
        reply_survives(&MemberAddResponse { member, members: members.clone() });
        reply_survives(&MemberListResponse { members });
        let line = SpaceLine {
            name: names.to_vec(),
            is_directory: succeeded,
            keys: number as u64,
            bytes: hash as u64,
        };
        reply_survives(&SpaceResponse { lines: vec![line; 2], more: succeeded });
        reply_survives(&varve_protocol::Empty);
    }

    #[test]
    fn watches(
        events in prop::collection::vec(event(), 0..5), id in any::<u64>(), revision in any::<i64>(),
        message in text(), more in any::<bool>(),
    ) {
        let header = ResponseHeader { revision, ..ResponseHeader::default() };
        let canceled = WireError { detail: revision, ..WireError::internal(message) };
        for response in [
            WatchResponse::Created,
            WatchResponse::Events(events.clone()),
            WatchResponse::Progress,
            WatchResponse::Canceled(canceled),
        ] {
            let mut wire = Vec::new();
            encode_watch(&mut wire, id, &header, &response);
            let frame = one_frame(&wire);
            let ends = matches!(response, WatchResponse::Canceled(_));
            prop_assert_eq!(frame.header.flags.has(Flags::END), ends);
            prop_assert_eq!(frame.header.request_id, id);
            prop_assert_eq!(decode_reply(&frame.body).unwrap(), (header, response));
        }
        // The writer makes the same bytes of borrowed events.
        let mut wire = vec![1, 2, 3];
        let mut writer = EventsWriter::new(&mut wire, id, &header);
        for event in &events {
            writer.push(&EventRef {
                kind: event.kind,
                kv: (&event.kv).into(),
                prev_kv: event.prev_kv.as_ref().map(KeyValueRef::from),
            });
        }
        let credit = writer.finish(more);
        let frame = one_frame(&wire[3..]);
        prop_assert_eq!(credit, frame.body.len());
        prop_assert_eq!(frame.header.flags.has(Flags::MORE), more);
        prop_assert_eq!(decode_reply(&frame.body).unwrap(), (header, WatchResponse::Events(events)));
    }

    #[test]
    fn errors(number in any::<u16>(), message in text(), detail in any::<i64>()) {
        let error = WireError { code: ErrorCode::from_number(number), message, detail };
        prop_assert_eq!(error.code.number(), number);
        let mut wire = Vec::new();
        encode_error(&mut wire, opcode::PUT, 5, &error);
        let frame = one_frame(&wire);
        prop_assert!(frame.header.flags.has(Flags::ERROR.with(Flags::REPLY)));
        prop_assert_eq!(WireError::decode(&mut Reader::new(&frame.body)).unwrap(), error);
    }

    #[test]
    fn range_writer(
        range in range_response(), id in any::<u64>(), revision in any::<i64>(),
        found in prop::option::of(key_value()),
    ) {
        let header = ResponseHeader { revision, ..ResponseHeader::default() };
        let mut wire = Vec::new();
        let mut writer = RangeWriter::new(&mut wire, id, header);
        for kv in &range.kvs {
            writer.push(kv.into());
        }
        writer.finish(range.count, range.more);
        let mut plain = Vec::new();
        encode_reply(&mut plain, opcode::RANGE, id, &header, &range);
        prop_assert_eq!(wire, plain);

        let mut fast = Vec::new();
        encode_get_reply(&mut fast, id, &header, found.as_ref().map(KeyValueRef::from));
        let kvs: Vec<_> = found.into_iter().collect();
        let reply = RangeResponse { count: kvs.len() as i64, kvs, more: false };
        let mut plain = Vec::new();
        encode_reply(&mut plain, opcode::RANGE, id, &header, &reply);
        prop_assert_eq!(fast, plain);

        let (mut fast, mut plain) = (Vec::new(), Vec::new());
        encode_put_reply(&mut fast, id, &header);
        encode_reply(&mut plain, opcode::PUT, id, &header, &PutResponse::default());
        prop_assert_eq!(fast, plain);
    }

    #[test]
    fn peer_frames(
        ids in any::<[u64; 4]>(), message in bytes(), text in text(), hash in any::<u128>(),
        messages in prop::collection::vec(bytes(), 0..5), bit in any::<bool>(),
    ) {
        let mut wire = Vec::new();
        let hello = PeerHello {
            peer_urls: vec![text.clone(), String::new()],
            cluster_id: ids[0], from: ids[1], to: ids[2],
            channel: if bit { Channel::Snapshot } else { Channel::Messages },
            server_version: text.clone(),
        };
        let begin = SnapshotBegin {
            id: ids[0], index: ids[1], term: ids[2], estimated_bytes: ids[3], message: &message,
        };
        let chunk = SnapshotChunk { id: ids[0], sequence: ids[1], data: &message };
        let end = SnapshotEnd { id: ids[0], chunks: ids[1], bytes: ids[2], hash };
        let ack = SnapshotAck { id: ids[0], next: ids[1], installed: bit, later: !bit, position: text.clone().into_bytes(), failure: text.clone() };
        let refusals = [
            Refusal::ClusterMismatch { ours: ids[0], theirs: ids[1] },
            Refusal::MemberMismatch { ours: ids[0], wanted: ids[1] },
            Refusal::Removed { member: ids[0] },
            Refusal::UnknownMember { member: ids[0] },
            Refusal::Version(text.clone()),
            Refusal::Other(text),
        ];
        peer::encode_hello(&mut wire, &hello);
        peer::encode_snapshot_begin(&mut wire, &begin);
        peer::encode_snapshot_chunk(&mut wire, &chunk);
        peer::encode_snapshot_end(&mut wire, &end);
        peer::encode_snapshot_ack(&mut wire, &ack);
        for refusal in &refusals {
            peer::encode_refusal(&mut wire, refusal);
        }
        let mut writer = MessagesWriter::new(&mut wire);
        for message in &messages {
            writer.push(|out| out.extend_from_slice(message));
        }
        writer.finish();
        let mut refused = 0;
        for frame in frames(&wire) {
            match PeerFrame::decode(frame.header.opcode, &frame.body).unwrap() {
                PeerFrame::Hello(again) => prop_assert_eq!(&again, &hello),
                PeerFrame::SnapshotBegin(again) => prop_assert_eq!(again, begin),
                PeerFrame::SnapshotChunk(again) => prop_assert_eq!(again, chunk),
                PeerFrame::SnapshotEnd(again) => prop_assert_eq!(again, end),
                PeerFrame::SnapshotAck(again) => prop_assert_eq!(&again, &ack),
                PeerFrame::Refused(again) => {
                    prop_assert_eq!(&again, &refusals[refused]);
                    refused += 1;
                }
                PeerFrame::Messages(again) => {
                    prop_assert_eq!(again.collect::<Vec<_>>(), messages.clone());
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        prop_assert_eq!(refused, refusals.len());
    }
}
