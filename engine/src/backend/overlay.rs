//! Batches of engines whose own batches can't be read.
//!
//! The changes of the batch are kept in memory, in order, over the snapshot
//! that the batch began with, and are handed to the engine as one when the
//! batch is published. The engine's own write transaction is then open only
//! for that long, so a checkpoint never waits for an open batch.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, MutexGuard};

use super::tagged::{TaggedKey, borrowed, check_length, tagged_bounds, untagged};
use super::{Applied, Batch, Bounds, Direction, Read, Result, Snapshot, TreeId, Visitor};

/// Changes by tagged key: the new value, or nothing where the key is removed.
/// A removal is only kept for a key that the snapshot below has.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// An engine that takes all changes of a batch at once.
pub(super) trait Commit {
    /// Longest tagged key.
    const MAX_TAGGED_KEY: usize;

    /// Makes the changes what new snapshots see.
    fn commit(&self, changes: Changes, applied: Applied) -> Result<()>;
}

/// A batch over a snapshot.
pub(super) struct OverlayBatch<'e, E> {
    engine: &'e E,
    base: Arc<dyn Snapshot>,
    changes: Changes,
    _writer: MutexGuard<'e, ()>,
}

impl<'e, E: Commit> OverlayBatch<'e, E> {
    /// A batch over `base`, which must be the newest state for as long as
    /// `writer` is held.
    pub(super) fn new(engine: &'e E, base: Arc<dyn Snapshot>, writer: MutexGuard<'e, ()>) -> Self {
        Self {
            engine,
            base,
            changes: Changes::new(),
            _writer: writer,
        }
    }
}

impl<E> Read for OverlayBatch<'_, E> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        match self.changes.get(&*TaggedKey::new(tree, key)?) {
            Some(change) => Ok(change.as_deref().map(Cow::Borrowed)),
            None => self.base.get(tree, key),
        }
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        let Some(tagged) = tagged_bounds(tree, bounds, usize::MAX)? else {
            return Ok(());
        };
        let range = self.changes.range::<[u8], _>(borrowed(&tagged));
        match direction {
            Direction::Forward => {
                let base = |visit: &mut Visitor<'_>| self.base.scan(tree, bounds, direction, visit);
                merge(range, base, |change, key| change < key, visit)
            }
            Direction::Backward => {
                let base = |visit: &mut Visitor<'_>| self.base.scan(tree, bounds, direction, visit);
                merge(range.rev(), base, |change, key| change > key, visit)
            }
        }
    }
}

/// Visits the entries of `base` with `changes` laid over them. Both come in the
/// order in which `before` holds between neighbours.
fn merge<'c>(
    changes: impl Iterator<Item = (&'c Vec<u8>, &'c Option<Vec<u8>>)>,
    base: impl FnOnce(&mut Visitor<'_>) -> Result<()>,
    before: impl Fn(&[u8], &[u8]) -> bool,
    visit: &mut Visitor<'_>,
) -> Result<()> {
    let mut changes = changes
        .map(|(key, change)| (untagged(key), change.as_deref()))
        .peekable();
    let mut flow = ControlFlow::Continue(());
    base(&mut |key, value| {
        flow = (|| {
            while let Some((changed, change)) =
                changes.next_if(|&(changed, _)| before(changed, key))
            {
                if let Some(value) = change {
                    visit(changed, value)?;
                }
            }
            match changes.next_if(|&(changed, _)| changed == key) {
                Some((_, Some(value))) => visit(key, value),
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, value),
            }
        })();
        flow
    })?;
    if flow.is_continue() {
        for (key, change) in changes {
            if let Some(value) = change
                && visit(key, value).is_break()
            {
                break;
            }
        }
    }
    Ok(())
}

impl<E: Commit> Batch for OverlayBatch<'_, E> {
    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<()> {
        check_length(key, E::MAX_TAGGED_KEY)?;
        let key = TaggedKey::new(tree, key)?;
        match self.changes.get_mut(&*key) {
            Some(change) => *change = Some(value.to_vec()),
            None => {
                self.changes.insert(key.to_vec(), Some(value.to_vec()));
            }
        }
        Ok(())
    }

    fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        let tagged = TaggedKey::new(tree, key)?;
        let was_put = match self.changes.get(&*tagged) {
            Some(None) => return Ok(false),
            Some(Some(_)) => true,
            None => false,
        };
        if self.base.get(tree, key)?.is_some() {
            self.changes.insert(tagged.to_vec(), None);
            Ok(true)
        } else {
            self.changes.remove(&*tagged);
            Ok(was_put)
        }
    }

    fn delete_range(&mut self, tree: TreeId, bounds: Bounds<'_>) -> Result<u64> {
        let Some(tagged) = tagged_bounds(tree, bounds, usize::MAX)? else {
            return Ok(0);
        };
        let put: BTreeSet<Vec<u8>> = self
            .changes
            .range::<[u8], _>(borrowed(&tagged))
            .filter(|(_, change)| change.is_some())
            .map(|(key, _)| key.clone())
            .collect();
        for key in &put {
            self.changes.remove(key);
        }
        let mut count = put.len() as u64;
        let changes = &mut self.changes;
        let mut tagged_each = Ok(());
        self.base
            .scan(tree, bounds, Direction::Forward, &mut |key, _| {
                match TaggedKey::new(tree, key) {
                    // A key that was put over is among those counted above.
                    Ok(key) => {
                        if changes.insert(key.to_vec(), None).is_none() && !put.contains(&*key) {
                            count += 1;
                        }
                        ControlFlow::Continue(())
                    }
                    Err(error) => {
                        tagged_each = Err(error);
                        ControlFlow::Break(())
                    }
                }
            })?;
        tagged_each.map(|()| count)
    }

    fn publish(self: Box<Self>, applied: Applied) -> Result<()> {
        self.engine.commit(self.changes, applied)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;
    use std::sync::{Mutex, PoisonError};

    use super::super::Backend;
    use super::super::memory::Memory;
    use super::*;

    /// The `memory` engine, written through overlays.
    struct Overlaid {
        memory: Memory,
        writer: Mutex<()>,
    }

    impl Commit for Overlaid {
        const MAX_TAGGED_KEY: usize = 100;

        fn commit(&self, changes: Changes, applied: Applied) -> Result<()> {
            let mut batch = self.memory.begin()?;
            for (tagged, change) in &changes {
                let (tree, key) = (TreeId(tagged[0] - 1), untagged(tagged));
                match change {
                    Some(value) => batch.put(tree, key, value)?,
                    // Removals are kept only for what is there.
                    None => assert!(batch.delete(tree, key)?),
                }
            }
            batch.publish(applied)
        }
    }

    fn contents(
        read: &dyn Read,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut entries = Vec::new();
        read.scan(tree, bounds, direction, &mut |key, value| {
            entries.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .expect("scan");
        entries
    }

    /// Every change and read of a batch is held against the `memory` engine's own.
    #[test]
    fn acts_as_a_batch_of_its_own() -> Result<()> {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (seed >> 33) % below
        };
        let model = Memory::new();
        let overlaid = Overlaid {
            memory: Memory::new(),
            writer: Mutex::new(()),
        };
        for round in 0..200u64 {
            let mut expected = model.begin()?;
            let writer = overlaid
                .writer
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let base = overlaid.memory.snapshot()?;
            let mut batch = Box::new(OverlayBatch::new(&overlaid, base, writer));
            for _ in 0..random(20) {
                let tree = TreeId(random(2) as u8);
                let key = [random(30) as u8];
                let end = [random(30) as u8];
                let range = (Bound::Included(&key[..]), Bound::Excluded(&end[..]));
                match random(8) {
                    0 => assert_eq!(
                        batch.delete_range(tree, range)?,
                        expected.delete_range(tree, range)?
                    ),
                    1 | 2 => assert_eq!(batch.delete(tree, &key)?, expected.delete(tree, &key)?),
                    3 => assert_eq!(batch.get(tree, &key)?, expected.get(tree, &key)?),
                    _ => {
                        let value = round.to_le_bytes();
                        batch.put(tree, &key, &value)?;
                        expected.put(tree, &key, &value)?;
                    }
                }
                for direction in [Direction::Forward, Direction::Backward] {
                    for bounds in [(Bound::Unbounded, Bound::Unbounded), range] {
                        assert_eq!(
                            contents(&*batch, tree, bounds, direction),
                            contents(&*expected, tree, bounds, direction),
                        );
                    }
                }
                assert_eq!(batch.sums(tree, range)?, expected.sums(tree, range)?);
            }
            if random(4) > 0 {
                let applied = Applied {
                    term: 1,
                    index: round,
                };
                batch.publish(applied)?;
                expected.publish(applied)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_break_ends_the_scan_wherever_it_comes() -> Result<()> {
        let overlaid = Overlaid {
            memory: Memory::new(),
            writer: Mutex::new(()),
        };
        let mut below = overlaid.memory.begin()?;
        for key in [1u8, 3, 5] {
            below.put(TreeId(0), &[key], b"below")?;
        }
        below.publish(Applied::default())?;
        let writer = overlaid
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let base = overlaid.memory.snapshot()?;
        let mut batch = OverlayBatch::new(&overlaid, base, writer);
        for key in [2u8, 4, 6, 7] {
            batch.put(TreeId(0), &[key], b"above")?;
        }
        for stop in 1..=7u8 {
            let mut seen = Vec::new();
            let all = (Bound::Unbounded, Bound::Unbounded);
            batch.scan(TreeId(0), all, Direction::Forward, &mut |key, _| {
                seen.push(key[0]);
                if key[0] == stop {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            assert_eq!(seen, (1..=stop).collect::<Vec<_>>());
        }
        let long = batch.put(TreeId(0), &[0; 100], b"");
        assert!(matches!(
            long,
            Err(super::super::BackendError::KeyTooLong { limit: 99, .. })
        ));
        Ok(())
    }
}
