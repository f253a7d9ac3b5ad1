//! What clients did and saw, when writes went on, and what was wrong at the time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use varve_raft::simulation::history::{Action, Ledger, Operation, Outcome};

/// Shared by all tasks of a run.
#[derive(Default)]
pub(super) struct Record {
    history: Mutex<History>,
    ledger: Mutex<Ledger>,
    progress: Mutex<Progress>,
}

/// Operations, by number, and the clock of the history: no two things happen at once.
#[derive(Default)]
struct History {
    operations: Vec<Operation>,
    clock: u64,
}

impl History {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// Faults, and the pauses of acknowledged writes that they made.
#[derive(Default)]
pub(super) struct Progress {
    last_write: Option<Instant>,
    current: String,
    /// How often, and the longest pause during it or until the next one.
    pub(super) faults: BTreeMap<String, (u64, Duration)>,
}

impl Progress {
    fn note_write(&mut self, now: Instant) {
        if let Some(last) = self.last_write.replace(now) {
            self.note_pause(now - last);
        }
    }

    fn note_pause(&mut self, pause: Duration) {
        if let Some((_, longest)) = self.faults.get_mut(&self.current) {
            *longest = pause.max(*longest);
        }
    }

    /// The longest of all, and the fault it belongs to.
    pub(super) fn longest(&self) -> (Duration, &str) {
        let pauses = self
            .faults
            .iter()
            .map(|(name, (_, pause))| (*pause, &**name));
        pauses.max().unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Record {
    /// An operation begins; `action` is made from its number.
    pub(super) fn begin(&self, action: impl FnOnce(u64) -> Action) -> (usize, Action) {
        let mut history = lock(&self.history);
        let number = history.operations.len();
        let action = action(number as u64);
        let invoked = history.tick();
        history.operations.push(Operation {
            action: action.clone(),
            invoked,
            returned: None,
            outcome: Outcome::Unknown,
        });
        (number, action)
    }

    /// It is answered. One that never is may be done at any time.
    pub(super) fn end(&self, number: usize, outcome: Outcome) {
        if matches!(
            outcome,
            Outcome::Put(..) | Outcome::Deleted(..) | Outcome::Swapped(..)
        ) {
            lock(&self.progress).note_write(Instant::now());
        }
        let mut history = lock(&self.history);
        let now = history.tick();
        let operation = &mut history.operations[number];
        operation.returned = Some(now);
        operation.outcome = outcome;
    }

    /// A fault begins, or another state.
    pub(super) fn note_fault(&self, name: &str) {
        let mut progress = lock(&self.progress);
        progress.current = name.to_owned();
        progress.faults.entry(name.to_owned()).or_default().0 += 1;
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// All operations so far; clients have ended.
    pub(super) fn take_operations(&self) -> Vec<Operation> {
        std::mem::take(&mut lock(&self.history).operations)
    }
}
