//! What clients did and saw, and the judge by revisions.
//!
//! The store gives each change a revision, so that the order of all changes is
//! known, and only has to be held against what clients saw: every acknowledged
//! change is where its revision says, every read shows the state of its revision,
//! and nothing that ended before something else began has a later revision.

use std::collections::BTreeMap;

use varve_types::{ApiError, CompareResult, CompareTarget, EventKind, EventRef, KeyValue};

/// A key's state at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub value: Vec<u8>,
    pub create: i64,
    pub modified: i64,
    pub version: i64,
}

impl Version {
    pub fn of(kv: &KeyValue) -> Self {
        Self {
            value: kv.value.clone(),
            create: kv.create_revision,
            modified: kv.mod_revision,
            version: kv.version,
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub key: Vec<u8>,
    /// None for a deletion.
    pub put: Option<Version>,
    pub revision: i64,
    /// Mod revision of what it replaced.
    pub replaced: Option<i64>,
}

impl Event {
    pub fn of(event: &EventRef<'_>) -> Self {
        Self {
            key: event.kv.key.to_vec(),
            put: (event.kind == EventKind::Put).then(|| Version {
                value: event.kv.value.to_vec(),
                create: event.kv.create_revision,
                modified: event.kv.mod_revision,
                version: event.kv.version,
            }),
            revision: event.kv.mod_revision,
            replaced: event.prev_kv.map(|kv| kv.mod_revision),
        }
    }
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Exists,
    Absent,
    Modified(i64),
    Value(Vec<u8>),
}

impl Condition {
    /// The comparison of a transaction that says the same.
    pub fn comparison(&self) -> (CompareResult, CompareTarget<'_>) {
        match self {
            Self::Exists => (CompareResult::Greater, CompareTarget::Version(0)),
            Self::Absent => (CompareResult::Equal, CompareTarget::Version(0)),
            Self::Modified(at) => (CompareResult::Equal, CompareTarget::Mod(*at)),
            Self::Value(value) => (CompareResult::Equal, CompareTarget::Value(value)),
        }
    }

    fn holds(&self, version: Option<&Version>) -> bool {
        match self {
            Self::Exists => version.is_some(),
            Self::Absent => version.is_none(),
            Self::Modified(revision) => version.map_or(0, |v| v.modified) == *revision,
            // As in etcd, a key that is not there has no value that could be compared.
            Self::Value(value) => version.is_some_and(|v| v.value == *value),
        }
    }
}

/// What a client asks for. Values are unique: they begin with the operation's number.
#[derive(Debug, Clone)]
pub enum Action {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
    },
    /// If the condition holds puts all keys, else reads the first.
    Txn {
        condition: Condition,
        keys: Vec<Vec<u8>>,
        value: Vec<u8>,
    },
    Get {
        key: Vec<u8>,
        serializable: bool,
        /// 0 is the newest.
        revision: i64,
    },
    Range {
        serializable: bool,
    },
    Compact {
        revision: i64,
    },
}

/// What it came to.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The revision before it, of what it replaced.
    Put(i64, Option<Version>),
    Deleted(i64, Vec<Version>),
    /// What each put replaced.
    Swapped(i64, Vec<Option<Version>>),
    NotSwapped(i64, Option<Version>),
    Read(i64, Option<Version>),
    Ranged(i64, Vec<(Vec<u8>, Version)>),
    Compacted,
    /// The store refused it; nothing was changed.
    Refused(#[allow(dead_code)] ApiError), // for the trace
    /// A member could not read its store.
    Failed(String),
    /// It was not done and never will be.
    NotDone(#[allow(dead_code)] ApiError), // for the trace
    /// It may be done later, or not, or was.
    Unknown,
}

/// One operation.
#[derive(Debug)]
pub struct Operation {
    pub action: Action,
    pub invoked: u64,
    /// Steps are the clock of histories: no two things happen at once.
    pub returned: Option<u64>,
    pub outcome: Outcome,
}

impl Operation {
    pub fn value(&self) -> Option<&[u8]> {
        match &self.action {
            Action::Put { value, .. } | Action::Txn { value, .. } => Some(value),
            _ => None,
        }
    }

    /// The revision that it was done at, and whether that is its own.
    fn revision(&self) -> Option<(i64, bool)> {
        Some(match &self.outcome {
            Outcome::Put(revision, _) | Outcome::Swapped(revision, _) => (*revision, true),
            Outcome::Deleted(revision, deleted) => (*revision, !deleted.is_empty()),
            Outcome::NotSwapped(revision, _)
            | Outcome::Read(revision, _)
            | Outcome::Ranged(revision, _) => (*revision, false),
            _ => return None,
        })
    }
}

/// All changes that any member made, in order: each member must make the same.
#[derive(Debug, Default)]
pub struct Ledger {
    by_revision: BTreeMap<i64, Vec<Event>>,
    by_key: BTreeMap<Vec<u8>, Vec<(i64, Option<Version>)>>,
}

impl Ledger {
    /// Takes the events of one batch; what contradicts what is known.
    pub fn take(&mut self, events: &[Event]) -> Result<(), String> {
        for events in events.chunk_by(|a, b| a.revision == b.revision) {
            let revision = events[0].revision;
            let last = self.last();
            if let Some(known) = self.by_revision.get(&revision) {
                if known != events {
                    return Err(format!(
                        "revision {revision} is {known:?}, but a member made it {events:?}"
                    ));
                }
                continue;
            }
            if revision != last + 1 {
                return Err(format!("revision {revision} follows {last}"));
            }
            for event in events {
                let versions = self.by_key.entry(event.key.clone()).or_default();
                let before = versions.last().and_then(|(_, v)| v.as_ref());
                if before.map(|v| v.modified) != event.replaced {
                    return Err(format!("{event:?} replaced {before:?}"));
                }
                let expected = event.put.as_ref().map(|put| Version {
                    value: put.value.clone(),
                    create: before.map_or(revision, |v| v.create),
                    modified: revision,
                    version: before.map_or(0, |v| v.version) + 1,
                });
                if expected != event.put || (event.put.is_none() && before.is_none()) {
                    return Err(format!("{event:?} after {before:?}"));
                }
                versions.push((revision, expected));
            }
            self.by_revision.insert(revision, events.to_vec());
        }
        Ok(())
    }

    /// The newest revision; 1 before the first change.
    pub fn last(&self) -> i64 {
        self.by_revision.last_key_value().map_or(1, |(r, _)| *r)
    }

    /// The events from `revision` on.
    pub fn from(&self, revision: i64) -> impl Iterator<Item = &Event> {
        self.by_revision.range(revision..).flat_map(|(_, e)| e)
    }

    /// A key as of a revision.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<&Version> {
        let versions = self.by_key.get(key)?;
        let count = versions.partition_point(|(r, _)| *r <= revision);
        versions[..count].last()?.1.as_ref()
    }

    /// All keys as of a revision.
    pub fn all_at(&self, revision: i64) -> Vec<(Vec<u8>, Version)> {
        let keys = self.by_key.keys();
        keys.filter_map(|key| Some((key.clone(), self.at(key, revision)?.clone())))
            .collect()
    }
}

/// Judges a history against the order of revisions.
pub fn judge(ledger: &Ledger, operations: &[Operation]) -> Result<(), String> {
    for (number, operation) in operations.iter().enumerate() {
        judge_one(ledger, operation)
            .map_err(|what| format!("operation {number} {operation:?}: {what}"))?;
    }
    judge_values(ledger, operations)?;
    judge_times(operations)
}

fn judge_one(ledger: &Ledger, operation: &Operation) -> Result<(), String> {
    let Some((revision, own)) = operation.revision() else {
        return Ok(());
    };
    if revision > ledger.last() {
        return Err(format!("the newest revision is {}", ledger.last()));
    }
    let made: Vec<&Event> = match own {
        true => ledger
            .by_revision
            .get(&revision)
            .map_or(Vec::new(), |events| events.iter().collect()),
        false => Vec::new(),
    };
    let put = |event: &&Event, key: &[u8], value: &[u8]| {
        event.key == key && event.put.as_ref().is_some_and(|put| put.value == value)
    };
    let before = |key: &[u8]| ledger.at(key, revision - 1).cloned();
    let fine = match (&operation.action, &operation.outcome) {
        (Action::Put { key, value }, Outcome::Put(_, replaced)) => {
            matches!(&made[..], [event] if put(event, key, value)) && *replaced == before(key)
        }
        (Action::Delete { key }, Outcome::Deleted(_, deleted)) => match &deleted[..] {
            [] => ledger.at(key, revision).is_none(),
            [version] => {
                matches!(&made[..], [event] if event.key == *key && event.put.is_none())
                    && Some(version) == before(key).as_ref()
            }
            _ => false,
        },
        (
            Action::Txn {
                condition,
                keys,
                value,
            },
            Outcome::Swapped(_, replaced),
        ) => {
            condition.holds(before(&keys[0]).as_ref())
                && made.len() == keys.len()
                && made
                    .iter()
                    .zip(keys)
                    .all(|(event, key)| put(event, key, value))
                && replaced
                    .iter()
                    .zip(keys)
                    .all(|(old, key)| *old == before(key))
        }
        (
            Action::Txn {
                condition, keys, ..
            },
            Outcome::NotSwapped(_, found),
        ) => {
            let version = ledger.at(&keys[0], revision);
            !condition.holds(version) && found.as_ref() == version
        }
        (
            Action::Get {
                key, revision: 0, ..
            },
            Outcome::Read(_, found),
        ) => found.as_ref() == ledger.at(key, revision),
        (
            Action::Get {
                key, revision: at, ..
            },
            Outcome::Read(_, found),
        ) => *at <= revision && found.as_ref() == ledger.at(key, *at),
        (Action::Range { .. }, Outcome::Ranged(_, found)) => *found == ledger.all_at(revision),
        _ => false,
    };
    match fine {
        true => Ok(()),
        false => Err(format!("revision {revision} is {made:?}")),
    }
}

/// Every value comes from one operation, was made once, and not by one that was refused.
fn judge_values(ledger: &Ledger, operations: &[Operation]) -> Result<(), String> {
    let mut made: BTreeMap<u64, i64> = BTreeMap::new();
    for event in ledger.from(0) {
        let Some(put) = &event.put else { continue };
        let number = number_of(&put.value);
        let operation = number.and_then(|number| operations.get(number as usize));
        let Some((number, operation)) = number.zip(operation) else {
            return Err(format!("{event:?}: nobody asked for it"));
        };
        if operation.value() != Some(&put.value[..]) {
            return Err(format!(
                "{event:?} is not what was asked for: {operation:?}"
            ));
        }
        if *made.entry(number).or_insert(event.revision) != event.revision {
            return Err(format!("operation {number} was done twice: {event:?}"));
        }
        let refused = Outcome::is_certainly_not_done(&operation.outcome);
        if refused {
            return Err(format!("{event:?} was refused: {operation:?}"));
        }
    }
    Ok(())
}

impl Outcome {
    fn is_certainly_not_done(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::NotDone(_) | Self::NotSwapped(..)
        )
    }
}

/// The operation that a value names.
pub fn number_of(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))
}

/// What ended before something else began is not after it.
fn judge_times(operations: &[Operation]) -> Result<(), String> {
    let mut ended: Vec<(u64, i64, usize)> = Vec::new();
    for (number, operation) in operations.iter().enumerate() {
        if let (Some(returned), Some((revision, _))) = (operation.returned, operation.revision()) {
            ended.push((returned, revision, number));
        }
    }
    ended.sort_unstable();
    let mut begun: Vec<usize> = (0..operations.len()).collect();
    begun.sort_unstable_by_key(|number| operations[*number].invoked);
    let (mut floor, mut by, mut position) = (0, 0, 0);
    for number in begun {
        let operation = &operations[number];
        while position < ended.len() && ended[position].0 < operation.invoked {
            if ended[position].1 > floor {
                (floor, by) = (ended[position].1, ended[position].2);
            }
            position += 1;
        }
        let Some((revision, own)) = operation.revision() else {
            continue;
        };
        let serializable = matches!(
            operation.action,
            Action::Get {
                serializable: true,
                ..
            } | Action::Range { serializable: true }
        );
        if !serializable && (revision < floor || (own && revision == floor)) {
            return Err(format!(
                "operation {number} {operation:?} is of revision {revision}, but operation {by} \
                 had ended with {floor} before: {:?}",
                operations[by]
            ));
        }
    }
    Ok(())
}
