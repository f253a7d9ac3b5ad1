//! Who wants to know of a key: an index from keys to watchers.
//!
//! Watchers of one key are found by hash, watchers of a range in an interval
//! tree, so that an event costs what it matches and not what is watched.

use std::collections::HashMap;

use varve_types::KeyRange;

/// Keys that a watcher is interested in; owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedRange {
    key: Vec<u8>,
    range_end: Vec<u8>,
}

impl OwnedRange {
    /// As in a watch request. An empty key is the smallest there is, as in etcd.
    pub(crate) fn new(key: &[u8], range_end: &[u8]) -> Self {
        let key = if key.is_empty() { &[0][..] } else { key };
        Self {
            key: key.to_vec(),
            range_end: range_end.to_vec(),
        }
    }

    /// The range.
    pub(crate) fn range(&self) -> KeyRange<'_> {
        KeyRange::new(&self.key, &self.range_end)
    }

    /// Bytes it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.range_end.len()
    }
}

/// The index. Watchers are known by small numbers.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    single: HashMap<Vec<u8>, Vec<u32>>,
    ranges: HashMap<u32, OwnedRange>,
    tree: IntervalTree,
    stale: bool,
}

impl Interest {
    /// Adds a watcher.
    pub(crate) fn insert(&mut self, watcher: u32, range: &OwnedRange) {
        if let KeyRange::One(key) = range.range() {
            match self.single.get_mut(key) {
                Some(watchers) => watchers.push(watcher),
                None => {
                    self.single.insert(key.to_vec(), vec![watcher]);
                }
            }
        } else if !range.range().is_empty() {
            self.ranges.insert(watcher, range.clone());
            self.stale = true;
        }
    }

    /// Removes a watcher that was added with `range`.
    pub(crate) fn remove(&mut self, watcher: u32, range: &OwnedRange) {
        if let KeyRange::One(key) = range.range() {
            if let Some(watchers) = self.single.get_mut(key) {
                watchers.retain(|known| *known != watcher);
                if watchers.is_empty() {
                    self.single.remove(key);
                }
            }
        } else if self.ranges.remove(&watcher).is_some() {
            self.stale = true;
        }
    }

    /// Calls `found` with each watcher of `key`.
    pub(crate) fn matches(&mut self, key: &[u8], found: &mut impl FnMut(u32)) {
        if let Some(watchers) = self.single.get(key) {
            watchers.iter().copied().for_each(&mut *found);
        }
        if self.stale {
            // Once per batch at most: watchers come and go between batches.
            self.tree = IntervalTree::build(&self.ranges);
            self.stale = false;
        }
        self.tree.stab(key, found);
    }
}

/// Where a range ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Before this key.
    Before(Vec<u8>),
    /// Nowhere; after all others in the derived order.
    Never,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < end.as_slice(),
            Self::Never => true,
        }
    }
}

#[derive(Debug)]
struct Node {
    start: Vec<u8>,
    end: End,
    /// The last end below this node, itself included.
    max_end: End,
    watcher: u32,
}

/// A balanced tree in an array sorted by start: the root of a slice is its
/// middle. Each node knows the last end of its slice.
#[derive(Debug, Default)]
struct IntervalTree {
    nodes: Vec<Node>,
}

impl IntervalTree {
    fn build(ranges: &HashMap<u32, OwnedRange>) -> Self {
        let mut nodes: Vec<_> = ranges
            .iter()
            .map(|(watcher, range)| {
                let end = match range.range() {
                    KeyRange::Between(_, end) => End::Before(end.to_vec()),
                    KeyRange::From(_) | KeyRange::One(_) => End::Never,
                };
                Node {
                    start: range.key.clone(),
                    max_end: end.clone(),
                    end,
                    watcher: *watcher,
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.start.cmp(&b.start));
        fix_max(&mut nodes);
        Self { nodes }
    }

    fn stab(&self, key: &[u8], found: &mut impl FnMut(u32)) {
        stab(&self.nodes, key, found);
    }
}

fn fix_max(nodes: &mut [Node]) -> Option<End> {
    let middle = nodes.len() / 2;
    let (left, rest) = nodes.split_at_mut(middle);
    let (root, right) = rest.split_first_mut()?;
    let below = fix_max(left).max(fix_max(right));
    root.max_end = below.map_or(root.end.clone(), |below| below.max(root.end.clone()));
    Some(root.max_end.clone())
}

fn stab(nodes: &[Node], key: &[u8], found: &mut impl FnMut(u32)) {
    let (left, rest) = nodes.split_at(nodes.len() / 2);
    let Some((root, right)) = rest.split_first() else {
        return;
    };
    if !root.max_end.is_after(key) {
        return;
    }
    stab(left, key, found);
    if root.start.as_slice() <= key {
        if root.end.is_after(key) {
            found(root.watcher);
        }
        stab(right, key, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(interest: &mut Interest, key: &[u8]) -> Vec<u32> {
        let mut all = Vec::new();
        interest.matches(key, &mut |watcher| all.push(watcher));
        all.sort_unstable();
        all
    }

    #[test]
    fn every_kind_of_range() {
        let ranges: [(&[u8], &[u8]); 6] = [
            (b"a", b""),
            (b"a", b"c"),
            (b"b", b"\0"),
            (b"", b"\0"),
            (b"c", b"a"),
            (b"a", b""),
        ];
        let ranges = ranges.map(|(key, end)| OwnedRange::new(key, end));
        let mut interest = Interest::default();
        for (i, range) in ranges.iter().enumerate() {
            interest.insert(i as u32, range);
        }
        assert_eq!(matched(&mut interest, b"a"), [0, 1, 3, 5]);
        assert_eq!(matched(&mut interest, b"b"), [1, 2, 3]);
        assert_eq!(matched(&mut interest, b"c"), [2, 3]);
        interest.remove(0, &ranges[0]);
        interest.remove(3, &ranges[3]);
        interest.remove(4, &ranges[4]);
        assert_eq!(matched(&mut interest, b"a"), [1, 5]);
        interest.remove(5, &ranges[5]);
        interest.remove(1, &ranges[1]);
        interest.remove(2, &ranges[2]);
        assert_eq!(matched(&mut interest, b"b"), [0; 0]);
        assert!(interest.single.is_empty());
    }

    #[test]
    fn agrees_with_asking_everyone() {
        // A fixed sequence of pseudo-random ranges.
        let mut seed = 1_u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        };
        let ranges: Vec<_> = (0..200)
            .map(|_| {
                let (key, end) = ([next() | 1, next()], [next() | 1]);
                match next() % 4 {
                    0 => OwnedRange::new(&key, b""),
                    1 => OwnedRange::new(&key, b"\0"),
                    _ => OwnedRange::new(&key, &end),
                }
            })
            .collect();
        let mut interest = Interest::default();
        for (i, range) in ranges.iter().enumerate() {
            interest.insert(i as u32, range);
        }
        for first in 0..=255 {
            let key = [first, next()];
            let expected: Vec<_> = (0..ranges.len() as u32)
                .filter(|i| {
                    let range = ranges[*i as usize].range();
                    !range.is_empty() && range.contains(&key)
                })
                .collect();
            assert_eq!(matched(&mut interest, &key), expected);
        }
    }
}
