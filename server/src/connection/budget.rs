//! How much one poll of a connection may do.
//!
//! A connection that always has something to answer would keep its socket worker
//! to itself. Past its budget it lets the others of the worker have their turn.

use std::time::{Duration, Instant};

/// Time after which a poll ends between two steps.
const TIME: Duration = Duration::from_millis(1);
/// Units between two looks at the clock.
const LOOK_EVERY: u32 = 16;

/// What is left to a poll.
#[derive(Debug)]
pub(crate) struct Budget {
    until: Instant,
    units: u32,
    spent: bool,
}

impl Budget {
    /// What a step costs that is about one key.
    pub(crate) const KEY: u32 = 1;
    /// What a step costs that may look at many keys.
    pub(crate) const SCAN: u32 = LOOK_EVERY;

    /// A budget that starts now.
    pub(crate) fn new() -> Self {
        Self {
            until: Instant::now() + TIME,
            units: 0,
            spent: false,
        }
    }

    /// Notes a step that was made. The first one is always within the budget.
    pub(crate) fn charge(&mut self, units: u32) {
        self.units += units;
        if self.units >= LOOK_EVERY {
            self.units = 0;
            self.spent |= Instant::now() >= self.until;
        }
    }

    /// Whether the poll should end.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent
    }
}
