//! etcd's rules of transactions, one by one.

use varve_types::{
    ApiError, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest,
    RequestOp, ResponseOp, TxnRequest, TxnResponse,
};

use super::super::MvccError;
use super::{Bench, all, put, show};

fn op<'a>(key: &'a str, value: &'a str) -> RequestOp<'a> {
    RequestOp::Put(put(key, value))
}

fn delete(key: &str) -> RequestOp<'_> {
    RequestOp::DeleteRange(DeleteRangeRequest {
        key: key.as_bytes(),
        ..DeleteRangeRequest::default()
    })
}

fn read_all() -> RequestOp<'static> {
    RequestOp::Range(all())
}

fn read_at(revision: i64) -> RequestOp<'static> {
    RequestOp::Range(RangeRequest { revision, ..all() })
}

fn compare<'a>(
    key: &'a str,
    range_end: &'a str,
    result: CompareResult,
    target: CompareTarget<'a>,
) -> Compare<'a> {
    Compare {
        result,
        target,
        key: key.as_bytes(),
        range_end: range_end.as_bytes(),
    }
}

fn of(success: Vec<RequestOp<'_>>) -> TxnRequest<'_> {
    TxnRequest {
        success,
        ..TxnRequest::default()
    }
}

/// What the ranges of a reply read, one string for each.
fn reads(response: &TxnResponse) -> Vec<String> {
    let mut found = Vec::new();
    for response in &response.responses {
        match response {
            ResponseOp::Range(range) => found.push(show(&range.kvs)),
            ResponseOp::Txn(nested) => found.extend(reads(nested)),
            _ => {}
        }
    }
    found
}

#[test]
fn one_revision_for_all_writes() {
    let mut bench = Bench::new();
    bench
        .txn(of(vec![op("a", "1"), op("b", "2"), delete("z")]))
        .unwrap();
    assert_eq!(bench.revision(), 2);
    bench.txn(of(vec![op("c", "3"), delete("a")])).unwrap();
    assert_eq!(bench.revision(), 3);
    assert_eq!(bench.dump(0), "b=2 c=3");
    assert_eq!(bench.dump(2), "a=1 b=2");
}

#[test]
fn nothing_written_does_not_bump_the_revision() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.txn(of(vec![read_all(), delete("z")])).unwrap();
    bench.txn(of(vec![])).unwrap();
    assert_eq!(bench.revision(), 2);
}

#[test]
fn reads_see_the_writes_before_them() {
    let mut bench = Bench::new();
    bench.put("a", "0");
    let response = bench
        .txn(of(vec![
            read_all(),
            op("a", "1"),
            read_all(),
            delete("b"),
            op("c", "2"),
            read_all(),
        ]))
        .unwrap();
    assert_eq!(reads(&response), ["a=0", "a=1", "a=1 c=2"]);
}

#[test]
fn a_read_at_the_present_revision_does_not_see_the_writes_before_it() {
    let mut bench = Bench::new();
    bench.put("a", "0");
    bench.put("b", "0");
    let response = bench
        .txn(of(vec![
            op("a", "1"),
            delete("b"),
            op("c", "1"),
            read_at(3),
            read_at(2),
            read_all(),
        ]))
        .unwrap();
    assert_eq!(reads(&response), ["a=0 b=0", "a=0", "a=1 c=1"]);
}

#[test]
fn compares_on_everything() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    for (result, target, expected) in [
        (Equal, CompareTarget::Value(b"2"), true),
        (Greater, CompareTarget::Value(b"1"), true),
        (Less, CompareTarget::Value(b"2"), false),
        (NotEqual, CompareTarget::Value(b"2"), false),
        (Equal, CompareTarget::Version(2), true),
        (Equal, CompareTarget::Create(2), true),
        (Greater, CompareTarget::Mod(2), true),
        (Less, CompareTarget::Mod(3), false),
        (Equal, CompareTarget::Lease(0), true),
    ] {
        let txn = TxnRequest {
            compare: vec![compare("a", "", result, target)],
            ..TxnRequest::default()
        };
        assert_eq!(
            bench.txn(txn).unwrap().succeeded,
            expected,
            "{result:?} {target:?}"
        );
    }
}

#[test]
fn a_missing_key_compares_as_zero_but_never_by_value() {
    use CompareResult::{Equal, NotEqual};
    let mut bench = Bench::new();
    for (result, target, expected) in [
        (Equal, CompareTarget::Version(0), true),
        (Equal, CompareTarget::Create(0), true),
        (Equal, CompareTarget::Mod(0), true),
        (Equal, CompareTarget::Lease(0), true),
        (NotEqual, CompareTarget::Version(0), false),
        (Equal, CompareTarget::Value(b""), false),
        (NotEqual, CompareTarget::Value(b"x"), false),
    ] {
        for range_end in ["", "z", "\0"] {
            let txn = TxnRequest {
                compare: vec![compare("a", range_end, result, target)],
                ..TxnRequest::default()
            };
            assert_eq!(bench.txn(txn).unwrap().succeeded, expected);
        }
    }
}

#[test]
fn a_range_compare_must_hold_for_all_keys() {
    let mut bench = Bench::new();
    bench.put("a1", "x");
    bench.put("a2", "x");
    bench.put("b", "y");
    for (range_end, expected) in [("b", true), ("c", false), ("\0", false)] {
        let value = CompareTarget::Value(b"x");
        let txn = TxnRequest {
            compare: vec![compare("a", range_end, CompareResult::Equal, value)],
            ..TxnRequest::default()
        };
        assert_eq!(bench.txn(txn).unwrap().succeeded, expected);
    }
}

#[test]
fn nested_compares_look_at_the_state_before() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    let nested = RequestOp::Txn(TxnRequest {
        compare: vec![compare(
            "b",
            "",
            CompareResult::Equal,
            CompareTarget::Version(0),
        )],
        success: vec![op("c", "then"), read_all()],
        failure: vec![op("c", "else")],
    });
    let response = bench.txn(of(vec![op("b", "1"), nested])).unwrap();
    assert_eq!(reads(&response), ["a=1 b=1 c=then"]);
    assert_eq!(bench.revision(), 3);
}

#[test]
fn the_branch_that_is_not_taken_is_not_checked() {
    let mut bench = Bench::new();
    let txn = TxnRequest {
        success: vec![op("a", "1")],
        failure: vec![read_at(99)],
        ..TxnRequest::default()
    };
    assert!(bench.txn(txn).is_ok());
}

#[test]
fn a_range_at_a_bad_revision_refuses_the_whole_txn() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    bench.put("a", "3");
    bench.compact(3).unwrap();
    for (revision, error) in [(5, ApiError::FutureRevision), (2, ApiError::Compacted)] {
        let deep = RequestOp::Txn(of(vec![read_at(revision)]));
        assert_eq!(bench.txn(of(vec![op("b", "1"), deep])), Err(error));
    }
    let missing = RequestOp::Put(PutRequest {
        ignore_value: true,
        ..put("none", "")
    });
    assert_eq!(
        bench.txn(of(vec![op("b", "1"), missing])),
        Err(ApiError::KeyNotFound)
    );
    let lease = RequestOp::Put(PutRequest {
        lease: 1,
        ..put("c", "")
    });
    assert_eq!(
        bench.txn(of(vec![op("b", "1"), lease])),
        Err(ApiError::LeaseNotFound)
    );
    assert_eq!(bench.revision(), 4);
    assert_eq!(bench.dump(0), "a=3");
}

#[test]
fn duplicate_keys_are_refused_when_applied_too() {
    let mut bench = Bench::new();
    let txn = of(vec![op("a", "1"), op("a", "2")]);
    assert_eq!(bench.txn(txn), Err(ApiError::DuplicateKey));
    assert_eq!(bench.revision(), 1);
}

#[test]
fn the_number_of_operations_is_not_a_rule_of_the_state() {
    let mut bench = Bench::new();
    let keys: Vec<String> = (0..200).map(|number| format!("k{number:03}")).collect();
    let txn = of(keys.iter().map(|key| op(key, "v")).collect());
    assert!(bench.txn(txn).is_ok());
    assert_eq!(bench.view().count(super::ALL, 0).unwrap(), 200);
}

#[test]
fn a_key_that_changes_twice_in_a_txn_has_both_events() {
    // etcd lets a later nested transaction delete what an earlier one put.
    let mut bench = Bench::new();
    bench.put("a", "0");
    let first = RequestOp::Txn(of(vec![op("a", "1")]));
    let second = RequestOp::Txn(of(vec![delete("a")]));
    bench.txn(of(vec![first, second])).unwrap();
    assert_eq!(bench.revision(), 3);
    assert_eq!(
        (bench.dump(0), bench.dump(2)),
        (String::new(), "a=0".into())
    );
    bench.compact(3).unwrap();
    bench.compact_fully();
    let events = bench.events_from(3, false).unwrap();
    let values: Vec<_> = events.iter().map(|event| &event.kv.value[..]).collect();
    assert_eq!(values, [&b"1"[..], b""]);
}

#[test]
fn a_txn_that_only_reads_is_answered_by_a_view() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    let nested = RequestOp::Txn(TxnRequest {
        compare: vec![compare(
            "a",
            "",
            CompareResult::Equal,
            CompareTarget::Version(1),
        )],
        success: vec![],
        failure: vec![read_all()],
    });
    let response = bench
        .view()
        .read_txn(&of(vec![read_at(2), nested]))
        .unwrap();
    assert!(response.succeeded);
    assert_eq!(reads(&response), ["a=1", "a=2"]);
    let refused = bench.view().read_txn(&of(vec![read_at(9)]));
    assert_eq!(refused.unwrap_err().api(), Some(ApiError::FutureRevision));
    let write = bench.view().read_txn(&of(vec![op("a", "3")]));
    assert!(matches!(write, Err(MvccError::WriteInReadTxn)));
}
