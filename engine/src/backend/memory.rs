//! The `memory` engine: the reference model of the other engines.
//!
//! It keeps nothing on disk. Its checkpoint only remembers how far it applied,
//! within the life of the process; a store that is opened anew is empty and
//! applied nothing, so a node with `--engine memory` replays its whole log, or
//! fetches a snapshot where the log does not reach back that far.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::held::HeldCount;
use super::treap::Treap;
use super::{
    Applied, Backend, BackendError, Batch, Bounds, CheckReport, Direction, MAX_TREES, Read, Result,
    Snapshot, Stats, Sums, TreeId, Visitor,
};

/// The name that `--engine` takes.
pub const NAME: &str = "memory";

/// An engine that keeps everything in memory, in persistent search trees.
#[derive(Debug, Default)]
pub struct Memory {
    published: Mutex<Arc<State>>,
    durable: Mutex<Applied>,
    held: HeldCount,
    /// Held while a batch is open.
    writer: Mutex<()>,
}

#[derive(Debug, Clone, Default)]
struct State {
    trees: [Treap; MAX_TREES],
    applied: Applied,
}

struct MemoryBatch<'m> {
    memory: &'m Memory,
    state: State,
    _writer: MutexGuard<'m, ()>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn published(&self) -> Arc<State> {
        Arc::clone(&lock(&self.published))
    }
}

/// The state behind each lock is whole even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn tree(&self, tree: TreeId) -> Result<&Treap> {
        self.trees
            .get(usize::from(tree.0))
            .ok_or_else(|| unknown(tree))
    }

    fn tree_mut(&mut self, tree: TreeId) -> Result<&mut Treap> {
        self.trees
            .get_mut(usize::from(tree.0))
            .ok_or_else(|| unknown(tree))
    }
}

fn unknown(tree: TreeId) -> BackendError {
    BackendError::UnknownTree { tree: tree.0 }
}

impl Read for State {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        Ok(self.tree(tree)?.get(key).map(Cow::Borrowed))
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.tree(tree)?.scan(bounds, direction, visit);
        Ok(())
    }

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        Ok(self.tree(tree)?.sums(bounds))
    }
}

impl Snapshot for State {
    fn applied(&self) -> Applied {
        self.applied
    }
}

impl Read for MemoryBatch<'_> {
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

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        self.state.sums(tree, bounds)
    }
}

impl Batch for MemoryBatch<'_> {
    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<()> {
        self.state.tree_mut(tree)?.put(key, value);
        Ok(())
    }

    fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        Ok(self.state.tree_mut(tree)?.delete(key))
    }

    fn delete_range(&mut self, tree: TreeId, bounds: Bounds<'_>) -> Result<u64> {
        Ok(self.state.tree_mut(tree)?.delete_range(bounds).entries)
    }

    fn publish(mut self: Box<Self>, applied: Applied) -> Result<()> {
        self.state.applied = applied;
        *lock(&self.memory.published) = Arc::new(self.state);
        Ok(())
    }
}

impl Backend for Memory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>> {
        Ok(Arc::new(self.held.hold(self.published())))
    }

    fn begin(&self) -> Result<Box<dyn Batch + '_>> {
        let writer = lock(&self.writer);
        let state = State::clone(&self.published());
        Ok(Box::new(MemoryBatch {
            memory: self,
            state,
            _writer: writer,
        }))
    }

    fn checkpoint(&self) -> Result<Applied> {
        let applied = self.published().applied;
        *lock(&self.durable) = applied;
        Ok(applied)
    }

    fn durable(&self) -> Applied {
        *lock(&self.durable)
    }

    fn stats(&self) -> Stats {
        let published = self.published();
        let used_bytes = published.trees.iter().map(|tree| tree.total().bytes).sum();
        Stats {
            file_bytes: used_bytes,
            used_bytes,
            readers: self.held.get(),
            ..Stats::default()
        }
    }

    fn check(&self) -> Result<CheckReport> {
        let mut entries = 0;
        for (number, tree) in self.published().trees.iter().enumerate() {
            entries += tree.check().map_err(|message| BackendError::Other {
                engine: NAME,
                message: format!("tree {number}: {message}"),
            })?;
        }
        Ok(CheckReport { pages: 0, entries })
    }
}
