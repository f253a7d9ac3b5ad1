//! A persistent ordered map: the data structure under the `memory` engine.
//!
//! A treap (Aragon and Seidel, "Randomized search trees", 1989): a search tree
//! by key that is at the same time a heap by a random priority, so that its
//! expected depth is logarithmic. Nodes are shared between copies and copied
//! when changed, so a copy of the whole map costs one reference count.
//!
//! Invariants: keys ascend in order; no child has a higher priority than its
//! parent; `sums` of a node covers its whole subtree.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use super::{Bounds, Direction, Sums, Visitor};

type Link = Option<Arc<Node>>;

#[derive(Debug, Clone)]
struct Node {
    key: Arc<[u8]>,
    value: Arc<[u8]>,
    priority: u64,
    sums: Sums,
    left: Link,
    right: Link,
}

/// The map. `clone` is O(1) and the copies do not see each other's changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Treap {
    root: Link,
    /// State of the generator of priorities.
    seed: u64,
}

impl Treap {
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match key.cmp(&node.key) {
                std::cmp::Ordering::Less => &node.left,
                std::cmp::Ordering::Greater => &node.right,
                std::cmp::Ordering::Equal => return Some(&node.value),
            };
        }
        None
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        let (low, rest) = split(self.root.take(), Bound::Excluded(key));
        let (_, high) = split(rest, Bound::Included(key));
        let node = Node {
            key: key.into(),
            value: value.into(),
            priority: self.next_priority(),
            sums: Sums::default(),
            left: None,
            right: None,
        };
        self.root = merge(merge(low, Some(Arc::new(node.summed()))), high);
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> bool {
        // Looking first keeps a delete of nothing from copying a path.
        self.get(key).is_some()
            && self
                .delete_range((Bound::Included(key), Bound::Included(key)))
                .entries
                == 1
    }

    pub(super) fn delete_range(&mut self, (start, end): Bounds<'_>) -> Sums {
        if super::is_empty((start, end)) {
            return Sums::default();
        }
        let (low, rest) = split_before(self.root.take(), start);
        let (cut, high) = split_after(rest, end);
        self.root = merge(low, high);
        sums_of(&cut)
    }

    pub(super) fn total(&self) -> Sums {
        sums_of(&self.root)
    }

    pub(super) fn sums(&self, bounds: Bounds<'_>) -> Sums {
        // Splitting a copy is O(log n) and shares the code with `delete_range`.
        self.clone().delete_range(bounds)
    }

    pub(super) fn scan(&self, bounds: Bounds<'_>, direction: Direction, visit: &mut Visitor<'_>) {
        if !super::is_empty(bounds) {
            let _ = scan(&self.root, bounds, direction, visit);
        }
    }

    /// Verifies the invariants and counts the entries.
    pub(super) fn check(&self) -> Result<u64, String> {
        let mut previous: Option<Arc<[u8]>> = None;
        check(&self.root, &mut previous)?;
        Ok(self.total().entries)
    }

    fn next_priority(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014); the shape need not be secret.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Node {
    fn summed(mut self) -> Self {
        self.sum();
        self
    }

    fn sum(&mut self) {
        let (left, right) = (sums_of(&self.left), sums_of(&self.right));
        self.sums = Sums {
            entries: left.entries + right.entries + 1,
            bytes: left.bytes + right.bytes + (self.key.len() + self.value.len()) as u64,
        };
    }
}

fn sums_of(link: &Link) -> Sums {
    link.as_ref().map_or(Sums::default(), |node| node.sums)
}

fn split_before(link: Link, start: Bound<&[u8]>) -> (Link, Link) {
    match start {
        Bound::Unbounded => (None, link),
        Bound::Included(key) => split(link, Bound::Excluded(key)),
        Bound::Excluded(key) => split(link, Bound::Included(key)),
    }
}

fn split_after(link: Link, end: Bound<&[u8]>) -> (Link, Link) {
    match end {
        Bound::Unbounded => (link, None),
        end => split(link, end),
    }
}

/// Parts the subtree into what lies at or below `end` and the rest.
fn split(link: Link, end: Bound<&[u8]>) -> (Link, Link) {
    let Some(mut node) = link else {
        return (None, None);
    };
    let below = match end {
        Bound::Included(key) => node.key.as_ref() <= key,
        Bound::Excluded(key) => node.key.as_ref() < key,
        Bound::Unbounded => true,
    };
    let own = Arc::make_mut(&mut node);
    if below {
        let (low, high) = split(own.right.take(), end);
        own.right = low;
        own.sum();
        (Some(node), high)
    } else {
        let (low, high) = split(own.left.take(), end);
        own.left = high;
        own.sum();
        (low, Some(node))
    }
}

/// Joins two subtrees of which every key of the first is below the second's.
fn merge(low: Link, high: Link) -> Link {
    match (low, high) {
        (None, link) | (link, None) => link,
        (Some(mut low), Some(mut high)) => {
            if low.priority >= high.priority {
                let own = Arc::make_mut(&mut low);
                own.right = merge(own.right.take(), Some(high));
                own.sum();
                Some(low)
            } else {
                let own = Arc::make_mut(&mut high);
                own.left = merge(Some(low), own.left.take());
                own.sum();
                Some(high)
            }
        }
    }
}

fn scan(
    link: &Link,
    bounds: Bounds<'_>,
    direction: Direction,
    visit: &mut Visitor<'_>,
) -> ControlFlow<()> {
    let Some(node) = link else {
        return ControlFlow::Continue(());
    };
    let key = node.key.as_ref();
    let after_start = match bounds.0 {
        Bound::Included(start) => key >= start,
        Bound::Excluded(start) => key > start,
        Bound::Unbounded => true,
    };
    let before_end = match bounds.1 {
        Bound::Included(end) => key <= end,
        Bound::Excluded(end) => key < end,
        Bound::Unbounded => true,
    };
    let (first, second, first_in, second_in) = match direction {
        Direction::Forward => (&node.left, &node.right, after_start, before_end),
        Direction::Backward => (&node.right, &node.left, before_end, after_start),
    };
    if first_in {
        scan(first, bounds, direction, visit)?;
    }
    if after_start && before_end {
        visit(key, &node.value)?;
    }
    if second_in {
        scan(second, bounds, direction, visit)?;
    }
    ControlFlow::Continue(())
}

fn check(link: &Link, previous: &mut Option<Arc<[u8]>>) -> Result<(), String> {
    let Some(node) = link else { return Ok(()) };
    for child in [&node.left, &node.right].into_iter().flatten() {
        if child.priority > node.priority {
            return Err(format!("priority of {:?} is above its parent's", child.key));
        }
    }
    check(&node.left, previous)?;
    if previous
        .as_ref()
        .is_some_and(|previous| *previous >= node.key)
    {
        return Err(format!("key {:?} is out of order", node.key));
    }
    *previous = Some(Arc::clone(&node.key));
    let mut again = Node::clone(node);
    again.sum();
    if again.sums != node.sums {
        return Err(format!("sums at key {:?} are wrong", node.key));
    }
    check(&node.right, previous)
}
