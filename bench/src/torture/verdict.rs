//! The end of a run: members are compared, and the history is judged.

use std::time::{Duration, Instant};

use varve_raft::simulation::history::{self, Ledger, Operation, Outcome, Version};
use varve_raft::simulation::single_key;

use super::clients::all_keys;
use super::cluster::Cluster;
use super::record::Record;
use super::watchers::Watchers;

/// How long members may take until they all have the same revision.
const AGREE_PATIENCE: Duration = Duration::from_secs(60);

/// What was found.
pub(super) struct Verdict {
    pub(super) operations: Vec<Operation>,
    pub(super) events_watched: u64,
    /// What must not be, first things first.
    pub(super) violations: Vec<String>,
    pub(super) is_linearizable: bool,
    /// Keys whose history the search gave up on.
    pub(super) keys_given_up: u64,
    pub(super) writes_acknowledged: u64,
    pub(super) writes_lost: u64,
    pub(super) last_revision: i64,
    /// The hash of all members, if it is one.
    pub(super) hash: Option<u128>,
}

/// Judges. `broken` is what the run itself found.
pub(super) async fn judge(
    cluster: &Cluster,
    record: &Record,
    watchers: Watchers,
    broken: Result<(), String>,
) -> Verdict {
    let mut violations = Vec::new();
    violations.extend(broken.err());
    let (last_revision, hash) = match agreed(cluster).await {
        Ok((revision, hash)) => (revision, Some(hash)),
        Err(what) => {
            violations.push(what);
            (record.ledger().last(), None)
        }
    };
    let (watched, events_watched) = watchers.end(last_revision).await;
    violations.extend(watched.err());
    let operations = record.take_operations();
    for operation in &operations {
        if let Outcome::Failed(what) = &operation.outcome {
            violations.push(format!("{:?}: {what}", operation.action));
        }
    }
    let expected = record.ledger().all_at(last_revision);
    if let Err(what) = judge_states(cluster, &expected, last_revision).await {
        violations.push(what);
    }
    let ledger = record.ledger();
    let (writes_acknowledged, writes_lost) = count_lost(&ledger, &operations);
    let by_revision = history::judge(&ledger, &operations);
    let by_key = single_key::judge(&operations);
    let is_linearizable = by_revision.is_ok() && by_key.is_ok();
    let keys_given_up = *by_key.as_ref().unwrap_or(&0);
    violations.extend(by_revision.err());
    violations.extend(by_key.err());
    Verdict {
        events_watched,
        violations,
        is_linearizable,
        keys_given_up,
        writes_acknowledged,
        writes_lost,
        last_revision,
        hash,
        operations,
    }
}

/// The revision and the hash that all members have.
async fn agreed(cluster: &Cluster) -> Result<(i64, u128), String> {
    let deadline = Instant::now() + AGREE_PATIENCE;
    let client = cluster.client(0, Duration::from_secs(5));
    loop {
        let mut states = Vec::new();
        for member in &cluster.members {
            let answer = client.hash_kv(&member.place.client, 0).await;
            states.push(answer.map(|answer| (answer.body.hash_revision, answer.body.hash)));
        }
        if let Some(Ok(first)) = states.first()
            && states
                .iter()
                .all(|state| state.as_ref().ok() == Some(first))
        {
            return Ok((first.0, first.1));
        }
        if Instant::now() >= deadline {
            return Err(format!("the members' hashes differ: {states:x?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Each member holds what the watchers were told, no more and no less.
async fn judge_states(
    cluster: &Cluster,
    expected: &[(Vec<u8>, Version)],
    last: i64,
) -> Result<(), String> {
    for member in &cluster.members {
        let name = &member.name;
        let client = varve_client::Client::new(&[&member.place.client], Default::default());
        let client = client.map_err(|error| format!("{name}: {error}"))?;
        let request = varve_types::RangeRequest {
            serializable: true,
            ..all_keys()
        };
        let answer = client.range(&request).await;
        let answer = answer.map_err(|error| format!("{name}: {error}"))?;
        let kvs = answer.body.kvs.iter();
        let found: Vec<_> = kvs.map(|kv| (kv.key.clone(), Version::of(kv))).collect();
        if (answer.header.revision, &found[..]) != (last, expected) {
            return Err(format!(
                "{name} holds {} keys at revision {}, the events make {} at {last}, or other values",
                found.len(),
                answer.header.revision,
                expected.len()
            ));
        }
    }
    Ok(())
}

/// Writes that were acknowledged, and those of them that are not among the events.
fn count_lost(ledger: &Ledger, operations: &[Operation]) -> (u64, u64) {
    let (mut acknowledged, mut lost) = (0, 0);
    for operation in operations {
        let (keys, revision) = match (&operation.action, &operation.outcome) {
            (history::Action::Put { key, .. }, Outcome::Put(revision, _)) => {
                (std::slice::from_ref(key), *revision)
            }
            (history::Action::Txn { keys, .. }, Outcome::Swapped(revision, _)) => {
                (&keys[..], *revision)
            }
            (history::Action::Delete { key }, Outcome::Deleted(revision, former))
                if !former.is_empty() =>
            {
                (std::slice::from_ref(key), *revision)
            }
            _ => continue,
        };
        acknowledged += 1;
        let is_there = keys.iter().all(|key| {
            let version = ledger.at(key, revision);
            match operation.value() {
                Some(value) => version.is_some_and(|v| v.value == value && v.modified == revision),
                None => version.is_none(),
            }
        });
        lost += u64::from(!is_there);
    }
    (acknowledged, lost)
}

#[cfg(test)]
mod tests {
    use varve_raft::simulation::history::{Action, Event};

    use super::*;

    fn value(number: u64) -> Vec<u8> {
        number.to_be_bytes().to_vec()
    }

    fn put(number: u64, revision: i64, former: Option<Version>, time: [u64; 2]) -> Operation {
        Operation {
            action: Action::Put {
                key: b"k".to_vec(),
                value: value(number),
            },
            invoked: time[0],
            returned: Some(time[1]),
            outcome: Outcome::Put(revision, former),
        }
    }

    fn get(revision: i64, found: Option<Version>, time: [u64; 2]) -> Operation {
        Operation {
            action: Action::Get {
                key: b"k".to_vec(),
                serializable: false,
                revision: 0,
            },
            invoked: time[0],
            returned: Some(time[1]),
            outcome: Outcome::Read(revision, found),
        }
    }

    fn version(number: u64, modified: i64) -> Version {
        Version {
            value: value(number),
            create: 2,
            modified,
            version: modified - 1,
        }
    }

    fn ledger(puts: &[(u64, i64)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (number, revision) in puts {
            let event = Event {
                key: b"k".to_vec(),
                put: Some(version(*number, *revision)),
                revision: *revision,
                replaced: (*revision > 2).then_some(revision - 1),
            };
            ledger.take(&[event]).unwrap();
        }
        ledger
    }

    #[test]
    fn a_lost_write_and_a_stale_read_are_found() {
        let both = ledger(&[(0, 2), (1, 3)]);
        let writes = || {
            vec![
                put(0, 2, None, [1, 2]),
                put(1, 3, Some(version(0, 2)), [3, 4]),
            ]
        };
        let judged = |ledger: &Ledger, operations: &[Operation]| {
            let lost = count_lost(ledger, operations).1;
            let is_right = history::judge(ledger, operations).is_ok();
            (lost, is_right, single_key::judge(operations).is_ok())
        };
        let mut operations = writes();
        operations.push(get(3, Some(version(1, 3)), [5, 6]));
        assert_eq!(judged(&both, &operations), (0, true, true));
        assert_eq!(count_lost(&both, &operations).0, 2);
        // The second write is acknowledged, and nobody is told of it.
        assert_eq!(judged(&ledger(&[(0, 2)]), &writes()), (1, false, true));
        // A read that began after it shows what was before.
        let mut operations = writes();
        operations.push(get(2, Some(version(0, 2)), [5, 6]));
        assert_eq!(judged(&both, &operations), (0, false, false));
        // A write that timed out may be done, or not.
        let mut operations = writes();
        operations[1].outcome = Outcome::Unknown;
        operations.push(get(2, Some(version(0, 2)), [5, 6]));
        assert_eq!(judged(&both, &operations), (0, true, true));
    }
}
