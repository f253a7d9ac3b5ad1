//! Limits and options that callers give, and where bounded answers ended.

use varve_types::{DEFAULT_MAX_TXN_OPS, MAX_REPLY_BYTES};

/// What a node accepts before it proposes a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most compares, and most operations of a branch; nested transactions
    /// share what their parent leaves (`--max-txn-ops`).
    pub max_txn_ops: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_txn_ops: DEFAULT_MAX_TXN_OPS,
        }
    }
}

/// What a batch of commands makes beside the new state. None of it changes the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Collect the batch's events for live watchers.
    pub collect_events: bool,
    /// Past this many bytes of events they are dropped, and watchers read from the store.
    pub max_event_bytes: usize,
    /// Past this many bytes of keys and values in one reply, a range inside a
    /// transaction ends with `more` set.
    pub max_reply_bytes: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            collect_events: false,
            max_event_bytes: 8 << 20,
            max_reply_bytes: MAX_REPLY_BYTES,
        }
    }
}

/// How much one step of compaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactBudget {
    /// Most entries of history to go over.
    pub entries: usize,
    /// Stop after this many bytes of them.
    pub bytes: usize,
}

impl CompactBudget {
    pub(super) const NONE: Self = Self {
        entries: 0,
        bytes: 0,
    };

    pub(super) fn add_entry(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// The budget that removes twice as much as this, but not less than usual, and
    /// not so much that commands would wait for long.
    pub(super) fn to_outpace(self) -> Self {
        let usual = Self::default();
        Self {
            entries: (2 * self.entries).clamp(usual.entries, 1 << 16),
            bytes: (2 * self.bytes).clamp(usual.bytes, 1 << 28),
        }
    }
}

impl Default for CompactBudget {
    fn default() -> Self {
        Self {
            entries: 1000,
            bytes: 1 << 20,
        }
    }
}

/// Where a replay of events stops. It stops only between revisions, so one
/// revision that is larger than all limits still comes whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// Most events.
    pub events: usize,
    /// Most bytes of keys and values.
    pub bytes: usize,
    /// Most changes to go over, matching or not.
    pub scanned: usize,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            events: 1000,
            bytes: 1 << 20,
            scanned: 100_000,
        }
    }
}

/// How far a replay of events came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventsEnd {
    /// The revision to go on from; every matching event below it was visited.
    pub next_revision: i64,
    /// Whether that is past the newest revision of the view.
    pub done: bool,
    /// Events visited.
    pub events: usize,
}

/// How much one step of a range may go over ([`super::View::range_step`]). Every
/// step goes over something, so that the range comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLimits {
    /// Most keys or changes to look at, in the answer or not.
    pub scanned: usize,
    /// Stop after this many bytes of them.
    pub bytes: usize,
}

impl Default for RangeLimits {
    fn default() -> Self {
        Self {
            scanned: 4000,
            bytes: 1 << 20,
        }
    }
}

/// What a range answers beside its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RangeEnd {
    /// Whether the limit (or the visitor) cut something off.
    pub more: bool,
    /// Keys in the range, whatever the limit and the revision filters.
    pub count: i64,
}
