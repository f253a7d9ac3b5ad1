//! Figures of the server, counted per batch where a batch will do.

mod histogram;
pub mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use histogram::{BOUNDS_US, Histogram, HistogramSnapshot};

/// What a request is, for figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Kind {
    Put,
    Range,
    SerializableRange,
    DeleteRange,
    Txn,
    Compaction,
    Watch,
    Other,
}

impl Kind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Put,
        Self::Range,
        Self::SerializableRange,
        Self::DeleteRange,
        Self::Txn,
        Self::Compaction,
        Self::Watch,
        Self::Other,
    ];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Range => "range",
            Self::SerializableRange => "serializable_range",
            Self::DeleteRange => "delete_range",
            Self::Txn => "txn",
            Self::Compaction => "compaction",
            Self::Watch => "watch",
            Self::Other => "other",
        }
    }
}

/// How many requests of each kind a batch has.
pub type Kinds = [u32; Kind::ALL.len()];

/// The figures.
#[derive(Debug, Default)]
#[allow(missing_docs)] // Each is rendered with its help in `http::metrics`.
pub struct Metrics {
    requests: [AtomicU64; Kind::ALL.len()],
    latency: [Histogram; Kind::ALL.len()],
    pub failed: AtomicU64,
    pub proposals: AtomicU64,
    pub proposed_commands: AtomicU64,
    pub read_batches: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
    pub malformed: AtomicU64,
    pub watchers: AtomicU64,
    pub watch_streams: AtomicU64,
    pub slow_watchers: AtomicU64,
    pub events_sent: AtomicU64,
    pub watch_store_reads: AtomicU64,
    pub peer_received_bytes: AtomicU64,
    pub peer_sent_bytes: AtomicU64,
    pub peer_send_failures: AtomicU64,
    pub peer_refused: AtomicU64,
    pub snapshot_received_bytes: AtomicU64,
    pub snapshot_sent_bytes: AtomicU64,
    pub active_peers: AtomicU64,
    pub health_success: AtomicU64,
    pub health_failures: AtomicU64,
}

impl Metrics {
    /// Counts requests that came in.
    pub fn count_requests(&self, kinds: &Kinds) {
        for (counter, count) in self.requests.iter().zip(kinds) {
            if *count > 0 {
                counter.fetch_add(u64::from(*count), Ordering::Relaxed);
            }
        }
    }

    /// Counts requests that were answered `elapsed` after they came in.
    pub fn observe(&self, kinds: &Kinds, elapsed: Duration) {
        for (histogram, count) in self.latency.iter().zip(kinds) {
            histogram.observe(elapsed, u64::from(*count));
        }
    }

    /// Requests of a kind so far.
    pub fn requests(&self, kind: Kind) -> u64 {
        self.requests[kind as usize].load(Ordering::Relaxed)
    }

    /// How long requests of a kind took.
    pub fn latency(&self, kind: Kind) -> HistogramSnapshot {
        self.latency[kind as usize].snapshot()
    }
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

/// Takes from a gauge.
pub fn subtract(gauge: &AtomicU64, value: u64) {
    gauge.fetch_sub(value, Ordering::Relaxed);
}

/// Reads a counter or gauge.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
