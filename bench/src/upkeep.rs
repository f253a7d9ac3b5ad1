//! What compaction and vacuum cost the clients: puts before, during and after.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use varve_client::{Client, ClientConfig};
use varve_types::{CompactionRequest, DeleteRangeRequest, PutRequest};

use crate::cli::{LoadShape, OpMix, TargetKind, UpkeepArgs};
use crate::error::{BenchError, Result};
use crate::http;
use crate::load::counts::Counts;
use crate::machine::Machine;
use crate::report::{self, Run, grouped};
use crate::session::{Session, unless_interrupted};
use crate::spawn::{Cluster, varve_binary};

/// Keys of the ballast begin with this: none of the load's do.
const BALLAST: &[u8] = b"\x7fballast/";
/// Bytes of one value of it.
const BALLAST_VALUE_BYTES: usize = 1024;
/// Puts of ballast on their way at a time.
const BALLAST_TASKS: usize = 64;
/// The deletion of the ballast is as many commands: no one of them is large.
const BALLAST_PARTS: usize = 256;
/// How long a file may take to get shorter.
const VACUUM_PATIENCE: Duration = Duration::from_secs(60);
/// A command may wait behind a saturating load.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// A measured stretch of puts.
struct Stretch {
    name: &'static str,
    run: Run,
}

/// `varve-bench upkeep`; whether nothing was lost and every target reached.
pub(crate) async fn run(args: UpkeepArgs) -> Result<bool> {
    args.shape.check().map_err(BenchError::Usage)?;
    let binary = varve_binary(args.spawn.varve.as_deref())?;
    let start = Cluster::start(TargetKind::Varve, &binary, args.nodes, &args.spawn);
    let mut cluster = unless_interrupted(start).await?;
    let machine = Machine::describe(Some(cluster.path()));
    report::print_machine(&machine, &args.shape);
    let endpoints = cluster.endpoints();
    let config = ClientConfig {
        command_timeout: COMMAND_TIMEOUT,
        ..ClientConfig::default()
    };
    let client = Client::new(&endpoints, config).map_err(|error| failed(&endpoints, error))?;
    let mut test = Test {
        session: Session::open(TargetKind::Varve, endpoints.clone(), &args.shape, false).await?,
        client,
        endpoints,
        args: &args,
        stretches: Vec::new(),
    };
    unless_interrupted(test.make_history()).await?;
    unless_interrupted(test.write_ballast()).await?;
    test.session.settle().await?;
    test.measure("before").await?;
    let compacted = test.compaction().await?;
    test.session.settle().await?;
    test.measure("after compaction").await?;
    let vacuum = test.vacuum().await?;
    test.session.settle().await?;
    test.measure("after vacuum").await?;
    cluster.check_alive()?;

    let Test {
        session, stretches, ..
    } = test;
    let reached = print(&stretches, &compacted, &vacuum);
    let verdict = unless_interrupted(session.verify(&args.shape)).await?;
    report::print_verdict("varve", &verdict);
    if let Some(path) = &args.json {
        let mut parameters = report::parameters(&args.shape);
        parameters["nodes"] = json!(args.nodes);
        parameters["revisions"] = json!(args.revisions);
        parameters["ballast_mib"] = json!(args.ballast_mib);
        let runs: Vec<Run> = stretches
            .iter()
            .map(|stretch| stretch.run.clone())
            .collect();
        let mut document = report::document(&machine, parameters, &runs);
        document["stretches"] = stretches.iter().map(|stretch| stretch.name).collect();
        document["compaction"] = json!({
            "revisions": compacted.revisions,
            "seconds": compacted.took.as_secs_f64(),
        });
        document["vacuum"] = json!({
            "file_bytes_before": vacuum.file_before,
            "file_bytes_after": vacuum.file_after,
            "used_bytes_after": vacuum.used_after,
            "seconds": vacuum.took.as_secs_f64(),
        });
        report::write_json(path, &document)?;
    }
    Ok(reached && verdict.is_clean())
}

/// A compaction beside the load.
struct Compacted {
    revisions: i64,
    took: Duration,
}

/// A vacuum beside the load.
struct Vacuum {
    file_before: f64,
    file_after: f64,
    used_after: f64,
    took: Duration,
}

struct Test<'a> {
    session: Session,
    client: Client,
    endpoints: Vec<String>,
    args: &'a UpkeepArgs,
    stretches: Vec<Stretch>,
}

fn failed(endpoints: &[String], error: impl std::fmt::Display) -> BenchError {
    BenchError::target(&endpoints.join(","), error.to_string())
}

impl Test<'_> {
    fn failed(&self, error: impl std::fmt::Display) -> BenchError {
        failed(&self.endpoints, error)
    }

    async fn revision(&self) -> Result<i64> {
        let status = self.client.status(&self.endpoints[0]).await;
        Ok(status.map_err(|error| self.failed(error))?.header.revision)
    }

    /// Puts until there are as many revisions as asked for.
    async fn make_history(&mut self) -> Result<()> {
        let fast = LoadShape {
            rate: 0.0,
            ..self.args.shape.clone()
        };
        self.session.fill(&fast).await?;
        while self.revision().await? < self.args.revisions {
            self.session.measure(OpMix::Put, &fast).await?;
        }
        Ok(())
    }

    /// Writes what will be deleted to make room in the file.
    async fn write_ballast(&self) -> Result<()> {
        let keys = (self.args.ballast_mib << 20) / BALLAST_VALUE_BYTES;
        let mut tasks = JoinSet::new();
        for task in 0..BALLAST_TASKS {
            let client = self.client.clone();
            tasks.spawn(async move {
                for number in (task..keys).step_by(BALLAST_TASKS) {
                    let key = ballast_key(number % BALLAST_PARTS, number);
                    let put = PutRequest {
                        key: &key,
                        value: &[number as u8; BALLAST_VALUE_BYTES],
                        ..PutRequest::default()
                    };
                    client.put(&put).await?;
                }
                Ok::<_, varve_client::ClientError>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|_| BenchError::Worker)?
                .map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    async fn measure(&mut self, name: &'static str) -> Result<()> {
        let counts = self.session.measure(OpMix::Put, &self.args.shape).await?;
        self.note(name, &counts);
        Ok(())
    }

    fn note(&mut self, name: &'static str, counts: &Counts) {
        let run = Run::new(
            TargetKind::Varve,
            self.args.nodes,
            OpMix::Put,
            &self.args.shape,
            counts,
        );
        println!(
            "{name}: {} puts/s, p99 {} us",
            grouped(run.ops_per_sec),
            grouped(run.p99_us)
        );
        self.stretches.push(Stretch { name, run });
    }

    /// Compacts everything while puts go on, once they are warmed up.
    async fn compaction(&mut self) -> Result<Compacted> {
        let revision = self.revision().await?;
        let client = self.client.clone();
        let warmup = self.args.shape.warmup;
        let compact = async move {
            tokio::time::sleep(warmup).await;
            let started = Instant::now();
            let request = CompactionRequest {
                revision,
                physical: true,
            };
            let answer = client.compact(&request).await;
            answer.map(|_| started.elapsed())
        };
        let (counts, took) =
            tokio::join!(self.session.measure(OpMix::Put, &self.args.shape), compact);
        let took = took.map_err(|error| self.failed(error))?;
        self.note("during compaction", &counts?);
        Ok(Compacted {
            revisions: revision,
            took,
        })
    }

    /// Deletes the ballast and compacts, then waits for the file to get shorter
    /// while puts go on.
    async fn vacuum(&mut self) -> Result<Vacuum> {
        for part in 0..BALLAST_PARTS {
            let (key, range_end) = (ballast_part(part), ballast_part(part + 1));
            let delete = DeleteRangeRequest {
                key: &key,
                range_end: &range_end,
                ..DeleteRangeRequest::default()
            };
            let deleted = self.client.delete_range(&delete).await;
            deleted.map_err(|error| self.failed(error))?;
        }
        let revision = self.revision().await?;
        let request = CompactionRequest {
            revision,
            physical: true,
        };
        let file_before = self.sizes().await?.0;
        let started = Instant::now();
        let compacted = self.client.compact(&request).await;
        compacted.map_err(|error| self.failed(error))?;
        let endpoint = self.endpoints[0].clone();
        let shorter = async move {
            loop {
                let (file, used) = sizes(&endpoint).await?;
                let is_short = file <= used * 1.3 + f64::from(4 << 20);
                if is_short && file < file_before || started.elapsed() > VACUUM_PATIENCE {
                    return Ok::<_, BenchError>(started.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (counts, took) =
            tokio::join!(self.session.measure(OpMix::Put, &self.args.shape), shorter);
        self.note("during vacuum", &counts?);
        let (file_after, used_after) = self.sizes().await?;
        Ok(Vacuum {
            file_before,
            file_after,
            used_after,
            took: took?,
        })
    }

    async fn sizes(&self) -> Result<(f64, f64)> {
        sizes(&self.endpoints[0]).await
    }
}

/// Bytes of a member's store file, and of them those in use.
async fn sizes(endpoint: &str) -> Result<(f64, f64)> {
    let (_, page) = http::get(endpoint, "/metrics")
        .await
        .map_err(|what| BenchError::target(endpoint, what))?;
    let samples = http::samples(&page);
    let sample = |name: &str| {
        let found = samples.get(name).copied();
        found.ok_or_else(|| BenchError::target(endpoint, format!("/metrics has no {name}")))
    };
    Ok((
        sample("etcd_mvcc_db_total_size_in_bytes")?,
        sample("etcd_mvcc_db_total_size_in_use_in_bytes")?,
    ))
}

fn ballast_part(part: usize) -> Vec<u8> {
    let mut key = BALLAST.to_vec();
    key.extend_from_slice(&(part as u16).to_be_bytes());
    key
}

fn ballast_key(part: usize, number: usize) -> Vec<u8> {
    let mut key = ballast_part(part);
    key.extend_from_slice(&(number as u64).to_be_bytes());
    key
}

/// Prints everything; whether the targets were reached.
fn print(stretches: &[Stretch], compacted: &Compacted, vacuum: &Vacuum) -> bool {
    let mut rows = vec![
        [
            "puts",
            "ops/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "p99 / before",
        ]
        .map(str::to_owned),
    ];
    let before = stretches.first().map_or(0.0, |first| first.run.p99_us);
    rows.extend(stretches.iter().map(|Stretch { name, run }| {
        [
            (*name).to_owned(),
            grouped(run.ops_per_sec),
            grouped(run.p50_us),
            grouped(run.p99_us),
            grouped(run.p999_us),
            format!("{:.2}", run.p99_us / before),
        ]
    }));
    report::print_table(&rows, 1);
    println!(
        "compaction of {} revisions: {:.2} s",
        grouped(compacted.revisions as f64),
        compacted.took.as_secs_f64()
    );
    let mb = |bytes: f64| format!("{:.0} MB", bytes / 1e6);
    println!(
        "vacuum: file of {} down to {} ({} in use) in {:.1} s, compaction included",
        mb(vacuum.file_before),
        mb(vacuum.file_after),
        mb(vacuum.used_after),
        vacuum.took.as_secs_f64()
    );
    let mut reached = true;
    for Stretch { name, run } in stretches {
        if name.starts_with("during") {
            let is_within = run.p99_us <= 2.0 * before;
            let verb = if is_within { "reached" } else { "NOT reached" };
            println!("{name}: p99 at most twice that before: {verb}");
            reached &= is_within;
        }
    }
    let is_short = vacuum.took <= VACUUM_PATIENCE;
    let verb = if is_short { "reached" } else { "NOT reached" };
    println!("file at most 1.3 x what is in use within 60 s: {verb}");
    reached && is_short
}
