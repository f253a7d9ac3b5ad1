//! Checkpoints of an engine whose own sync makes all that is published durable.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::store_dir::{Checkpoint, StoreDir};
use super::{Applied, Result};

/// How far the last checkpoint applies, and which state it was of.
#[derive(Debug)]
pub(super) struct Checkpoints<S> {
    durable: Mutex<(Applied, Weak<S>)>,
    /// Held by a checkpoint that is under way.
    turn: Mutex<()>,
}

/// What is behind each lock is whole even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S> Checkpoints<S> {
    /// Of a store that was opened at `state`, which is durable.
    pub(super) fn new(applied: Applied, state: &Arc<S>) -> Self {
        Self {
            durable: Mutex::new((applied, Arc::downgrade(state))),
            turn: Mutex::new(()),
        }
    }

    /// How far the last one applies.
    pub(super) fn durable(&self) -> Applied {
        lock(&self.durable).0
    }

    /// Makes one, unless the published state is durable already; how far it
    /// applies. `published` gives the state and how far it applies.
    pub(super) fn make(
        &self,
        dir: &StoreDir,
        published: impl FnOnce() -> (Applied, Weak<S>),
        sync: impl FnOnce() -> Result<()>,
    ) -> Result<Applied> {
        let _turn = lock(&self.turn);
        // A batch published from here on may become durable too; that it did is
        // known at the next checkpoint.
        let (applied, state) = published();
        if !lock(&self.durable).1.ptr_eq(&state) {
            sync()?;
            dir.write(&Checkpoint {
                applied,
                ..Checkpoint::default()
            })?;
            *lock(&self.durable) = (applied, state);
        }
        Ok(applied)
    }
}
