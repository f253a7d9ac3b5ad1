//! Breaks a running cluster in every way that this machine lets it, and judges what
//! clients saw.
//!
//! Real node processes, real sockets, real file systems, and one of our own over these
//! that can lose what was not synced (`power/`). What is done when follows from
//! the seed; what comes of it does not, as the machine is no simulation. The judge is
//! the one of `varve-sim`: the order of revisions, and for each key a search that knows
//! nothing of them.

mod clients;
mod cluster;
mod disks;
mod nemesis;
mod network;
#[cfg(feature = "power-loss")]
mod power;
#[cfg(not(feature = "power-loss"))]
#[path = "power_absent.rs"]
mod power;
mod proxy;
mod record;
mod report;
mod shell;
mod verdict;
mod watchers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::cli::parse_duration;
use crate::error::{BenchError, Result};
use crate::session::unless_interrupted;
use crate::spawn::varve_binary;
use cluster::Cluster;
use nemesis::Nemesis;
use record::Record;
use report::Report;

/// Members whose links may have their own fault at once: more than five say nothing new.
const MAX_NODES: usize = 9;

/// Arguments of `torture`.
#[derive(Debug, Clone, Args)]
pub(crate) struct TortureArgs {
    /// Decides which fault comes when, and what clients ask for.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How long there are faults.
    #[arg(long, default_value = "1m", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Members of the cluster.
    #[arg(long, default_value_t = 3)]
    pub(crate) nodes: usize,
    /// Clients; each has one operation outstanding.
    #[arg(long, default_value_t = 8)]
    pub(crate) clients: usize,
    /// Only this kind of fault, by its name in the table: `kill -9`, `power loss`, `power loss of all`. Repeatable; default is all.
    #[arg(long, value_name = "KIND", value_parser = nemesis::parse_fault)]
    pub(crate) fault: Vec<nemesis::Fault>,
    /// Use loopback and proxies, no file systems of their own and no loss of power, also where more is allowed.
    #[arg(long)]
    pub(crate) no_root: bool,
    /// The node binary; default is `varve` beside this binary.
    #[arg(long, value_name = "PATH")]
    pub(crate) varve: Option<PathBuf>,
    /// Another argument for each node. Repeatable.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) varve_arg: Vec<String>,
    /// Folder in which the temporary folder is made; default is the system's.
    #[arg(long, value_name = "PATH")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the nodes' logs, and say where they are; a run that fails always does.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Tell each fault on standard error.
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Write the results here.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl TortureArgs {
    fn check(&self) -> Result<()> {
        if !(3..=MAX_NODES).contains(&self.nodes) {
            let text = format!("--nodes is from 3 to {MAX_NODES}: a minority has to fail");
            return Err(BenchError::Usage(text));
        }
        if self.clients == 0 || self.duration.is_zero() {
            let text = "--clients and --duration must not be zero".to_owned();
            return Err(BenchError::Usage(text));
        }
        Ok(())
    }
}

/// Runs it; whether nothing was found.
pub(crate) async fn run(args: TortureArgs) -> Result<bool> {
    args.check()?;
    let binary = varve_binary(args.varve.as_deref())?;
    // Whatever ends the run, what it owns is dropped, and so taken down.
    let report = unless_interrupted(torture(&args, &binary)).await?;
    print!("{}", report.text());
    if let Some(path) = &args.json {
        report.write_json(path)?;
        println!("results in {}", path.display());
    }
    Ok(report.is_passed())
}

async fn torture(args: &TortureArgs, binary: &std::path::Path) -> Result<Report> {
    let mut cluster = Cluster::start(args, binary).await?;
    for line in cluster.describe(args) {
        println!("{line}");
    }
    let record = Arc::new(Record::default());
    let beating = record.clone();
    // Aborted when dropped.
    let mut beats = tokio::task::JoinSet::new();
    beats.spawn(async move {
        loop {
            beating.beat();
            tokio::time::sleep(record::BEAT).await;
        }
    });
    let watchers = watchers::start(&cluster, &record);
    let clients = clients::start(args, &cluster, &record);
    let mut nemesis = Nemesis::new(args, record.clone());
    let mut broken = nemesis.run(&mut cluster, args.duration).await;
    if let Err(what) = cluster.heal().await {
        broken = broken.and(Err(what));
    }
    record.note_fault("none: all is well");
    if broken.is_ok() {
        // All must be able to do something again.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    clients.end().await;
    drop(beats);
    let verdict = verdict::judge(&cluster, &record, watchers, broken).await;
    let report = Report::new(args, &cluster, &record, &verdict);
    if args.keep || !report.is_passed() {
        println!("logs of the nodes are in {}", cluster.keep_logs().display());
    }
    Ok(report)
}
