//! Counting the snapshots that callers hold, for [`Stats::readers`].
//!
//! An engine keeps a published state in an `Arc` and gives it out through
//! [`HeldCount::hold`]. The references that the engine itself has don't count.
//!
//! [`Stats::readers`]: super::Stats::readers

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Applied, Bounds, Direction, Peek, PeekVisitor, Read, Result, Snapshot, Sums, TreeId, Visitor,
};

/// How many snapshots of an engine are held.
#[derive(Debug, Clone, Default)]
pub struct HeldCount(Arc<AtomicU64>);

/// A published state, counted for as long as it is held.
pub struct Held<S> {
    state: Arc<S>,
    count: HeldCount,
}

impl HeldCount {
    /// `state` as a snapshot that counts.
    pub fn hold<S: Snapshot>(&self, state: Arc<S>) -> Held<S> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held {
            state,
            count: self.clone(),
        }
    }

    /// How many are held now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S> Drop for Held<S> {
    fn drop(&mut self) {
        self.count.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: Snapshot> Read for Held<S> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        self.state.get(tree, key)
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.state.scan(tree, bounds, direction, visit)
    }

    fn peek(&self, tree: TreeId, key: &[u8]) -> Result<Option<Peek<'_>>> {
        self.state.peek(tree, key)
    }

    fn peek_scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut PeekVisitor<'_>,
    ) -> Result<()> {
        self.state.peek_scan(tree, bounds, direction, visit)
    }

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        self.state.sums(tree, bounds)
    }
}

impl<S: Snapshot> Snapshot for Held<S> {
    fn applied(&self) -> Applied {
        self.state.applied()
    }
}
