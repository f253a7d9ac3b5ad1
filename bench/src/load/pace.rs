//! A steady rate of operations, whatever the answers take.
//!
//! A closed loop sends less as soon as the server is slow, and so measures the slow
//! moments with the fewest operations. At a rate each operation has a time at which it
//! is due, and its latency counts from there, also if no client was free to send it then
//! (G. Tene, "How NOT to measure latency", 2013: coordinated omission).

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::slots::Window;

/// When the next operation of one connection is due.
pub(crate) enum Pace {
    /// As soon as a client is free.
    Closed,
    /// At its time.
    Open(Schedule),
}

impl Pace {
    /// From when on the latency of the next operation counts; `None`: it is not due yet.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Closed => Some(now),
            Self::Open(schedule) => (schedule.next <= now).then_some(schedule.next),
        }
    }

    /// The operation was issued.
    pub(crate) fn issued(&mut self) {
        if let Self::Open(schedule) = self {
            schedule.next += schedule.interval;
        }
    }

    /// Waits until the next operation is due, or until the phase ends. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> Result<(), String> {
        match self {
            Self::Closed => std::future::pending().await,
            Self::Open(schedule) => {
                let until = schedule.next.min(schedule.end);
                let waited = schedule.timer.sleep_until(until).await;
                waited.map_err(|error| format!("timer: {error}"))
            }
        }
    }
}

/// Times that lie equally far apart.
pub(crate) struct Schedule {
    next: Instant,
    interval: Duration,
    end: Instant,
    timer: Timer,
}

impl Schedule {
    /// The share of connection `number` of `connections` in `rate` operations a second
    /// from `start` on: they take turns.
    pub(crate) fn new(
        rate: f64,
        number: usize,
        connections: usize,
        start: Instant,
        window: Window,
    ) -> std::io::Result<Self> {
        let turn = Duration::from_secs_f64(1.0 / rate);
        Ok(Self {
            next: start + turn.mul_f64(number as f64),
            interval: turn.mul_f64(connections as f64),
            end: window.stop_at,
            timer: Timer::new()?,
        })
    }
}

/// The runtime's own timers know whole milliseconds only.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[allow(unsafe_code)]
    fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: an `OwnedFd` is open, and this one is neither replaced nor closed before
        // the `AsyncFd` that owns it.
        Ok(Self(unsafe { AsyncFd::register(timer) }?))
    }

    async fn sleep_until(&mut self, until: Instant) -> std::io::Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let once = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: left.subsec_nanos().into(),
                },
            };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            self.0.readable().await?.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start: Instant, seconds: u64) -> Window {
        Window {
            measure_from: start,
            stop_at: start + Duration::from_secs(seconds),
        }
    }

    #[tokio::test]
    async fn connections_take_turns_and_fall_behind_without_skipping() {
        let start = Instant::now();
        let window = window(start, 100);
        let mut second = Pace::Open(Schedule::new(10.0, 1, 4, start, window).unwrap());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(second.due(at(99)), None);
        assert_eq!(second.due(at(100)), Some(at(100)));
        second.issued();
        assert_eq!(second.due(at(499)), None);
        // Two are due by now: each counts from its own time.
        assert_eq!(second.due(at(1_000)), Some(at(500)));
        second.issued();
        assert_eq!(second.due(at(1_000)), Some(at(900)));
        second.issued();
        assert_eq!(second.due(at(1_000)), None);
        assert_eq!(Pace::Closed.due(at(7)), Some(at(7)));
    }

    #[tokio::test]
    async fn waits_until_it_is_due_or_the_phase_ends() {
        let start = Instant::now();
        let mut often = Pace::Open(Schedule::new(100.0, 3, 4, start, window(start, 100)).unwrap());
        often.wait().await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(often.due(Instant::now()).is_some());
        let mut seldom = Pace::Open(Schedule::new(0.001, 1, 4, start, window(start, 0)).unwrap());
        seldom.wait().await.unwrap();
        assert_eq!(seldom.due(Instant::now()), None);
    }
}
