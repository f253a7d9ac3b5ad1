//! What a generator thread counts, in bounded memory.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Keeps the first few of something that could be many.
const EXAMPLES: usize = 16;

/// What a worker counted.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Latencies in nanoseconds of answers within the window.
    pub(crate) latency: Histogram<u64>,
    /// Successful answers within the window.
    pub(crate) measured: u64,
    /// Successful answers, warm-up and end included.
    pub(crate) completed: u64,
    /// Refused, lost and unanswered operations.
    pub(crate) errors: u64,
    /// Wrong answers: damaged, stale or missing values.
    pub(crate) violations: u64,
    /// The longest time within the window without a single successful answer.
    pub(crate) longest_pause: Duration,
    /// The errors' texts and how often.
    pub(crate) messages: BTreeMap<String, u64>,
    /// The first violations.
    pub(crate) examples: Vec<String>,
}

impl Counts {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        const LONGEST: Duration = Duration::from_secs(600);
        Self {
            latency: Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
                .expect("constant bounds are valid"),
            measured: 0,
            completed: 0,
            errors: 0,
            violations: 0,
            longest_pause: Duration::ZERO,
            messages: BTreeMap::new(),
            examples: Vec::new(),
        }
    }

    /// Adds another worker's.
    pub(crate) fn merge(&mut self, other: Self) {
        self.latency
            .add(other.latency)
            .expect("all histograms have the same bounds");
        self.measured += other.measured;
        self.completed += other.completed;
        self.errors += other.errors;
        self.violations += other.violations;
        // Of threads that work side by side each one's pause bounds the whole's.
        self.longest_pause = self.longest_pause.min(other.longest_pause);
        for (message, count) in other.messages {
            *self.messages.entry(message).or_default() += count;
        }
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }

    /// `count` operations failed for the same reason.
    pub(crate) fn error(&mut self, message: &str, count: u64) {
        self.errors += count;
        if let Some(seen) = self.messages.get_mut(message) {
            *seen += count;
        } else if self.messages.len() < EXAMPLES {
            self.messages.insert(message.to_owned(), count);
        } else {
            *self.messages.entry("other errors".into()).or_default() += count;
        }
    }

    /// An answer was wrong.
    pub(crate) fn violation(&mut self, key: u32, what: std::fmt::Arguments<'_>) {
        self.violations += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("key {key}: {what}"));
        }
    }
}
