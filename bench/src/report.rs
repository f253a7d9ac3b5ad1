//! Results as JSON and as a table.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::{LoadShape, OpMix, TargetKind};
use crate::error::{BenchError, Result};
use crate::load::counts::Counts;
use crate::load::verify::Verdict;
use crate::machine::{Machine, commit};

/// The rate that etcd's documentation names, and that everything is held against.
pub(crate) const FLOOR_OPS_PER_SEC: f64 = 10_000.0;

/// Shorter ones happen on any busy machine.
const PAUSE_WORTH_TELLING: Duration = Duration::from_millis(500);

/// One measured phase; the field names are the JSON's.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) target: &'static str,
    pub(crate) nodes: usize,
    pub(crate) op: &'static str,
    pub(crate) conns: usize,
    pub(crate) clients: usize,
    pub(crate) value_size: usize,
    pub(crate) keys: u32,
    /// What was asked for; 0: as much as can be.
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    pub(crate) ops: u64,
    pub(crate) ops_per_sec: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) errors: u64,
}

impl Run {
    /// From what the threads counted.
    pub(crate) fn new(
        target: TargetKind,
        nodes: usize,
        op: OpMix,
        shape: &LoadShape,
        counts: &Counts,
    ) -> Self {
        let seconds = shape.duration.as_secs_f64();
        let quantile = |q: f64| {
            let nanos = counts.latency.value_at_quantile(q);
            (nanos as f64 / 100.0).round() / 10.0
        };
        Self {
            target: target.name(),
            nodes,
            op: op.name(),
            conns: shape.conns,
            clients: shape.clients,
            value_size: shape.value_size,
            keys: shape.keys,
            rate: shape.rate,
            seconds,
            ops: counts.measured,
            ops_per_sec: (counts.measured as f64 / seconds * 10.0).round() / 10.0,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            errors: counts.errors + counts.violations,
        }
    }

    /// Whether and by how much the floor is beaten, or how much of a rate was reached.
    pub(crate) fn against_goal(&self) -> String {
        if self.rate > 0.0 {
            let percent = self.ops_per_sec / self.rate * 100.0;
            return format!("{percent:.1} % of {} ops/s", grouped(self.rate));
        }
        let factor = self.ops_per_sec / FLOOR_OPS_PER_SEC;
        let verb = if factor > 1.0 { "beaten" } else { "NOT beaten" };
        format!("10,000 ops/s {verb}: {factor:.2} x")
    }
}

/// The object that `--json` writes.
pub(crate) fn document(machine: &Machine, parameters: Value, runs: &[Run]) -> Value {
    json!({
        "machine": machine,
        "commit": commit(),
        "parameters": parameters,
        "runs": runs,
    })
}

/// The parameters that every load has.
pub(crate) fn parameters(shape: &LoadShape) -> Value {
    json!({
        "clients": shape.clients,
        "conns": shape.conns,
        "value_size": shape.value_size,
        "keys": shape.keys,
        "seconds": shape.duration.as_secs_f64(),
        "warmup_seconds": shape.warmup.as_secs_f64(),
        "read_ratio": shape.read_ratio,
        "threads": shape.threads,
        "to": format!("{:?}", shape.to).to_lowercase(),
        "seed": shape.seed,
        "prefill": !shape.no_prefill,
        "prefill_before_puts": shape.prefill,
        "rate": shape.rate,
        "compact_every_seconds": shape.compact_every.map(|every| every.as_secs_f64()),
    })
}

/// Writes `document` to `path`.
pub(crate) fn write_json(path: &Path, document: &Value) -> Result<()> {
    let failed = |source| BenchError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let mut text = serde_json::to_string_pretty(document).map_err(|error| failed(error.into()))?;
    text.push('\n');
    std::fs::write(path, text).map_err(failed)
}

/// Says where the figures come from.
pub(crate) fn print_machine(machine: &Machine, shape: &LoadShape) {
    println!(
        "{} x {}, {} GiB, Linux {}, {}; commit {}",
        machine.cores,
        machine.cpu,
        machine.memory_gib,
        machine.kernel,
        machine.file_system,
        commit()
    );
    let compaction = shape.compact_every.map_or_else(String::new, |every| {
        format!(", a compaction each {:.1} s", every.as_secs_f64())
    });
    let rate = match shape.rate {
        0.0 => String::new(),
        rate => format!(", {} operations a second", grouped(rate)),
    };
    println!(
        "{} clients on {} connections, {}-byte values, {} keys, {:.1} s after {:.1} s of warm-up{rate}{compaction}",
        shape.clients,
        shape.conns,
        shape.value_size,
        grouped(f64::from(shape.keys)),
        shape.duration.as_secs_f64(),
        shape.warmup.as_secs_f64()
    );
}

/// The runs, one a line.
pub(crate) fn print_runs(runs: &[Run]) {
    let mut rows = vec![
        [
            "target", "nodes", "op", "conns", "clients", "ops", "ops/s", "p50 us", "p99 us",
            "p99.9 us", "errors",
        ]
        .map(str::to_owned),
    ];
    rows.extend(runs.iter().map(|run| {
        [
            run.target.to_owned(),
            run.nodes.to_string(),
            run.op.to_owned(),
            run.conns.to_string(),
            run.clients.to_string(),
            grouped(run.ops as f64),
            grouped(run.ops_per_sec),
            grouped(run.p50_us),
            grouped(run.p99_us),
            grouped(run.p999_us),
            run.errors.to_string(),
        ]
    }));
    print_table(&rows, 3);
}

/// Prints `rows` in columns; the first `left` of them flush left, the others right.
pub(crate) fn print_table<const N: usize>(rows: &[[String; N]], left: usize) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column < left {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            })
            .collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// What went wrong in a phase, if anything.
pub(crate) fn print_trouble(label: &str, counts: &Counts) {
    for (message, count) in &counts.messages {
        println!("{label}: {count} errors: {message}");
    }
    if counts.longest_pause >= PAUSE_WORTH_TELLING {
        let pause = counts.longest_pause.as_millis();
        println!("{label}: longest pause without a successful answer: {pause} ms");
    }
    if counts.violations > 0 {
        println!("{label}: {} WRONG ANSWERS, the first:", counts.violations);
        for example in &counts.examples {
            println!("  {example}");
        }
    }
}

/// What the verification found.
pub(crate) fn print_verdict(label: &str, verdict: &Verdict) {
    let judgement = if verdict.is_clean() {
        "every acknowledged write is there".to_owned()
    } else {
        format!(
            "{} ACKNOWLEDGED WRITES LOST, {} MISMATCHES",
            verdict.lost, verdict.mismatched
        )
    };
    println!(
        "{label}: verified {} keys on {} member(s), {} acknowledged puts ({} more sent): {judgement}",
        grouped(verdict.keys as f64),
        verdict.members,
        grouped(verdict.acknowledged as f64),
        verdict.unacknowledged,
    );
    for member in &verdict.unreachable {
        println!("{label}: not verified: {member}");
    }
    for example in &verdict.examples {
        println!("  {example}");
    }
}

/// A number with commas, and one decimal where it is small.
pub(crate) fn grouped(value: f64) -> String {
    if value != 0.0 && value.abs() < 100.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.0, "0"),
            (12.34, "12.3"),
            (999.4, "999"),
            (1000.0, "1,000"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(grouped(value), text);
        }
    }

    #[test]
    fn json_has_the_promised_shape() {
        let run = Run {
            target: "varve",
            nodes: 1,
            op: "put",
            conns: 1,
            clients: 1,
            value_size: 256,
            keys: 10,
            rate: 0.0,
            seconds: 1.0,
            ops: 10,
            ops_per_sec: 10.0,
            p50_us: 1.0,
            p99_us: 2.0,
            p999_us: 3.0,
            errors: 0,
        };
        let document = document(&Machine::describe(None), json!({}), &[run]);
        let mut top: Vec<_> = document.as_object().unwrap().keys().collect();
        top.sort();
        assert_eq!(top, ["commit", "machine", "parameters", "runs"]);
        let mut fields: Vec<_> = document["runs"][0].as_object().unwrap().keys().collect();
        fields.sort();
        let mut promised = [
            "target",
            "nodes",
            "op",
            "conns",
            "clients",
            "value_size",
            "keys",
            "rate",
            "seconds",
            "ops",
            "ops_per_sec",
            "p50_us",
            "p99_us",
            "p999_us",
            "errors",
        ];
        promised.sort();
        assert_eq!(fields, promised);
    }
}
