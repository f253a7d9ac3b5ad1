//! Responses, owned: they outlive the snapshot they were read from.

use crate::codec::{DecodeError, Reader, flags, put_bytes, put_count, put_i64};

/// A key with its value and history marks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// Revision of the put that created it.
    pub create_revision: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Puts since it was created; 0 for a deleted key.
    pub version: i64,
    /// The value.
    pub value: Vec<u8>,
    /// The lease it is attached to; 0 is none.
    pub lease: i64,
}

impl KeyValue {
    /// Least bytes of an encoding.
    pub const LEAST_SIZE: usize = 4 * 8 + 4 + 4;

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for field in [
            self.create_revision,
            self.mod_revision,
            self.version,
            self.lease,
        ] {
            put_i64(out, field);
        }
        put_bytes(out, &self.key);
        put_bytes(out, &self.value);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            create_revision: reader.i64("create_revision")?,
            mod_revision: reader.i64("mod_revision")?,
            version: reader.i64("version")?,
            lease: reader.i64("lease")?,
            key: reader.bytes("key")?.to_vec(),
            value: reader.bytes("value")?.to_vec(),
        })
    }

    fn encode_option(kv: Option<&Self>, out: &mut Vec<u8>) {
        out.push(u8::from(kv.is_some()));
        if let Some(kv) = kv {
            kv.encode(out);
        }
    }

    fn decode_option(reader: &mut Reader<'_>) -> Result<Option<Self>, DecodeError> {
        match reader.u8("presence")? {
            0 => Ok(None),
            1 => Self::decode(reader).map(Some),
            _ => Err(reader.error("presence")),
        }
    }

    fn encode_list(kvs: &[Self], out: &mut Vec<u8>) {
        put_count(out, kvs.len());
        for kv in kvs {
            kv.encode(out);
        }
    }

    fn decode_list(reader: &mut Reader<'_>) -> Result<Vec<Self>, DecodeError> {
        let count = reader.count(Self::LEAST_SIZE, "key count")?;
        (0..count).map(|_| Self::decode(reader)).collect()
    }
}

/// What every reply says of the state it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResponseHeader {
    /// The cluster that answered.
    pub cluster_id: u64,
    /// The member that answered.
    pub member_id: u64,
    /// The store's revision when the request was done.
    pub revision: i64,
    /// The Raft term of the member when it answered.
    pub raft_term: u64,
}

impl ResponseHeader {
    /// Bytes of the encoding.
    pub const SIZE: usize = 32;

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster_id.to_le_bytes());
        out.extend_from_slice(&self.member_id.to_le_bytes());
        put_i64(out, self.revision);
        out.extend_from_slice(&self.raft_term.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            cluster_id: reader.u64("cluster_id")?,
            member_id: reader.u64("member_id")?,
            revision: reader.i64("revision")?,
            raft_term: reader.u64("raft_term")?,
        })
    }
}

/// Answer to a range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeResponse {
    /// The keys found, cut at the limit.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Keys in the range, whatever the limit and the revision filters.
    pub count: i64,
}

impl RangeResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.more]));
        put_i64(out, self.count);
        KeyValue::encode_list(&self.kvs, out);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            more: reader.u8("range flags")? & 1 != 0,
            count: reader.i64("count")?,
            kvs: KeyValue::decode_list(reader)?,
        })
    }
}

/// Answer to a put.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutResponse {
    /// What it replaced, if asked for and there was something.
    pub prev_kv: Option<KeyValue>,
}

impl PutResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        KeyValue::encode_option(self.prev_kv.as_ref(), out);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            prev_kv: KeyValue::decode_option(reader)?,
        })
    }
}

/// Answer to a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteRangeResponse {
    /// Keys deleted.
    pub deleted: i64,
    /// The keys as they were, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

impl DeleteRangeResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_i64(out, self.deleted);
        KeyValue::encode_list(&self.prev_kvs, out);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            deleted: reader.i64("deleted")?,
            prev_kvs: KeyValue::decode_list(reader)?,
        })
    }
}

/// Answer to one operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseOp {
    /// To a range.
    Range(RangeResponse),
    /// To a put.
    Put(PutResponse),
    /// To a deletion.
    DeleteRange(DeleteRangeResponse),
    /// To a nested transaction.
    Txn(TxnResponse),
}

/// Answer to a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnResponse {
    /// Whether every compare held.
    pub succeeded: bool,
    /// One for each operation of the branch that was taken.
    pub responses: Vec<ResponseOp>,
}

impl TxnResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.succeeded]));
        put_count(out, self.responses.len());
        for response in &self.responses {
            match response {
                ResponseOp::Range(range) => {
                    out.push(0);
                    range.encode(out);
                }
                ResponseOp::Put(put) => {
                    out.push(1);
                    put.encode(out);
                }
                ResponseOp::DeleteRange(delete) => {
                    out.push(2);
                    delete.encode(out);
                }
                ResponseOp::Txn(txn) => {
                    out.push(3);
                    txn.encode(out);
                }
            }
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::decode_at(reader, 0)
    }

    fn decode_at(reader: &mut Reader<'_>, depth: usize) -> Result<Self, DecodeError> {
        if depth > crate::MAX_TXN_DEPTH {
            return Err(reader.error("transaction nesting"));
        }
        let succeeded = reader.u8("txn flags")? & 1 != 0;
        let count = reader.count(2, "response count")?;
        let responses = (0..count)
            .map(|_| {
                Ok(match reader.u8("response")? {
                    0 => ResponseOp::Range(RangeResponse::decode(reader)?),
                    1 => ResponseOp::Put(PutResponse::decode(reader)?),
                    2 => ResponseOp::DeleteRange(DeleteRangeResponse::decode(reader)?),
                    3 => ResponseOp::Txn(Self::decode_at(reader, depth + 1)?),
                    _ => return Err(reader.error("response")),
                })
            })
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self {
            succeeded,
            responses,
        })
    }
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted.
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key after it; a deletion has only key and mod revision.
    pub kv: KeyValue,
    /// The key before it, if asked for and not compacted.
    pub prev_kv: Option<KeyValue>,
}

impl Event {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.kind == EventKind::Delete));
        self.kv.encode(out);
        KeyValue::encode_option(self.prev_kv.as_ref(), out);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = match reader.u8("event kind")? {
            0 => EventKind::Put,
            1 => EventKind::Delete,
            _ => return Err(reader.error("event kind")),
        };
        Ok(Self {
            kind,
            kv: KeyValue::decode(reader)?,
            prev_kv: KeyValue::decode_option(reader)?,
        })
    }
}
