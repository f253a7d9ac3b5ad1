//! Random commands against the model, on every engine.

use proptest::prelude::*;
use varve_types::{Command, CompactionRequest, Event, KeyRange, RangeRequest};

use super::super::keys::{LEASE, numbered};
use super::super::{BatchOptions, CompactBudget, EventLimits, LiveEvents};
use super::commands::{Step, queries, steps};
use super::engines::Engine;
use super::model::Model;
use super::steps::stepped;
use super::{ALL, Bench, all, copy, events};

/// Grants the one lease that random puts may name.
fn with_lease(bench: &mut Bench) {
    let applied = bench.next();
    let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
    txn.put_meta(&numbered(LEASE, 7), b"").unwrap();
    txn.publish(applied).unwrap();
}

/// Applies steps in batches, each reply held against the model's. Gives back
/// the hash of every revision.
fn run(engine: Engine, steps: &[Step], model: &mut Model) -> (Engine, Bench, Vec<u128>) {
    let mut engine = engine;
    let mut bench = Bench::on(engine.backend());
    with_lease(&mut bench);
    let mut hashes = vec![0, 0];
    let mut steps = steps.iter().peekable();
    while steps.peek().is_some() {
        let applied = bench.next();
        let first = model.revision() + 1;
        let mut reopen = false;
        // Without watchers nothing looks at values that are replaced.
        let is_watched = applied.index.is_multiple_of(2);
        let usual = BatchOptions::default();
        let options = BatchOptions {
            collect_events: true,
            max_event_bytes: if is_watched { usual.max_event_bytes } else { 0 },
            ..usual
        };
        let mut txn = bench.store.begin(options).unwrap();
        for step in steps.by_ref() {
            match step {
                Step::Command(command) => {
                    assert_eq!(
                        txn.apply(command).unwrap(),
                        model.apply(command),
                        "{command:?}"
                    );
                }
                Step::Compact(share) => {
                    let kept = model.revision() - model.compacted;
                    let command = Command::Compaction(CompactionRequest {
                        revision: model.compacted + kept * share / 16,
                        physical: false,
                    });
                    assert_eq!(txn.apply(&command).unwrap(), model.apply(&command));
                }
                Step::Remove(entries) => {
                    let budget = CompactBudget {
                        entries: *entries,
                        bytes: 4000,
                    };
                    txn.compact_step(budget).unwrap();
                }
                Step::Publish => break,
                Step::Reopen => {
                    reopen = true;
                    break;
                }
            }
        }
        assert_eq!(txn.revision(), model.revision());
        let published = txn.publish(applied).unwrap();
        let live: Vec<Event> = match &published.events {
            LiveEvents::None => vec![],
            LiveEvents::Batch(batch) => batch.iter().map(|event| event.to_owned()).collect(),
            LiveEvents::ReadFromStore { .. } if is_watched => panic!("over the limit"),
            LiveEvents::ReadFromStore { first: from, last } => {
                assert_eq!((*from, *last), (first, model.revision()));
                model.events_from(first, true)
            }
        };
        let mut expected = model.events_from(first, true);
        // A live watcher has the previous values of events even at a revision
        // that the same batch compacts.
        if model.compacted >= first {
            expected = strip(&expected);
            assert_eq!(strip(&live), expected);
        } else {
            assert_eq!(live, expected);
        }
        let view = published.view;
        for revision in first..=model.revision() {
            hashes.push(if revision < model.compacted {
                0
            } else {
                view.hash_at(revision).unwrap()
            });
        }
        if reopen {
            drop(view);
            let index = bench.index;
            drop(bench);
            engine = engine.reopen();
            bench = Bench::on(engine.backend());
            assert_eq!(bench.index, index, "what was published is lost");
        }
    }
    (engine, bench, hashes)
}

fn strip(events: &[Event]) -> Vec<Event> {
    events
        .iter()
        .map(|event| Event {
            prev_kv: None,
            ..event.clone()
        })
        .collect()
}

fn verify(bench: &Bench, model: &Model, hashes: &[u128], queries: &[RangeRequest<'static>]) {
    bench.check();
    let view = bench.view();
    assert_eq!(view.revision(), model.revision());
    assert_eq!(view.compacted(), model.compacted);
    for request in queries {
        assert_eq!(bench.range(request), model.range(request), "{request:?}");
        let (in_steps, _) = stepped(request, 3, 2, |_| bench.view());
        assert_eq!(in_steps, model.range(request), "{request:?}");
        let count = view.count(request.range(), request.revision).ok();
        assert_eq!(count, model.range(request).ok().map(|range| range.count));
    }
    for revision in model.compacted.max(1)..=model.revision() {
        let at = RangeRequest { revision, ..all() };
        assert_eq!(bench.range(&at).unwrap().kvs, model.keys_at(revision));
        let hash = hashes[revision as usize];
        assert!(hash == 0 || view.hash_at(revision).unwrap() == hash);
    }
    let tight = EventLimits {
        events: 2,
        bytes: 400,
        scanned: 5,
    };
    for from in model.compacted.max(0)..=model.revision() + 1 {
        for (prev_kv, limits) in [(true, EventLimits::default()), (false, tight)] {
            let expected = if from > model.revision() {
                vec![]
            } else {
                model.events_from(from, prev_kv)
            };
            assert_eq!(events(&view, ALL, from, limits, prev_kv).unwrap(), expected);
            let range = KeyRange::Between(b"a", b"b/2");
            let mut inside = expected;
            inside.retain(|event| range.contains(&event.kv.key));
            assert_eq!(events(&view, range, from, limits, prev_kv).unwrap(), inside);
        }
    }
    let live = view.live_sums(ALL).unwrap();
    assert_eq!(live.keys, model.keys_at(model.revision()).len() as u64);
}

proptest! {
    #[test]
    fn answers_as_the_model(steps in steps(), queries in queries()) {
        let mut agreed: Option<(u128, Vec<u128>)> = None;
        for engine in Engine::all() {
            let mut model = Model::new();
            let (engine, mut bench, hashes) = run(engine, &steps, &mut model);
            verify(&bench, &model, &hashes, &queries);

            // A copy is equal in everything.
            for target in Engine::all() {
                let info = copy(bench.view(), target.backend(), 700).unwrap();
                prop_assert_eq!(info.hash, bench.view().hash());
                let copied = Bench::on(target.backend());
                prop_assert_eq!(copied.index, bench.index);
                verify(&copied, &model, &hashes, &queries);
            }

            // Removing all that is compacted changes no answer.
            bench.compact_fully();
            verify(&bench, &model, &hashes, &queries);
            let hash = bench.view().hash();
            drop(bench);
            let bench = Bench::on(engine.reopen().backend());
            verify(&bench, &model, &hashes, &queries);

            // All engines agree on every hash.
            let mine = (hash, hashes);
            prop_assert_eq!(agreed.get_or_insert_with(|| mine.clone()), &mine);
        }
    }

    #[test]
    fn silent_members_have_the_same_state(steps in steps()) {
        let (mut loud, mut silent) = (Bench::new(), Bench::new());
        for bench in [&mut loud, &mut silent] {
            with_lease(bench);
        }
        for step in &steps {
            let Step::Command(command) = step else { continue };
            loud.apply(command);
            let applied = silent.next();
            let mut txn = silent.store.begin(BatchOptions::default()).unwrap();
            txn.apply_silent(command).unwrap();
            txn.publish(applied).unwrap();
        }
        prop_assert_eq!(loud.view().hash(), silent.view().hash());
        prop_assert_eq!(loud.view().revision(), silent.view().revision());
    }

    #[test]
    fn a_dropped_batch_leaves_nothing(steps in steps()) {
        let mut bench = Bench::new();
        bench.put("a", "1");
        let (hash, dump) = (bench.view().hash(), bench.dump(0));
        {
            let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
            for step in &steps {
                if let Step::Command(command) = step {
                    txn.apply(command).unwrap();
                }
            }
        }
        prop_assert_eq!(bench.view().hash(), hash);
        prop_assert_eq!(bench.dump(0), dump);
        prop_assert_eq!(bench.put("b", "2"), 3);
    }
}
