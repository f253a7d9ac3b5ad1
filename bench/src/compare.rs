//! The same load on etcd and on Varve, one after the other, and the ratio.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{CompareArgs, LoadShape, OpMix, TargetKind};
use crate::error::{BenchError, Result};
use crate::http;
use crate::load::verify::Verdict;
use crate::machine::Machine;
use crate::report::{self, Run, grouped};
use crate::session::{Session, unless_interrupted};
use crate::spawn::{Cluster, varve_binary};

/// What one target did.
struct Side {
    runs: Vec<Run>,
    logs: Vec<LogActivity>,
    verdict: Option<Verdict>,
    violations: u64,
}

/// What the members' logs did during a phase of puts.
struct LogActivity {
    op: &'static str,
    clients: usize,
    value_size: usize,
    /// Puts acknowledged, warm-up included.
    puts: u64,
    /// Of each member, in the order of the endpoints.
    members: Vec<LogCounters>,
}

/// Counters of one member's log, from its `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
struct LogCounters {
    /// Writes made durable. etcd and Varve have the same name for it.
    syncs: f64,
    /// Group commits, where the target counts them.
    batches: Option<f64>,
    /// Bytes of them.
    bytes: Option<f64>,
}

impl LogCounters {
    async fn read(endpoint: &str) -> Result<Self> {
        const SYNCS: &str = "etcd_disk_wal_fsync_duration_seconds_count";
        let (_, page) = http::get(endpoint, "/metrics")
            .await
            .map_err(|what| BenchError::target(endpoint, what))?;
        let samples = http::samples(&page);
        let sample = |name: &str| samples.get(name).copied();
        Ok(Self {
            syncs: sample(SYNCS)
                .ok_or_else(|| BenchError::target(endpoint, format!("/metrics has no {SYNCS}")))?,
            batches: sample("varve_wal_batch_records_count"),
            bytes: sample("varve_wal_batch_bytes_sum"),
        })
    }

    async fn read_all(endpoints: &[String]) -> Result<Vec<Self>> {
        let mut all = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            all.push(Self::read(endpoint).await?);
        }
        Ok(all)
    }

    fn since(self, before: Self) -> Self {
        let difference = |after: Option<f64>, before: Option<f64>| Some(after? - before?);
        Self {
            syncs: self.syncs - before.syncs,
            batches: difference(self.batches, before.batches),
            bytes: difference(self.bytes, before.bytes),
        }
    }
}

impl LogActivity {
    /// The value that a quorum of members reaches.
    fn quorum(&self, counter: impl Fn(&LogCounters) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.members.iter().filter_map(counter).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        values.get(self.members.len() / 2).copied()
    }

    fn puts_per_sync(&self) -> f64 {
        let syncs = self.quorum(|member| Some(member.syncs));
        self.puts as f64 / syncs.unwrap_or(0.0)
    }

    /// What would prove that a write was acknowledged before it was synced:
    ///
    /// - more puts than clients to a sync: in a closed loop a client's next write
    ///   is sent after the last was acknowledged, so no sync covers two of one client,
    ///   and each put needs syncs of a quorum, which need not be the same members
    ///   for all puts. One sync of each may be under way when the counters are read:
    ///   a single etcd before 3.5.5 answers while it syncs (its issue 14370), and
    ///   shows it here;
    /// - a group commit without a sync;
    /// - fewer bytes in the log than the values have.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let quorum = self.members.len() / 2 + 1;
        let syncs: f64 = self.members.iter().map(|member| member.syncs + 1.0).sum();
        if self.puts as f64 * quorum as f64 > syncs * self.clients as f64 {
            faults.push("more puts to a sync than there are clients".to_owned());
        }
        for (index, member) in self.members.iter().enumerate() {
            // One may fall between the reading of the two counters.
            if let Some(batches) = member.batches
                && batches > member.syncs + 1.0
            {
                let (name, syncs) = (index + 1, member.syncs);
                faults.push(format!("{batches} group commits of n{name}, {syncs} syncs"));
            }
        }
        if let Some(bytes) = self.quorum(|member| member.bytes)
            && bytes < (self.puts * self.value_size as u64) as f64
        {
            faults.push(format!("only {bytes} bytes in the log"));
        }
        faults
    }
}

/// `varve-bench compare`; whether nothing was lost or wrong.
pub(crate) async fn run(args: CompareArgs) -> Result<bool> {
    args.shape.check().map_err(BenchError::Usage)?;
    let varve = varve_binary(args.spawn.varve.as_deref())?;
    let folder = args.spawn.dir.clone().unwrap_or_else(std::env::temp_dir);
    let machine = Machine::describe(Some(&folder));
    report::print_machine(&machine, &args.shape);
    println!(
        "{} node(s) each: {} ({}), then {}",
        args.nodes,
        args.etcd.display(),
        etcd_version(&args.etcd),
        varve.display()
    );

    let etcd = measure(TargetKind::Etcd, &args.etcd, &args).await?;
    let varve = measure(TargetKind::Varve, &varve, &args).await?;

    let runs: Vec<Run> = etcd.runs.iter().chain(&varve.runs).cloned().collect();
    report::print_runs(&runs);
    let comparison = print_ratios(&etcd.runs, &varve.runs);
    let mut sound = true;
    for (target, side) in [(TargetKind::Etcd, &etcd), (TargetKind::Varve, &varve)] {
        sound &= side.violations == 0 && side.runs.iter().all(|run| run.ops > 0);
        for log in &side.logs {
            print_log(target, log);
            sound &= log.faults().is_empty();
        }
        if let Some(verdict) = &side.verdict {
            report::print_verdict(target.name(), verdict);
            sound &= verdict.is_clean();
        }
    }
    if let Some(path) = &args.json {
        let mut parameters = report::parameters(&args.shape);
        parameters["nodes"] = json!(args.nodes);
        parameters["etcd_version"] = json!(etcd_version(&args.etcd));
        let mut document = report::document(&machine, parameters, &runs);
        document["comparison"] = comparison;
        document["wal"] = json!({
            "etcd": logs_json(&etcd.logs),
            "varve": logs_json(&varve.logs),
        });
        document["sound"] = json!(sound);
        report::write_json(path, &document)?;
    }
    Ok(sound)
}

/// Starts a cluster, loads it, reads everything back, takes it down.
async fn measure(target: TargetKind, binary: &Path, args: &CompareArgs) -> Result<Side> {
    let start = Cluster::start(target, binary, args.nodes, &args.spawn);
    let mut cluster = unless_interrupted(start).await?;
    let open = Session::open(target, cluster.endpoints(), &args.shape, true);
    let mut session = unless_interrupted(open).await?;
    if !args.shape.no_prefill {
        session.fill(&args.shape).await?;
    }
    let mut plan: Vec<(OpMix, LoadShape)> =
        args.op.iter().map(|op| (*op, args.shape.clone())).collect();
    if args.latency {
        let alone = LoadShape {
            clients: 1,
            conns: 1,
            threads: 1,
            ..args.shape.clone()
        };
        plan.extend(args.op.iter().map(|op| (*op, alone.clone())));
    }
    let mut side = Side {
        runs: Vec::new(),
        logs: Vec::new(),
        verdict: None,
        violations: 0,
    };
    for (op, shape) in plan {
        session.settle().await?;
        let before = LogCounters::read_all(&cluster.endpoints()).await?;
        let counts = session.measure(op, &shape).await?;
        let after = LogCounters::read_all(&cluster.endpoints()).await?;
        cluster.check_alive()?;
        if op == OpMix::Put {
            side.logs.push(LogActivity {
                op: op.name(),
                clients: shape.clients,
                value_size: shape.value_size,
                puts: counts.completed,
                members: after.iter().zip(before).map(|(a, b)| a.since(b)).collect(),
            });
        }
        side.violations += counts.violations;
        side.runs
            .push(Run::new(target, args.nodes, op, &shape, &counts));
    }
    if !args.shape.no_verify {
        side.verdict = Some(unless_interrupted(session.verify(&args.shape)).await?);
    }
    Ok(side)
}

fn print_ratios(etcd: &[Run], varve: &[Run]) -> Value {
    let mut rows =
        vec![["op", "clients", "varve / etcd", "p50", "p99", "floor"].map(str::to_owned)];
    let mut comparison = Vec::new();
    for (theirs, ours) in etcd.iter().zip(varve) {
        let ratio = ours.ops_per_sec / theirs.ops_per_sec;
        let (p50, p99) = (ours.p50_us / theirs.p50_us, ours.p99_us / theirs.p99_us);
        // One client waits for one operation at a time: the floor is not meant for it.
        let floor = if ours.clients > 1 {
            ours.against_goal()
        } else {
            String::new()
        };
        rows.push([
            ours.op.to_owned(),
            ours.clients.to_string(),
            format!("{ratio:.2} x"),
            format!("{p50:.3} x"),
            format!("{p99:.3} x"),
            floor,
        ]);
        comparison.push(json!({
            "op": ours.op,
            "clients": ours.clients,
            "ops_ratio": ratio,
            "p50_ratio": p50,
            "p99_ratio": p99,
            "beats_10000_ops_per_sec": ours.ops_per_sec > report::FLOOR_OPS_PER_SEC,
            "times_10000_ops_per_sec": ours.ops_per_sec / report::FLOOR_OPS_PER_SEC,
        }));
    }
    println!();
    report::print_table(&rows, 1);
    println!();
    json!(comparison)
}

fn print_log(target: TargetKind, log: &LogActivity) {
    let each = |counter: &dyn Fn(&LogCounters) -> Option<f64>| {
        let values: Option<Vec<String>> = log
            .members
            .iter()
            .map(|member| counter(member).map(grouped))
            .collect();
        values.map(|values| values.join(" / "))
    };
    let mut line = format!(
        "{} {}, {} clients: {} acknowledged, {} WAL syncs",
        target.name(),
        log.op,
        log.clients,
        grouped(log.puts as f64),
        each(&|member| Some(member.syncs)).unwrap_or_default(),
    );
    if let Some(batches) = each(&|member| member.batches) {
        line.push_str(&format!(" for {batches} group commits"));
    }
    line.push_str(&format!(" ({:.1} puts a sync): ", log.puts_per_sync()));
    let faults = log.faults();
    if faults.is_empty() {
        line.push_str("each write was synced before its answer");
    } else {
        line.push_str(&format!("NOT SYNCED FIRST: {}", faults.join("; ")));
    }
    println!("{line}");
}

fn logs_json(logs: &[LogActivity]) -> Value {
    logs.iter()
        .map(|log| {
            json!({
                "op": log.op,
                "clients": log.clients,
                "acknowledged": log.puts,
                "members": log.members,
                "acknowledged_per_sync": log.puts_per_sync(),
                "faults": log.faults(),
            })
        })
        .collect()
}

fn etcd_version(binary: &Path) -> String {
    std::process::Command::new(binary)
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().next().map(str::to_owned)
        })
        .unwrap_or_else(|| "version unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(members: &[(f64, Option<f64>, Option<f64>)]) -> LogActivity {
        LogActivity {
            op: "put",
            clients: 10,
            value_size: 256,
            puts: 100,
            members: members
                .iter()
                .map(|&(syncs, batches, bytes)| LogCounters {
                    syncs,
                    batches,
                    bytes,
                })
                .collect(),
        }
    }

    #[test]
    fn syncs_must_keep_up_with_puts() {
        let syncs = |syncs: &[f64]| {
            let members: Vec<_> = syncs.iter().map(|syncs| (*syncs, None, None)).collect();
            activity(&members).faults().len()
        };
        assert_eq!(syncs(&[10.0]), 0);
        assert_eq!(syncs(&[9.0]), 0, "one is under way");
        assert_eq!(syncs(&[8.0]), 1);
        assert_eq!(syncs(&[10.0, 0.0, 11.0]), 0, "a quorum synced");
        assert_eq!(syncs(&[10.0, 4.0, 5.0]), 0, "now the one, now the other");
        assert_eq!(syncs(&[10.0, 2.0, 3.0]), 1, "not always a quorum");
        assert_eq!(syncs(&[0.0]), 1, "never");
    }

    #[test]
    fn every_batch_must_be_synced_and_hold_the_values() {
        let faults = |batches, bytes| activity(&[(20.0, Some(batches), Some(bytes))]).faults();
        assert!(faults(20.0, 40_000.0).is_empty());
        assert_eq!(faults(22.0, 40_000.0).len(), 1);
        assert_eq!(faults(20.0, 25_000.0).len(), 1);
    }
}
