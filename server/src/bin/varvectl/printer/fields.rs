//! The fields format: one `"Name" : value` per line, strings quoted as Go does.

use std::fmt::Display;

use varve_client::Answer;
use varve_protocol::{HashKvResponse, MemberListResponse, StatusResponse};
use varve_types::{
    AlarmResponse, DeleteRangeResponse, EventKind, KeyValue, PutResponse, RangeResponse,
    ResponseHeader, ResponseOp, TxnResponse,
};

use super::{At, Health, SnapshotStatus, WatchNews};
use crate::go_format::quote;

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn field(&mut self, name: &str, value: impl Display) {
        self.0.push_str(&format!("\"{name}\" : {value}\n"));
    }

    fn text(&mut self, name: &str, value: &[u8]) {
        self.field(name, quote(value));
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }

    fn header(&mut self, header: &ResponseHeader) {
        self.field("ClusterID", header.cluster_id);
        self.field("MemberID", header.member_id);
        self.field("Revision", header.revision);
        self.field("RaftTerm", header.raft_term);
    }

    fn kv(&mut self, prefix: &str, kv: &KeyValue) {
        self.text(&format!("{prefix}Key"), &kv.key);
        self.field(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.field(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.field(&format!("{prefix}Version"), kv.version);
        self.text(&format!("{prefix}Value"), &kv.value);
        self.field(&format!("{prefix}Lease"), kv.lease);
    }

    fn get(&mut self, header: &ResponseHeader, reply: &RangeResponse) {
        self.header(header);
        for kv in &reply.kvs {
            self.kv("", kv);
        }
        self.field("More", reply.more);
        self.field("Count", reply.count);
    }

    fn put(&mut self, header: &ResponseHeader, reply: &PutResponse) {
        self.header(header);
        if let Some(kv) = &reply.prev_kv {
            self.kv("Prev", kv);
        }
    }

    fn delete(&mut self, header: &ResponseHeader, reply: &DeleteRangeResponse) {
        self.header(header);
        self.field("Deleted", reply.deleted);
        for kv in &reply.prev_kvs {
            self.kv("Prev", kv);
        }
    }

    fn txn(&mut self, header: &ResponseHeader, reply: &TxnResponse) {
        self.header(header);
        self.field("Succeeded", reply.succeeded);
        // Headers inside a transaction carry the revision only, as etcd's do.
        let inner = ResponseHeader {
            revision: header.revision,
            ..ResponseHeader::default()
        };
        for response in &reply.responses {
            match response {
                ResponseOp::Range(reply) => self.get(&inner, reply),
                ResponseOp::Put(reply) => self.put(&inner, reply),
                ResponseOp::DeleteRange(reply) => self.delete(&inner, reply),
                ResponseOp::Txn(reply) => self.txn(&inner, reply),
            }
        }
    }

    fn done(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

pub(super) fn get(answer: &Answer<RangeResponse>) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.get(&answer.header, &answer.body);
    lines.done()
}

pub(super) fn put(answer: &Answer<PutResponse>) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.put(&answer.header, &answer.body);
    lines.done()
}

pub(super) fn delete(answer: &Answer<DeleteRangeResponse>) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.delete(&answer.header, &answer.body);
    lines.done()
}

pub(super) fn txn(answer: &Answer<TxnResponse>) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.txn(&answer.header, &answer.body);
    lines.done()
}

pub(super) fn watch(news: &WatchNews<'_>) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.header(&news.header);
    for event in news.events {
        let kind = match event.kind {
            EventKind::Put => "PUT",
            EventKind::Delete => "DELETE",
        };
        lines.field("Type", kind);
        if let Some(prev) = &event.prev_kv {
            lines.kv("Prev", prev);
        }
        lines.kv("", &event.kv);
    }
    lines.done()
}

pub(super) fn members(answer: &Answer<MemberListResponse>) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.header(&answer.header);
    for member in &answer.body.members {
        lines.field("ID", member.id);
        lines.text("Name", member.name.as_bytes());
        for url in &member.peer_urls {
            lines.text("PeerURL", url.as_bytes());
        }
        for url in &member.client_urls {
            lines.text("ClientURL", url.as_bytes());
        }
        lines.field("IsLearner", member.is_learner);
        lines.blank();
    }
    lines.done()
}

pub(super) fn health(list: &[Health]) -> Vec<u8> {
    let mut lines = Lines::default();
    for health in list {
        lines.text("Endpoint", health.endpoint.as_bytes());
        lines.field("Health", health.error.is_empty());
        lines.field("Took", &health.took);
        lines.field("Error", &health.error);
        lines.blank();
    }
    lines.done()
}

pub(super) fn status(list: &[At<StatusResponse>]) -> Vec<u8> {
    let mut lines = Lines::default();
    for At { endpoint, answer } in list {
        let status = &answer.body;
        lines.header(&answer.header);
        lines.text("Version", status.version.as_bytes());
        lines.field("DBSize", status.db_size);
        lines.field("Leader", status.leader);
        lines.field("IsLearner", status.is_learner);
        lines.field("RaftIndex", status.raft_index);
        lines.field("RaftTerm", status.raft_term);
        lines.field("RaftAppliedIndex", status.raft_applied_index);
        lines.field("Errors", format!("[{}]", status.errors.join(" ")));
        lines.text("Endpoint", endpoint.as_bytes());
        lines.blank();
    }
    lines.done()
}

pub(super) fn snapshot_status(status: &SnapshotStatus) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.field("Hash", status.hash);
    lines.field("Revision", status.revision);
    lines.field("Keys", status.total_keys);
    lines.field("Size", status.total_size);
    lines.done()
}

pub(super) fn alarm(answer: &Answer<AlarmResponse>) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.header(&answer.header);
    for alarm in &answer.body.alarms {
        lines.field("MemberID", alarm.member_id);
        lines.field("AlarmType", alarm.kind.name());
        lines.blank();
    }
    lines.done()
}

pub(super) fn hash_kv(list: &[At<HashKvResponse>]) -> Vec<u8> {
    let mut lines = Lines::default();
    for At { endpoint, answer } in list {
        lines.header(&answer.header);
        lines.text("Endpoint", endpoint.as_bytes());
        lines.field("Hash", answer.body.hash32());
        lines.blank();
    }
    lines.done()
}
