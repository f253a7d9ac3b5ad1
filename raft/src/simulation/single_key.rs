//! An independent judge: is the history of one key linearizable?
//!
//! It knows nothing of revisions. The search is that of Wing and Gong with the
//! memory of Lowe ("Testing for linearizability", 2017), as in Porcupine: try each
//! operation that could have been first, undo, and never try twice what was done
//! before in another order. An operation of which nobody knows whether it was done
//! has no end; one whose value was never seen by anybody may be left out, as all
//! operations that replace a value show which.

use std::collections::{BTreeMap, HashSet};

use super::history::{Action, Condition, Operation, Outcome, Version, number_of};

/// States that are looked at before the search is given up.
const MAX_STATES: usize = 200_000;

/// The operation whose value the key has.
type State = Option<u64>;

#[derive(Debug, Clone, Copy)]
enum Effect {
    /// Replaces a value, which it shows.
    Put(u64, Option<State>),
    /// Removes the value, which it shows unless the outcome is unknown.
    Delete(Option<State>),
    Read(State),
    /// Shows a value, and replaces it if that is the one asked for.
    Never,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    number: usize,
    invoked: u64,
    returned: u64,
    effect: Effect,
}

/// What the search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Linearizable,
    NotLinearizable,
    /// Too much was open.
    GivenUp,
}

/// Judges the operations of each key; the first key whose history is wrong, and how
/// many were given up.
pub fn judge(operations: &[Operation]) -> Result<u64, String> {
    let mut keys: BTreeMap<&[u8], Vec<Entry>> = BTreeMap::new();
    for (number, operation) in operations.iter().enumerate() {
        for (key, effect) in effects(number, operation) {
            keys.entry(key).or_default().push(Entry {
                number,
                invoked: operation.invoked,
                returned: match operation.outcome {
                    Outcome::Unknown => u64::MAX,
                    _ => operation.returned.unwrap_or(u64::MAX),
                },
                effect,
            });
        }
    }
    let mut given_up = 0;
    for (key, entries) in keys {
        let entries = without_unseen(entries);
        match search(&entries) {
            Verdict::Linearizable => {}
            Verdict::GivenUp => given_up += 1,
            Verdict::NotLinearizable => {
                let text: Vec<String> = entries.iter().map(|entry| format!("{entry:?}")).collect();
                return Err(format!(
                    "the history of key {key:?} is not linearizable:\n{}",
                    text.join("\n")
                ));
            }
        }
    }
    Ok(given_up)
}

fn shown(version: Option<&Version>) -> State {
    version.and_then(|version| number_of(&version.value))
}

/// What an operation does to single keys.
fn effects(number: usize, operation: &Operation) -> Vec<(&[u8], Effect)> {
    let own = number as u64;
    match (&operation.action, &operation.outcome) {
        (Action::Put { key, .. }, Outcome::Put(_, old)) => {
            vec![(key, Effect::Put(own, Some(shown(old.as_ref()))))]
        }
        (Action::Put { key, .. }, Outcome::Unknown) => vec![(key, Effect::Put(own, None))],
        (Action::Delete { key }, Outcome::Deleted(_, old)) => {
            vec![(key, Effect::Delete(Some(shown(old.first()))))]
        }
        (Action::Delete { key }, Outcome::Unknown) => vec![(key, Effect::Delete(None))],
        (
            Action::Txn {
                keys, condition, ..
            },
            Outcome::Swapped(_, old),
        ) => {
            let mut effects = Vec::new();
            for (index, (key, old)) in keys.iter().zip(old).enumerate() {
                let seen = shown(old.as_ref());
                let fits = index > 0
                    || match condition {
                        Condition::Exists => seen.is_some(),
                        Condition::Absent => seen.is_none(),
                        Condition::Value(value) => seen == number_of(value),
                        Condition::Modified(_) => true,
                    };
                let effect = match fits {
                    true => Effect::Put(own, Some(seen)),
                    false => Effect::Never,
                };
                effects.push((&key[..], effect));
            }
            effects
        }
        (Action::Txn { keys, .. }, Outcome::NotSwapped(_, found)) => {
            vec![(&keys[0], Effect::Read(shown(found.as_ref())))]
        }
        (Action::Txn { keys, .. }, Outcome::Unknown) => keys
            .iter()
            .map(|key| (&key[..], Effect::Put(own, None)))
            .collect(),
        (
            Action::Get {
                key,
                serializable: false,
                revision: 0,
            },
            Outcome::Read(_, found),
        ) => vec![(key, Effect::Read(shown(found.as_ref())))],
        _ => Vec::new(),
    }
}

/// Leaves out unknown puts that nobody saw; those that were seen ended before that.
fn without_unseen(entries: Vec<Entry>) -> Vec<Entry> {
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in &entries {
        if let Effect::Put(_, Some(Some(value)))
        | Effect::Delete(Some(Some(value)))
        | Effect::Read(Some(value)) = entry.effect
        {
            let first = seen.entry(value).or_insert(u64::MAX);
            *first = entry.returned.min(*first);
        }
    }
    entries
        .into_iter()
        .filter_map(|mut entry| {
            if let Effect::Put(own, None) = entry.effect {
                entry.returned = *seen.get(&own)?;
            }
            Some(entry)
        })
        .collect()
}

/// The state after an effect, if it could have been.
fn after(effect: Effect, state: State) -> Option<State> {
    match effect {
        Effect::Put(own, old) => old.is_none_or(|old| old == state).then_some(Some(own)),
        Effect::Delete(old) => old.is_none_or(|old| old == state).then_some(None),
        Effect::Read(value) => (value == state).then_some(state),
        Effect::Never => None,
    }
}

fn search(entries: &[Entry]) -> Verdict {
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_unstable_by_key(|entry| (entry.invoked, entry.number));
    let mut done = vec![0u64; order.len().div_ceil(64)];
    let is_done = |done: &[u64], at: usize| done[at / 64] >> (at % 64) & 1 == 1;
    let mut state: State = None;
    let mut tried: HashSet<(Vec<u64>, State)> = HashSet::new();
    // Choices made: which operation, and the state before it.
    let mut path: Vec<(usize, State)> = Vec::new();
    let mut from = 0;
    let mut first_open = 0;
    loop {
        while first_open < order.len() && is_done(&done, first_open) {
            first_open += 1;
        }
        if first_open == order.len() {
            return Verdict::Linearizable;
        }
        // Only what began before everything that is open has ended can be next.
        let mut deadline = u64::MAX;
        let mut chosen = None;
        for (at, entry) in order.iter().enumerate().skip(first_open) {
            if entry.invoked > deadline {
                break;
            }
            if is_done(&done, at) {
                continue;
            }
            deadline = deadline.min(entry.returned);
        }
        for (at, entry) in order.iter().enumerate().skip(first_open.max(from)) {
            if entry.invoked > deadline {
                break;
            }
            if is_done(&done, at) {
                continue;
            }
            if let Some(next) = after(entry.effect, state) {
                done[at / 64] |= 1 << (at % 64);
                if tried.insert((done.clone(), next)) {
                    chosen = Some((at, next));
                    break;
                }
                done[at / 64] &= !(1 << (at % 64));
            }
        }
        if tried.len() > MAX_STATES {
            return Verdict::GivenUp;
        }
        match chosen {
            Some((at, next)) => {
                path.push((at, state));
                state = next;
                from = 0;
            }
            None => {
                let Some((at, before)) = path.pop() else {
                    return Verdict::NotLinearizable;
                };
                done[at / 64] &= !(1 << (at % 64));
                state = before;
                from = at + 1;
                first_open = first_open.min(at);
            }
        }
    }
}
