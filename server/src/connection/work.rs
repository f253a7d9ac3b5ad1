//! Answers that a connection makes itself, as far as its output has room.

use std::sync::Arc;
use std::time::Instant;

use varve_engine::mvcc::{CommandResponse, Reply, View};
use varve_protocol::{
    Empty, Request, WireError, encode_error, encode_put_reply, encode_reply, opcode,
};
use varve_raft::Completion;
use varve_types::{ApiError, ResponseHeader};

use super::inbox::{Reads, Writes};
use super::ranges::{self, PausedRange};
use crate::metrics::add;
use crate::service::{Service, wire_error};

/// Something that still has to be answered.
pub(super) enum Work {
    /// Reads from a view; the number says how many are done, and where the next body starts.
    Reads {
        reads: Reads,
        done: usize,
        body_start: usize,
        started: Instant,
        view: Arc<View>,
        header: Option<ResponseHeader>,
        term: u64,
    },
    /// The rest of a long range.
    Range(Box<PausedRange>),
}

/// What a step of work came to.
pub(super) enum Step {
    /// There is more of it.
    More,
    /// It is done.
    Done,
    /// It is done; these requests are answered.
    Answered(Reads),
}

impl Work {
    pub(super) fn reads(reads: Reads, started: Instant, view: Arc<View>, term: u64) -> Self {
        Self::Reads {
            reads,
            done: 0,
            body_start: 0,
            started,
            view,
            header: None,
            term,
        }
    }

    /// Answers the next request, or the next piece of a range. The rest of a range that
    /// does not fit is put into `paused`.
    pub(super) fn step(
        &mut self,
        service: &Service,
        out: &mut Vec<u8>,
        paused: &mut Option<PausedRange>,
    ) -> Step {
        match self {
            Self::Range(range) => {
                if range.resume(out) {
                    Step::Done
                } else {
                    Step::More
                }
            }
            Self::Reads {
                reads,
                done,
                body_start,
                started,
                view,
                header,
                term,
            } => {
                let header = *header.get_or_insert_with(|| service.header(view.revision(), *term));
                if let Some(&(id, opcode, end)) = reads.requests.get(*done) {
                    let body = &reads.bodies[*body_start..end];
                    *paused = answer_read(service, out, view, header, (id, opcode), body);
                    *done += 1;
                    *body_start = end;
                }
                if *done < reads.requests.len() {
                    return Step::More;
                }
                service.metrics.observe(&reads.kinds, started.elapsed());
                Step::Answered(std::mem::take(reads))
            }
        }
    }
}

/// Answers one read from `view`; the rest of a long range is returned.
fn answer_read(
    service: &Service,
    out: &mut Vec<u8>,
    view: &Arc<View>,
    header: ResponseHeader,
    (id, opcode): (u64, u8),
    body: &[u8],
) -> Option<PausedRange> {
    let result = match Request::decode(opcode, body) {
        Ok(Request::Range(range)) if range.key.is_empty() => Err(ApiError::KeyNotProvided.into()),
        Ok(Request::Range(range)) => return ranges::answer(out, view, id, header, &range),
        Ok(Request::Txn(txn)) => match view.read_txn(&txn) {
            Ok(reply) => {
                encode_reply(out, opcode::TXN, id, &header, &reply);
                Ok(())
            }
            Err(error) => Err(wire_error(&error, view)),
        },
        Ok(Request::MemberList(_)) => {
            encode_reply(out, opcode::MEMBER_LIST, id, &header, &service.members());
            Ok(())
        }
        Ok(_) => Err(WireError::internal("a request changed while it waited")),
        Err(error) => {
            add(&service.metrics.malformed, 1);
            Err((&error).into())
        }
    };
    if let Err(error) = result {
        add(&service.metrics.failed, 1);
        encode_error(out, opcode, id, &error);
    }
    None
}

/// Appends the same error for each request.
pub(super) fn refuse_all(
    service: &Service,
    out: &mut Vec<u8>,
    requests: impl Iterator<Item = (u64, u8)>,
    error: ApiError,
) {
    let error = WireError::from(error);
    for (id, opcode) in requests {
        add(&service.metrics.failed, 1);
        encode_error(out, opcode, id, &error);
    }
}

/// Appends the answers to a proposal.
pub(super) fn answer_writes(
    service: &Service,
    out: &mut Vec<u8>,
    writes: &Writes,
    completion: Completion,
) {
    let mut replies = completion.replies.into_iter();
    for &(id, opcode) in &writes.requests {
        match replies.next() {
            Some(reply) => answer_write(service, out, (id, opcode), reply, completion.term),
            None => encode_error(
                out,
                opcode,
                id,
                &WireError::internal("the replica gave fewer answers than it was asked for"),
            ),
        }
    }
}

fn answer_write(
    service: &Service,
    out: &mut Vec<u8>,
    (id, opcode): (u64, u8),
    reply: Reply,
    term: u64,
) {
    let header = service.header(reply.revision, term);
    match reply.result {
        Ok(CommandResponse::Put(put)) if put.prev_kv.is_none() => {
            encode_put_reply(out, id, &header);
        }
        Ok(CommandResponse::Put(put)) => encode_reply(out, opcode, id, &header, &put),
        Ok(CommandResponse::DeleteRange(delete)) => {
            encode_reply(out, opcode, id, &header, &delete);
        }
        Ok(CommandResponse::Txn(txn)) => encode_reply(out, opcode, id, &header, &txn),
        Ok(CommandResponse::Compaction | CommandResponse::MemberAttributes) => {
            encode_reply(out, opcode, id, &header, &Empty);
        }
        Err(error) => {
            add(&service.metrics.failed, 1);
            let error = match error {
                ApiError::Compacted => WireError::compacted(service.node.view().compacted()),
                error => error.into(),
            };
            encode_error(out, opcode, id, &error);
        }
    }
}
