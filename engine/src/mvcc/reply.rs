//! How large the replies of commands may get.
//!
//! Previous values exist no more once a command is applied, so they are never
//! left out: a command whose previous values are over [`MAX_REPLY_BYTES`] is
//! refused before it changes anything, by every member alike. What a range
//! inside a transaction reads can be read again, so it gets the room that is
//! left and ends with `more` set.

use std::ops::ControlFlow;

use varve_types::{
    ApiError, Command, DeleteRangeRequest, KeyRange, KeyValue, MAX_REPLY_BYTES, PutRequest,
    RangeRequest, RequestOp, TxnRequest,
};

use super::LATEST;
use super::error::Result;
use super::history::{key_value, range_sums, walk_latest};
use super::record::Record;
use super::validate::MAX_KEY_BYTES;
use crate::backend::{Direction, Read};

/// What a reply holds so far, and what it may still take.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyBudget {
    /// Whether a reply is made at all.
    pub(super) wanted: bool,
    /// Bytes of keys and values that ranges may still take.
    pub(super) range_bytes: usize,
    /// Bytes of keys and values in the reply.
    pub(super) used: usize,
}

impl ReplyBudget {
    pub(super) fn new(wanted: bool, range_bytes: usize) -> Self {
        Self {
            wanted,
            range_bytes,
            used: 0,
        }
    }

    /// A copy of the previous value, if it is asked for.
    pub(super) fn keep(
        &mut self,
        asked: bool,
        key: &[u8],
        record: Option<&Record<'_>>,
    ) -> Option<KeyValue> {
        if !asked || !self.wanted {
            return None;
        }
        let kv = key_value(key, record.filter(|record| record.live)?);
        self.used += kv.encoded_len();
        Some(kv.to_owned())
    }

    /// Counts what a range read.
    pub(super) fn take(&mut self, bytes: usize) {
        self.range_bytes = self.range_bytes.saturating_sub(bytes);
        self.used += bytes;
    }
}

/// The ranges whose previous values a command asks for.
#[derive(Default)]
pub(super) struct PreviousValues<'a> {
    ranges: Vec<KeyRange<'a>>,
}

impl<'a> PreviousValues<'a> {
    pub(super) fn put(&mut self, put: &PutRequest<'a>) {
        if put.prev_kv {
            self.ranges.push(KeyRange::One(put.key));
        }
    }

    pub(super) fn delete(&mut self, delete: &DeleteRangeRequest<'a>) {
        if delete.prev_kv {
            self.ranges.push(delete.range());
        }
    }

    /// Refuses what is too large for a reply; else about how large it is.
    ///
    /// Whether it is refused depends on the keys and values before the command
    /// and on nothing else: members decide alike, whatever engine they run, and
    /// whether or not they make the reply.
    pub(super) fn check(&self, read: &dyn Read) -> Result<usize> {
        let mut most = 0;
        for range in &self.ranges {
            // A record is at least as long as its value, so that mostly one look
            // at the sums will do.
            let sums = range_sums(read, LATEST, *range)?;
            most += sums.bytes + sums.entries * KeyValue::LEAST_SIZE as u64;
        }
        if most <= MAX_REPLY_BYTES as u64 {
            return Ok(most as usize);
        }
        let mut bytes = 0;
        for range in &self.ranges {
            walk_latest(read, *range, Direction::Forward, &mut |key, record| {
                bytes += key_value(key, record).encoded_len();
                Ok(if bytes > MAX_REPLY_BYTES {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            })?;
        }
        if bytes > MAX_REPLY_BYTES {
            return Err(ApiError::PreviousValuesTooLarge.into());
        }
        Ok(bytes)
    }
}

/// The most that a reply to `command` may hold of keys and values, where no
/// value in the store is longer than `value_bytes`. It is what a node counts
/// for a command that it has taken in and not answered.
pub fn reply_bytes(command: &Command<'_>, value_bytes: usize) -> usize {
    let bytes = match command {
        Command::Put(put) => put_bytes(put, value_bytes),
        Command::DeleteRange(delete) => delete_bytes(delete, value_bytes),
        Command::Txn(txn) => txn_bytes(txn, value_bytes),
        Command::Compaction(_) | Command::MemberAttributes(_) | Command::Alarm(_) => 0,
    };
    bytes.min(MAX_REPLY_BYTES)
}

fn one(value_bytes: usize) -> usize {
    KeyValue::LEAST_SIZE + MAX_KEY_BYTES + value_bytes
}

fn put_bytes(put: &PutRequest<'_>, value_bytes: usize) -> usize {
    usize::from(put.prev_kv) * one(value_bytes)
}

fn delete_bytes(delete: &DeleteRangeRequest<'_>, value_bytes: usize) -> usize {
    match (delete.prev_kv, delete.range()) {
        (false, _) => 0,
        (true, KeyRange::One(_)) => one(value_bytes),
        (true, _) => MAX_REPLY_BYTES,
    }
}

fn range_bytes(range: &RangeRequest<'_>, value_bytes: usize) -> usize {
    if range.count_only {
        return 0;
    }
    let one = one(if range.keys_only { 0 } else { value_bytes });
    match range.range() {
        KeyRange::One(_) => one,
        _ => super::range::left(range.limit)
            .saturating_mul(one)
            .min(MAX_REPLY_BYTES),
    }
}

fn txn_bytes(txn: &TxnRequest<'_>, value_bytes: usize) -> usize {
    let branch = |ops: &[RequestOp<'_>]| {
        ops.iter().fold(0_usize, |sum, op| {
            sum.saturating_add(match op {
                RequestOp::Range(range) => range_bytes(range, value_bytes),
                RequestOp::Put(put) => put_bytes(put, value_bytes),
                RequestOp::DeleteRange(delete) => delete_bytes(delete, value_bytes),
                RequestOp::Txn(nested) => txn_bytes(nested, value_bytes),
            })
        })
    };
    branch(&txn.success).max(branch(&txn.failure))
}
