//! The bounds of replies: ranges end early and say so, previous values are all
//! there or the command is refused before it changes anything.

use varve_types::{MAX_REPLY_BYTES, RequestOp, ResponseOp};

use super::super::reply_bytes;
use super::*;

/// Keys `k00` to `k63` whose previous values make a reply of the limit exactly.
fn full(engine: &'static str, one_more_byte: bool) -> Bench {
    let mut bench = Bench::on(Engine::new(engine).backend());
    let length = MAX_REPLY_BYTES / 64 - KeyValue::LEAST_SIZE - 3;
    let value = "v".repeat(length + 1);
    for number in 0..64 {
        let longer = usize::from(one_more_byte && number == 40);
        bench.put(&format!("k{number:02}"), &value[..length + longer]);
    }
    bench
}

fn delete_all(prev_kv: bool) -> DeleteRangeRequest<'static> {
    DeleteRangeRequest {
        key: b"k",
        range_end: b"l",
        prev_kv,
    }
}

/// Deletes in two pieces, with a put between them that asks for its previous value.
fn in_pieces() -> TxnRequest<'static> {
    let part = |key, range_end| {
        RequestOp::DeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv: true,
        })
    };
    let replace = PutRequest {
        prev_kv: true,
        ..put("k30", "new")
    };
    TxnRequest {
        success: vec![
            part(b"k00", b"k30"),
            RequestOp::Put(replace),
            RequestOp::Txn(TxnRequest {
                success: vec![part(b"k31", b"l")],
                ..TxnRequest::default()
            }),
        ],
        ..TxnRequest::default()
    }
}

fn previous_in(reply: &CommandResponse) -> usize {
    fn of_txn(txn: &TxnResponse) -> usize {
        let each = txn.responses.iter().map(|response| match response {
            ResponseOp::Put(put) => usize::from(put.prev_kv.is_some()),
            ResponseOp::DeleteRange(delete) => delete.prev_kvs.len(),
            ResponseOp::Txn(txn) => of_txn(txn),
            ResponseOp::Range(_) => 0,
        });
        each.sum()
    }
    match reply {
        CommandResponse::DeleteRange(delete) => delete.prev_kvs.len(),
        CommandResponse::Txn(txn) => of_txn(txn),
        other => panic!("{other:?}"),
    }
}

#[test]
fn previous_values_are_all_there_up_to_the_limit() {
    for command in [
        Command::DeleteRange(delete_all(true)),
        Command::Txn(in_pieces()),
    ] {
        let mut bench = full(crate::btree::NAME, false);
        assert_eq!(previous_in(&bench.done(&command)), 64);
    }
}

#[test]
fn too_many_previous_values_are_refused_before_anything_changes() {
    // Members with another engine, or without a client, decide alike.
    for engine in [crate::btree::NAME, crate::backend::memory::NAME] {
        let mut bench = full(engine, true);
        let before = (bench.revision(), bench.view().hash());
        for command in [
            Command::DeleteRange(delete_all(true)),
            Command::Txn(in_pieces()),
        ] {
            assert_eq!(
                bench.apply(&command).result,
                Err(ApiError::PreviousValuesTooLarge)
            );
            let applied = bench.next();
            let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
            txn.apply_silent(&command).unwrap();
            txn.publish(applied).unwrap();
            assert_eq!((bench.revision(), bench.view().hash()), before);
        }
        let gone = bench.delete_with(delete_all(false));
        assert_eq!((gone.deleted, gone.prev_kvs.len()), (64, 0));
    }
}

#[test]
fn the_error_names_the_limit() {
    let text = ApiError::PreviousValuesTooLarge.to_string();
    assert!(text.starts_with(&ApiError::RequestTooLarge.to_string()));
    assert!(text.contains(&format!("{} MiB", MAX_REPLY_BYTES >> 20)));
}

#[test]
fn ranges_get_what_previous_values_leave_and_say_so() {
    let mut bench = Bench::new();
    for key in ["a", "b", "c"] {
        bench.put(key, &"v".repeat(1000));
    }
    let options = BatchOptions {
        max_reply_bytes: 2500,
        ..BatchOptions::default()
    };
    let applied = bench.next();
    let mut txn = bench.store.begin(options).unwrap();
    let replace = PutRequest {
        prev_kv: true,
        ..put("c", "")
    };
    let request = TxnRequest {
        success: vec![
            RequestOp::Range(all()),
            RequestOp::Range(all()),
            RequestOp::Put(replace),
        ],
        ..TxnRequest::default()
    };
    let reply = txn.apply(&Command::Txn(request)).unwrap();
    let Ok(CommandResponse::Txn(response)) = reply.result else {
        panic!("{reply:?}");
    };
    let [
        ResponseOp::Range(first),
        ResponseOp::Range(second),
        ResponseOp::Put(put),
    ] = &response.responses[..]
    else {
        panic!("{response:?}");
    };
    // 2500 less one previous value is room for one key, and a second one is begun.
    assert_eq!((first.kvs.len(), first.more, first.count), (2, true, 3));
    assert_eq!((second.kvs.len(), second.more, second.count), (0, true, 3));
    assert!(put.prev_kv.is_some());
    assert_eq!(txn.reply_bytes(), 3 * (KeyValue::LEAST_SIZE + 1001));
    txn.publish(applied).unwrap();
}

#[test]
fn a_reply_is_never_larger_than_was_counted_for_it() {
    const VALUE: usize = 1000;
    let mut bench = Bench::new();
    for key in ["a", "b", "c"] {
        bench.put(key, &"v".repeat(VALUE));
    }
    let range = |limit, keys_only, count_only| {
        RequestOp::Range(RangeRequest {
            limit,
            keys_only,
            count_only,
            ..all()
        })
    };
    let of = |success, failure| {
        Command::Txn(TxnRequest {
            success,
            failure,
            ..TxnRequest::default()
        })
    };
    let one = KeyValue::LEAST_SIZE + super::super::MAX_KEY_BYTES + VALUE;
    let asks = PutRequest {
        prev_kv: true,
        ..put("a", "x")
    };
    let single = DeleteRangeRequest {
        key: b"b",
        prev_kv: true,
        ..DeleteRangeRequest::default()
    };
    for (command, most) in [
        (Command::Put(put("a", "x")), 0),
        (Command::Put(asks), one),
        (Command::DeleteRange(delete_all(false)), 0),
        (Command::DeleteRange(delete_all(true)), MAX_REPLY_BYTES),
        (Command::DeleteRange(single), one),
        (of(vec![range(0, false, true)], vec![]), 0),
        (of(vec![range(2, false, false)], vec![]), 2 * one),
        (of(vec![range(2, true, false)], vec![]), 2 * (one - VALUE)),
        (of(vec![range(0, true, false)], vec![]), MAX_REPLY_BYTES),
        (
            of(vec![range(i64::MAX, false, false); 3], vec![]),
            MAX_REPLY_BYTES,
        ),
        // The branch that is taken is not known: the larger one counts.
        (
            of(vec![RequestOp::Put(asks)], vec![range(3, false, false)]),
            3 * one,
        ),
        (
            of(
                vec![RequestOp::DeleteRange(single), RequestOp::Put(asks)],
                vec![],
            ),
            2 * one,
        ),
    ] {
        assert_eq!(reply_bytes(&command, VALUE), most, "{command:?}");
        let applied = bench.next();
        let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
        txn.apply(&command).unwrap();
        assert!(txn.reply_bytes() <= most, "{command:?}");
        txn.publish(applied).unwrap();
    }
}
