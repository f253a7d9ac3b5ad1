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
    syncs: Vec<SyncCount>,
    verdict: Option<Verdict>,
    violations: u64,
}

/// How often the logs were synced during a phase of puts.
struct SyncCount {
    /// Which phase.
    op: &'static str,
    /// Its clients.
    clients: usize,
    /// Puts acknowledged, warm-up included.
    puts: u64,
    /// Syncs of each member's log, in the order of the endpoints.
    syncs: Vec<f64>,
}

impl SyncCount {
    /// In a closed loop no sync can cover more writes than there are clients: a
    /// higher quotient would prove that writes were acknowledged unsynced. With
    /// several members, a quorum of them must have synced that often.
    fn puts_per_sync(&self) -> f64 {
        let mut syncs = self.syncs.clone();
        syncs.sort_by(|a, b| b.total_cmp(a));
        let quorum = syncs.len() / 2 + 1;
        self.puts as f64 / syncs.get(quorum - 1).copied().unwrap_or(0.0)
    }

    fn is_sound(&self) -> bool {
        self.puts == 0 || self.puts_per_sync() <= self.clients as f64
    }
}

/// The counter of log syncs on a target's `/metrics`.
fn sync_counter(target: TargetKind) -> &'static str {
    match target {
        TargetKind::Varve => "varve_wal_sync_duration_seconds_count",
        TargetKind::Etcd => "etcd_disk_wal_fsync_duration_seconds_count",
    }
}

async fn read_syncs(target: TargetKind, endpoints: &[String]) -> Result<Vec<f64>> {
    let name = sync_counter(target);
    let mut counts = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let (_, page) = http::get(endpoint, "/metrics")
            .await
            .map_err(|what| BenchError::target(endpoint, what))?;
        let count = http::samples(&page).get(name).copied();
        counts.push(
            count.ok_or_else(|| BenchError::target(endpoint, format!("/metrics has no {name}")))?,
        );
    }
    Ok(counts)
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
        for count in &side.syncs {
            print_syncs(target, count);
            sound &= count.is_sound();
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
        document["syncs"] = json!({
            "etcd": syncs_json(&etcd.syncs),
            "varve": syncs_json(&varve.syncs),
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
        syncs: Vec::new(),
        verdict: None,
        violations: 0,
    };
    for (op, shape) in plan {
        session.settle().await?;
        let before = read_syncs(target, &cluster.endpoints()).await?;
        let counts = session.measure(op, &shape).await?;
        let after = read_syncs(target, &cluster.endpoints()).await?;
        cluster.check_alive()?;
        if op == OpMix::Put {
            side.syncs.push(SyncCount {
                op: op.name(),
                clients: shape.clients,
                puts: counts.completed,
                syncs: after.iter().zip(&before).map(|(a, b)| a - b).collect(),
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
            ours.against_floor()
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

fn print_syncs(target: TargetKind, count: &SyncCount) {
    let syncs: Vec<String> = count.syncs.iter().map(|syncs| grouped(*syncs)).collect();
    let judgement = if count.is_sound() {
        "no more than clients, as it must be when each waits for its sync"
    } else {
        "MORE THAN CLIENTS: writes were acknowledged unsynced"
    };
    println!(
        "{} {}, {} clients: {} acknowledged in {} WAL syncs (by member), {:.1} a sync: {judgement}",
        target.name(),
        count.op,
        count.clients,
        grouped(count.puts as f64),
        syncs.join(" / "),
        count.puts_per_sync(),
    );
}

fn syncs_json(counts: &[SyncCount]) -> Value {
    counts
        .iter()
        .map(|count| {
            json!({
                "op": count.op,
                "clients": count.clients,
                "acknowledged": count.puts,
                "wal_syncs": count.syncs,
                "acknowledged_per_sync": count.puts_per_sync(),
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

    #[test]
    fn syncs_must_keep_up_with_puts() {
        let count = |syncs: &[f64]| SyncCount {
            op: "put",
            clients: 10,
            puts: 100,
            syncs: syncs.to_vec(),
        };
        assert!(count(&[10.0]).is_sound());
        assert!(!count(&[9.0]).is_sound());
        assert!(count(&[10.0, 2.0, 11.0]).is_sound(), "a quorum synced");
        assert!(!count(&[10.0, 2.0, 3.0]).is_sound(), "only one did");
    }
}
