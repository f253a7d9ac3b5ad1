//! What a run came to, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use varve_raft::simulation::history::{Action, Operation, Outcome};

use super::TortureArgs;
use super::cluster::Cluster;
use super::record::Record;
use super::verdict::Verdict;
use crate::error::{BenchError, Result};
use crate::machine::{Machine, commit};

/// Most characters of one violation that are shown: a history may be long.
const SHOWN_CHARS: usize = 4000;

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Outcomes {
    done: u64,
    not_done: u64,
    unknown: u64,
}

#[derive(Debug, Serialize)]
struct FaultCount {
    name: String,
    times: u64,
    longest_pause_ms: u64,
}

/// Everything that is told.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    commit: String,
    machine: Machine,
    seed: u64,
    seconds: f64,
    members: usize,
    clients: usize,
    network: &'static str,
    not_available: Vec<(&'static str, String)>,
    faults: Vec<FaultCount>,
    /// With those during a recovery.
    power_losses: u64,
    unsynced_bytes_lost: u64,
    unsynced_names_lost: u64,
    operations: BTreeMap<&'static str, Outcomes>,
    events_watched: u64,
    longest_pause_ms: u64,
    longest_pause_during: String,
    /// For how long this program itself did not run; not counted as pauses.
    stopped_ms: u64,
    linearizable: bool,
    keys_given_up: u64,
    writes_acknowledged: u64,
    writes_lost: u64,
    revision: i64,
    hashes_equal: bool,
    violations: Vec<String>,
}

impl Report {
    pub(super) fn new(
        args: &TortureArgs,
        cluster: &Cluster,
        record: &Record,
        verdict: &Verdict,
    ) -> Self {
        let progress = record.progress();
        let (pause, during) = progress.longest();
        let faults = progress
            .faults
            .iter()
            .map(|(name, (times, pause))| FaultCount {
                name: name.clone(),
                times: *times,
                longest_pause_ms: millis(*pause),
            });
        Self {
            commit: commit(),
            machine: Machine::describe(Some(cluster.path())),
            seed: args.seed,
            seconds: args.duration.as_secs_f64(),
            members: cluster.count(),
            clients: args.clients,
            network: cluster.network.describe(),
            not_available: cluster.not_available(),
            faults: faults.collect(),
            power_losses: progress.power_losses,
            unsynced_bytes_lost: progress.lost.bytes,
            unsynced_names_lost: progress.lost.names,
            operations: count(&verdict.operations),
            events_watched: verdict.events_watched,
            longest_pause_ms: millis(pause),
            longest_pause_during: during.to_owned(),
            stopped_ms: millis(progress.stopped),
            linearizable: verdict.is_linearizable,
            keys_given_up: verdict.keys_given_up,
            writes_acknowledged: verdict.writes_acknowledged,
            writes_lost: verdict.writes_lost,
            revision: verdict.last_revision,
            hashes_equal: verdict.hash.is_some(),
            violations: verdict.violations.clone(),
        }
    }

    /// Whether nothing was found, of clients that got something done.
    pub(super) fn is_passed(&self) -> bool {
        self.writes_acknowledged > 0
            && self.violations.is_empty()
            && self.linearizable
            && self.hashes_equal
            && self.writes_lost == 0
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "\n{:<32} {:>6} {:>24}",
            "fault", "times", "longest pause of writes"
        )?;
        for fault in &self.faults {
            let pause = seconds(fault.longest_pause_ms);
            writeln!(out, "{:<32} {:>6} {:>22} s", fault.name, fault.times, pause)?;
        }
        for (what, why) in &self.not_available {
            writeln!(out, "{what}: not to be had here ({why})")?;
        }
        if self.power_losses > 0 {
            writeln!(
                out,
                "power went {} times, with {} bytes and {} changes of names that were not synced",
                self.power_losses, self.unsynced_bytes_lost, self.unsynced_names_lost
            )?;
        }
        let (done, not_done, unknown) = ("done", "not done", "unknown");
        writeln!(
            out,
            "\n{:<32} {done:>10} {not_done:>10} {unknown:>10}",
            "operation"
        )?;
        for (name, o) in &self.operations {
            let Outcomes {
                done,
                not_done,
                unknown,
            } = o;
            writeln!(out, "{name:<32} {done:>10} {not_done:>10} {unknown:>10}")?;
        }
        let yes = |is: bool| if is { "yes" } else { "NO" };
        writeln!(out, "\nevents watched: {}", self.events_watched)?;
        writeln!(
            out,
            "longest time without progress: {} s (during or after: {})",
            seconds(self.longest_pause_ms),
            self.longest_pause_during
        )?;
        if self.stopped_ms > 0 {
            let stopped = seconds(self.stopped_ms);
            writeln!(
                out,
                "not counted: {stopped} s in which this program itself did not run"
            )?;
        }
        writeln!(
            out,
            "histories linearizable: {} (search given up on {} keys)",
            yes(self.linearizable),
            self.keys_given_up
        )?;
        writeln!(
            out,
            "acknowledged writes lost: {} of {}",
            self.writes_lost, self.writes_acknowledged
        )?;
        writeln!(
            out,
            "hashes of all members equal at revision {}: {}",
            self.revision,
            yes(self.hashes_equal)
        )?;
        for violation in &self.violations {
            let shown: String = violation.chars().take(SHOWN_CHARS).collect();
            writeln!(out, "VIOLATION: {shown}")?;
        }
        writeln!(
            out,
            "{}",
            if self.is_passed() { "passed" } else { "FAILED" }
        )
    }

    pub(super) fn write_json(&self, path: &Path) -> Result<()> {
        let failed = |source: std::io::Error| BenchError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        std::fs::write(path, text + "\n").map_err(failed)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(millis: u64) -> String {
    format!("{:.2}", millis as f64 / 1000.0)
}

fn count(operations: &[Operation]) -> BTreeMap<&'static str, Outcomes> {
    let mut counts: BTreeMap<&'static str, Outcomes> = BTreeMap::new();
    for operation in operations {
        let name = match &operation.action {
            Action::Put { .. } => "put",
            Action::Delete { .. } => "delete",
            Action::Txn { .. } => "txn",
            Action::Compact { .. } => "compaction",
            Action::Get { serializable, .. } | Action::Range { serializable } => match serializable
            {
                true => "serializable read",
                false => "linearizable read",
            },
        };
        let count = counts.entry(name).or_default();
        match operation.outcome {
            Outcome::Unknown => count.unknown += 1,
            Outcome::NotDone(_) | Outcome::Refused(_) => count.not_done += 1,
            _ => count.done += 1,
        }
    }
    counts
}
