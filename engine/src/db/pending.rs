//! Waiting for a batch that was submitted.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::error::{DbError, Result};

/// Where one batch's answer is put.
struct Slot<T> {
    answer: Mutex<Option<Result<T>>>,
    there: Condvar,
}

impl<T> Slot<T> {
    /// The answer is written in one step: it is whole even after a panic.
    fn lock(&self) -> MutexGuard<'_, Option<Result<T>>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch on its way to the log. Dropping this does not take the batch back.
#[must_use = "only `wait` says whether the batch is durable"]
pub struct Pending<T>(Arc<Slot<T>>);

impl<T> Pending<T> {
    /// Waits until the batch is durable and visible to readers.
    ///
    /// After an error other than [`DbError::Api`] it is unknown whether the
    /// batch is in the log; the next open decides it.
    pub fn wait(self) -> Result<T> {
        let mut answer = self.0.lock();
        loop {
            match answer.take() {
                Some(answer) => return answer,
                None => {
                    let waited = self.0.there.wait(answer);
                    answer = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Whether [`Pending::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        self.0.lock().is_some()
    }
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// The other side of a [`Pending`]. One that is dropped without an answer
/// refuses, so that nobody waits for ever.
pub(super) struct Waiter<T> {
    slot: Arc<Slot<T>>,
    /// Whether the answers to the batch's commands are wanted.
    pub(super) replies: bool,
    /// Bytes of the batch.
    pub(super) bytes: usize,
}

impl<T> Waiter<T> {
    pub(super) fn new(replies: bool, bytes: usize) -> (Self, Pending<T>) {
        let slot = Arc::new(Slot {
            answer: Mutex::new(None),
            there: Condvar::new(),
        });
        let pending = Pending(Arc::clone(&slot));
        let waiter = Self {
            slot,
            replies,
            bytes,
        };
        (waiter, pending)
    }

    pub(super) fn answer(self, answer: Result<T>) {
        *self.slot.lock() = Some(answer);
        // Dropping wakes whoever waits.
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        let stopped = || Err(DbError::Stopped("it stopped with the batch".to_owned()));
        self.slot.lock().get_or_insert_with(stopped);
        self.slot.there.notify_one();
    }
}
