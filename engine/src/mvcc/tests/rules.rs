//! etcd's rules of puts, ranges and deletions, one by one.

use varve_types::{
    ApiError, Command, DeleteRangeRequest, MemberAttributes, PutRequest, RangeRequest, SortOrder,
    SortTarget,
};

use std::sync::Arc;

use super::super::keys::{LEASE, numbered};
use super::super::record::{LiveMarks, NewVersion, Record};
use super::super::{BatchOptions, LATEST, MAX_KEY_BYTES, MvccError, Store};
use super::engines::Engine;
use super::{ALL, Bench, all, copy, put, show};
use crate::backend::memory;

fn grant(bench: &mut Bench, lease: u64) {
    let applied = bench.next();
    let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
    txn.put_meta(&numbered(LEASE, lease), b"").unwrap();
    txn.publish(applied).unwrap();
}

fn numbers(bench: &mut Bench) {
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("a", "0"), ("c", "2")] {
        bench.put(key, value);
    }
}

#[test]
fn a_new_store_is_at_revision_1_and_the_first_put_gives_2() {
    let mut bench = Bench::new();
    assert_eq!(bench.revision(), 1);
    assert_eq!(bench.view().compacted(), -1);
    assert_eq!(bench.view().hash(), 0);
    assert_eq!(bench.put("foo", "bar"), 2);
}

#[test]
fn create_mod_and_version() {
    let mut bench = Bench::new();
    let marks = |bench: &Bench| {
        let kv = &bench.range(&all()).unwrap().kvs[0];
        (kv.create_revision, kv.mod_revision, kv.version)
    };
    bench.put("k", "1");
    assert_eq!(marks(&bench), (2, 2, 1));
    bench.put("k", "2");
    assert_eq!(marks(&bench), (2, 3, 2));
    bench.delete("k");
    bench.put("k", "3");
    assert_eq!(marks(&bench), (5, 5, 1));
}

#[test]
fn a_value_may_be_empty() {
    let mut bench = Bench::new();
    bench.put("k", "");
    assert_eq!(bench.dump(0), "k=");
}

#[test]
fn an_empty_key_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.put_with(put("", "v")), Err(ApiError::KeyNotProvided));
    let delete = Command::DeleteRange(DeleteRangeRequest::default());
    assert_eq!(bench.apply(&delete).result, Err(ApiError::KeyNotProvided));
    assert_eq!(bench.revision(), 1);
}

#[test]
fn a_key_over_the_limit_is_refused_and_never_there() {
    let mut bench = Bench::new();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    assert_eq!(
        bench.put_with(put(&long, "v")),
        Err(ApiError::RequestTooLarge)
    );
    assert_eq!(bench.put(&long[1..], "v"), 2);
    let range = RangeRequest {
        key: long.as_bytes(),
        ..RangeRequest::default()
    };
    assert_eq!(bench.range(&range).unwrap().count, 0);
    assert_eq!(bench.delete(&long), 2);
    let to_it = RangeRequest {
        key: b"k",
        range_end: long.as_bytes(),
        ..RangeRequest::default()
    };
    assert_eq!(bench.range(&to_it).unwrap().count, 1);
}

#[test]
fn put_gives_the_previous_value_if_asked() {
    let mut bench = Bench::new();
    let ask = |value| PutRequest {
        prev_kv: true,
        ..put("k", value)
    };
    assert_eq!(bench.put_with(ask("1")).unwrap().prev_kv, None);
    assert_eq!(bench.put_with(put("k", "2")).unwrap().prev_kv, None);
    let prev = bench.put_with(ask("3")).unwrap().prev_kv.unwrap();
    assert_eq!(
        (prev.value, prev.mod_revision, prev.version),
        (b"2".to_vec(), 3, 2)
    );
    bench.delete("k");
    assert_eq!(bench.put_with(ask("4")).unwrap().prev_kv, None);
}

#[test]
fn ignore_value_keeps_it_and_needs_the_key() {
    let mut bench = Bench::new();
    let keep = PutRequest {
        ignore_value: true,
        ..put("k", "")
    };
    assert_eq!(bench.put_with(keep), Err(ApiError::KeyNotFound));
    assert_eq!(bench.revision(), 1);
    bench.put("k", "v");
    bench.put_with(keep).unwrap();
    let kv = &bench.range(&all()).unwrap().kvs[0];
    assert_eq!((&kv.value[..], kv.version), (&b"v"[..], 2));
    let both = PutRequest {
        value: b"x",
        ..keep
    };
    assert_eq!(bench.put_with(both), Err(ApiError::ValueProvided));
    bench.delete("k");
    assert_eq!(bench.put_with(keep), Err(ApiError::KeyNotFound));
}

#[test]
fn leases_must_exist_attach_detach_and_can_be_kept() {
    let mut bench = Bench::new();
    let lease_of = |bench: &Bench| bench.range(&all()).unwrap().kvs[0].lease;
    let with = PutRequest {
        lease: 5,
        ..put("k", "v")
    };
    assert_eq!(bench.put_with(with), Err(ApiError::LeaseNotFound));
    grant(&mut bench, 5);
    bench.put_with(with).unwrap();
    assert_eq!(lease_of(&bench), 5);
    let keep = PutRequest {
        ignore_lease: true,
        ..put("k", "w")
    };
    bench.put_with(keep).unwrap();
    assert_eq!(lease_of(&bench), 5);
    let both = PutRequest { lease: 5, ..keep };
    assert_eq!(bench.put_with(both), Err(ApiError::LeaseProvided));
    bench.put("k", "x");
    assert_eq!(lease_of(&bench), 0, "a put without a lease detaches");
}

#[test]
fn deleting_nothing_does_not_bump_the_revision() {
    let mut bench = Bench::new();
    bench.put("b", "1");
    for (key, range_end) in [
        (&b"a"[..], &b""[..]),
        (b"c", b"\0"),
        (b"z", b"a"),
        (b"b", b"b"),
    ] {
        let response = bench.delete_with(DeleteRangeRequest {
            key,
            range_end,
            prev_kv: true,
        });
        assert_eq!((response.deleted, response.prev_kvs.len()), (0, 0));
        assert_eq!(bench.revision(), 2);
    }
}

#[test]
fn delete_gives_the_previous_values_if_asked() {
    let mut bench = Bench::new();
    numbers(&mut bench);
    let mut delete = DeleteRangeRequest {
        key: b"a",
        range_end: b"c",
        prev_kv: true,
    };
    let response = bench.delete_with(delete);
    assert_eq!(response.deleted, 2);
    assert_eq!(show(&response.prev_kvs), "a=0 b=1");
    assert_eq!(bench.revision(), 7);
    delete.range_end = b"\0";
    delete.prev_kv = false;
    let response = bench.delete_with(delete);
    assert_eq!((response.deleted, response.prev_kvs.len()), (1, 0));
    assert_eq!(bench.dump(0), "");
    assert_eq!(bench.dump(6), "a=0 b=1 c=2");
    assert_eq!(bench.dump(7), "c=2");
}

#[test]
fn a_large_deletion_is_one_revision() {
    let mut bench = Bench::new();
    for number in 0..1300 {
        bench.put(&format!("k{number:04}"), "v");
    }
    bench.put("z", "kept");
    let response = bench.delete_with(DeleteRangeRequest {
        key: b"k",
        range_end: b"l",
        prev_kv: false,
    });
    assert_eq!(response.deleted, 1300);
    assert_eq!(bench.revision(), 1303);
    assert_eq!(bench.dump(0), "z=kept");
    assert_eq!(bench.view().count(ALL, 1302).unwrap(), 1301);
    let events = bench.events_from(1303, false).unwrap();
    assert_eq!(events.len(), 1300);
    assert!(events.is_sorted_by_key(|event| event.kv.key.clone()));
}

#[test]
fn ranges_by_key_and_end() {
    let mut bench = Bench::new();
    for key in ["a", "aa", "b", "c"] {
        bench.put(key, "v");
    }
    let keys = |key: &str, range_end: &str| {
        let response = bench.range(&RangeRequest {
            key: key.as_bytes(),
            range_end: range_end.as_bytes(),
            ..RangeRequest::default()
        });
        show(&response.unwrap().kvs).replace("=v", "")
    };
    assert_eq!(keys("a", ""), "a");
    assert_eq!(keys("x", ""), "");
    assert_eq!(keys("a", "b"), "a aa");
    assert_eq!(keys("aa", "\0"), "aa b c");
    assert_eq!(keys("\0", "\0"), "a aa b c");
    assert_eq!(keys("c", "a"), "");
    assert_eq!(keys("b", "b"), "");
}

#[test]
fn limit_cuts_and_count_does_not() {
    let mut bench = Bench::new();
    numbers(&mut bench);
    for (limit, kvs, more) in [
        (0, 3, false),
        (1, 1, true),
        (2, 2, true),
        (3, 3, false),
        (9, 3, false),
    ] {
        for revision in [0, bench.revision(), 4] {
            let response = bench.range(&RangeRequest {
                limit,
                revision,
                ..all()
            });
            let response = response.unwrap();
            assert_eq!(
                (response.kvs.len(), response.more, response.count),
                (kvs, more, 3)
            );
        }
    }
}

#[test]
fn filters_leave_the_count_alone() {
    let mut bench = Bench::new();
    numbers(&mut bench);
    let request = RangeRequest {
        min_mod_revision: 5,
        max_mod_revision: 5,
        ..all()
    };
    let response = bench.range(&request).unwrap();
    assert_eq!((show(&response.kvs).as_str(), response.count), ("a=0", 3));
    assert!(!response.more);
    let request = RangeRequest {
        max_create_revision: 3,
        limit: 1,
        ..all()
    };
    let response = bench.range(&request).unwrap();
    assert_eq!(
        (show(&response.kvs).as_str(), response.count, response.more),
        ("a=0", 3, true)
    );
}

#[test]
fn count_only_and_keys_only() {
    let mut bench = Bench::new();
    numbers(&mut bench);
    let response = bench
        .range(&RangeRequest {
            count_only: true,
            limit: 1,
            ..all()
        })
        .unwrap();
    assert_eq!(
        (response.kvs.len(), response.count, response.more),
        (0, 3, false)
    );
    let response = bench
        .range(&RangeRequest {
            keys_only: true,
            sort_target: SortTarget::Value,
            ..all()
        })
        .unwrap();
    assert_eq!(show(&response.kvs), "a= b= c=");
}

#[test]
fn sorts_by_any_target() {
    let mut bench = Bench::new();
    numbers(&mut bench);
    let by = |sort_target, sort_order| {
        let response = bench.range(&RangeRequest {
            sort_target,
            sort_order,
            limit: 2,
            ..all()
        });
        let response = response.unwrap();
        assert!(response.more);
        assert_eq!(response.count, 3);
        show(&response.kvs)
    };
    use SortOrder::{Ascend, Descend, None};
    assert_eq!(by(SortTarget::Key, None), "a=0 b=1");
    assert_eq!(by(SortTarget::Key, Descend), "c=2 b=1");
    assert_eq!(by(SortTarget::Value, None), "a=0 b=1");
    assert_eq!(by(SortTarget::Value, Descend), "c=2 b=1");
    assert_eq!(by(SortTarget::Mod, Ascend), "b=1 a=0");
    assert_eq!(by(SortTarget::Create, Descend), "c=2 b=1");
    assert_eq!(by(SortTarget::Version, Ascend), "b=1 a=0");
}

#[test]
fn reads_at_old_future_and_compacted_revisions() {
    let mut bench = Bench::new();
    numbers(&mut bench);
    assert_eq!(bench.dump(2), "a=3");
    assert_eq!(bench.dump(4), "a=3 b=1 c=2");
    assert_eq!(bench.dump(-5), "a=0 b=1 c=2");
    assert_eq!(bench.dump(7), ApiError::FutureRevision.to_string());
    bench.compact(4).unwrap();
    assert_eq!(bench.dump(3), ApiError::Compacted.to_string());
    assert_eq!(bench.dump(4), "a=3 b=1 c=2");
}

#[test]
fn a_visitor_that_breaks_sees_more() {
    let mut bench = Bench::new();
    numbers(&mut bench);
    for (after, more) in [(1, true), (2, true), (3, false)] {
        for sort_target in [SortTarget::Key, SortTarget::Value] {
            let mut seen = 0;
            let request = RangeRequest {
                sort_target,
                ..all()
            };
            let end = bench.view().range_with(&request, &mut |_| {
                seen += 1;
                if seen == after {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                }
            });
            let end = end.unwrap();
            assert_eq!((seen, end.more, end.count), (after, more, 3));
        }
    }
}

#[test]
fn meta_is_kept_with_the_batch() {
    let mut bench = Bench::new();
    let attributes = MemberAttributes {
        member_id: 3,
        name: "m3".into(),
        client_urls: vec!["http://127.0.0.1:2379".into()],
    };
    bench.done(&Command::MemberAttributes(attributes.clone()));
    assert_eq!(bench.revision(), 1);
    let applied = bench.next();
    let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
    txn.put_meta(b"raft/conf", b"1,2,3").unwrap();
    txn.put_meta(b"raft/gone", b"x").unwrap();
    assert!(txn.delete_meta(b"raft/gone").unwrap());
    assert!(!txn.delete_meta(b"raft/gone").unwrap());
    assert_eq!(
        txn.meta(b"raft/conf").unwrap().as_deref(),
        Some(&b"1,2,3"[..])
    );
    let reserved = txn.put_meta(b"mvcc/state", b"");
    assert!(matches!(reserved, Err(MvccError::ReservedName(_))));
    txn.publish(applied).unwrap();
    let view = bench.view();
    assert_eq!(
        view.meta(b"raft/conf").unwrap().as_deref(),
        Some(&b"1,2,3"[..])
    );
    assert_eq!(view.meta(b"raft/gone").unwrap(), None);
    let mut members = Vec::new();
    view.scan_meta(b"member/", &mut |_, value| {
        members.push(Command::decode_body(6, value).map(|_| value.len()));
    })
    .unwrap();
    assert_eq!(members.len(), 1);
    assert!(members[0].is_ok());
}

/// Writes the record of `key` anew with another hash, as a fault would, or with none, as
/// earlier builds did.
fn with_hash(bench: &mut Bench, key: &[u8], change: impl FnOnce(&mut Option<u128>)) {
    let bytes = bench.store.backend().snapshot().unwrap();
    let bytes = bytes.get(LATEST, key).unwrap().unwrap().into_owned();
    let record = Record::decode(&bytes).unwrap();
    let mut hash = record.hash;
    change(&mut hash);
    let live = LiveMarks {
        create: record.create,
        version: record.version,
        lease: record.lease,
        value: record.value,
        hash,
    };
    let mut changed = Vec::new();
    let version = NewVersion {
        modified: record.modified,
        live: Some(live),
    };
    version.encode(None, &mut changed).unwrap();
    let applied = bench.next();
    let mut batch = bench.store.backend().begin().unwrap();
    batch.put(LATEST, key, &changed).unwrap();
    batch.publish(applied).unwrap();
}

#[test]
fn a_long_record_without_its_hash_is_as_good_and_one_with_a_wrong_hash_is_found() {
    let value = "v".repeat(5000);
    let mut bench = Bench::new();
    bench.put("k", &value);
    let hash = bench.view().hash();
    with_hash(&mut bench, b"k", |hash| assert!(hash.take().is_some()));
    let mut bench = Bench::on(Arc::clone(bench.store.backend()));
    bench.check();
    assert_eq!(bench.view().hash(), hash);
    bench.put("k", "short");
    bench.check();
    bench.put("k", &value);
    bench.check();
    with_hash(&mut bench, b"k", |hash| *hash = hash.map(|hash| hash ^ 1));
    let store = Store::open(Arc::clone(bench.store.backend())).unwrap();
    let wrong = store.view().check().unwrap_err().to_string();
    assert!(wrong.contains("a hash that is not its own"), "{wrong}");
    let target = Engine::new(memory::NAME).backend();
    let refused = copy(store.view(), target, 700).unwrap_err().to_string();
    assert!(refused.contains("a hash that is not its own"), "{refused}");
}
