//! Clients: each has one operation outstanding, and notes what it was told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use varve_client::{Client, ClientError};
use varve_engine::disk::sim::Rng;
use varve_protocol::ErrorCode;
use varve_raft::simulation::history::{Action, Condition, Outcome, Version};
use varve_types::{
    ApiError, CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    ResponseOp, TxnRequest,
};

use super::TortureArgs;
use super::cluster::Cluster;
use super::record::Record;

/// All keys of the run begin with it.
const PREFIX: &str = "t/";
/// Keys that are in use at a time: few, so that operations meet.
const KEYS: u64 = 48;
/// Other keys after this time, as the search through a key's history takes longer the
/// longer it is.
const KEYS_LIVE: Duration = Duration::from_secs(30);
/// Mean time between two operations of a client.
const THINK: Duration = Duration::from_millis(8);
/// How much history a compaction leaves: more than any watcher may be behind.
const KEPT_REVISIONS: i64 = 10_000;
/// Time between two compactions.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(7);

/// The clients that run.
pub(super) struct Clients {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

pub(super) fn start(args: &TortureArgs, cluster: &Cluster, record: &Arc<Record>) -> Clients {
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for number in 0..args.clients {
        let patience = Duration::from_millis([1000, 2500, 6000][number % 3]);
        let task = Task {
            client: cluster.client(number, patience),
            record: record.clone(),
            rng: Rng::new(args.seed ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            seen: HashMap::new(),
            started: Instant::now(),
            // A write that waits for a leader keeps its client from reading what is old.
            only_reads: number % 4 >= 2,
            compacts_at: (number == 0).then(|| Instant::now() + COMPACTION_INTERVAL),
        };
        tasks.spawn(task.run(stopped.clone()));
    }
    Clients { stop, tasks }
}

impl Clients {
    /// Waits until the last operation of each is answered.
    pub(super) async fn end(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Task {
    client: Client,
    record: Arc<Record>,
    rng: Rng,
    /// What it saw last of each key.
    seen: HashMap<Vec<u8>, Version>,
    started: Instant,
    only_reads: bool,
    /// Only one client compacts.
    compacts_at: Option<Instant>,
}

impl Task {
    async fn run(mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let choice = self.choose();
            let (number, action) = self.record.begin(choice);
            let outcome = perform(&self.client, &action).await;
            self.remember(&action, &outcome);
            self.record.end(number, outcome);
            let pause = THINK.mul_f64(self.rng.below(2000) as f64 / 1000.0);
            tokio::time::sleep(pause).await;
        }
    }

    fn key(&mut self) -> Vec<u8> {
        let age = self.started.elapsed().as_millis() / KEYS_LIVE.as_millis();
        format!("{PREFIX}{age:04}/{:02}", self.rng.below(KEYS)).into_bytes()
    }

    /// What to do next, as soon as its number is known.
    fn choose(&mut self) -> impl FnOnce(u64) -> Action + use<> {
        let key = self.key();
        let padding = self.rng.below(100) as usize;
        let value = move |number: u64| {
            let mut value = number.to_be_bytes().to_vec();
            value.resize(8 + padding, b'.');
            value
        };
        let kind = match self.only_reads {
            true => 650 + self.rng.below(350),
            false => self.rng.below(1000),
        };
        let serializable = self.rng.chance(20);
        let mut keys = vec![key.clone()];
        let condition = match (self.rng.below(4), self.seen.get(&key)) {
            (0, Some(seen)) => Condition::Modified(seen.modified),
            (1, Some(seen)) => Condition::Value(seen.value.clone()),
            (2, _) => Condition::Absent,
            _ => Condition::Exists,
        };
        let other = self.key();
        if other != key && self.rng.chance(50) {
            keys.push(other);
        }
        let compact = self
            .compacts_at
            .filter(|at| *at <= Instant::now())
            .map(|_| self.record.ledger().last() - KEPT_REVISIONS)
            .filter(|revision| *revision > 1);
        if compact.is_some() {
            self.compacts_at = Some(Instant::now() + COMPACTION_INTERVAL);
        }
        move |number| match (compact, kind) {
            (Some(revision), _) => Action::Compact { revision },
            (None, 0..400) => Action::Put {
                key,
                value: value(number),
            },
            (None, 400..480) => Action::Delete { key },
            (None, 480..650) => Action::Txn {
                condition,
                keys,
                value: value(number),
            },
            (None, 650..998) => Action::Get {
                key,
                serializable,
                revision: 0,
            },
            _ => Action::Range { serializable },
        }
    }

    fn remember(&mut self, action: &Action, outcome: &Outcome) {
        let (Action::Get { key, .. }, Outcome::Read(_, found)) = (action, outcome) else {
            return;
        };
        match found {
            Some(version) => self.seen.insert(key.clone(), version.clone()),
            None => self.seen.remove(key),
        };
    }
}

/// The range of all keys of the run.
pub(super) fn all_keys<'a>() -> RangeRequest<'a> {
    RangeRequest {
        key: b"t/",
        range_end: b"t0",
        ..RangeRequest::default()
    }
}

async fn perform(client: &Client, action: &Action) -> Outcome {
    let done = attempt(client, action).await;
    done.unwrap_or_else(|error| outcome_of(&error, action))
}

async fn attempt(client: &Client, action: &Action) -> Result<Outcome, ClientError> {
    let put = |key, value| PutRequest {
        key,
        value,
        prev_kv: true,
        ..PutRequest::default()
    };
    Ok(match action {
        Action::Put { key, value } => {
            let answer = client.put(&put(key, value)).await?;
            let former = answer.body.prev_kv.as_ref().map(Version::of);
            Outcome::Put(answer.header.revision, former)
        }
        Action::Delete { key } => {
            let request = DeleteRangeRequest {
                key,
                prev_kv: true,
                ..DeleteRangeRequest::default()
            };
            let answer = client.delete_range(&request).await?;
            let former = answer.body.prev_kvs.iter().map(Version::of).collect();
            Outcome::Deleted(answer.header.revision, former)
        }
        Action::Txn {
            condition,
            keys,
            value,
        } => {
            let (result, target) = condition.comparison();
            let read = RangeRequest {
                key: &keys[0],
                ..RangeRequest::default()
            };
            let puts = keys.iter().map(|key| RequestOp::Put(put(key, value)));
            let request = TxnRequest {
                compare: vec![Compare {
                    result,
                    target,
                    key: &keys[0],
                    range_end: &[],
                }],
                success: puts.collect(),
                failure: vec![RequestOp::Range(read)],
            };
            let answer = client.txn(request).await?;
            let revision = answer.header.revision;
            let former = |response: &ResponseOp| match response {
                ResponseOp::Put(put) => put.prev_kv.as_ref().map(Version::of),
                _ => None,
            };
            match (answer.body.succeeded, &answer.body.responses[..]) {
                (true, responses) => {
                    Outcome::Swapped(revision, responses.iter().map(former).collect())
                }
                (false, [ResponseOp::Range(range)]) => {
                    Outcome::NotSwapped(revision, range.kvs.first().map(Version::of))
                }
                (false, other) => Outcome::Failed(format!("{other:?}")),
            }
        }
        Action::Get {
            key, serializable, ..
        } => {
            let request = RangeRequest {
                key,
                serializable: *serializable,
                ..RangeRequest::default()
            };
            let answer = client.range(&request).await?;
            let found = answer.body.kvs.first().map(Version::of);
            Outcome::Read(answer.header.revision, found)
        }
        Action::Range { serializable } => {
            let request = RangeRequest {
                serializable: *serializable,
                ..all_keys()
            };
            let answer = client.range(&request).await?;
            let kvs = answer.body.kvs;
            let found = kvs.iter().map(|kv| (kv.key.clone(), Version::of(kv)));
            Outcome::Ranged(answer.header.revision, found.collect())
        }
        Action::Compact { revision } => {
            let request = CompactionRequest {
                revision: *revision,
                ..CompactionRequest::default()
            };
            client.compact(&request).await?;
            Outcome::Compacted
        }
    })
}

/// What an error says of a write: only what a node says before it proposes anything
/// means that it was not done.
fn outcome_of(error: &ClientError, action: &Action) -> Outcome {
    let ClientError::Server(answer) = error else {
        return Outcome::Unknown;
    };
    match answer.code {
        ErrorCode::Api(
            error @ (ApiError::NoLeader
            | ApiError::NoSpace
            | ApiError::TooManyRequests
            | ApiError::RequestTooLarge),
        ) => Outcome::NotDone(error),
        ErrorCode::ShuttingDown => Outcome::NotDone(ApiError::Stopped),
        ErrorCode::Api(error @ (ApiError::Compacted | ApiError::FutureRevision)) => {
            Outcome::Refused(error)
        }
        ErrorCode::Internal if matches!(action, Action::Get { .. } | Action::Range { .. }) => {
            Outcome::Failed(answer.to_string())
        }
        _ => Outcome::Unknown,
    }
}
