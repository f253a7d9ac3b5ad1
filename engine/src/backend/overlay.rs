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
        let Some(tagged) = tagged_bounds(tree, bounds)? else {
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
        let Some(tagged) = tagged_bounds(tree, bounds)? else {
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
