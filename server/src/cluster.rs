//! Requests that change the membership or move leadership, and which requests a
//! member does not serve at all.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use varve_protocol::{
    Empty, Member, MemberAddResponse, MemberListResponse, Request, WireError, encode_error,
    encode_reply, opcode,
};
use varve_raft::{Change, Membership, identity, parse_urls};
use varve_types::{ApiError, ResponseHeader};

use crate::connection::{ChangeDone, Inbox};
use crate::metrics::add;
use crate::service::Service;

impl Service {
    /// Why a request is not served here, if it is not: by a member that is on its way
    /// down, or by a learner, which tells its state and serializable ranges only.
    pub fn refusal(&self, opcode: u8, body: &[u8]) -> Option<WireError> {
        let is_about_this_node = matches!(opcode, opcode::HELLO | opcode::PING | opcode::STATUS);
        if is_about_this_node {
            return None;
        }
        if self.is_draining() {
            return Some(WireError::shutting_down());
        }
        // What is known to be wrong is not served; whoever looks into it may ask.
        let is_about_state = matches!(
            opcode,
            opcode::RANGE | opcode::TXN | opcode::WATCH | opcode::SNAPSHOT | opcode::SPACE
        );
        if is_about_state && self.node.is_corrupt() {
            return Some(ApiError::Corrupt.into());
        }
        let is_serializable_range =
            opcode == opcode::RANGE && body.first().is_some_and(|bits| bits & 1 != 0);
        let is_snapshot = matches!(opcode, opcode::SNAPSHOT | opcode::SNAPSHOT_CREDIT);
        let is_local_read = is_serializable_range || is_snapshot || opcode == opcode::SPACE;
        (self.node.is_learner() && !is_local_read).then(|| ApiError::NotSupportedForLearner.into())
    }

    /// Starts what a request asks for; the answer comes to the inbox. Whether it is
    /// such a request.
    pub(crate) fn change(
        &self,
        id: u64,
        request: &Request<'_>,
        inbox: &Arc<Inbox>,
    ) -> Result<bool, WireError> {
        let (change, added) = match request {
            Request::MemberAdd(add) => {
                let peer_urls = checked(&add.peer_urls)?;
                let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
                let seconds = seconds.map_or(0, |since| since.as_secs() as i64);
                // A member that was removed in this very second must not come back.
                let members = self.node.members();
                let id = (seconds..)
                    .map(|seconds| identity::added_member_id(&peer_urls, seconds))
                    .find(|id| !members.is_removed(*id));
                let member = varve_raft::Member {
                    id: id.unwrap_or_default(),
                    peer_urls,
                    is_learner: add.is_learner,
                    is_promotable: add.is_promotable,
                    ..varve_raft::Member::default()
                };
                let added = member.id;
                (Change::Add(member), added)
            }
            Request::MemberRemove(remove) => (Change::Remove(remove.id), 0),
            Request::MemberUpdate(update) => {
                let peer_urls = checked(&update.peer_urls)?;
                let id = update.id;
                (Change::Update { id, peer_urls }, 0)
            }
            Request::MemberPromote(promote) => (Change::Promote(promote.id), 0),
            Request::MoveLeader(to) => {
                let sink = ChangeDone::sink(inbox, id, request.opcode(), 0);
                self.node.move_leader(to.id, sink);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let sink = ChangeDone::sink(inbox, id, request.opcode(), added);
        self.node.change(change, sink);
        Ok(true)
    }

    /// Answers such a request.
    pub(crate) fn answer_change(&self, out: &mut Vec<u8>, done: ChangeDone) {
        let ChangeDone {
            id,
            opcode,
            added,
            outcome,
        } = done;
        let members = match outcome {
            Ok(members) => members,
            Err(error) => {
                add(&self.metrics.failed, 1);
                return encode_error(out, opcode, id, &error.into());
            }
        };
        let header = self.header(self.node.view().revision(), self.term());
        match opcode {
            opcode::MOVE_LEADER => encode_reply(out, opcode, id, &header, &Empty),
            opcode::MEMBER_ADD => self.answer_added(out, id, &header, &members, added),
            _ => encode_reply(out, opcode, id, &header, &listed(&members)),
        }
    }

    fn answer_added(
        &self,
        out: &mut Vec<u8>,
        id: u64,
        header: &ResponseHeader,
        members: &Membership,
        added: u64,
    ) {
        let reply = MemberAddResponse {
            // Removed again already, it is named by its id alone.
            member: members.get(added).map_or_else(
                || Member {
                    id: added,
                    ..Member::default()
                },
                one,
            ),
            members: listed(members).members,
        };
        encode_reply(out, opcode::MEMBER_ADD, id, header, &reply);
    }

    /// The members, as of the last applied entry.
    pub fn members(&self) -> MemberListResponse {
        listed(&self.node.members())
    }
}

fn listed(members: &Membership) -> MemberListResponse {
    MemberListResponse {
        members: members.members().map(one).collect(),
    }
}

fn one(member: &varve_raft::Member) -> Member {
    Member {
        id: member.id,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}

/// Sorted URLs, as the id is computed from them.
fn checked(urls: &[String]) -> Result<Vec<String>, WireError> {
    if urls.iter().any(|url| url.contains(',')) {
        return Err(ApiError::MemberBadUrls.into());
    }
    parse_urls(&urls.join(",")).map_err(|_| ApiError::MemberBadUrls.into())
}
