//! Figures of a node, for the server to render.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the histogram's buckets, in microseconds; a last bucket has none.
pub const BUCKET_BOUNDS_US: [u64; 16] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 204_800, 409_600,
    819_200, 1_638_400,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKET_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKET_BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts per bucket, not cumulated, and the sum of all durations in microseconds.
    pub fn snapshot(&self) -> (Vec<u64>, u64) {
        let counts = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        (counts, self.sum_us.load(Ordering::Relaxed))
    }
}

/// Counters and gauges of one node. Commands are what clients sent; a
/// proposal's commands are counted one by one.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Commands that waited for their answer last time this was set.
    pub proposals_pending: AtomicU64,
    /// Linearizable reads that wait.
    pub reads_pending: AtomicU64,
    /// Index up to which entries are committed.
    pub committed_index: AtomicU64,
    /// Index up to which entries are applied and published.
    pub applied_index: AtomicU64,
    /// Proposals of this member that were applied.
    pub proposals_applied: AtomicU64,
    /// Proposals of this member that were refused or timed out.
    pub proposals_failed: AtomicU64,
    /// Commands applied, whoever proposed them.
    pub commands_applied: AtomicU64,
    /// Batches applied.
    pub batches_applied: AtomicU64,
    /// How often this member saw the leader change.
    pub leader_changes: AtomicU64,
    /// Whether there is a leader.
    pub has_leader: AtomicBool,
    /// Whether this member is it.
    pub is_leader: AtomicBool,
    /// Comparisons of the members' states that this member began as leader.
    pub state_checks: AtomicU64,
    /// Answers to them after which the members were not all the same.
    pub state_mismatches: AtomicU64,
    /// Rounds of ReadIndex.
    pub read_rounds: AtomicU64,
    /// Reads that timed out or were refused.
    pub reads_failed: AtomicU64,
    /// Milliseconds for which the log has completed nothing although it was asked to.
    pub log_waits_ms: AtomicU64,
    /// Whether the disk counts as stuck for that.
    pub is_disk_stuck: AtomicBool,
    /// How often it did.
    pub disk_stalls: AtomicU64,
    /// Time to apply one batch.
    pub apply_duration: Histogram,
    /// Time of one checkpoint.
    pub checkpoint_duration: Histogram,
    /// Snapshots sent to other members.
    pub snapshots_sent: AtomicU64,
    /// Transfers to other members that broke or were refused.
    pub snapshots_failed: AtomicU64,
    /// Snapshots from another member that were gone on with after a break.
    pub snapshots_resumed: AtomicU64,
    /// Snapshots taken in from another member.
    pub snapshots_received: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let histogram = Histogram::default();
        for us in [0, 50, 51, 1_638_400, 1_638_401] {
            histogram.observe(Duration::from_micros(us));
        }
        let (counts, sum) = histogram.snapshot();
        assert_eq!(counts[0], 2);
        assert_eq!(counts[1], 1);
        assert_eq!(counts[15], 1);
        assert_eq!(counts[16], 1);
        assert_eq!(counts.iter().sum::<u64>(), 5);
        assert_eq!(sum, 50 + 51 + 1_638_400 + 1_638_401);
    }
}
