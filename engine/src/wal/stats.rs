//! Counters for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bucket `i` counts values below `2^i`, the last all others.
const BUCKETS: usize = 32;

/// Counts of values by powers of two.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    count: AtomicU64,
}

impl Histogram {
    /// Counts `value`.
    pub fn record(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Upper bounds (exclusive; `None` for no bound) and how many values were
    /// counted in each bucket alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(i, count)| {
            (
                (i < BUCKETS - 1).then(|| 1u64 << i),
                count.load(Ordering::Relaxed),
            )
        })
    }

    /// Sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// What the log did so far; shared with whoever shows metrics.
#[derive(Debug, Default)]
pub struct WalStats {
    /// Durable writes, one per group commit, and those of rotation.
    pub syncs: AtomicU64,
    /// Durations of a group's write and sync together, in microseconds.
    pub sync_us: Histogram,
    /// 1 while there is no room for the next segment and the present one is
    /// nearly full: no more should be handed in than the end of what is going on.
    pub low_space: AtomicU64,
    /// 1 while a group is being written and synced. If it stays so while `syncs`
    /// does not move, the disk hangs.
    pub writing: AtomicU64,
    /// Groups handed in by callers.
    pub groups: AtomicU64,
    /// Records per group commit.
    pub batch_records: Histogram,
    /// Bytes per group commit, with headers and padding.
    pub batch_bytes: Histogram,
    /// Groups of callers per group commit.
    pub batch_groups: Histogram,
    /// Changes to a next segment.
    pub rotations: AtomicU64,
    /// Segments held, without spares and the next one.
    pub segments: AtomicU64,
    /// End of the log: everything below is durable.
    pub end_lsn: AtomicU64,
    /// First position held.
    pub start_lsn: AtomicU64,
    /// 1 while the next segment could not be prepared (a full disk, usually):
    /// the current one still takes writes until it is full.
    pub prepare_failed: AtomicU64,
    /// 1 once an error stopped the log for good.
    pub latched: AtomicU64,
}
