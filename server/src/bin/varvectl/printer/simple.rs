//! The simple format: bare keys and values, one per line.

use varve_client::Answer;
use varve_protocol::{MemberAddResponse, SpaceLine};
use varve_types::{
    AlarmResponse, DeleteRangeResponse, EventKind, KeyValue, PutResponse, RangeResponse,
    ResponseHeader, ResponseOp, TxnResponse,
};

use super::table::Table;
use super::{Health, MemberChange, WatchNews};
use crate::go_format::quote;

/// As etcdctl prints the message, with its space at the end.
pub(super) fn alarm(reply: &AlarmResponse) -> Vec<u8> {
    let lines = reply.alarms.iter().map(|alarm| {
        let member = match alarm.member_id {
            0 => String::new(),
            id => format!("memberID:{id} "),
        };
        format!("{member}alarm:{} \n", alarm.kind.name())
    });
    lines.collect::<String>().into_bytes()
}

pub(super) struct Simple {
    pub(super) hex: bool,
    pub(super) value_only: bool,
}

impl Simple {
    fn bytes(&self, bytes: &[u8], out: &mut Vec<u8>) {
        match self.hex {
            true => out.extend(
                bytes
                    .iter()
                    .flat_map(|b| format!("\\x{b:02x}").into_bytes()),
            ),
            false => out.extend_from_slice(bytes),
        }
        out.push(b'\n');
    }

    fn kv(&self, kv: &KeyValue, out: &mut Vec<u8>) {
        if !self.value_only {
            self.bytes(&kv.key, out);
        }
        self.bytes(&kv.value, out);
    }

    pub(super) fn get(&self, reply: &RangeResponse) -> Vec<u8> {
        let mut out = Vec::new();
        for kv in &reply.kvs {
            self.kv(kv, &mut out);
        }
        out
    }

    pub(super) fn put(&self, reply: &PutResponse) -> Vec<u8> {
        let mut out = b"OK\n".to_vec();
        if let Some(kv) = &reply.prev_kv {
            self.kv(kv, &mut out);
        }
        out
    }

    pub(super) fn delete(&self, reply: &DeleteRangeResponse) -> Vec<u8> {
        let mut out = format!("{}\n", reply.deleted).into_bytes();
        for kv in &reply.prev_kvs {
            self.kv(kv, &mut out);
        }
        out
    }

    pub(super) fn txn(&self, reply: &TxnResponse) -> Vec<u8> {
        let verdict: &[u8] = match reply.succeeded {
            true => b"SUCCESS\n",
            false => b"FAILURE\n",
        };
        let mut out = verdict.to_vec();
        for response in &reply.responses {
            out.push(b'\n');
            out.extend(match response {
                ResponseOp::Range(reply) => self.get(reply),
                ResponseOp::Put(reply) => self.put(reply),
                ResponseOp::DeleteRange(reply) => self.delete(reply),
                ResponseOp::Txn(reply) => self.txn(reply),
            });
        }
        out
    }

    /// The name may be any bytes, so the figures come behind it.
    pub(super) fn space(&self, lines: &[SpaceLine]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            self.bytes(&line.name, &mut out);
            out.pop();
            out.extend(format!(", {}, {}\n", line.keys, line.bytes).into_bytes());
        }
        out
    }

    pub(super) fn watch(&self, news: &WatchNews<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        for event in news.events {
            let kind: &[u8] = match event.kind {
                EventKind::Put => b"PUT\n",
                EventKind::Delete => b"DELETE\n",
            };
            out.extend_from_slice(kind);
            if let Some(prev) = &event.prev_kv {
                self.kv(prev, &mut out);
            }
            self.kv(&event.kv, &mut out);
        }
        out
    }
}

pub(super) fn rows(table: &Table) -> Vec<u8> {
    let mut out = String::new();
    for row in &table.rows {
        out.push_str(&row.join(", "));
        out.push('\n');
    }
    out.into_bytes()
}

pub(super) fn member_added(
    answer: &Answer<MemberAddResponse>,
    name: &str,
    peer_urls: &str,
) -> Vec<u8> {
    let reply = &answer.body;
    let members = reply.members.iter().flat_map(|member| {
        let is_new = member.id == reply.member.id;
        let name = if is_new { name } else { &member.name };
        member
            .peer_urls
            .iter()
            .map(move |url| format!("{name}={url}"))
    });
    let members = members.collect::<Vec<_>>().join(",");
    let quoted = |text: &str| quote(text.as_bytes());
    format!(
        "Member {:>16x} added to cluster {:>16x}\n\n\
         VARVE_NAME={}\n\
         VARVE_INITIAL_CLUSTER={}\n\
         VARVE_INITIAL_ADVERTISE_PEER_URLS={}\n\
         VARVE_INITIAL_CLUSTER_STATE=\"existing\"\n",
        reply.member.id,
        answer.header.cluster_id,
        quoted(name),
        quoted(&members),
        quoted(peer_urls),
    )
    .into_bytes()
}

pub(super) fn member_changed(header: &ResponseHeader, id: u64, what: MemberChange) -> Vec<u8> {
    let what = match what {
        MemberChange::Removed => "removed from",
        MemberChange::Updated => "updated in",
        MemberChange::Promoted => "promoted in",
    };
    let cluster = header.cluster_id;
    format!("Member {id:>16x} {what} cluster {cluster:>16x}\n").into_bytes()
}

pub(super) fn healthy(list: &[Health]) -> Vec<u8> {
    let healthy = list.iter().filter(|health| health.error.is_empty());
    let lines = healthy.map(|health| {
        format!(
            "{} is healthy: successfully committed proposal: took = {}\n",
            health.endpoint, health.took
        )
    });
    lines.collect::<String>().into_bytes()
}

pub(super) fn unhealthy(list: &[Health]) -> Vec<String> {
    let unhealthy = list.iter().filter(|health| !health.error.is_empty());
    unhealthy
        .map(|health| {
            format!(
                "{} is unhealthy: failed to commit proposal: {}",
                health.endpoint, health.error
            )
        })
        .collect()
}
