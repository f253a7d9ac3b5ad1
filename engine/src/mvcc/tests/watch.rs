//! Replay of events, and the events of a batch for live watchers.

use varve_types::{
    ApiError, Command, DeleteRangeRequest, EventKind, KeyRange, RequestOp, TxnRequest,
};

use super::super::{BatchOptions, EventLimits, LiveEvents};
use super::{ALL, Bench, events, put};

#[test]
fn a_replay_starts_at_its_revision_and_is_complete() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("b", "1");
    bench.put("a", "2");
    bench.delete("a");
    let from = |from| bench.events_from(from, false).unwrap();
    assert_eq!(from(0).len(), 4);
    assert_eq!(from(2).len(), 4);
    assert_eq!(from(4).len(), 2);
    assert_eq!(from(6), []);
    assert_eq!(from(99), []);
    let values: Vec<_> = from(2).into_iter().map(|event| event.kv.value).collect();
    assert_eq!(values, [&b"1"[..], b"1", b"2", b""]);
}

#[test]
fn a_deletion_has_key_and_revision_only() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.delete("a");
    let event = bench.events_from(3, true).unwrap().remove(0);
    assert_eq!(event.kind, EventKind::Delete);
    assert_eq!((&event.kv.key[..], event.kv.mod_revision), (&b"a"[..], 3));
    assert_eq!(
        (
            event.kv.create_revision,
            event.kv.version,
            event.kv.value.len()
        ),
        (0, 0, 0)
    );
    let prev = event.prev_kv.unwrap();
    assert_eq!((&prev.value[..], prev.mod_revision), (&b"1"[..], 2));
}

#[test]
fn prev_kv_only_if_asked_and_if_there_was_one() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    bench.delete("a");
    bench.put("a", "3");
    let prev = |asked| -> Vec<_> {
        let events = bench.events_from(2, asked).unwrap();
        events
            .into_iter()
            .map(|event| event.prev_kv.map(|kv| kv.value))
            .collect()
    };
    assert_eq!(
        prev(true),
        [None, Some(b"1".to_vec()), Some(b"2".to_vec()), None]
    );
    assert_eq!(prev(false), [None, None, None, None]);
}

#[test]
fn a_replay_below_the_compacted_revision_fails() {
    let mut bench = Bench::new();
    for value in ["1", "2", "3"] {
        bench.put("a", value);
    }
    bench.compact(3).unwrap();
    assert_eq!(bench.events_from(2, false), Err(ApiError::Compacted));
    assert_eq!(bench.events_from(-1, false), Err(ApiError::Compacted));
    assert_eq!(bench.events_from(3, false).unwrap().len(), 2);
}

#[test]
fn a_deletion_at_the_compacted_revision_is_still_seen() {
    // etcd #19179.
    let mut bench = Bench::new();
    bench.put("a", "1");
    let deleted = bench.delete("a");
    bench.compact(deleted).unwrap();
    for _ in 0..2 {
        let events = bench.events_from(deleted, true).unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].kind, EventKind::Delete);
        assert_eq!(events[0].prev_kv, None, "compacted");
        bench.compact_fully();
    }
}

#[test]
fn a_put_at_the_compacted_revision_keeps_its_value() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    bench.put("a", "3");
    bench.delete("a");
    bench.compact(3).unwrap();
    bench.compact_fully();
    let values: Vec<_> = bench
        .events_from(3, true)
        .unwrap()
        .into_iter()
        .map(|event| (event.kv.value, event.prev_kv.map(|kv| kv.value)))
        .collect();
    let of = |text: &str| text.as_bytes().to_vec();
    assert_eq!(
        values,
        [
            (of("2"), None),
            (of("3"), Some(of("2"))),
            (of(""), Some(of("3")))
        ]
    );
}

#[test]
fn a_revision_is_never_split() {
    let mut bench = Bench::new();
    let keys: Vec<String> = (0..50).map(|number| format!("k{number:02}")).collect();
    for _ in 0..3 {
        bench
            .txn(TxnRequest {
                success: keys
                    .iter()
                    .map(|key| RequestOp::Put(put(key, "v")))
                    .collect(),
                ..TxnRequest::default()
            })
            .unwrap();
    }
    let limits = EventLimits {
        events: 10,
        ..EventLimits::default()
    };
    let mut seen = 0;
    let end = bench
        .view()
        .events(ALL, 2, limits, false, &mut |_| seen += 1)
        .unwrap();
    assert_eq!(
        (seen, end.events, end.next_revision, end.done),
        (50, 50, 3, false)
    );
    assert_eq!(
        events(&bench.view(), ALL, 2, limits, false).unwrap().len(),
        150
    );
}

#[test]
fn what_is_gone_over_is_bounded() {
    let mut bench = Bench::new();
    for number in 0..100 {
        bench.put(if number == 99 { "rare" } else { "common" }, "v");
    }
    let limits = EventLimits {
        scanned: 10,
        ..EventLimits::default()
    };
    let rare = KeyRange::One(b"rare");
    let mut seen = 0;
    let end = bench
        .view()
        .events(rare, 2, limits, false, &mut |_| seen += 1)
        .unwrap();
    assert_eq!((seen, end.next_revision, end.done), (0, 12, false));
    assert_eq!(
        events(&bench.view(), rare, 2, limits, false).unwrap().len(),
        1
    );
}

fn live(bench: &mut Bench, options: BatchOptions, commands: &[Command<'_>]) -> LiveEvents {
    let applied = bench.next();
    let mut txn = bench.store.begin(options).unwrap();
    for command in commands {
        txn.apply(command).unwrap().result.unwrap();
    }
    txn.publish(applied).unwrap().events
}

#[test]
fn a_batch_gives_its_events_if_asked() {
    let mut bench = Bench::new();
    let commands = [
        Command::Put(put("a", "1")),
        Command::Put(put("b", "1")),
        Command::Put(put("a", "2")),
        Command::DeleteRange(DeleteRangeRequest {
            key: b"a",
            range_end: b"\0",
            prev_kv: false,
        }),
    ];
    assert!(matches!(
        live(&mut bench, BatchOptions::default(), &commands),
        LiveEvents::None
    ));
    let options = BatchOptions {
        collect_events: true,
        ..BatchOptions::default()
    };
    assert!(matches!(live(&mut bench, options, &[]), LiveEvents::None));
    let LiveEvents::Batch(batch) = live(&mut bench, options, &commands) else {
        panic!("no events");
    };
    assert_eq!(
        (batch.first_revision(), batch.last_revision(), batch.len()),
        (6, 9, 5)
    );
    let collected: Vec<_> = batch.iter().map(|event| event.to_owned()).collect();
    assert_eq!(collected, bench.events_from(6, true).unwrap());
}

#[test]
fn too_many_events_of_a_batch_are_left_to_the_store() {
    let mut bench = Bench::new();
    let options = BatchOptions {
        collect_events: true,
        max_event_bytes: 400,
        ..BatchOptions::default()
    };
    let commands: Vec<_> = ["a", "b", "c", "d", "e"]
        .map(|key| Command::Put(put(key, "v")))
        .into();
    let LiveEvents::ReadFromStore { first, last } = live(&mut bench, options, &commands) else {
        panic!("within the limit");
    };
    assert_eq!((first, last), (2, 6));
}
