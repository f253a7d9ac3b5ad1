//! Cases with a name: what random runs would meet too seldom.

use std::ops::Bound;
use std::sync::Arc;

use super::super::{Applied, Backend, BackendError, Direction, Sums, TreeId};
use super::session::scan;
use super::{Opener, Range, Traits};

type Outcome = Result<(), String>;
type Case = fn(&mut Opener<'_>, Traits) -> Outcome;

const CASES: [(&str, Case); 9] = [
    ("an empty store has nothing", empty_store),
    (
        "a batch is seen when it is published, not before",
        isolation,
    ),
    ("a dropped batch leaves nothing", dropped_batch),
    ("bounds that contain nothing", empty_bounds),
    ("keys too long and trees too high are refused", limits),
    (
        "a snapshot outlives later batches and checkpoints",
        old_snapshot,
    ),
    ("a checkpoint beside an open batch", checkpoint_beside_batch),
    ("everything deleted, then filled again", delete_all),
    (
        "ascending, descending and alternating inserts",
        insert_orders,
    ),
];

/// Runs all cases, each on a new store that `opener` makes.
///
/// # Errors
///
/// Names the case and says what went wrong.
pub fn run_cases(opener: &mut Opener<'_>, traits: Traits) -> Outcome {
    for (name, case) in CASES {
        case(opener, traits).map_err(|what| format!("{name}: {what}"))?;
    }
    Ok(())
}

fn text(error: BackendError) -> String {
    error.to_string()
}

fn expect(what: &str, holds: bool) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(format!("expected {what}"))
    }
}

const TREE: TreeId = TreeId(1);
const ALL: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);

fn applied(index: u64) -> Applied {
    Applied { term: 1, index }
}

fn end(backend: &Arc<dyn Backend>) -> Outcome {
    backend.check().map(drop).map_err(text)
}

fn empty_store(opener: &mut Opener<'_>, _: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    let snapshot = backend.snapshot().map_err(text)?;
    expect(
        "no value",
        snapshot.get(TREE, b"a").map_err(text)?.is_none(),
    )?;
    let sums = snapshot.sums(TREE, ALL).map_err(text)?;
    expect("sums of zero", sums == Sums::default())?;
    expect(
        "no log entry applied",
        snapshot.applied() == Applied::default(),
    )?;
    let mut batch = backend.begin().map_err(text)?;
    expect(
        "nothing to delete",
        !batch.delete(TREE, b"a").map_err(text)?,
    )?;
    expect(
        "nothing in the range",
        batch.delete_range(TREE, ALL).map_err(text)? == 0,
    )?;
    drop(batch);
    backend.checkpoint().map_err(text)?;
    end(&backend)
}

fn isolation(opener: &mut Opener<'_>, _: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    let before = backend.snapshot().map_err(text)?;
    let mut batch = backend.begin().map_err(text)?;
    batch.put(TREE, b"a", b"1").map_err(text)?;
    batch.put(TreeId(2), b"a", b"2").map_err(text)?;
    let own = batch.get(TREE, b"a").map_err(text)?;
    expect("the batch to see itself", own.as_deref() == Some(b"1"))?;
    let during = backend.snapshot().map_err(text)?;
    expect(
        "nothing yet",
        during.get(TREE, b"a").map_err(text)?.is_none(),
    )?;
    batch.publish(applied(7)).map_err(text)?;
    expect(
        "nothing in the old snapshot",
        before.get(TREE, b"a").map_err(text)?.is_none(),
    )?;
    let after = backend.snapshot().map_err(text)?;
    let other = after.get(TreeId(2), b"a").map_err(text)?;
    expect("trees to be apart", other.as_deref() == Some(b"2"))?;
    expect("the applied entry", after.applied() == applied(7))?;
    end(&backend)
}

fn dropped_batch(opener: &mut Opener<'_>, _: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    let mut batch = backend.begin().map_err(text)?;
    batch.put(TREE, b"kept", &[1; 5000]).map_err(text)?;
    batch.publish(applied(1)).map_err(text)?;
    let used = backend.stats().used_bytes;
    for _ in 0..20 {
        let mut batch = backend.begin().map_err(text)?;
        for key in 0_u32..200 {
            batch
                .put(TREE, &key.to_be_bytes(), &[2; 300])
                .map_err(text)?;
        }
        batch.delete_range(TREE, ALL).map_err(text)?;
        batch.put(TREE, b"gone", &[3; 5000]).map_err(text)?;
    }
    let snapshot = backend.snapshot().map_err(text)?;
    expect(
        "one entry",
        snapshot.sums(TREE, ALL).map_err(text)?.entries == 1,
    )?;
    expect("no space lost", backend.stats().used_bytes <= used)?;
    end(&backend)
}

fn empty_bounds(opener: &mut Opener<'_>, _: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    let mut batch = backend.begin().map_err(text)?;
    for key in [&b""[..], b"a", b"b", b"c"] {
        batch.put(TREE, key, key).map_err(text)?;
    }
    let side = |key: &[u8], inside| Some((key.to_vec(), inside));
    let empty = [
        Range {
            start: side(b"b", false),
            end: side(b"b", true),
        },
        Range {
            start: side(b"b", true),
            end: side(b"b", false),
        },
        Range {
            start: side(b"b", false),
            end: side(b"b", false),
        },
        Range {
            start: side(b"c", true),
            end: side(b"a", true),
        },
        Range {
            start: side(b"a", false),
            end: side(b"b", false),
        },
        Range {
            start: None,
            end: side(b"", false),
        },
    ];
    for range in &empty {
        for direction in [Direction::Forward, Direction::Backward] {
            let entries = scan(&*batch, 1, range, direction, 9)?;
            expect(&format!("nothing in {range:?}"), entries.is_empty())?;
        }
        let sums = batch.sums(TREE, range.bounds()).map_err(text)?;
        expect(
            &format!("sums of zero in {range:?}"),
            sums == Sums::default(),
        )?;
        let count = batch.delete_range(TREE, range.bounds()).map_err(text)?;
        expect(&format!("nothing to delete in {range:?}"), count == 0)?;
    }
    let one = Range {
        start: side(b"", true),
        end: side(b"", true),
    };
    expect(
        "the empty key",
        scan(&*batch, 1, &one, Direction::Forward, 9)?.len() == 1,
    )?;
    batch.publish(applied(1)).map_err(text)?;
    end(&backend)
}

fn limits(opener: &mut Opener<'_>, traits: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    let mut batch = backend.begin().map_err(text)?;
    let max = traits.max_key_bytes;
    if max < usize::MAX {
        let longest = vec![b'k'; max];
        batch.put(TREE, &longest, b"1").map_err(text)?;
        let refused = batch.put(TREE, &vec![b'k'; max + 1], b"2");
        expect(
            "KeyTooLong",
            matches!(refused, Err(BackendError::KeyTooLong { .. })),
        )?;
        // A refusal does not spoil the batch.
        let value = batch.get(TREE, &longest).map_err(text)?;
        expect("the longest key", value.as_deref() == Some(b"1"))?;
        expect(
            "no longer key",
            batch
                .get(TREE, &vec![b'k'; max + 1])
                .map_err(text)?
                .is_none(),
        )?;
    }
    let high = TreeId(200);
    expect(
        "UnknownTree",
        matches!(
            batch.put(high, b"a", b""),
            Err(BackendError::UnknownTree { .. })
        ),
    )?;
    expect(
        "UnknownTree",
        matches!(batch.get(high, b"a"), Err(BackendError::UnknownTree { .. })),
    )?;
    batch.publish(applied(1)).map_err(text)?;
    end(&backend)
}

fn old_snapshot(opener: &mut Opener<'_>, _: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    let fill = |value: u8, round: u64| -> Outcome {
        let mut batch = backend.begin().map_err(text)?;
        for key in 0_u32..300 {
            let long = vec![value; if key % 50 == 0 { 6000 } else { 100 }];
            batch.put(TREE, &key.to_be_bytes(), &long).map_err(text)?;
        }
        batch.publish(applied(round)).map_err(text)
    };
    fill(1, 1)?;
    let old = backend.snapshot().map_err(text)?;
    for round in 2_u8..20 {
        fill(round, u64::from(round))?;
        if round % 3 == 0 {
            backend.checkpoint().map_err(text)?;
        }
        let entries = scan(&*old, 1, &Range::default(), Direction::Forward, usize::MAX)?;
        let whole = entries.len() == 300 && entries.iter().all(|(_, v)| v.iter().all(|b| *b == 1));
        expect("the old snapshot as it was", whole)?;
    }
    expect("one reader", backend.stats().readers == 1)?;
    drop(old);
    expect("no reader", backend.stats().readers == 0)?;
    end(&backend)
}

fn checkpoint_beside_batch(opener: &mut Opener<'_>, traits: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    let mut batch = backend.begin().map_err(text)?;
    batch.put(TREE, b"a", b"1").map_err(text)?;
    batch.publish(applied(1)).map_err(text)?;
    let mut batch = backend.begin().map_err(text)?;
    batch.put(TREE, b"a", b"2").map_err(text)?;
    expect(
        "the published state",
        backend.checkpoint().map_err(text)? == applied(1),
    )?;
    batch.put(TREE, b"b", b"2").map_err(text)?;
    batch.publish(applied(2)).map_err(text)?;
    end(&backend)?;
    expect("the checkpoint", backend.durable() == applied(1))?;
    drop(backend);
    if traits.durable {
        let backend = opener().map_err(text)?;
        let snapshot = backend.snapshot().map_err(text)?;
        let value = snapshot.get(TREE, b"a").map_err(text)?;
        // The opener may make a new store each time: then there is nothing. And
        // the engine may keep more than the checkpoint at an orderly end.
        let expected: Option<&[u8]> = match snapshot.applied().index {
            0 => None,
            1 => Some(b"1"),
            _ => Some(b"2"),
        };
        expect("the value of that state", value.as_deref() == expected)?;
    }
    Ok(())
}

fn delete_all(opener: &mut Opener<'_>, _: Traits) -> Outcome {
    let backend = opener().map_err(text)?;
    for round in 0..3_u64 {
        let mut batch = backend.begin().map_err(text)?;
        for key in 0_u32..2000 {
            batch
                .put(TREE, &key.wrapping_mul(0x9e37_79b9).to_be_bytes(), &[7; 60])
                .map_err(text)?;
        }
        expect(
            "2000 entries",
            batch.sums(TREE, ALL).map_err(text)?.entries == 2000,
        )?;
        batch.publish(applied(2 * round + 1)).map_err(text)?;
        let mut batch = backend.begin().map_err(text)?;
        if round == 1 {
            for key in 0_u32..2000 {
                let key = key.wrapping_mul(0x9e37_79b9).to_be_bytes();
                expect("the key", batch.delete(TREE, &key).map_err(text)?)?;
            }
        } else {
            expect(
                "2000 deleted",
                batch.delete_range(TREE, ALL).map_err(text)? == 2000,
            )?;
        }
        expect(
            "nothing left",
            batch.sums(TREE, ALL).map_err(text)? == Sums::default(),
        )?;
        batch.publish(applied(2 * round + 2)).map_err(text)?;
        end(&backend)?;
    }
    Ok(())
}

fn insert_orders(opener: &mut Opener<'_>, _: Traits) -> Outcome {
    let orders: [fn(u32) -> u32; 3] = [
        |i| i,
        |i| 3000 - i,
        |i| if i % 2 == 0 { i } else { 6000 - i },
    ];
    for (index, order) in (1..).zip(orders) {
        let backend = opener().map_err(text)?;
        let tree = TreeId(index);
        let mut batch = backend.begin().map_err(text)?;
        batch.delete_range(tree, ALL).map_err(text)?;
        for number in 0..3000 {
            batch
                .put(
                    tree,
                    format!("key/{:010}", order(number)).as_bytes(),
                    &[9; 40],
                )
                .map_err(text)?;
        }
        batch.publish(applied(u64::from(index))).map_err(text)?;
        let snapshot = backend.snapshot().map_err(text)?;
        let entries = scan(
            &*snapshot,
            index,
            &Range::default(),
            Direction::Forward,
            usize::MAX,
        )?;
        expect(
            "3000 entries in order",
            entries.len() == 3000 && entries.is_sorted(),
        )?;
        drop(snapshot);
        end(&backend)?;
    }
    Ok(())
}
