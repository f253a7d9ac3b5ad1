//! The scrub: what is on the disk is read again and verified, a little at a
//! time, whether or not anybody asks for it.
//!
//! A checksum finds damage when a page is read. A page that nobody reads for a
//! year rots unseen, until the other copies of it have rotted too. So everything
//! is read once in a while: Bairavasundaram et al., "An analysis of latent sector
//! errors in disk drives", 2007, found most of such errors by scrubbing.
//!
//! [`Scrubber`] spreads a pass over store and log evenly over an interval. Whoever
//! keeps one calls it from a thread of its own: a step waits for the disk.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Backend, BackendError};
use crate::wal::{LogScrub, WalReader};

/// Bytes that a step reads, about.
const STEP_BYTES: u64 = 256 << 10;
/// Least time between two steps, so that a short interval leaves the disk to others.
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// Time from opening to the first step: a start has better things to read.
const START_PAUSE: Duration = Duration::from_secs(60);
/// Places of damage that are told apart; more are only counted.
const MAX_PLACES: usize = 1024;

/// What one step of a scrub did.
#[derive(Debug, Default)]
pub struct ScrubStep {
    /// Bytes read.
    pub read_bytes: u64,
    /// Whether the pass is over; the next step begins a new one.
    pub is_finished: bool,
    /// What is damaged or cannot be read, each with its place.
    pub damage: Vec<BackendError>,
}

/// What was found damaged since a store was opened, by whoever met it: a reader,
/// a batch, a check or a scrub.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Damage {
    /// Places, each counted once.
    pub places: u64,
    /// The first one, in words.
    pub first: Option<String>,
}

impl Damage {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            places: self.places + other.places,
            first: self.first.or(other.first),
        }
    }
}

/// Remembers what was found damaged, and logs each place once.
#[derive(Debug, Default)]
pub struct DamageLog {
    found: Mutex<(BTreeSet<u64>, Damage)>,
}

impl DamageLog {
    fn lock(&self) -> MutexGuard<'_, (BTreeSet<u64>, Damage)> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes damage at `place`: a number of a page, or a position.
    pub fn note(&self, place: u64, what: &dyn std::fmt::Display) {
        let mut found = self.lock();
        let (places, damage) = &mut *found;
        if places.contains(&place) {
            return;
        }
        if places.len() < MAX_PLACES {
            places.insert(place);
            tracing::error!("damage: {what}");
        }
        damage.places += 1;
        damage.first.get_or_insert_with(|| what.to_string());
    }

    /// What was noted so far.
    pub fn damage(&self) -> Damage {
        self.lock().1.clone()
    }
}

/// How a scrub goes, for metrics.
#[derive(Debug, Default)]
pub struct ScrubStats {
    /// Passes over all of store and log since the start.
    pub passes: AtomicU64,
    /// Bytes read since the start.
    pub read_bytes: AtomicU64,
    /// Bytes read by the pass in progress.
    pub pass_bytes: AtomicU64,
    /// Bytes that a pass has to read, about.
    pub total_bytes: AtomicU64,
    /// Places found damaged, in store and log.
    pub errors: AtomicU64,
    last_pass: Mutex<Option<Instant>>,
    log_damage: DamageLog,
}

impl ScrubStats {
    /// When the last whole pass ended.
    pub fn last_pass(&self) -> Option<Instant> {
        *self
            .last_pass
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What a scrub found damaged in the log. What it found in the store the
    /// store itself knows: [`Backend::damage`].
    pub fn log_damage(&self) -> Damage {
        self.log_damage.damage()
    }
}

/// Spreads passes over time.
#[derive(Debug)]
pub struct Scrubber {
    interval: Duration,
    stats: Arc<ScrubStats>,
    log: LogScrub,
    /// The store's part of the pass is over; the log's is left.
    in_log: bool,
    pass_start: Option<Instant>,
}

impl Scrubber {
    /// One pass in `interval`; `None` if that is zero.
    pub fn new(interval: Duration) -> Option<Self> {
        (!interval.is_zero()).then(|| Self {
            interval,
            stats: Arc::default(),
            log: LogScrub::default(),
            in_log: false,
            pass_start: None,
        })
    }

    /// How it goes.
    pub fn stats(&self) -> Arc<ScrubStats> {
        Arc::clone(&self.stats)
    }

    /// How long to wait before the first step.
    pub fn first_pause(&self) -> Duration {
        START_PAUSE.min(self.interval)
    }

    /// Makes a step; how long to wait before the next one.
    pub fn step(&mut self, backend: &dyn Backend, wal: &WalReader) -> Duration {
        let start = *self.pass_start.get_or_insert_with(Instant::now);
        let stats = Arc::clone(&self.stats);
        let total = backend.stats().used_bytes + wal.sealed_bytes();
        stats.total_bytes.store(total, Ordering::Relaxed);
        let (read_bytes, is_finished) = match self.in_log {
            false => {
                let step = backend.scrub_step(STEP_BYTES);
                let errors = step.damage.len() as u64;
                stats.errors.fetch_add(errors, Ordering::Relaxed);
                self.in_log = step.is_finished;
                (step.read_bytes, false)
            }
            true => {
                let step = self.log.step(wal, STEP_BYTES);
                if let Some(error) = &step.damage {
                    stats.errors.fetch_add(1, Ordering::Relaxed);
                    stats.log_damage.note(step.lsn, error);
                }
                (step.read_bytes, step.is_finished)
            }
        };
        stats.read_bytes.fetch_add(read_bytes, Ordering::Relaxed);
        stats.pass_bytes.fetch_add(read_bytes, Ordering::Relaxed);
        if !is_finished {
            let share = read_bytes as f64 / total.max(read_bytes).max(1) as f64;
            return self.interval.mul_f64(share).max(MIN_PAUSE);
        }
        stats.passes.fetch_add(1, Ordering::Relaxed);
        stats.pass_bytes.store(0, Ordering::Relaxed);
        *stats
            .last_pass
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        (self.in_log, self.pass_start) = (false, None);
        self.interval.saturating_sub(start.elapsed()).max(MIN_PAUSE)
    }
}
