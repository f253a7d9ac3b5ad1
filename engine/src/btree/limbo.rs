//! Freed pages that somebody may still need.
//!
//! A page that was born in state b and freed by the batch that made state f is
//! part of the states b to f - 1. It is free again when no reader holds one of
//! these, and the last durable checkpoint is none of them. So a reader that holds
//! a state for long keeps that state's pages, and none of those that were made
//! and freed since.
//!
//! Invariants: a page is examined with the pins looked at first and the durable
//! state second. A reader that pins after that pins the newest state, which has
//! none of the pages. A checkpoint pins its state until it is the durable one.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

use super::readers::Publisher;
use super::space::{Extent, Freed};
use crate::mutations::{Mutation, is_on};
use crate::sync::AtomicU64;

/// Who may still need freed pages.
#[derive(Debug, Clone)]
pub(super) struct Horizon {
    /// The states that readers hold, ascending; looked at first.
    pub(super) pins: Vec<u64>,
    /// The state of the last durable checkpoint; looked at second.
    pub(super) durable: u64,
}

impl Horizon {
    /// As of now; `durable` holds the state of the last durable checkpoint.
    pub(super) fn look(publisher: &Publisher, durable: &AtomicU64) -> Self {
        let early = is_on(Mutation::DurableBeforePins).then(|| durable.load(SeqCst));
        let pins = publisher.held();
        let durable = early.unwrap_or_else(|| durable.load(SeqCst));
        Self { pins, durable }
    }
}

/// Pages by who needs them.
#[derive(Debug, Clone, Default)]
pub(super) struct Limbo {
    /// Freed since the last look, with the state that is without them.
    fresh: Vec<(u64, Vec<Freed>)>,
    /// By the first state that is held and has them.
    pinned: BTreeMap<u64, Vec<(u64, Freed)>>,
    /// Part of the last durable checkpoint, by the state that is without them.
    checkpointed: BTreeMap<u64, Vec<Freed>>,
    pinned_pages: u64,
    checkpointed_pages: u64,
}

impl Limbo {
    /// Adds what the batch that made state `number` freed.
    pub(super) fn add(&mut self, number: u64, freed: Vec<Freed>) {
        if !freed.is_empty() {
            self.pinned_pages += count(&freed);
            self.fresh.push((number, freed));
        }
    }

    /// Gives out what nobody needs any more.
    pub(super) fn release(&mut self, horizon: &Horizon, mut give: impl FnMut(Extent)) {
        let is_held = |state: &u64| horizon.pins.binary_search(state).is_ok();
        let let_go: Vec<u64> = self
            .pinned
            .keys()
            .copied()
            .filter(|state| !is_held(state))
            .collect();
        for state in let_go {
            for (number, freed) in self.pinned.remove(&state).unwrap_or_default() {
                self.examine(number, freed, horizon, &mut give);
            }
        }
        for (number, freed) in std::mem::take(&mut self.fresh) {
            for freed in freed {
                self.examine(number, freed, horizon, &mut give);
            }
        }
        let later = self.checkpointed.split_off(&(horizon.durable + 1));
        for (_, freed) in std::mem::replace(&mut self.checkpointed, later) {
            self.checkpointed_pages -= count(&freed);
            freed.into_iter().for_each(|freed| give(freed.extent));
        }
    }

    /// Finds a page's place; it is counted as pinned before.
    fn examine(
        &mut self,
        number: u64,
        freed: Freed,
        horizon: &Horizon,
        give: &mut impl FnMut(Extent),
    ) {
        let first = horizon.pins.partition_point(|state| *state < freed.birth);
        if let Some(state) = horizon.pins.get(first).filter(|state| **state < number) {
            let held = self.pinned.entry(*state).or_default();
            held.push((number, freed));
            return;
        }
        self.pinned_pages -= freed.extent.pages;
        if freed.birth <= horizon.durable && horizon.durable < number {
            self.checkpointed_pages += freed.extent.pages;
            self.checkpointed.entry(number).or_default().push(freed);
        } else {
            give(freed.extent);
        }
    }

    /// Pages that wait for readers, as far as that was looked at.
    pub(super) fn pinned_pages(&self) -> u64 {
        self.pinned_pages
    }

    /// Pages that wait for a checkpoint.
    pub(super) fn checkpointed_pages(&self) -> u64 {
        self.checkpointed_pages
    }

    /// All of them.
    pub(super) fn extents(&self) -> impl Iterator<Item = Extent> {
        let fresh = self.fresh.iter().flat_map(|(_, freed)| freed);
        let pinned = self.pinned.values().flatten().map(|(_, freed)| freed);
        let checkpointed = self.checkpointed.values().flatten();
        let all = fresh.chain(pinned).chain(checkpointed);
        all.map(|freed| freed.extent)
    }
}

fn count(freed: &[Freed]) -> u64 {
    freed.iter().map(|freed| freed.extent.pages).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freed(page: u64, birth: u64) -> Freed {
        Freed {
            extent: Extent::one(page),
            birth,
        }
    }

    fn release(limbo: &mut Limbo, pins: &[u64], durable: u64) -> Vec<u64> {
        let horizon = Horizon {
            pins: pins.to_vec(),
            durable,
        };
        let mut pages = Vec::new();
        limbo.release(&horizon, |extent| pages.extend(extent.iter()));
        pages.sort_unstable();
        pages
    }

    #[test]
    fn a_held_state_keeps_its_own_pages_only() {
        let mut limbo = Limbo::default();
        limbo.add(6, vec![freed(10, 3), freed(11, 5)]);
        limbo.add(7, vec![freed(12, 6), freed(13, 4)]);
        // State 4 has pages 10 and 13, not 11 and 12, which came later.
        assert_eq!(release(&mut limbo, &[4, 7], 0), [11, 12]);
        assert_eq!(limbo.pinned_pages(), 2);
        assert_eq!(release(&mut limbo, &[4, 9], 0), [0; 0]);
        // Page 10 is also in state 3, page 13 is not.
        limbo.add(8, vec![freed(14, 8)]);
        assert_eq!(release(&mut limbo, &[3, 9], 0), [13, 14]);
        assert_eq!(release(&mut limbo, &[9], 0), [10]);
        assert_eq!((limbo.pinned_pages(), limbo.extents().count()), (0, 0));
    }

    #[test]
    fn a_page_goes_from_one_holder_to_the_next() {
        let mut limbo = Limbo::default();
        limbo.add(9, vec![freed(10, 2)]);
        for pins in [&[3, 5, 9][..], &[5, 9], &[8, 9]] {
            assert_eq!(release(&mut limbo, pins, 0), [0; 0], "{pins:?}");
        }
        assert_eq!(release(&mut limbo, &[9], 0), [10]);
    }

    #[test]
    fn the_durable_checkpoint_keeps_its_pages_until_the_next_one() {
        let mut limbo = Limbo::default();
        limbo.add(6, vec![freed(10, 4), freed(11, 5)]);
        assert_eq!(release(&mut limbo, &[6], 4), [11]);
        assert_eq!(limbo.checkpointed_pages(), 1);
        assert_eq!(
            release(&mut limbo, &[6], 5),
            [0; 0],
            "5 is without it, too: not yet 6"
        );
        assert_eq!(release(&mut limbo, &[6], 6), [10]);
        assert_eq!(limbo.checkpointed_pages(), 0);
    }
}
