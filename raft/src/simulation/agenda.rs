//! Virtual time: what happens next, and when.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A time in microseconds since the run began.
pub(super) type Micros = u64;

/// One second.
pub(super) const SECOND: Micros = 1_000_000;

/// What is due, in order of time; at the same time, in order of planning.
pub(super) struct Agenda<E> {
    now: Micros,
    planned: u64,
    items: BinaryHeap<Reverse<Item<E>>>,
}

struct Item<E> {
    at: Micros,
    number: u64,
    event: E,
}

impl<E> Ord for Item<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Item<E> {}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self {
            now: 0,
            planned: 0,
            items: BinaryHeap::new(),
        }
    }

    pub(super) fn now(&self) -> Micros {
        self.now
    }

    /// Plans an event `delay` from now.
    pub(super) fn after(&mut self, delay: Micros, event: E) {
        self.at(self.now + delay, event);
    }

    /// Plans an event for a time, or for now if that is past.
    pub(super) fn at(&mut self, at: Micros, event: E) {
        self.planned += 1;
        self.items.push(Reverse(Item {
            at: at.max(self.now),
            number: self.planned,
            event,
        }));
    }

    /// Goes on to the next event.
    pub(super) fn next(&mut self) -> Option<E> {
        let Reverse(item) = self.items.pop()?;
        self.now = item.at;
        Some(item.event)
    }
}
