//! How far one step of a long walk goes.

use super::options::RangeLimits;

/// What the way to an old version of a key costs beside the key, in entries of a scan.
const LOOKUP: usize = 8;

/// What a step may still go over.
#[derive(Debug)]
pub(super) struct Pace {
    entries: usize,
    bytes: usize,
}

impl Pace {
    /// For what is done in one go.
    pub(super) fn unbounded() -> Self {
        Self {
            entries: usize::MAX,
            bytes: usize::MAX,
        }
    }

    /// Notes an entry that was looked at.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Notes that an old version was looked for.
    pub(super) fn spend_lookup(&mut self) {
        self.entries = self.entries.saturating_sub(LOOKUP);
    }

    /// Whether the step should end.
    pub(super) fn is_spent(&self) -> bool {
        self.entries == 0 || self.bytes == 0
    }

    /// Takes half of it apart, for something that is done first.
    pub(super) fn split_half(&mut self) -> Self {
        let half = Self {
            entries: (self.entries / 2).max(1),
            bytes: (self.bytes / 2).max(1),
        };
        if self.entries < usize::MAX {
            self.entries = self.entries.saturating_sub(half.entries).max(1);
            self.bytes = self.bytes.saturating_sub(half.bytes).max(1);
        }
        half
    }
}

impl From<RangeLimits> for Pace {
    fn from(limits: RangeLimits) -> Self {
        Self {
            entries: limits.scanned.max(1),
            bytes: limits.bytes.max(1),
        }
    }
}
