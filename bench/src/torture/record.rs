//! What clients did and saw, when writes went on, and what was wrong at the time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use varve_raft::simulation::history::{Action, Ledger, Operation, Outcome};

use super::power::Lost;

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

/// How often this program notes that it runs.
pub(super) const BEAT: Duration = Duration::from_millis(50);
/// It was stopped itself if it did not for this long.
const MISSED_BEATS: Duration = Duration::from_secs(1);

/// Faults, and the pauses of acknowledged writes that they made.
#[derive(Default)]
pub(super) struct Progress {
    last_write: Option<Instant>,
    last_beat: Option<Instant>,
    /// For how long this program did not run itself: such pauses say nothing of the nodes.
    pub(super) stopped: Duration,
    current: String,
    /// How often, and the longest pause during it or until the next one.
    pub(super) faults: BTreeMap<String, (u64, Duration)>,
    /// How often the power went, and what was taken.
    pub(super) power_losses: u64,
    pub(super) lost: Lost,
}

impl Progress {
    fn beat(&mut self, now: Instant) {
        let missed = self.last_beat.replace(now).map(|last| now - last);
        if let Some(missed) = missed.filter(|missed| *missed > MISSED_BEATS) {
            self.stopped += missed;
            self.last_write = Some(now);
        }
    }

    fn note_write(&mut self, now: Instant) {
        self.beat(now);
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

    /// This program runs.
    pub(super) fn beat(&self) {
        lock(&self.progress).beat(Instant::now());
    }

    /// A fault begins, or another state.
    pub(super) fn note_fault(&self, name: &str) {
        let mut progress = lock(&self.progress);
        progress.current = name.to_owned();
        progress.faults.entry(name.to_owned()).or_default().0 += 1;
    }

    /// The power went, and this with it.
    pub(super) fn note_power_loss(&self, lost: Lost) {
        let mut progress = lock(&self.progress);
        progress.power_losses += 1;
        progress.lost.bytes += lost.bytes;
        progress.lost.names += lost.names;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_count_for_their_fault_unless_this_program_was_stopped() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut progress = Progress {
            current: "kill -9".to_owned(),
            ..Progress::default()
        };
        progress
            .faults
            .insert("kill -9".to_owned(), Default::default());
        for beat in 0..=40 {
            progress.beat(at(beat * 50));
            if [0, 1, 31].contains(&beat) {
                progress.note_write(at(beat * 50));
            }
        }
        assert_eq!(progress.longest(), (Duration::from_millis(1500), "kill -9"));
        // Nothing runs for a minute; the first to run again may be a client.
        progress.note_write(at(62_000));
        assert_eq!(progress.longest().0, Duration::from_millis(1500));
        assert_eq!(progress.stopped, Duration::from_secs(60));
    }
}
