//! What the Raft log carries: requests that change the store.

use crate::codec::{DecodeError, Reader, put_bytes, put_count};
use crate::{AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, PutRequest, TxnRequest};

/// Numbers of the requests, the same on the wire and in the log.
#[allow(missing_docs)]
pub mod opcode {
    pub const RANGE: u8 = 1;
    pub const PUT: u8 = 2;
    pub const DELETE_RANGE: u8 = 3;
    pub const TXN: u8 = 4;
    pub const COMPACTION: u8 = 5;
    /// Only in the log: a member publishes its name and client URLs.
    pub const MEMBER_ATTRIBUTES: u8 = 6;
    pub const ALARM: u8 = 7;
}

/// What a member says of itself once it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberAttributes {
    /// The member.
    pub member_id: u64,
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// One change of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// Write a key.
    Put(PutRequest<'a>),
    /// Delete keys.
    DeleteRange(DeleteRangeRequest<'a>),
    /// A transaction.
    Txn(TxnRequest<'a>),
    /// Drop history.
    Compaction(CompactionRequest),
    /// A member publishes itself.
    MemberAttributes(MemberAttributes),
    /// An alarm is raised or ended.
    Alarm(AlarmRequest),
}

impl<'a> Command<'a> {
    /// Its number.
    pub fn opcode(&self) -> u8 {
        match self {
            Self::Put(_) => opcode::PUT,
            Self::DeleteRange(_) => opcode::DELETE_RANGE,
            Self::Txn(_) => opcode::TXN,
            Self::Compaction(_) => opcode::COMPACTION,
            Self::MemberAttributes(_) => opcode::MEMBER_ATTRIBUTES,
            Self::Alarm(_) => opcode::ALARM,
        }
    }

    /// Appends the body, without the opcode.
    pub fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put(put) => put.encode(out),
            Self::DeleteRange(delete) => delete.encode(out),
            Self::Txn(txn) => txn.encode(out),
            Self::Compaction(compaction) => compaction.encode(out),
            Self::Alarm(alarm) => alarm.encode(out),
            Self::MemberAttributes(member) => {
                out.extend_from_slice(&member.member_id.to_le_bytes());
                put_bytes(out, member.name.as_bytes());
                put_count(out, member.client_urls.len());
                for url in &member.client_urls {
                    put_bytes(out, url.as_bytes());
                }
            }
        }
    }

    /// The first key that a command looks at, without decoding the rest; none
    /// where there is none, or where the body is malformed.
    pub fn first_key(opcode: u8, body: &'a [u8]) -> Option<&'a [u8]> {
        let mut reader = Reader::new(body);
        match opcode {
            opcode::PUT => Some(PutRequest::decode(&mut reader).ok()?.key),
            opcode::DELETE_RANGE => Some(DeleteRangeRequest::decode(&mut reader).ok()?.key),
            opcode::TXN if reader.u32("compare count").ok()? > 0 => {
                Some(Compare::decode(&mut reader).ok()?.key)
            }
            _ => None,
        }
    }

    /// Reads a body that must fill `body`.
    pub fn decode_body(opcode: u8, body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let command = match opcode {
            opcode::PUT => Self::Put(PutRequest::decode(&mut reader)?),
            opcode::DELETE_RANGE => Self::DeleteRange(DeleteRangeRequest::decode(&mut reader)?),
            opcode::TXN => Self::Txn(TxnRequest::decode(&mut reader)?),
            opcode::COMPACTION => Self::Compaction(CompactionRequest::decode(&mut reader)?),
            opcode::MEMBER_ATTRIBUTES => {
                let member_id = reader.u64("member_id")?;
                let name = reader.string("name")?.to_owned();
                let count = reader.count(4, "url count")?;
                let client_urls = (0..count)
                    .map(|_| reader.string("url").map(str::to_owned))
                    .collect::<Result<_, _>>()?;
                Self::MemberAttributes(MemberAttributes {
                    member_id,
                    name,
                    client_urls,
                })
            }
            opcode::ALARM => Self::Alarm(AlarmRequest::decode(&mut reader)?),
            _ => return Err(reader.error("opcode")),
        };
        reader.finish()?;
        Ok(command)
    }
}

/// Appends one command in the form that logs and proposals keep it in:
/// `[u32 length of the rest][u8 opcode][body]`. [`Commands`] reads it back.
pub fn push_command(out: &mut Vec<u8>, opcode: u8, body: &[u8]) {
    // Commands are bounded by the longest request, far below 4 GiB.
    out.extend_from_slice(&(body.len() as u32 + 1).to_le_bytes());
    out.push(opcode);
    out.extend_from_slice(body);
}

/// Commands one after the other, as [`push_command`] appends them.
#[derive(Debug, Clone)]
pub struct Commands<'a> {
    reader: Reader<'a>,
}

impl<'a> Commands<'a> {
    /// Starts at the first command of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            reader: Reader::new(bytes),
        }
    }

    /// Opcodes and bodies of what is left, up to what is malformed.
    pub fn raw(mut self) -> impl Iterator<Item = (u8, &'a [u8])> {
        std::iter::from_fn(move || self.next_command().ok().flatten())
    }

    /// The next command: opcode and body.
    pub fn next_command(&mut self) -> Result<Option<(u8, &'a [u8])>, DecodeError> {
        if self.reader.remaining() == 0 {
            return Ok(None);
        }
        let command = self.reader.bytes("command")?;
        match command.split_first() {
            Some((opcode, body)) => Ok(Some((*opcode, body))),
            None => Err(self.reader.error("opcode")),
        }
    }
}
