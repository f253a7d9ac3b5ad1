//! The rate at which snapshots leave, all of them together.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may be made up for after a pause.
const BURST: Duration = Duration::from_millis(100);

/// Hands out times at which bytes may be sent.
#[derive(Debug)]
pub(super) struct Pace {
    /// 0 is no limit.
    bytes_per_second: u64,
    /// When what was handed out so far will have been sent.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// So many bytes a second; 0 for no limit.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            next: Mutex::new(None),
        }
    }

    /// When these bytes may be sent; `None` if there is no limit.
    pub(super) fn take(&self, bytes: usize) -> Option<Instant> {
        (self.bytes_per_second > 0).then(|| self.take_at(bytes, Instant::now()))
    }

    fn take_at(&self, bytes: usize, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let due = next.map_or(now, |next| next.max(earliest));
        *next = Some(due + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_keep_to_the_rate() {
        assert_eq!(Pace::new(0).take(1 << 30), None);
        let pace = Pace::new(1000);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(pace.take_at(500, start), start);
        assert_eq!(pace.take_at(500, start), at(500));
        assert_eq!(pace.take_at(100, start), at(1000));
        // After a pause it does not make up for all of it.
        assert_eq!(pace.take_at(1000, at(5000)), at(4900));
        assert_eq!(pace.take_at(1000, at(5000)), at(5900));
    }
}
