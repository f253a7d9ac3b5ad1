//! The JSON format: compact, field names, order and omissions as Go's encoder makes them of
//! etcd's messages.

use std::io;

use serde::ser::{Serialize, Serializer};
use serde_json::ser::Formatter;
use varve_client::Answer;
use varve_protocol::{
    HashKvResponse, Member, MemberAddResponse, MemberListResponse, SpaceLine, StatusResponse,
};
use varve_types::{
    AlarmResponse, DeleteRangeResponse, Event, EventKind, KeyValue, PutResponse, RangeResponse,
    ResponseHeader, ResponseOp, TxnResponse,
};

use super::{At, Health, WatchNews};

/// Omits what Go's `omitempty` omits.
fn is_empty<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn no_items<T>(list: &[T]) -> bool {
    list.is_empty()
}

#[derive(serde::Serialize)]
struct Header {
    #[serde(skip_serializing_if = "is_empty")]
    cluster_id: u64,
    #[serde(skip_serializing_if = "is_empty")]
    member_id: u64,
    #[serde(skip_serializing_if = "is_empty")]
    revision: i64,
    #[serde(skip_serializing_if = "is_empty")]
    raft_term: u64,
}

impl From<&ResponseHeader> for Header {
    fn from(header: &ResponseHeader) -> Self {
        Self {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            revision: header.revision,
            raft_term: header.raft_term,
        }
    }
}

#[derive(serde::Serialize)]
struct Kv<'a> {
    #[serde(skip_serializing_if = "Base64::is_empty")]
    key: Base64<'a>,
    #[serde(skip_serializing_if = "is_empty")]
    create_revision: i64,
    #[serde(skip_serializing_if = "is_empty")]
    mod_revision: i64,
    #[serde(skip_serializing_if = "is_empty")]
    version: i64,
    #[serde(skip_serializing_if = "Base64::is_empty")]
    value: Base64<'a>,
    #[serde(skip_serializing_if = "is_empty")]
    lease: i64,
}

impl<'a> From<&'a KeyValue> for Kv<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self {
            key: Base64(&kv.key),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: Base64(&kv.value),
            lease: kv.lease,
        }
    }
}

#[derive(serde::Serialize)]
struct Range<'a> {
    header: Header,
    #[serde(skip_serializing_if = "no_items")]
    kvs: Vec<Kv<'a>>,
    #[serde(skip_serializing_if = "is_empty")]
    more: bool,
    #[serde(skip_serializing_if = "is_empty")]
    count: i64,
}

#[derive(serde::Serialize)]
struct Put<'a> {
    header: Header,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_kv: Option<Kv<'a>>,
}

#[derive(serde::Serialize)]
struct Delete<'a> {
    header: Header,
    #[serde(skip_serializing_if = "is_empty")]
    deleted: i64,
    #[serde(skip_serializing_if = "no_items")]
    prev_kvs: Vec<Kv<'a>>,
}

#[derive(serde::Serialize)]
struct Txn<'a> {
    header: Header,
    #[serde(skip_serializing_if = "is_empty")]
    succeeded: bool,
    #[serde(skip_serializing_if = "no_items")]
    responses: Vec<Response<'a>>,
}

#[derive(serde::Serialize)]
struct Response<'a> {
    #[serde(rename = "Response")]
    response: Op<'a>,
}

#[derive(serde::Serialize)]
enum Op<'a> {
    #[serde(rename = "ResponseRange")]
    Range(Range<'a>),
    #[serde(rename = "ResponsePut")]
    Put(Put<'a>),
    #[serde(rename = "ResponseDeleteRange")]
    DeleteRange(Delete<'a>),
    #[serde(rename = "ResponseTxn")]
    Txn(Txn<'a>),
}

impl<'a> Range<'a> {
    fn new(header: &ResponseHeader, reply: &'a RangeResponse) -> Self {
        Self {
            header: header.into(),
            kvs: reply.kvs.iter().map(Kv::from).collect(),
            more: reply.more,
            count: reply.count,
        }
    }
}

impl<'a> Put<'a> {
    fn new(header: &ResponseHeader, reply: &'a PutResponse) -> Self {
        Self {
            header: header.into(),
            prev_kv: reply.prev_kv.as_ref().map(Kv::from),
        }
    }
}

impl<'a> Delete<'a> {
    fn new(header: &ResponseHeader, reply: &'a DeleteRangeResponse) -> Self {
        Self {
            header: header.into(),
            deleted: reply.deleted,
            prev_kvs: reply.prev_kvs.iter().map(Kv::from).collect(),
        }
    }
}

impl<'a> Txn<'a> {
    fn new(header: &ResponseHeader, reply: &'a TxnResponse) -> Self {
        let inner = &ResponseHeader {
            revision: header.revision,
            ..ResponseHeader::default()
        };
        let responses = reply.responses.iter().map(|response| Response {
            response: match response {
                ResponseOp::Range(reply) => Op::Range(Range::new(inner, reply)),
                ResponseOp::Put(reply) => Op::Put(Put::new(inner, reply)),
                ResponseOp::DeleteRange(reply) => Op::DeleteRange(Delete::new(inner, reply)),
                ResponseOp::Txn(reply) => Op::Txn(Self::new(inner, reply)),
            },
        });
        Self {
            header: header.into(),
            succeeded: reply.succeeded,
            responses: responses.collect(),
        }
    }
}

pub(super) fn get(answer: &Answer<RangeResponse>) -> Vec<u8> {
    line(&Range::new(&answer.header, &answer.body))
}

pub(super) fn put(answer: &Answer<PutResponse>) -> Vec<u8> {
    line(&Put::new(&answer.header, &answer.body))
}

pub(super) fn delete(answer: &Answer<DeleteRangeResponse>) -> Vec<u8> {
    line(&Delete::new(&answer.header, &answer.body))
}

pub(super) fn txn(answer: &Answer<TxnResponse>) -> Vec<u8> {
    line(&Txn::new(&answer.header, &answer.body))
}

#[derive(serde::Serialize)]
struct EventJson<'a> {
    #[serde(rename = "type", skip_serializing_if = "is_empty")]
    kind: u8,
    kv: Kv<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_kv: Option<Kv<'a>>,
}

impl<'a> From<&'a Event> for EventJson<'a> {
    fn from(event: &'a Event) -> Self {
        Self {
            kind: u8::from(event.kind == EventKind::Delete),
            kv: (&event.kv).into(),
            prev_kv: event.prev_kv.as_ref().map(Kv::from),
        }
    }
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Watch<'a> {
    header: Header,
    events: Vec<EventJson<'a>>,
    compact_revision: i64,
    canceled: bool,
    created: bool,
}

pub(super) fn watch(news: &WatchNews<'_>) -> Vec<u8> {
    line(&Watch {
        header: (&news.header).into(),
        events: news.events.iter().map(EventJson::from).collect(),
        compact_revision: news.compact_revision,
        canceled: news.canceled,
        created: false,
    })
}

#[derive(serde::Serialize)]
struct MemberJson<'a> {
    #[serde(rename = "ID", skip_serializing_if = "is_empty")]
    id: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "peerURLs", skip_serializing_if = "no_items")]
    peer_urls: &'a [String],
    #[serde(rename = "clientURLs", skip_serializing_if = "no_items")]
    client_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "is_empty")]
    is_learner: bool,
}

impl<'a> From<&'a Member> for MemberJson<'a> {
    fn from(member: &'a Member) -> Self {
        Self {
            id: member.id,
            name: &member.name,
            peer_urls: &member.peer_urls,
            client_urls: &member.client_urls,
            is_learner: member.is_learner,
        }
    }
}

#[derive(serde::Serialize)]
struct MemberAdded<'a> {
    header: Header,
    member: MemberJson<'a>,
    #[serde(skip_serializing_if = "no_items")]
    members: Vec<MemberJson<'a>>,
}

pub(super) fn member_added(answer: &Answer<MemberAddResponse>) -> Vec<u8> {
    line(&MemberAdded {
        header: (&answer.header).into(),
        member: (&answer.body.member).into(),
        members: answer.body.members.iter().map(MemberJson::from).collect(),
    })
}

#[derive(serde::Serialize)]
struct Members<'a> {
    header: Header,
    #[serde(skip_serializing_if = "no_items")]
    members: Vec<MemberJson<'a>>,
}

// With `--hex`: ids as strings. The spelling of `clientURLS` is etcdctl's.
#[derive(serde::Serialize)]
struct HexHeader {
    cluster_id: String,
    member_id: String,
    raft_term: u64,
}

#[derive(serde::Serialize)]
struct HexMember<'a> {
    #[serde(rename = "ID")]
    id: String,
    name: &'a str,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "clientURLS")]
    client_urls: &'a [String],
}

#[derive(serde::Serialize)]
struct HexMembers<'a> {
    header: HexHeader,
    #[serde(skip_serializing_if = "no_items")]
    members: Vec<HexMember<'a>>,
}

pub(super) fn members(answer: &Answer<MemberListResponse>, hex: bool) -> Vec<u8> {
    let members = answer.body.members.iter();
    if hex {
        let members = members.map(|member| HexMember {
            id: format!("{:x}", member.id),
            name: &member.name,
            peer_urls: &member.peer_urls,
            client_urls: &member.client_urls,
        });
        return line(&HexMembers {
            header: HexHeader {
                cluster_id: format!("{:x}", answer.header.cluster_id),
                member_id: format!("{:x}", answer.header.member_id),
                raft_term: answer.header.raft_term,
            },
            members: members.collect(),
        });
    }
    line(&Members {
        header: (&answer.header).into(),
        members: members.map(MemberJson::from).collect(),
    })
}

#[derive(serde::Serialize)]
struct HealthJson<'a> {
    endpoint: &'a str,
    health: bool,
    took: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

pub(super) fn health(list: &[Health]) -> Vec<u8> {
    let list = list.iter().map(|health| HealthJson {
        endpoint: &health.endpoint,
        health: health.error.is_empty(),
        took: &health.took,
        error: &health.error,
    });
    line(&list.collect::<Vec<_>>())
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    header: Header,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    db_size: i64,
    #[serde(skip_serializing_if = "is_empty")]
    leader: u64,
    #[serde(skip_serializing_if = "is_empty")]
    raft_index: u64,
    #[serde(skip_serializing_if = "is_empty")]
    raft_term: u64,
    #[serde(skip_serializing_if = "is_empty")]
    raft_applied_index: u64,
    #[serde(skip_serializing_if = "no_items")]
    errors: &'a [String],
    #[serde(skip_serializing_if = "is_empty")]
    db_size_in_use: i64,
    #[serde(skip_serializing_if = "is_empty")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    storage_version: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    db_size_quota: i64,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointStatus<'a> {
    endpoint: &'a str,
    status: Status<'a>,
}

pub(super) fn status(list: &[At<StatusResponse>]) -> Vec<u8> {
    let list = list.iter().map(|At { endpoint, answer }| EndpointStatus {
        endpoint,
        status: Status {
            header: (&answer.header).into(),
            version: &answer.body.version,
            db_size: answer.body.db_size,
            leader: answer.body.leader,
            raft_index: answer.body.raft_index,
            raft_term: answer.body.raft_term,
            raft_applied_index: answer.body.raft_applied_index,
            errors: &answer.body.errors,
            db_size_in_use: answer.body.db_size_in_use,
            is_learner: answer.body.is_learner,
            storage_version: &answer.body.storage_version,
            db_size_quota: answer.body.db_size_quota,
        },
    });
    line(&list.collect::<Vec<_>>())
}

#[derive(serde::Serialize)]
struct AlarmOf {
    #[serde(rename = "memberID", skip_serializing_if = "is_empty")]
    member_id: u64,
    alarm: u8,
}

#[derive(serde::Serialize)]
struct Alarms {
    header: Header,
    #[serde(skip_serializing_if = "no_items")]
    alarms: Vec<AlarmOf>,
}

pub(super) fn alarm(answer: &Answer<AlarmResponse>) -> Vec<u8> {
    let alarms = answer.body.alarms.iter().map(|alarm| AlarmOf {
        member_id: alarm.member_id,
        alarm: alarm.kind as u8,
    });
    line(&Alarms {
        header: (&answer.header).into(),
        alarms: alarms.collect(),
    })
}

#[derive(serde::Serialize)]
struct HashKv {
    header: Header,
    #[serde(skip_serializing_if = "is_empty")]
    hash: u32,
    #[serde(skip_serializing_if = "is_empty")]
    compact_revision: i64,
    #[serde(skip_serializing_if = "is_empty")]
    hash_revision: i64,
}

#[derive(serde::Serialize)]
struct EndpointHashKv<'a> {
    #[serde(rename = "Endpoint")]
    endpoint: &'a str,
    #[serde(rename = "HashKV")]
    hash_kv: HashKv,
}

pub(super) fn hash_kv(list: &[At<HashKvResponse>]) -> Vec<u8> {
    let list = list.iter().map(|At { endpoint, answer }| EndpointHashKv {
        endpoint,
        hash_kv: HashKv {
            header: (&answer.header).into(),
            hash: answer.body.hash32(),
            compact_revision: answer.body.compact_revision,
            hash_revision: answer.body.hash_revision,
        },
    });
    line(&list.collect::<Vec<_>>())
}

#[derive(serde::Serialize)]
struct SpaceEntry<'a> {
    name: Base64<'a>,
    #[serde(skip_serializing_if = "is_empty")]
    is_directory: bool,
    keys: u64,
    bytes: u64,
}

#[derive(serde::Serialize)]
struct Space<'a> {
    header: Header,
    lines: Vec<SpaceEntry<'a>>,
}

pub(super) fn space(header: &ResponseHeader, lines: &[SpaceLine]) -> Vec<u8> {
    let lines = lines.iter().map(|line| SpaceEntry {
        name: Base64(&line.name),
        is_directory: line.is_directory,
        keys: line.keys,
        bytes: line.bytes,
    });
    line(&Space {
        header: header.into(),
        lines: lines.collect(),
    })
}

/// Bytes, in standard base64 with padding.
struct Base64<'a>(&'a [u8]);

impl Base64<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::with_capacity(self.0.len().div_ceil(3) * 4);
        for group in self.0.chunks(3) {
            let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for digit in 0..4 {
                text.push(match digit <= group.len() {
                    true => char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]),
                    false => '=',
                });
            }
        }
        serializer.serialize_str(&text)
    }
}

/// Go's encoder escapes what could end a script in HTML.
struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let escaped = rest[at..].chars().next().unwrap_or_default();
            write!(writer, "\\u{:04x}", escaped as u32)?;
            rest = &rest[at + escaped.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

pub(super) fn line(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, GoFormatter);
    // Writing these messages to memory has no way to fail.
    let _ = value.serialize(&mut serializer);
    out.push(b'\n');
    out
}
