//! When space is given back without being asked for: to the file system by a vacuum,
//! to the store by a checkpoint.

use std::time::{Duration, Instant};

use super::{Backend, VacuumExtent};

/// How often it is asked whether a vacuum pays.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Least time from one checkpoint to the next one that only frees pages.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(2);
/// And so many times as long as the last one took: a sixteenth of the disk's time.
const CHECKPOINT_PART: u32 = 16;

/// Says when a checkpoint that only frees pages costs writers next to nothing.
/// Whoever makes checkpoints keeps one.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointPace {
    ended: Instant,
    took: Duration,
}

impl CheckpointPace {
    /// As if a checkpoint had just been made.
    pub fn new(now: Instant) -> Self {
        Self {
            ended: now,
            took: Duration::ZERO,
        }
    }

    /// A checkpoint began at `started` and has ended.
    pub fn note(&mut self, started: Instant, now: Instant) {
        self.ended = now;
        self.took = now.saturating_duration_since(started);
    }

    /// How long ago the last one ended.
    pub fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.ended)
    }

    /// Whether the last one was long ago for what it took.
    pub fn has_time(&self, now: Instant) -> bool {
        self.since(now) >= CHECKPOINT_PAUSE.max(self.took * CHECKPOINT_PART)
    }
}

/// Decides when a vacuum starts. Whoever applies batches keeps one, and gives it
/// the time: the engine has no clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Upkeep {
    last_look: Option<Instant>,
}

impl Upkeep {
    /// Whether there are steps of a vacuum to make; starts one that pays. `idle`
    /// says that nothing was written for a while.
    pub fn is_vacuum_on(&mut self, backend: &dyn Backend, now: Instant, idle: bool) -> bool {
        if backend.vacuums() {
            return true;
        }
        let last = *self.last_look.get_or_insert(now);
        if now.duration_since(last) < LOOK_INTERVAL {
            return false;
        }
        self.last_look = Some(now);
        if !backend.wants_vacuum(idle) {
            return false;
        }
        backend.start_vacuum(VacuumExtent::Spare { idle });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_has_time_when_the_last_one_was_long_ago_for_what_it_took() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pace = CheckpointPace::new(start);
        assert!(!pace.has_time(at(1_999)));
        assert!(pace.has_time(at(2_000)));
        pace.note(at(2_000), at(2_050));
        assert!(!pace.has_time(at(4_049)));
        assert!(pace.has_time(at(4_050)));
        pace.note(at(5_000), at(6_000));
        assert!(!pace.has_time(at(21_999)));
        assert!(pace.has_time(at(22_000)));
    }
}
