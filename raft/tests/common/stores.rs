//! An engine for tests whose stores survive the node as of their last checkpoint.

use std::collections::HashMap;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use varve_engine::backend::memory::Memory;
use varve_engine::backend::{
    Applied, Backend, BackendError, Batch, CheckReport, Direction, MAX_TREES, Snapshot, Stats,
    TreeId,
};
use varve_engine::disk::{Disk, OpenMode};

type Opener = Arc<dyn Fn(&Path) -> Result<Arc<dyn Backend>, BackendError> + Send + Sync>;
type Checkpoint = Arc<Mutex<Option<Arc<dyn Snapshot>>>>;

/// The stores of one member, by path.
#[derive(Clone, Default)]
pub struct TestStores(Arc<Mutex<HashMap<PathBuf, Checkpoint>>>);

struct TestStore {
    memory: Memory,
    checkpoint: Checkpoint,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestStores {
    /// What a node opens its stores with.
    pub fn opener(&self, disk: Arc<dyn Disk>) -> Opener {
        let stores = self.clone();
        Arc::new(move |path: &Path| {
            // The file stands for the store, so that it can be found and removed.
            disk.open(path, OpenMode::Create)
                .map_err(|error| BackendError::Other {
                    engine: "test",
                    message: error.to_string(),
                })?;
            let slot = stores
                .0
                .lock()
                .unwrap()
                .entry(path.to_owned())
                .or_default()
                .clone();
            let memory = Memory::new();
            if let Some(snapshot) = &*lock(&slot) {
                copy(&**snapshot, &memory)?;
            }
            Ok(Arc::new(TestStore {
                memory,
                checkpoint: slot,
            }) as Arc<dyn Backend>)
        })
    }
}

impl TestStores {
    /// The stores as of their checkpoints, out of reach of a node that still runs.
    pub fn after_power_loss(&self) -> Self {
        let stores = lock(&self.0);
        let copy = |slot: &Checkpoint| Arc::new(Mutex::new(lock(slot).clone()));
        let copies = stores.iter().map(|(path, slot)| (path.clone(), copy(slot)));
        Self(Arc::new(Mutex::new(copies.collect())))
    }
}

fn copy(from: &dyn Snapshot, to: &Memory) -> Result<(), BackendError> {
    let mut batch = to.begin()?;
    for tree in 0..MAX_TREES as u8 {
        let mut failed = None;
        from.scan(
            TreeId(tree),
            (Bound::Unbounded, Bound::Unbounded),
            Direction::Forward,
            &mut |key, value| {
                failed = batch.put(TreeId(tree), key, value).err();
                ControlFlow::Continue(())
            },
        )?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    batch.publish(from.applied())
}

impl Backend for TestStore {
    fn name(&self) -> &'static str {
        "test"
    }
    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, BackendError> {
        self.memory.snapshot()
    }
    fn begin(&self) -> Result<Box<dyn Batch + '_>, BackendError> {
        self.memory.begin()
    }
    fn checkpoint(&self) -> Result<Applied, BackendError> {
        let snapshot = self.memory.snapshot()?;
        let applied = snapshot.applied();
        *lock(&self.checkpoint) = Some(snapshot);
        Ok(applied)
    }
    fn may_wait(&self) -> bool {
        false
    }
    fn durable(&self) -> Applied {
        self.checkpoint
            .lock()
            .unwrap()
            .as_ref()
            .map_or(Applied::default(), |s| s.applied())
    }
    fn stats(&self) -> Stats {
        self.memory.stats()
    }
    fn check(&self) -> Result<CheckReport, BackendError> {
        self.memory.check()
    }
}
