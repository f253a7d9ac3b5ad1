//! The slots of readers, hammered from several threads. (Every access is
//! sequentially consistent, so that a schedule is all that can differ.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::super::readers::Publisher;
use super::super::state::State;
use crate::backend::Applied;

/// A state whose parts must agree.
fn state(number: u64) -> State {
    let mut state = State {
        number,
        applied: Applied {
            term: number,
            index: number,
        },
        ..State::default()
    };
    for root in &mut state.roots {
        root.page = number;
        root.sums.bytes = number;
    }
    state
}

#[test]
fn a_pinned_state_is_whole_and_never_older_than_the_oldest() {
    let mut publisher = Publisher::new(state(1));
    let readers = Arc::clone(publisher.readers());
    let done = AtomicBool::new(false);
    // Nothing that a reader pins from now on is older than this.
    let recycled = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut held = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let floor = recycled.load(Ordering::SeqCst);
                    let pin = readers.pin();
                    assert_eq!(*pin.state(), state(pin.state().number), "a torn state");
                    assert!(pin.state().number >= floor, "a recycled state");
                    held.push(pin);
                    if held.len() > 20 {
                        held.drain(..15);
                    }
                }
            });
        }
        for number in 2..30_000 {
            assert!(publisher.publish(state(number)));
            recycled.store(publisher.held()[0], Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!((readers.count(), readers.oldest_age()), (0, 0));
    let pin = readers.pin();
    assert_eq!(readers.oldest_age(), 0);
    drop(pin);
    assert_eq!(publisher.held(), [29_999]);
    assert_eq!(publisher.newest(), state(29_999));
}

#[test]
fn pinned_states_and_the_newest_are_held() {
    let mut publisher = Publisher::new(state(1));
    let readers = Arc::clone(publisher.readers());
    let first = readers.pin();
    publisher.publish(state(2));
    let second = readers.pin();
    publisher.publish(state(3));
    assert_eq!((publisher.held(), readers.count()), (vec![1, 2, 3], 2));
    drop(first);
    assert_eq!(publisher.held(), [2, 3]);
    drop(second);
    assert_eq!(publisher.held(), [3]);
}

#[test]
fn slots_grow_with_the_states_that_are_held() {
    let mut publisher = Publisher::new(state(1));
    let readers = Arc::clone(publisher.readers());
    let mut held = Vec::new();
    for number in 2..300 {
        held.push(readers.pin());
        assert!(publisher.publish(state(number)));
    }
    for (number, pin) in (1..).zip(&held) {
        assert_eq!(*pin.state(), state(number));
    }
    let all: Vec<u64> = (1..300).collect();
    assert_eq!(publisher.held(), all);
}
