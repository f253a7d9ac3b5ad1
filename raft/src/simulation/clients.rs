//! Simulated clients: each does one thing after another, at any member.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use varve_engine::mvcc::{CommandResponse, MvccError, Reply, View};
use varve_types::{
    ApiError, Command, CompactionRequest, Compare, DeleteRangeRequest, MemberAttributes,
    PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
};

use super::history::{Action, Operation, Outcome, Version};
use crate::entry::push_command;
use crate::io::Input;
use crate::sink::{Completion, Proposal, ReadSink, ReplySink};

/// Answers that members gave: operation and outcome.
pub(super) type Mailbox = Arc<Mutex<Vec<(usize, Outcome)>>>;

pub(super) fn take_mail(mailbox: &Mailbox) -> Vec<(usize, Outcome)> {
    std::mem::take(&mut *mailbox.lock().unwrap_or_else(PoisonError::into_inner))
}

struct Sink {
    operation: usize,
    action: Action,
    mailbox: Mailbox,
}

impl Sink {
    fn post(&self, outcome: Outcome) {
        let mut mail = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        mail.push((self.operation, outcome));
    }

    fn post_refusal(&self, error: ApiError) {
        // As `ReplySink` says: after these it may be done all the same.
        self.post(match error {
            ApiError::Timeout
            | ApiError::TimeoutLeaderFailure
            | ApiError::TimeoutConnectionLost
            | ApiError::Stopped => Outcome::Unknown,
            error => Outcome::NotDone(error),
        });
    }
}

impl ReplySink for Sink {
    fn complete(self: Box<Self>, completion: Completion) {
        let mut replies = completion.replies.into_iter();
        let outcome = match (replies.next(), replies.next()) {
            (Some(reply), None) => outcome_of(reply),
            _ => Outcome::Failed("not one reply to one command".to_owned()),
        };
        self.post(outcome);
    }

    fn refuse(self: Box<Self>, error: ApiError) {
        self.post_refusal(error);
    }
}

impl ReadSink for Sink {
    fn ready(self: Box<Self>, view: Arc<View>, _term: u64) {
        self.post(read(&view, &self.action));
    }

    fn refuse(self: Box<Self>, error: ApiError) {
        self.post(Outcome::NotDone(error));
    }
}

fn outcome_of(Reply { revision, result }: Reply) -> Outcome {
    let version = |kv: &Option<varve_types::KeyValue>| kv.as_ref().map(Version::of);
    match result {
        Err(error) => Outcome::Refused(error),
        Ok(CommandResponse::Put(put)) => Outcome::Put(revision, version(&put.prev_kv)),
        Ok(CommandResponse::DeleteRange(deleted)) => {
            let versions = deleted.prev_kvs.iter().map(Version::of).collect();
            Outcome::Deleted(revision, versions)
        }
        Ok(CommandResponse::Txn(txn)) if txn.succeeded => {
            let put = |response: &ResponseOp| match response {
                ResponseOp::Put(put) => version(&put.prev_kv),
                _ => None,
            };
            Outcome::Swapped(revision, txn.responses.iter().map(put).collect())
        }
        Ok(CommandResponse::Txn(txn)) => match &txn.responses[..] {
            [ResponseOp::Range(range)] => {
                Outcome::NotSwapped(revision, range.kvs.first().map(Version::of))
            }
            _ => Outcome::Failed(format!("{txn:?}")),
        },
        Ok(CommandResponse::Compaction) => Outcome::Compacted,
        Ok(CommandResponse::MemberAttributes | CommandResponse::Alarm(_)) => {
            Outcome::Failed("another reply".to_owned())
        }
    }
}

/// Answers a read from a view.
pub(super) fn read(view: &View, action: &Action) -> Outcome {
    let revision = view.revision();
    let result = match action {
        Action::Get {
            key, revision: at, ..
        } => view
            .get_at(key, *at, |kv| Version::of(&kv.to_owned()))
            .map(|found| Outcome::Read(revision, found)),
        _ => {
            let mut all = Vec::new();
            let request = RangeRequest {
                key: &[0],
                range_end: &[0],
                ..RangeRequest::default()
            };
            let visit = &mut |kv: varve_types::KeyValueRef<'_>| {
                all.push((kv.key.to_vec(), Version::of(&kv.to_owned())));
                ControlFlow::Continue(())
            };
            view.range_with(&request, visit)
                .map(|_| Outcome::Ranged(revision, all))
        }
    };
    match (result, action) {
        (Ok(outcome), _) => outcome,
        (Err(error), Action::Get { revision: at, .. }) => match error.api() {
            Some(error @ ApiError::Compacted) if *at < view.compacted() => Outcome::Refused(error),
            Some(error @ ApiError::FutureRevision) if *at > revision => Outcome::Refused(error),
            _ => failed(&error),
        },
        (Err(error), _) => failed(&error),
    }
}

fn failed(error: &MvccError) -> Outcome {
    Outcome::Failed(error.to_string())
}

/// Whether an action goes to the log.
pub(super) fn is_write(action: &Action) -> bool {
    !matches!(action, Action::Get { .. } | Action::Range { .. })
}

/// Whether an action is answered by a member alone.
pub(super) fn is_serializable(action: &Action) -> bool {
    matches!(
        action,
        Action::Get {
            serializable: true,
            ..
        } | Action::Range { serializable: true }
    )
}

/// What a member gets of an operation.
pub(super) fn request(number: usize, operation: &Operation, mailbox: &Mailbox) -> Input {
    let sink = Box::new(Sink {
        operation: number,
        action: operation.action.clone(),
        mailbox: mailbox.clone(),
    });
    match is_write(&operation.action) {
        true => Input::Propose(Proposal {
            commands: encode(&operation.action),
            count: 1,
            reply_bytes: 0,
            sink,
        }),
        false => Input::Read(sink),
    }
}

/// For who does not wait for the answer.
struct Nobody;

impl ReplySink for Nobody {
    fn complete(self: Box<Self>, _completion: Completion) {}
    fn refuse(self: Box<Self>, _error: ApiError) {}
}

/// What a member says of itself.
pub(super) fn publication(attributes: MemberAttributes) -> Input {
    let command = Command::MemberAttributes(attributes);
    let mut body = Vec::new();
    command.encode_body(&mut body);
    let mut commands = Vec::new();
    push_command(&mut commands, command.opcode(), &body);
    Input::Propose(Proposal {
        commands: commands.into(),
        count: 1,
        reply_bytes: 0,
        sink: Box::new(Nobody),
    })
}

fn encode(action: &Action) -> Bytes {
    let mut body = Vec::new();
    let opcode = with_command(action, |command| {
        command.encode_body(&mut body);
        command.opcode()
    });
    let mut commands = Vec::new();
    push_command(&mut commands, opcode, &body);
    commands.into()
}

fn with_command<T>(action: &Action, use_it: impl FnOnce(&Command<'_>) -> T) -> T {
    let put = |key, value| PutRequest {
        key,
        value,
        prev_kv: true,
        ..PutRequest::default()
    };
    match action {
        Action::Put { key, value } => use_it(&Command::Put(put(key, value))),
        Action::Delete { key } => use_it(&Command::DeleteRange(DeleteRangeRequest {
            key,
            prev_kv: true,
            ..DeleteRangeRequest::default()
        })),
        Action::Txn {
            condition,
            keys,
            value,
        } => {
            let (result, target) = condition.comparison();
            let range = RangeRequest {
                key: &keys[0],
                ..RangeRequest::default()
            };
            use_it(&Command::Txn(TxnRequest {
                compare: vec![Compare {
                    result,
                    target,
                    key: &keys[0],
                    range_end: &[],
                }],
                success: keys
                    .iter()
                    .map(|key| RequestOp::Put(put(key, value)))
                    .collect(),
                failure: vec![RequestOp::Range(range)],
            }))
        }
        Action::Compact { revision } => use_it(&Command::Compaction(CompactionRequest {
            revision: *revision,
            ..CompactionRequest::default()
        })),
        // Reads do not go to the log.
        Action::Get { .. } | Action::Range { .. } => {
            use_it(&Command::Compaction(CompactionRequest::default()))
        }
    }
}
