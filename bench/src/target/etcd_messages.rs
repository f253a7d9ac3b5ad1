//! The few messages of etcd's `rpc.proto` that the generator needs, written by
//! hand so that no protoc is needed. Field numbers are those of etcd 3.4 and 3.5.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// `ResponseHeader`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Header {
    #[prost(uint64, tag = "2")]
    pub(crate) member_id: u64,
    #[prost(int64, tag = "3")]
    pub(crate) revision: i64,
}

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(int64, tag = "2")]
    pub(crate) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(crate) mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub(crate) version: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) value: Bytes,
    #[prost(int64, tag = "6")]
    pub(crate) lease: i64,
}

/// `RangeResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub(crate) more: bool,
}

/// `PutResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PutResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
}

/// `StatusResponse` of the maintenance service.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(uint64, tag = "4")]
    pub(crate) leader: u64,
}

/// `LeaseGrantResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseGrantResponse {
    #[prost(int64, tag = "2")]
    pub(crate) id: i64,
}

fn bytes_len(bytes: &[u8]) -> usize {
    // One byte of key: all field numbers here are below 16.
    1 + encoded_len_varint(bytes.len() as u64) + bytes.len()
}

fn put_bytes(out: &mut BytesMut, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

/// gRPC's five bytes before each message: not compressed, length.
fn start_message(length: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    out
}

/// A framed `PutRequest`, without copies on the way.
pub(crate) fn put_request(key: &[u8], value: &[u8]) -> Bytes {
    let mut out = start_message(bytes_len(key) + bytes_len(value));
    put_bytes(&mut out, 1, key);
    put_bytes(&mut out, 2, value);
    out.freeze()
}

/// A framed `RangeRequest`.
pub(crate) fn range_request(key: &[u8], end: &[u8], limit: i64, serializable: bool) -> Bytes {
    let mut length = bytes_len(key);
    if !end.is_empty() {
        length += bytes_len(end);
    }
    if limit > 0 {
        length += 1 + encoded_len_varint(limit as u64);
    }
    if serializable {
        length += 2;
    }
    let mut out = start_message(length);
    put_bytes(&mut out, 1, key);
    if !end.is_empty() {
        put_bytes(&mut out, 2, end);
    }
    if limit > 0 {
        encode_key(3, WireType::Varint, &mut out);
        encode_varint(limit as u64, &mut out);
    }
    if serializable {
        encode_key(7, WireType::Varint, &mut out);
        encode_varint(1, &mut out);
    }
    debug_assert_eq!(out.len(), 5 + length);
    out.freeze()
}

/// A framed message whose first field is `number`: `LeaseGrantRequest` with a TTL
/// in seconds, `LeaseRevokeRequest` with an id, `CompactionRequest` with a revision.
pub(crate) fn number_request(number: i64) -> Bytes {
    let mut out = start_message(1 + encoded_len_varint(number as u64));
    encode_key(1, WireType::Varint, &mut out);
    encode_varint(number as u64, &mut out);
    out.freeze()
}

/// A framed message without fields.
pub(crate) fn empty_request() -> Bytes {
    start_message(0).freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_etcds_bytes() {
        assert_eq!(
            &put_request(b"foo", b"bar")[..],
            b"\0\0\0\0\x0a\x0a\x03foo\x12\x03bar"
        );
        assert_eq!(
            &range_request(b"foo", b"", 0, true)[..],
            b"\0\0\0\0\x07\x0a\x03foo\x38\x01"
        );
        assert_eq!(
            &range_request(b"a", b"b", 300, false)[..],
            b"\0\0\0\0\x09\x0a\x01a\x12\x01b\x18\xac\x02"
        );
    }
}
