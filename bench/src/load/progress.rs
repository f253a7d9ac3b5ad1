//! Tells how a phase goes while it goes: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Control;

/// Shows the progress of one phase until dropped.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: Total,
    started: Instant,
    last: (Instant, u64),
}

/// What the end of a phase is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Total {
    /// So many operations.
    Operations(u64),
    /// So much time.
    Time(Duration),
}

/// How often [`Progress::show`] is to be called: a terminal wants it lively,
/// a log file does not.
pub(crate) fn interval() -> Duration {
    if std::io::stderr().is_terminal() {
        Duration::from_millis(200)
    } else {
        Duration::from_secs(5)
    }
}

impl Progress {
    /// Starts the display.
    pub(crate) fn new(label: String, total: Total) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let length = match total {
                Total::Operations(operations) => operations,
                Total::Time(time) => time.as_millis() as u64,
            };
            let bar = ProgressBar::new(length);
            let style = ProgressStyle::with_template("{prefix:<18} {wide_bar} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.set_prefix(label.clone());
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            label,
            total,
            started: now,
            last: (now, 0),
        }
    }

    /// Brings the display up to date.
    pub(crate) fn show(&mut self, control: &Control) {
        let now = Instant::now();
        let done = control.done.load(Ordering::Relaxed);
        let failed = control.failed.load(Ordering::Relaxed);
        let seconds = now.duration_since(self.last.0).as_secs_f64().max(1e-3);
        let rate = (done - self.last.1) as f64 / seconds;
        self.last = (now, done);
        let elapsed = now.duration_since(self.started);
        match &self.bar {
            Some(bar) => {
                bar.set_position(match self.total {
                    Total::Operations(_) => done,
                    Total::Time(time) => elapsed.min(time).as_millis() as u64,
                });
                bar.set_message(format!("{rate:>9.0}/s {failed} errors"));
            }
            None => eprintln!(
                "{}: {:.1} s, {done} operations, {rate:.0}/s, {failed} errors",
                self.label,
                elapsed.as_secs_f64()
            ),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
