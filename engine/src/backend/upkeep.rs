//! When space is given back to the file system without being asked for.

use std::time::{Duration, Instant};

use super::{Backend, VacuumExtent};

/// How often it is asked whether a vacuum pays.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
