//! Random commands over a few keys, so that they meet each other.

use proptest::collection::vec;
use proptest::prelude::*;
use varve_types::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest,
    RequestOp, SortOrder, SortTarget, TxnRequest,
};

/// Longer than what lies beside a long value.
const LONG_KEY: [u8; 70] = [b'b'; 70];

const KEYS: [&[u8]; 10] = [
    b"\0", b"a", b"a\0", b"ab", b"abc", b"b", b"b/1", &LONG_KEY, b"c", b"\xff",
];

const ENDS: [&[u8]; 9] = [b"", b"", b"", b"\0", b"ab", b"b", b"b0", b"c", b"\xff\xff"];

const VALUES: [&[u8]; 6] = [b"", b"1", b"two", b"3", &[b'x'; 300], &[b'y'; 5000]];

/// What is done to the store.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Command(Command<'static>),
    /// Compact at this share (of 16) of the revisions that are kept.
    Compact(i64),
    /// Remove this many entries of compacted history.
    Remove(usize),
    Publish,
    Reopen,
}

fn key() -> impl Strategy<Value = &'static [u8]> {
    prop::sample::select(&KEYS[..])
}

fn end() -> impl Strategy<Value = &'static [u8]> {
    prop::sample::select(&ENDS[..])
}

fn value() -> impl Strategy<Value = &'static [u8]> {
    prop::sample::select(&VALUES[..])
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.15)
}

fn put() -> impl Strategy<Value = PutRequest<'static>> {
    let lease = prop_oneof![8 => Just(0), 2 => Just(7), 1 => Just(99)];
    (key(), value(), lease, any::<bool>(), rarely(), rarely()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value: if ignore_value { b"" } else { value },
            lease: if ignore_lease { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete() -> impl Strategy<Value = DeleteRangeRequest<'static>> {
    (key(), end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

/// A revision filter: mostly none.
fn filter() -> impl Strategy<Value = i64> {
    prop_oneof![4 => Just(0), 1 => 1..25i64]
}

pub(super) fn range() -> impl Strategy<Value = RangeRequest<'static>> {
    let order = prop_oneof![
        Just(SortOrder::None),
        Just(SortOrder::Ascend),
        Just(SortOrder::Descend)
    ];
    let target = prop_oneof![
        4 => Just(SortTarget::Key),
        1 => Just(SortTarget::Version),
        1 => Just(SortTarget::Create),
        1 => Just(SortTarget::Mod),
        1 => Just(SortTarget::Value),
    ];
    let revision = prop_oneof![Just(0), 1..30i64];
    let limit = prop_oneof![2 => Just(0), 1 => 1..6i64];
    (
        (key(), end(), limit, revision, order, target),
        (rarely(), rarely(), filter(), filter(), filter(), filter()),
    )
        .prop_map(|(what, filters)| {
            let (key, range_end, limit, revision, sort_order, sort_target) = what;
            let (keys_only, count_only, min_mod, max_mod, min_create, max_create) = filters;
            RangeRequest {
                key,
                range_end,
                limit,
                revision,
                sort_order,
                sort_target,
                serializable: false,
                keys_only,
                count_only,
                min_mod_revision: min_mod,
                max_mod_revision: max_mod,
                min_create_revision: min_create,
                max_create_revision: max_create,
            }
        })
}

fn compare() -> impl Strategy<Value = Compare<'static>> {
    let target = prop_oneof![
        (0..4i64).prop_map(CompareTarget::Version),
        (0..20i64).prop_map(CompareTarget::Create),
        (0..20i64).prop_map(CompareTarget::Mod),
        value().prop_map(CompareTarget::Value),
        prop_oneof![Just(0), Just(7)].prop_map(CompareTarget::Lease),
    ];
    let result = prop_oneof![
        Just(CompareResult::Equal),
        Just(CompareResult::NotEqual),
        Just(CompareResult::Greater),
        Just(CompareResult::Less)
    ];
    (result, target, key(), end()).prop_map(|(result, target, key, range_end)| Compare {
        result,
        target,
        key,
        range_end,
    })
}

fn op() -> impl Strategy<Value = RequestOp<'static>> {
    prop_oneof![
        3 => put().prop_map(RequestOp::Put),
        1 => delete().prop_map(RequestOp::DeleteRange),
        2 => range().prop_map(RequestOp::Range),
    ]
}

fn txn_of(
    op: impl Strategy<Value = RequestOp<'static>> + Clone,
) -> impl Strategy<Value = TxnRequest<'static>> {
    (vec(compare(), 0..3), vec(op.clone(), 0..4), vec(op, 0..4)).prop_map(
        |(compare, success, failure)| TxnRequest {
            compare,
            success,
            failure,
        },
    )
}

fn txn() -> impl Strategy<Value = TxnRequest<'static>> {
    let inner = op().boxed();
    let middle = prop_oneof![
        4 => inner.clone(),
        1 => txn_of(inner.clone()).prop_map(RequestOp::Txn),
    ]
    .boxed();
    let outer = prop_oneof![4 => inner, 1 => txn_of(middle).prop_map(RequestOp::Txn)].boxed();
    txn_of(outer)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => put().prop_map(|put| Step::Command(Command::Put(put))),
        4 => delete().prop_map(|delete| Step::Command(Command::DeleteRange(delete))),
        6 => txn().prop_map(|txn| Step::Command(Command::Txn(txn))),
        2 => (-1..18i64).prop_map(Step::Compact),
        5 => (1..8usize).prop_map(Step::Remove),
        5 => Just(Step::Publish),
        1 => Just(Step::Reopen),
    ]
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..80)
}

pub(super) fn queries() -> impl Strategy<Value = Vec<RangeRequest<'static>>> {
    vec(range(), 1..12)
}
