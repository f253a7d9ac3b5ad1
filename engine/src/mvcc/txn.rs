//! Transactions: compares choose a path, the path is checked, then it is done.
//!
//! As in etcd, all compares, nested ones too, look at the state before the
//! transaction, and whatever can refuse it is checked along the chosen path
//! before anything is written. Reads see the writes before them.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use varve_types::{
    ApiError, Compare, CompareResult, CompareTarget, KeyRange, KeyValueRef, PutRequest,
    RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};

use super::error::{MvccError, Result};
use super::history::{decode, has_marks, key_value, peek, walk_latest};
use super::keys::{LEASE, numbered};
use super::range::{self, At};
use super::reply::{PreviousValues, ReplyBudget};
use super::state::State;
use super::write::Writer;
use super::{LATEST, META};
use crate::backend::{Direction, Read};

/// Which branch of each transaction is taken: this one, then nested ones of the
/// branch in order.
pub(super) struct Path(Vec<bool>);

impl Path {
    /// Evaluates the compares of `txn` and of what is nested in its chosen branch.
    pub(super) fn choose(read: &dyn Read, txn: &TxnRequest<'_>) -> Result<Self> {
        let mut path = Self(Vec::new());
        path.extend(read, txn)?;
        Ok(path)
    }

    fn extend(&mut self, read: &dyn Read, txn: &TxnRequest<'_>) -> Result<()> {
        let mut succeeded = true;
        for compare in &txn.compare {
            succeeded = succeeded && holds(read, compare)?;
        }
        self.0.push(succeeded);
        for op in branch(txn, succeeded) {
            if let RequestOp::Txn(nested) = op {
                self.extend(read, nested)?;
            }
        }
        Ok(())
    }

    fn steps(&self) -> Steps<'_> {
        self.0.iter().copied()
    }
}

type Steps<'p> = std::iter::Copied<std::slice::Iter<'p, bool>>;

fn branch<'t, 'a>(txn: &'t TxnRequest<'a>, succeeded: bool) -> &'t [RequestOp<'a>] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

/// The branch that the next of `steps` names. A path has a step for each transaction on it.
fn next_branch<'t, 'a>(
    txn: &'t TxnRequest<'a>,
    steps: &mut Steps<'_>,
) -> (bool, &'t [RequestOp<'a>]) {
    let succeeded = steps.next().unwrap_or(false);
    (succeeded, branch(txn, succeeded))
}

/// Whether `compare` holds for every key that it names. Where there is none, a
/// value compare fails, and the others look at a key whose marks are all 0.
fn holds(read: &dyn Read, compare: &Compare<'_>) -> Result<bool> {
    let range = KeyRange::new(compare.key, compare.range_end);
    if let KeyRange::One(key) = range
        && !matches!(compare.target, CompareTarget::Value(_))
    {
        // Marks are all that it looks at.
        let found = peek(read, LATEST, key, has_marks)?;
        let record = found
            .as_ref()
            .map(|found| decode(LATEST, key, &found.bytes));
        let record = record.transpose()?;
        let marks = record.map_or_else(KeyValueRef::default, |record| key_value(key, &record));
        return Ok(relation(compare, &marks));
    }
    let (mut seen, mut all) = (false, true);
    walk_latest(read, range, Direction::Forward, &mut |key, record| {
        seen = true;
        all = relation(compare, &key_value(key, record));
        Ok(if all {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    Ok(match (seen, compare.target) {
        (true, _) => all,
        (false, CompareTarget::Value(_)) => false,
        (false, _) => relation(compare, &KeyValueRef::default()),
    })
}

fn relation(compare: &Compare<'_>, kv: &KeyValueRef<'_>) -> bool {
    let order = match compare.target {
        CompareTarget::Version(version) => kv.version.cmp(&version),
        CompareTarget::Create(revision) => kv.create_revision.cmp(&revision),
        CompareTarget::Mod(revision) => kv.mod_revision.cmp(&revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(&lease),
    };
    match compare.result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    }
}

/// Whether a lease exists. Nothing grants leases yet; whatever does keeps them
/// in META under this name, so that puts see the state of their own log entry.
fn lease_exists(read: &dyn Read, lease: i64) -> Result<bool> {
    Ok(read.get(META, &numbered(LEASE, lease as u64))?.is_some())
}

/// Refuses a put that the present state does not allow.
pub(super) fn check_put(read: &dyn Read, put: &PutRequest<'_>) -> Result<()> {
    if (put.ignore_value || put.ignore_lease) && read.peek(LATEST, put.key)?.is_none() {
        return Err(ApiError::KeyNotFound.into());
    }
    if put.lease != 0 && !lease_exists(read, put.lease)? {
        return Err(ApiError::LeaseNotFound.into());
    }
    Ok(())
}

/// Calls `check` for each operation on the path that is no transaction.
fn check_path<'t, 'a>(
    txn: &'t TxnRequest<'a>,
    steps: &mut Steps<'_>,
    check: &mut dyn FnMut(&'t RequestOp<'a>) -> Result<()>,
) -> Result<()> {
    let (_, ops) = next_branch(txn, steps);
    ops.iter().try_for_each(|op| match op {
        RequestOp::Txn(nested) => check_path(nested, steps, check),
        _ => check(op),
    })
}

fn check(read: &dyn Read, state: &State, txn: &TxnRequest<'_>, path: &Path) -> Result<()> {
    check_path(txn, &mut path.steps(), &mut |op| match op {
        RequestOp::Put(put) => check_put(read, put),
        _ => Ok(()),
    })?;
    check_path(txn, &mut path.steps(), &mut |op| match op {
        RequestOp::Range(range) => Ok(At::new(range.revision, state, false).map(|_| ())?),
        _ => Ok(()),
    })
}

/// Applies a transaction. `Err` with an API error: refused, nothing was written.
pub(super) fn apply(
    writer: &mut Writer<'_>,
    txn: &TxnRequest<'_>,
    budget: &mut ReplyBudget,
) -> Result<TxnResponse> {
    let path = Path::choose(&*writer.batch, txn)?;
    check(&*writer.batch, &writer.state, txn, &path)?;
    let mut previous = PreviousValues::default();
    check_path(txn, &mut path.steps(), &mut |op| {
        match op {
            RequestOp::Put(put) => previous.put(put),
            RequestOp::DeleteRange(delete) => previous.delete(delete),
            _ => {}
        }
        Ok(())
    })?;
    let reserved = previous.check(&*writer.batch)?;
    budget.range_bytes = budget.range_bytes.saturating_sub(reserved);
    execute(writer, txn, &mut path.steps(), budget).map_err(|error| match error {
        // The checks have passed: what fails now would leave half a transaction behind.
        MvccError::Api(error) => {
            MvccError::Check(format!("a checked transaction was refused: {error}"))
        }
        error => error,
    })
}

fn execute(
    writer: &mut Writer<'_>,
    txn: &TxnRequest<'_>,
    steps: &mut Steps<'_>,
    budget: &mut ReplyBudget,
) -> Result<TxnResponse> {
    let (succeeded, ops) = next_branch(txn, steps);
    let mut responses = Vec::new();
    if budget.wanted {
        responses.reserve(ops.len());
    }
    for op in ops {
        let response = match op {
            RequestOp::Put(put) => {
                let prev_kv = writer.put(put, budget)?;
                ResponseOp::Put(varve_types::PutResponse { prev_kv })
            }
            RequestOp::DeleteRange(delete) => {
                let response = writer.delete_range(delete.range(), delete.prev_kv, budget)?;
                ResponseOp::DeleteRange(response)
            }
            // A read changes nothing: without a reply there is no need of it.
            RequestOp::Range(_) if !budget.wanted => continue,
            RequestOp::Range(request) => {
                let at = At::new(request.revision, &writer.state, writer.wrote())?;
                ResponseOp::Range(read_within(&*writer.batch, at, request, budget)?)
            }
            RequestOp::Txn(nested) => ResponseOp::Txn(execute(writer, nested, steps, budget)?),
        };
        if budget.wanted {
            responses.push(response);
        }
    }
    Ok(TxnResponse {
        succeeded,
        responses,
    })
}

/// Reads what fits into the reply. Where that is not all, `more` is set.
fn read_within(
    read: &dyn Read,
    at: At,
    request: &RangeRequest<'_>,
    budget: &mut ReplyBudget,
) -> Result<RangeResponse> {
    let counted = || {
        let count = range::count(read, at, request.range())?;
        Ok(RangeResponse {
            kvs: Vec::new(),
            more: count > 0,
            count,
        })
    };
    if budget.range_bytes == 0 && !request.count_only {
        return counted();
    }
    match range::range(read, at, request, budget.range_bytes) {
        Ok((response, bytes)) => {
            budget.take(bytes);
            Ok(response)
        }
        // A sort that does not fit into memory: writes may have been done, so
        // this is no longer the time to refuse.
        Err(MvccError::Api(ApiError::RequestTooLarge)) => counted(),
        Err(error) => Err(error),
    }
}

/// Answers a transaction that only reads.
pub(super) fn read(
    read: &dyn Read,
    state: &State,
    txn: &TxnRequest<'_>,
    max_bytes: usize,
) -> Result<TxnResponse> {
    let path = Path::choose(read, txn)?;
    check(read, state, txn, &path)?;
    let mut budget = ReplyBudget::new(true, max_bytes);
    read_path(read, state, txn, &mut path.steps(), &mut budget)
}

fn read_path(
    read: &dyn Read,
    state: &State,
    txn: &TxnRequest<'_>,
    steps: &mut Steps<'_>,
    budget: &mut ReplyBudget,
) -> Result<TxnResponse> {
    let (succeeded, ops) = next_branch(txn, steps);
    let responses = ops
        .iter()
        .map(|op| match op {
            RequestOp::Range(request) => {
                let at = At::new(request.revision, state, false)?;
                read_within(read, at, request, budget).map(ResponseOp::Range)
            }
            RequestOp::Txn(nested) => {
                read_path(read, state, nested, steps, budget).map(ResponseOp::Txn)
            }
            RequestOp::Put(_) | RequestOp::DeleteRange(_) => Err(MvccError::WriteInReadTxn),
        })
        .collect::<Result<_>>()?;
    Ok(TxnResponse {
        succeeded,
        responses,
    })
}
