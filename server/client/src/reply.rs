//! From the frames of a reply to what the caller asked for.

use bytes::Bytes;
use varve_protocol::{
    Empty, HashKvResponse, HelloResponse, MemberAddResponse, MemberListResponse, Reply,
    SpaceResponse, StatusResponse, decode_reply,
};
use varve_types::{DecodeError, DeleteRangeResponse, PutResponse, RangeResponse, TxnResponse};

use crate::client::Answer;

/// A reply that may come in several frames.
pub(crate) trait Joined: Reply {
    /// Reads the frames' bodies, of which there is at least one.
    fn join(bodies: &[Bytes]) -> Result<Answer<Self>, DecodeError> {
        decode_single(bodies)
    }
}

impl Joined for Empty {}
impl Joined for PutResponse {}
impl Joined for DeleteRangeResponse {}
impl Joined for TxnResponse {}
impl Joined for HelloResponse {}
impl Joined for StatusResponse {}
impl Joined for HashKvResponse {}
impl Joined for varve_types::AlarmResponse {}
impl Joined for MemberListResponse {}
impl Joined for MemberAddResponse {}
impl Joined for SpaceResponse {}

impl Joined for RangeResponse {
    /// Each frame is a range response of its own; `more`, `count` and the header are the last's.
    fn join(bodies: &[Bytes]) -> Result<Answer<Self>, DecodeError> {
        let mut kvs = Vec::new();
        let mut last = Answer::<Self> {
            header: Default::default(),
            body: Default::default(),
        };
        for body in bodies {
            last = decode_single(std::slice::from_ref(body))?;
            kvs.append(&mut last.body.kvs);
        }
        last.body.kvs = kvs;
        Ok(last)
    }
}

/// Reads a reply whose frames are pieces of one body.
pub(crate) fn decode_single<R: Reply>(bodies: &[Bytes]) -> Result<Answer<R>, DecodeError> {
    let (header, body) = match bodies {
        [body] => decode_reply(body)?,
        pieces => decode_reply(&pieces.concat())?,
    };
    Ok(Answer { header, body })
}

#[cfg(test)]
mod tests {
    use varve_protocol::{Decoder, Flags, RangeWriter, Step, encode_reply, opcode};
    use varve_types::{KeyValue, ResponseHeader};

    use super::*;

    fn bodies(mut wire: &[u8]) -> Vec<Bytes> {
        let mut decoder = Decoder::new(64 << 20);
        let mut bodies = Vec::new();
        while let Step::Frame(frame, used) = decoder.step(wire).unwrap() {
            bodies.push(Bytes::copy_from_slice(frame.body));
            wire = &wire[used..];
            assert_eq!(frame.header.flags.has(Flags::MORE), !wire.is_empty());
        }
        bodies
    }

    fn kvs() -> Vec<KeyValue> {
        (0..30)
            .map(|i| KeyValue {
                key: format!("key{i}").into_bytes(),
                value: vec![i; 100_000],
                mod_revision: i64::from(i),
                ..KeyValue::default()
            })
            .collect()
    }

    #[test]
    fn range_chunks_join() {
        let header = ResponseHeader {
            revision: 7,
            ..ResponseHeader::default()
        };
        let mut wire = Vec::new();
        let mut writer = RangeWriter::new(&mut wire, 3, header);
        let kvs = kvs();
        for kv in &kvs {
            writer.push(kv.into());
        }
        writer.finish(99, true);
        let bodies = bodies(&wire);
        assert_eq!(bodies.len(), 3);
        let answer = RangeResponse::join(&bodies).unwrap();
        assert_eq!(answer.header, header);
        assert_eq!((answer.body.count, answer.body.more), (99, true));
        assert_eq!(answer.body.kvs, kvs);
    }

    #[test]
    fn other_chunks_concatenate() {
        let reply = DeleteRangeResponse {
            deleted: 30,
            prev_kvs: kvs(),
        };
        let mut wire = Vec::new();
        let header = ResponseHeader::default();
        encode_reply(&mut wire, opcode::DELETE_RANGE, 3, &header, &reply);
        let bodies = bodies(&wire);
        assert_eq!(bodies.len(), 3);
        assert_eq!(DeleteRangeResponse::join(&bodies).unwrap().body, reply);
    }
}
