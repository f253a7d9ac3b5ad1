//! Prometheus' text format, version 0.0.4.
//!
//! Written here rather than with a metrics crate: nearly all figures live as
//! atomics in other parts of the node, and names must be etcd's to the letter
//! (the OpenMetrics writers rename counters).

use std::fmt::{Display, Write};

/// The content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics being written.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// The text.
    pub fn finish(self) -> String {
        self.text
    }

    /// Starts a metric; samples follow.
    pub fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string can't fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One sample; `labels` is empty or `name="value",...`.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.metric(name, "gauge", help);
        self.sample(name, "", value);
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.metric(name, "counter", help);
        self.sample(name, "", value);
    }

    /// The samples of one histogram of durations, in seconds. `counts` are by
    /// bucket, one more than there are bounds.
    pub fn histogram(
        &mut self,
        name: &str,
        labels: &str,
        bounds_us: &[u64],
        counts: &[u64],
        sum_us: u64,
    ) {
        let separator = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        let bounds = bounds_us.iter().map(|us| (*us as f64 / 1e6).to_string());
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(counts) {
            total += count;
            let _ = writeln!(
                self.text,
                "{name}_bucket{{{labels}{separator}le=\"{bound}\"}} {total}"
            );
        }
        self.sample(&format!("{name}_sum"), labels, sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), labels, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format() {
        let mut page = Page::default();
        page.gauge("a", "A gauge.", 1);
        page.metric("h", "histogram", "Durations.");
        page.histogram("h", "op=\"put\"", &[50, 1_000], &[1, 2, 3], 500_000);
        assert_eq!(
            page.finish(),
            "# HELP a A gauge.\n# TYPE a gauge\na 1\n\
             # HELP h Durations.\n# TYPE h histogram\n\
             h_bucket{op=\"put\",le=\"0.00005\"} 1\n\
             h_bucket{op=\"put\",le=\"0.001\"} 3\n\
             h_bucket{op=\"put\",le=\"+Inf\"} 6\n\
             h_sum{op=\"put\"} 0.5\nh_count{op=\"put\"} 6\n"
        );
    }
}
