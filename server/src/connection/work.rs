//! Answers that a connection makes itself, as far as its output has room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use varve_engine::mvcc::{CommandResponse, MvccError, Reply, View};
use varve_protocol::{
    Empty, Request, WireError, encode_error, encode_put_reply, encode_reply, opcode,
};
use varve_raft::Completion;
use varve_types::{ApiError, ResponseHeader, TxnRequest, TxnResponse};

use super::budget::Budget;
use super::inbox::{Inbox, MaintainedSink, Reads, Writes};
use super::ranges::{self, PausedRange};
use crate::metrics::add;
use crate::service::{Service, space};

/// Reads of one batch, answered one after the other.
pub(super) struct Work {
    reads: Reads,
    /// How many are done, and where the next body starts.
    done: usize,
    body_start: usize,
    started: Instant,
    /// Let go when a poll ends before they are all answered: the rest is as well
    /// answered from a newer one, and a client that does not read keeps no old pages.
    view: Option<Source>,
}

struct Source {
    view: Arc<View>,
    header: ResponseHeader,
}

impl Source {
    fn new(service: &Service, view: Arc<View>, term: u64) -> Self {
        let header = service.header(view.revision(), term);
        Self { view, header }
    }
}

impl Work {
    pub(super) fn new(
        service: &Service,
        reads: Reads,
        started: Instant,
        view: Arc<View>,
        term: u64,
    ) -> Self {
        Self {
            reads,
            done: 0,
            body_start: 0,
            started,
            view: Some(Source::new(service, view, term)),
        }
    }

    /// Lets the view go.
    pub(super) fn release(&mut self) {
        self.view = None;
    }

    /// Answers the next request. The rest of a range that does not fit is put into `paused`.
    pub(super) fn step(
        &mut self,
        service: &Service,
        out: &mut Vec<u8>,
        budget: &mut Budget,
        paused: &mut VecDeque<PausedRange>,
    ) {
        let source = self
            .view
            .get_or_insert_with(|| Source::new(service, service.node.view(), service.term()));
        if let Some(&(id, opcode, end)) = self.reads.requests.get(self.done) {
            let body = &self.reads.bodies[self.body_start..end];
            paused.extend(answer_read(
                service,
                out,
                source,
                budget,
                (id, opcode),
                body,
            ));
            self.done += 1;
            self.body_start = end;
        }
    }

    /// The requests, if all are answered.
    pub(super) fn finished(&mut self, service: &Service) -> Option<Reads> {
        if self.done < self.reads.requests.len() {
            return None;
        }
        let metrics = &service.metrics;
        metrics.observe(&self.reads.kinds, self.started.elapsed());
        Some(std::mem::take(&mut self.reads))
    }
}

/// Answers one read; the rest of a long range is returned.
fn answer_read(
    service: &Service,
    out: &mut Vec<u8>,
    Source { view, header }: &Source,
    budget: &mut Budget,
    (id, opcode): (u64, u8),
    body: &[u8],
) -> Option<PausedRange> {
    let header = *header;
    let decoded = Request::decode(opcode, body);
    budget.charge(match &decoded {
        Ok(Request::Range(range)) if range.range_end.is_empty() => Budget::KEY,
        _ => Budget::SCAN,
    });
    let result = match decoded {
        Ok(Request::Range(range)) => return ranges::answer(service, out, view, id, header, &range),
        Ok(Request::Txn(txn)) => match read_txn(view, &txn) {
            Ok(reply) => {
                encode_reply(out, opcode::TXN, id, &header, &reply);
                Ok(())
            }
            Err(error) => Err(service.wire_error(&error, view)),
        },
        Ok(Request::MemberList(_)) => {
            encode_reply(out, opcode::MEMBER_LIST, id, &header, &service.members());
            Ok(())
        }
        Ok(Request::Alarm(request)) => {
            encode_reply(out, opcode, id, &header, &service.alarms(&request));
            Ok(())
        }
        Ok(Request::Space(request)) => {
            // Engines without sums go over the keys.
            match tokio::task::block_in_place(|| space(view, &request)) {
                Ok(reply) => {
                    encode_reply(out, opcode, id, &header, &reply);
                    Ok(())
                }
                Err(error) => Err(service.wire_error(&error, view)),
            }
        }
        Ok(_) => Err(WireError::internal("a request changed while it waited")),
        Err(error) => {
            add(&service.metrics.malformed, u64::from(error.api().is_none()));
            Err((&error).into())
        }
    };
    if let Err(error) = result {
        add(&service.metrics.failed, 1);
        encode_error(out, opcode, id, &error);
    }
    None
}

/// Answers a transaction that only reads. It is answered from one state and in one
/// step: where that may go over many keys, the worker's other connections move to
/// another thread meanwhile.
fn read_txn(view: &View, txn: &TxnRequest<'_>) -> Result<TxnResponse, MvccError> {
    if txn.names_ranges() {
        tokio::task::block_in_place(|| view.read_txn(txn))
    } else {
        view.read_txn(txn)
    }
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

/// Appends the answers to a proposal, but for those that wait until compacted history
/// is gone: how many these are.
pub(super) fn answer_writes(
    service: &Service,
    inbox: &Arc<Inbox>,
    out: &mut Vec<u8>,
    writes: &Writes,
    completion: Completion,
) -> usize {
    let mut replies = completion.replies.into_iter();
    let mut held = 0;
    for (at, &(id, opcode)) in writes.requests.iter().enumerate() {
        match replies.next() {
            Some(reply) if reply.result.is_ok() && writes.physical.contains(&at) => {
                let header = service.header(reply.revision, completion.term);
                let sink = MaintainedSink::new(Arc::clone(inbox), id, opcode, header);
                service.node.when_removed(sink);
                held += 1;
            }
            Some(reply) => answer_write(service, out, (id, opcode), reply, completion.term),
            None => encode_error(
                out,
                opcode,
                id,
                &WireError::internal("the replica gave fewer answers than it was asked for"),
            ),
        }
    }
    held
}

/// Appends the answer to a compaction whose history is gone, or to a request to give
/// space back.
pub(super) fn answer_maintained(
    service: &Service,
    out: &mut Vec<u8>,
    (id, opcode): (u64, u8),
    outcome: Result<ResponseHeader, ApiError>,
) {
    match outcome {
        Ok(header) => encode_reply(out, opcode, id, &header, &Empty),
        Err(error) => refuse_all(service, out, std::iter::once((id, opcode)), error),
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
        Ok(CommandResponse::Alarm(alarms)) => encode_reply(out, opcode, id, &header, &alarms),
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
