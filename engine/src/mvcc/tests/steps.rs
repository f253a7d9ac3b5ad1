//! Ranges that are answered in steps, each in the newest state.

use std::ops::ControlFlow;

use varve_types::{ApiError, RangeRequest, RangeResponse, SortOrder, SortTarget};

use super::{Bench, all, show};
use crate::mvcc::{RangeCursor, RangeLimits, View};

/// Answers `request` in steps of at most `scanned` keys and `keys` of the answer. Called
/// with the step's number, `view` gives the view for it.
pub(super) fn stepped(
    request: &RangeRequest<'_>,
    scanned: usize,
    keys: usize,
    mut view: impl FnMut(usize) -> std::sync::Arc<View>,
) -> (Result<RangeResponse, ApiError>, usize) {
    let limits = RangeLimits {
        scanned,
        ..RangeLimits::default()
    };
    let mut cursor = RangeCursor::default();
    let (mut kvs, mut steps) = (Vec::new(), 0);
    let mut request = *request;
    loop {
        let view = view(steps);
        if steps == 0 && request.revision <= 0 {
            request.revision = view.revision();
        }
        let before = kvs.len();
        let end = view.range_step(&request, &mut cursor, limits, &mut |kv| {
            kvs.push(kv.to_owned());
            match kvs.len() - before >= keys {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        steps += 1;
        assert!(kvs.len() - before <= keys);
        match end {
            Ok(None) => {}
            Ok(Some(end)) => {
                let (more, count) = (end.more, end.count);
                return (Ok(RangeResponse { kvs, more, count }), steps);
            }
            Err(error) => {
                let error = error.api().unwrap_or_else(|| panic!("{error}"));
                return (Err(error), steps);
            }
        }
    }
}

/// 600 keys at revision 601 and much that changed since.
fn changed() -> (Bench, i64) {
    let mut bench = Bench::new();
    for number in 0..600 {
        bench.put(&format!("k{number:03}"), &format!("{}", number * 7 % 600));
    }
    let before = bench.revision();
    for number in (0..600).filter(|number| number % 3 != 0) {
        bench.delete(&format!("k{number:03}"));
    }
    for number in (0..600).step_by(5) {
        bench.put(&format!("k{number:03}"), "new");
    }
    (bench, before)
}

#[test]
fn every_answer_is_that_of_its_first_state() {
    let (mut bench, before) = changed();
    let page = RangeRequest {
        key: b"k100",
        range_end: b"k500",
        limit: 150,
        ..all()
    };
    let rare = RangeRequest {
        min_mod_revision: before - 3,
        max_mod_revision: before,
        ..all()
    };
    for (request, least_steps) in [
        (all(), 50),
        (page, 12),
        (rare, 50),
        (RangeRequest { limit: 1, ..rare }, 50),
        (
            RangeRequest {
                count_only: true,
                ..all()
            },
            1,
        ),
        (
            RangeRequest {
                sort_order: SortOrder::Descend,
                ..page
            },
            12,
        ),
        (
            RangeRequest {
                sort_target: SortTarget::Value,
                ..page
            },
            30,
        ),
        (
            RangeRequest {
                sort_order: SortOrder::Descend,
                sort_target: SortTarget::Mod,
                keys_only: true,
                limit: 0,
                ..page
            },
            50,
        ),
    ] {
        for revision in [0, before, before + 1, bench.revision() - 100] {
            let request = RangeRequest {
                revision,
                ..request
            };
            let expected = bench.range(&request).unwrap();
            let (answer, steps) = stepped(&request, 7, 12, |step| {
                // Something else every time, in the range and around it.
                let name = format!("k{:03}", step * 37 % 600);
                match step {
                    0 => {}
                    step if step % 3 == 0 => drop(bench.delete(&name)),
                    step if step % 3 == 1 => drop(bench.put(&format!("{name}/{step}"), "x")),
                    _ => drop(bench.put(&name, "y")),
                }
                bench.view()
            });
            assert_eq!(answer.unwrap(), expected, "{request:?}");
            // The oldest revision has 600 keys, the newest about 300.
            let least = if revision == before {
                2 * least_steps
            } else {
                least_steps
            };
            assert!(steps * 2 > least, "{steps} steps for {request:?}");
        }
    }
}

#[test]
fn counts_at_old_revisions_go_in_steps_too() {
    let (mut bench, before) = changed();
    let count = RangeRequest {
        count_only: true,
        revision: before,
        ..all()
    };
    // Few changes since, of which the count takes note, and then so many that the
    // keys themselves are counted.
    for _ in 0..2 {
        let (answer, steps) = stepped(&count, 7, 1, |step| {
            bench.put(&format!("k{:03}", step % 600), "z");
            bench.view()
        });
        assert_eq!(answer.unwrap().count, 600);
        assert!(steps > 50, "{steps}");
        for _ in 0..2000 {
            bench.put("busy", "v");
        }
    }
}

#[test]
fn a_revision_that_is_compacted_meanwhile_is_said() {
    let (mut bench, before) = changed();
    let request = RangeRequest {
        revision: before,
        ..all()
    };
    let (answer, steps) = stepped(&request, 50, 50, |step| {
        match step {
            // Up to the revision itself nothing is lost.
            2 => bench.compact(before).unwrap(),
            3 => bench.compact_fully(),
            4 => bench.compact(before + 1).unwrap(),
            _ => {}
        }
        bench.view()
    });
    assert_eq!((answer, steps), (Err(ApiError::Compacted), 5));
    let dump = bench.dump(0);
    let (answer, _) = stepped(&all(), 1, 1, |_| bench.view());
    assert_eq!(show(&answer.unwrap().kvs), dump);
}
