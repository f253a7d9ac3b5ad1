//! The model: a sorted map per tree.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::{Applied, Bounds, Direction, MAX_TREES, Sums, is_empty};
use super::Range;

/// Entries as a scan gives them.
pub(super) type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// What a store should hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    /// The trees.
    pub trees: [BTreeMap<Vec<u8>, Vec<u8>>; MAX_TREES],
    /// How far it applies.
    pub applied: Applied,
}

impl Range {
    /// As an engine takes it.
    pub fn bounds(&self) -> Bounds<'_> {
        (bound(&self.start), bound(&self.end))
    }
}

fn bound(key: &Option<(Vec<u8>, bool)>) -> Bound<&[u8]> {
    match key {
        None => Bound::Unbounded,
        Some((key, true)) => Bound::Included(key),
        Some((key, false)) => Bound::Excluded(key),
    }
}

impl Model {
    /// One tree.
    pub fn tree(&mut self, tree: u8) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        &mut self.trees[usize::from(tree)]
    }

    /// The entries of a range in order, up to `limit`.
    pub fn scan(&self, tree: u8, range: &Range, direction: Direction, limit: usize) -> Entries {
        if is_empty(range.bounds()) {
            return Entries::new();
        }
        let entries = self.trees[usize::from(tree)].range::<[u8], _>(range.bounds());
        let owned = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        match direction {
            Direction::Forward => entries.map(owned).take(limit).collect(),
            Direction::Backward => entries.rev().map(owned).take(limit).collect(),
        }
    }

    /// Sums over a range.
    pub fn sums(&self, tree: u8, range: &Range) -> Sums {
        let entries = self.scan(tree, range, Direction::Forward, usize::MAX);
        let bytes = |(key, value): &(Vec<u8>, Vec<u8>)| (key.len() + value.len()) as u64;
        Sums {
            entries: entries.len() as u64,
            bytes: entries.iter().map(bytes).sum(),
        }
    }

    /// Removes a range; how many entries that were.
    pub fn delete_range(&mut self, tree: u8, range: &Range) -> u64 {
        let doomed = self.scan(tree, range, Direction::Forward, usize::MAX);
        for (key, _) in &doomed {
            self.tree(tree).remove(key);
        }
        doomed.len() as u64
    }
}
