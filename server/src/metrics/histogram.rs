//! A histogram that many threads count into without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds; a last bucket has none.
pub const BOUNDS_US: [u64; 20] = [
    50, 100, 150, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000, 20_000, 50_000,
    100_000, 250_000, 1_000_000, 2_500_000, 10_000_000,
];

/// Durations by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

/// What a [`Histogram`] held at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Counts by bucket, not cumulated; one more than there are bounds.
    pub counts: Vec<u64>,
    /// Sum in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Counts `count` durations that are all the same: those of one batch.
    pub fn observe(&self, duration: Duration, count: u64) {
        if count == 0 {
            return;
        }
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(count, Ordering::Relaxed);
        self.sum_us
            .fetch_add(us.saturating_mul(count), Ordering::Relaxed);
    }

    /// What it holds.
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            counts: self
                .buckets
                .iter()
                .map(|bucket| bucket.load(Ordering::Relaxed))
                .collect(),
            sum_us: self.sum_us.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(50), 2);
        histogram.observe(Duration::from_micros(51), 1);
        histogram.observe(Duration::from_secs(60), 1);
        histogram.observe(Duration::from_secs(60), 0);
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.counts[..2], [2, 1]);
        assert_eq!(snapshot.counts.last(), Some(&1));
        assert_eq!(snapshot.sum_us, 100 + 51 + 60_000_000);
    }
}
