//! A measurement from start to end: cluster, prefill, phases, verification.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{LoadArgs, LoadShape, OpMix, Spread, TargetKind};
use crate::error::{BenchError, Result};
use crate::load::counts::Counts;
use crate::load::ledger::Ledger;
use crate::load::progress::{self, Progress, Total};
use crate::load::verify::{Baseline, Verdict, verify};
use crate::load::{Control, Memory, Phase, Work, run_phase};
use crate::machine::Machine;
use crate::report::{self, Run};
use crate::spawn::{Cluster, varve_binary};
use crate::target::Admin;

/// etcd drops the buffer of a burst of writes at the second commit after it.
const SETTLE_ROUNDS: usize = 3;
/// Longer than etcd's batch interval of 100 ms.
const SETTLE_PAUSE: Duration = Duration::from_millis(250);

/// One target under load, over any number of phases.
pub(crate) struct Session {
    target: TargetKind,
    /// Every member.
    members: Vec<String>,
    /// Those that get the load.
    loaded: Vec<String>,
    memory: Memory,
    baseline: Baseline,
    filled: bool,
    exclusive: bool,
}

impl Session {
    /// Looks at the cluster. `exclusive`: nobody else writes to it.
    pub(crate) async fn open(
        target: TargetKind,
        members: Vec<String>,
        shape: &LoadShape,
        exclusive: bool,
    ) -> Result<Self> {
        let first = members
            .first()
            .ok_or_else(|| BenchError::Usage("--endpoints must name at least one".into()))?;
        let baseline = Baseline::read(target, first, shape.keys, shape.value_size).await?;
        let loaded = match shape.to {
            Spread::All => members.clone(),
            Spread::Leader => vec![find_leader(target, &members).await?],
        };
        Ok(Self {
            target,
            members,
            loaded,
            memory: Memory {
                ledger: Ledger::new(shape.keys),
                sequence: first_sequence(),
            },
            baseline,
            filled: false,
            exclusive,
        })
    }

    /// Writes every key once, unless that is done.
    pub(crate) async fn fill(&mut self, shape: &LoadShape) -> Result<()> {
        if self.filled {
            return Ok(());
        }
        let total = Total::Operations(u64::from(shape.keys));
        let counts = self.phase(Work::Fill, shape, "prefill", total).await?;
        report::print_trouble(&format!("{} prefill", self.target.name()), &counts);
        if counts.violations > 0 || counts.completed < u64::from(shape.keys) {
            return Err(BenchError::Prefill {
                done: counts.completed,
                keys: u64::from(shape.keys),
                what: "see above".into(),
            });
        }
        self.filled = true;
        self.settle().await
    }

    /// Measures one operation.
    pub(crate) async fn measure(&mut self, op: OpMix, shape: &LoadShape) -> Result<Counts> {
        if shape.prefill || op.reads() && !shape.no_prefill {
            self.fill(shape).await?;
        }
        let total = Total::Time(shape.warmup + shape.duration);
        let counts = self
            .phase(Work::Measure(op), shape, op.name(), total)
            .await?;
        report::print_trouble(&format!("{} {}", self.target.name(), op.name()), &counts);
        Ok(counts)
    }

    /// Lets the cluster come to rest, so that no phase pays for the one before.
    pub(crate) async fn settle(&self) -> Result<()> {
        unless_interrupted(async {
            for _ in 0..SETTLE_ROUNDS {
                Admin::connect(self.target, &self.members[0])
                    .await?
                    .settle()
                    .await?;
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
            Ok(())
        })
        .await
    }

    /// Reads everything back, on every member.
    pub(crate) async fn verify(&self, shape: &LoadShape) -> Result<Verdict> {
        verify(
            self.target,
            &self.members,
            shape.value_size,
            &self.memory.ledger,
            &self.baseline,
            self.exclusive,
        )
        .await
    }

    async fn phase(
        &mut self,
        work: Work,
        shape: &LoadShape,
        label: &str,
        total: Total,
    ) -> Result<Counts> {
        let phase = Phase {
            target: self.target,
            endpoints: self.loaded.clone(),
            shape: shape.clone(),
            work,
        };
        let control = Arc::new(Control::default());
        let mut progress = Progress::new(format!("{} {label}", self.target.name()), total);
        let mut tick = tokio::time::interval(progress::interval());
        tick.tick().await;
        let mut load = std::pin::pin!(run_phase(&phase, &mut self.memory, &control));
        let mut compaction = std::pin::pin!(keep_compacting(
            self.target,
            &self.members[0],
            phase
                .shape
                .compact_every
                .filter(|_| phase.work != Work::Fill),
        ));
        let mut interrupt = std::pin::pin!(interrupted());
        let mut stopping = false;
        loop {
            tokio::select! {
                counts = &mut load => {
                    return if stopping { Err(BenchError::Interrupted) } else { counts };
                }
                _ = tick.tick() => progress.show(&control),
                Err(error) = &mut compaction, if !stopping => return Err(error),
                () = &mut interrupt, if !stopping => {
                    control.stop();
                    stopping = true;
                }
            }
        }
    }
}

/// Compacts a cluster up to its revision of the moment, again and again.
async fn keep_compacting(
    target: TargetKind,
    member: &str,
    every: Option<Duration>,
) -> Result<Infallible> {
    let Some(every) = every else {
        return std::future::pending().await;
    };
    let mut admin = Admin::connect(target, member).await?;
    let mut compacted = admin.range(b"compact", b"", 1).await?.revision;
    loop {
        tokio::time::sleep(every).await;
        let revision = admin.range(b"compact", b"", 1).await?.revision;
        // Where nothing was written since, it would be an error.
        if revision > compacted {
            admin.compact(revision).await?;
            compacted = revision;
        }
    }
}

/// Sequence numbers go up from run to run, so that no run's value passes for another's.
fn first_sequence() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| since.as_nanos() as u64)
}

/// Ends at Ctrl-C or SIGTERM.
pub(crate) async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        caught = tokio::signal::ctrl_c() => if caught.is_err() { std::future::pending().await },
        _ = terminate.recv() => {}
    }
}

/// Runs `work` unless it is interrupted; what `work` owns is dropped then, and so taken down.
pub(crate) async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        () = interrupted() => Err(BenchError::Interrupted),
    }
}

async fn find_leader(target: TargetKind, members: &[String]) -> Result<String> {
    for member in members {
        if Admin::connect(target, member).await?.leads().await? {
            return Ok(member.clone());
        }
    }
    Err(BenchError::Usage(format!(
        "--to leader: none of {} leads",
        members.join(", ")
    )))
}

/// `varve-bench load`; whether nothing was lost or wrong.
pub(crate) async fn run(args: LoadArgs) -> Result<bool> {
    args.shape.check().map_err(BenchError::Usage)?;
    let mut cluster = match args.spawn {
        None => None,
        Some(count) => {
            let binary = match args.target {
                TargetKind::Varve => varve_binary(args.nodes.varve.as_deref())?,
                TargetKind::Etcd => args.etcd.clone(),
            };
            let start = Cluster::start(args.target, &binary, count, &args.nodes);
            Some(unless_interrupted(start).await?)
        }
    };
    let machine = Machine::describe(cluster.as_ref().map(Cluster::path));
    let members = cluster
        .as_ref()
        .map_or_else(|| args.endpoints.clone(), Cluster::endpoints);
    let nodes = members.len();
    report::print_machine(&machine, &args.shape);

    let open = Session::open(args.target, members, &args.shape, cluster.is_some());
    let mut session = unless_interrupted(open).await?;
    let mut runs = Vec::new();
    let mut violations = 0;
    for (position, op) in args.op.iter().enumerate() {
        if position > 0 {
            session.settle().await?;
        }
        let counts = session.measure(*op, &args.shape).await?;
        violations += counts.violations;
        runs.push(Run::new(args.target, nodes, *op, &args.shape, &counts));
        if let Some(cluster) = &mut cluster {
            cluster.check_alive()?;
        }
    }
    report::print_runs(&runs);
    for run in &runs {
        println!("{}: {}", run.op, run.against_goal());
    }
    let mut sound = violations == 0 && runs.iter().all(|run| run.ops > 0);
    if !args.shape.no_verify {
        let verdict = unless_interrupted(session.verify(&args.shape)).await?;
        report::print_verdict(args.target.name(), &verdict);
        sound &= verdict.is_clean();
    }
    if let Some(path) = &args.json {
        let mut parameters = report::parameters(&args.shape);
        parameters["target"] = json!(args.target.name());
        parameters["spawned"] = json!(cluster.is_some());
        report::write_json(path, &report::document(&machine, parameters, &runs))?;
    }
    Ok(sound)
}
