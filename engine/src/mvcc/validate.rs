//! What can be refused without looking at the state.
//!
//! The number of operations is checked only before a command is proposed: it
//! is a setting of a member, and members must not differ in what they apply.
//! Everything else is checked again when a command is applied.

use std::collections::{BTreeMap, HashMap};

use varve_types::{
    ApiError, Command, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use super::options::Limits;

pub use varve_types::MAX_KEY_BYTES;

const _: () = assert!(MAX_KEY_BYTES <= crate::btree::page::MAX_KEY_BYTES);

type Result<T> = std::result::Result<T, ApiError>;

/// Refuses what no state can make valid: an empty key, a key given twice, too
/// many operations. Call it before a command is proposed.
pub fn validate(command: &Command<'_>, limits: &Limits) -> Result<()> {
    if let Command::Txn(txn) = command {
        check_op_counts(txn, limits.max_txn_ops)?;
    }
    check_shape(command)
}

/// As [`validate`], without what depends on a member's settings.
pub(super) fn check_shape(command: &Command<'_>) -> Result<()> {
    match command {
        Command::Put(put) => check_put(put),
        Command::DeleteRange(delete) => check_delete(delete),
        Command::Txn(txn) => check_txn(txn),
        Command::Compaction(_) | Command::MemberAttributes(_) | Command::Alarm(_) => Ok(()),
    }
}

/// Refuses a range that no state can answer.
pub fn validate_range(range: &RangeRequest<'_>) -> Result<()> {
    check_key(range.key)
}

/// Refuses a transaction that is not going to be proposed because it only reads.
pub fn validate_read_txn(txn: &TxnRequest<'_>, limits: &Limits) -> Result<()> {
    check_op_counts(txn, limits.max_txn_ops)?;
    check_txn(txn)
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(ApiError::KeyNotProvided);
    }
    Ok(())
}

fn check_put(put: &PutRequest<'_>) -> Result<()> {
    check_key(put.key)?;
    if put.key.len() > MAX_KEY_BYTES {
        return Err(ApiError::RequestTooLarge);
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(ApiError::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(ApiError::LeaseProvided);
    }
    Ok(())
}

fn check_delete(delete: &DeleteRangeRequest<'_>) -> Result<()> {
    check_key(delete.key)
}

/// Compares and each branch may have `most`; what a level has is not left for those within.
fn check_op_counts(txn: &TxnRequest<'_>, most: usize) -> Result<()> {
    let here = txn
        .compare
        .len()
        .max(txn.success.len())
        .max(txn.failure.len());
    let left = most.checked_sub(here).ok_or(ApiError::TooManyOps)?;
    txn.success
        .iter()
        .chain(&txn.failure)
        .try_for_each(|op| match op {
            RequestOp::Txn(txn) => check_op_counts(txn, left),
            _ => Ok(()),
        })
}

fn check_txn(txn: &TxnRequest<'_>) -> Result<()> {
    check_keys(txn)?;
    check_duplicates(&txn.success)?;
    check_duplicates(&txn.failure)?;
    Ok(())
}

fn check_keys(txn: &TxnRequest<'_>) -> Result<()> {
    txn.compare
        .iter()
        .try_for_each(|compare| check_key(compare.key))?;
    txn.success
        .iter()
        .chain(&txn.failure)
        .try_for_each(|op| match op {
            RequestOp::Range(range) => check_key(range.key),
            RequestOp::Put(put) => check_put(put),
            RequestOp::DeleteRange(delete) => check_delete(delete),
            RequestOp::Txn(txn) => check_keys(txn),
        })
}

/// What one path through a transaction writes.
#[derive(Default)]
struct Writes<'a> {
    /// Keys put, and the nested transaction each comes from.
    puts: HashMap<&'a [u8], Option<usize>>,
    deletes: Intervals<'a>,
}

/// Refuses a list of operations that puts a key twice, or puts one that it
/// deletes. The branches of a nested transaction exclude each other, so both
/// may put the same key. The order of the checks is etcd's (`checkIntervals`):
/// like there, a later nested transaction may delete what an earlier one put.
fn check_duplicates<'a>(ops: &[RequestOp<'a>]) -> Result<Writes<'a>> {
    let mut writes = Writes::default();
    for op in ops {
        if let RequestOp::DeleteRange(delete) = op {
            writes.deletes.insert(delete.key, delete.range_end);
        }
    }
    for (number, op) in ops.iter().enumerate() {
        let RequestOp::Txn(txn) = op else { continue };
        let branches = [
            check_duplicates(&txn.success)?,
            check_duplicates(&txn.failure)?,
        ];
        for branch in &branches {
            for key in branch.puts.keys().copied() {
                let from_here = Some(number);
                let other = writes.puts.insert(key, from_here);
                if other.is_some_and(|other| other != from_here) || writes.deletes.contains(key) {
                    return Err(ApiError::DuplicateKey);
                }
            }
        }
        for branch in branches {
            writes.deletes.join(branch.deletes);
        }
    }
    for op in ops {
        let RequestOp::Put(put) = op else { continue };
        if writes.puts.insert(put.key, None).is_some() || writes.deletes.contains(put.key) {
            return Err(ApiError::DuplicateKey);
        }
    }
    Ok(writes)
}

/// Where an interval of keys ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End<'a> {
    /// Before the key, or (true) after it.
    At(&'a [u8], bool),
    Never,
}

/// A set of keys as disjoint intervals, by their first key.
#[derive(Default)]
struct Intervals<'a>(BTreeMap<&'a [u8], End<'a>>);

impl<'a> Intervals<'a> {
    fn insert(&mut self, key: &'a [u8], range_end: &'a [u8]) {
        let end = match range_end {
            [] => End::At(key, true),
            [0] => End::Never,
            end if end <= key => return,
            end => End::At(end, false),
        };
        self.add(key, end);
    }

    fn add(&mut self, mut first: &'a [u8], mut end: End<'a>) {
        if let Some((start, stop)) = self.0.range(..=first).next_back()
            && *stop >= End::At(first, false)
        {
            first = start;
            end = end.max(*stop);
        }
        while let Some((start, stop)) = self.0.range(first..).next() {
            if End::At(start, false) > end {
                break;
            }
            let start = *start;
            end = end.max(*stop);
            self.0.remove(start);
        }
        self.0.insert(first, end);
    }

    fn join(&mut self, other: Self) {
        for (first, end) in other.0 {
            self.add(first, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        let before = self.0.range(..=key).next_back();
        before.is_some_and(|(_, end)| *end > End::At(key, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_types::KeyRange;

    fn put(key: &[u8]) -> RequestOp<'_> {
        RequestOp::Put(PutRequest {
            key,
            ..PutRequest::default()
        })
    }

    fn delete<'a>(key: &'a [u8], range_end: &'a [u8]) -> RequestOp<'a> {
        RequestOp::DeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        })
    }

    fn txn<'a>(success: Vec<RequestOp<'a>>, failure: Vec<RequestOp<'a>>) -> RequestOp<'a> {
        RequestOp::Txn(TxnRequest {
            compare: vec![],
            success,
            failure,
        })
    }

    fn of(ops: Vec<RequestOp<'_>>) -> Result<()> {
        let command = Command::Txn(TxnRequest {
            success: ops,
            ..TxnRequest::default()
        });
        validate(&command, &Limits::default())
    }

    const DUPLICATE: Result<()> = Err(ApiError::DuplicateKey);

    #[test]
    fn key_is_not_provided() {
        for op in [put(b""), delete(b"", b"x"), txn(vec![put(b"")], vec![])] {
            assert_eq!(of(vec![op]), Err(ApiError::KeyNotProvided));
        }
        let range = RangeRequest::default();
        assert_eq!(validate_range(&range), Err(ApiError::KeyNotProvided));
        assert_eq!(
            of(vec![RequestOp::Range(range)]),
            Err(ApiError::KeyNotProvided)
        );
        let long = vec![b'k'; MAX_KEY_BYTES + 1];
        assert_eq!(of(vec![put(&long)]), Err(ApiError::RequestTooLarge));
        assert_eq!(of(vec![put(&long[1..])]), Ok(()));
    }

    #[test]
    fn value_or_lease_is_provided() {
        let mut request = PutRequest {
            key: b"k",
            value: b"v",
            ignore_value: true,
            ..PutRequest::default()
        };
        assert_eq!(check_put(&request), Err(ApiError::ValueProvided));
        request.ignore_value = false;
        request.ignore_lease = true;
        request.lease = 1;
        assert_eq!(check_put(&request), Err(ApiError::LeaseProvided));
        request.lease = 0;
        assert_eq!(check_put(&request), Ok(()));
    }

    #[test]
    fn duplicate_key_given_in_txn() {
        assert_eq!(of(vec![put(b"a"), put(b"b")]), Ok(()));
        assert_eq!(of(vec![put(b"a"), put(b"a")]), DUPLICATE);
        assert_eq!(of(vec![put(b"a"), delete(b"a", b"")]), DUPLICATE);
        assert_eq!(of(vec![delete(b"a", b"c"), put(b"b")]), DUPLICATE);
        assert_eq!(of(vec![delete(b"a", b"c"), put(b"c")]), Ok(()));
        assert_eq!(of(vec![delete(b"b", b"\0"), put(b"c")]), DUPLICATE);
        assert_eq!(of(vec![delete(b"c", b"a"), put(b"b")]), Ok(()));
        assert_eq!(of(vec![delete(b"a", b"c"), delete(b"b", b"d")]), Ok(()));
    }

    #[test]
    fn branches_of_a_nested_txn_exclude_each_other() {
        let nested = || txn(vec![put(b"a")], vec![put(b"a")]);
        assert_eq!(of(vec![nested()]), Ok(()));
        assert_eq!(of(vec![nested(), put(b"a")]), DUPLICATE);
        assert_eq!(of(vec![nested(), nested()]), DUPLICATE);
        assert_eq!(of(vec![delete(b"a", b"b"), nested()]), DUPLICATE);
        assert_eq!(
            of(vec![txn(vec![], vec![delete(b"a", b"")]), put(b"a")]),
            DUPLICATE
        );
        let split = txn(vec![put(b"a")], vec![delete(b"a", b"")]);
        assert_eq!(of(vec![split]), Ok(()));
        assert_eq!(
            of(vec![txn(vec![delete(b"a", b"")], vec![]), nested()]),
            DUPLICATE
        );
        assert_eq!(
            of(vec![nested(), txn(vec![delete(b"a", b"")], vec![])]),
            Ok(())
        );
    }

    #[test]
    fn too_many_operations_and_nested_share() {
        let keys: Vec<_> = (0..=128u8).map(|n| vec![n, n]).collect();
        let puts = |count: usize| keys[..count].iter().map(|key| put(key)).collect::<Vec<_>>();
        assert_eq!(of(puts(128)), Ok(()));
        assert_eq!(of(puts(129)), Err(ApiError::TooManyOps));
        assert_eq!(of(vec![txn(puts(127), vec![])]), Ok(()));
        assert_eq!(of(vec![txn(vec![], puts(128))]), Err(ApiError::TooManyOps));
    }

    #[test]
    fn intervals_are_a_set() {
        let keys: Vec<Vec<u8>> = (0..6u8).map(|n| vec![b'a' + n]).collect();
        let mut ends = keys.clone();
        ends.extend([vec![], vec![0]]);
        let mut number = 1u64;
        for _ in 0..2000 {
            let mut ranges = Vec::new();
            for _ in 0..4 {
                number = number.wrapping_mul(6364136223846793005).wrapping_add(1);
                let pick = (number >> 33) as usize;
                ranges.push((&keys[pick % 6], &ends[pick / 6 % 8]));
            }
            let mut set = Intervals::default();
            ranges.iter().for_each(|(key, end)| set.insert(key, end));
            for key in &keys {
                let expected = ranges
                    .iter()
                    .any(|(k, end)| KeyRange::new(k, end).contains(key));
                assert_eq!(set.contains(key), expected, "{ranges:?} {key:?}");
            }
        }
    }
}
