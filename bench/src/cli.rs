//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::engines::args::{BigArgs, EnginesArgs};
use crate::load::value::MIN_VALUE_SIZE;
use crate::torture::TortureArgs;

/// Load generator and comparisons for Varve and its peers.
#[derive(Debug, Parser)]
#[command(name = "varve-bench", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a closed loop of clients against a running or a spawned cluster.
    Load(LoadArgs),
    /// Run the same load against etcd and Varve, one after the other, and print the ratio.
    Compare(CompareArgs),
    /// Compare storage engines in this process: Varve's behind its log, and LMDB,
    /// redb and fjall where built in (--features engines).
    Engines(EnginesArgs),
    /// Load and use a store that is larger than the memory it may have.
    Big(BigArgs),
    /// Measure puts before, during and after a compaction, and during a vacuum.
    Upkeep(UpkeepArgs),
    /// Break a cluster that is started for it in every way that this machine lets, and
    /// judge what clients saw.
    Torture(TortureArgs),
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OpMix {
    /// Write one key.
    Put,
    /// Read one key, linearizable.
    Get,
    /// Read one key from the member's own state (serializable).
    Sget,
    /// Gets and puts, see --read-ratio.
    Mixed,
}

impl OpMix {
    /// The name in tables and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Sget => "sget",
            Self::Mixed => "mixed",
        }
    }

    /// Whether it reads, so that the keys must be there before.
    pub(crate) fn reads(self) -> bool {
        self != Self::Put
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetKind {
    /// Varve, over its binary protocol.
    Varve,
    /// etcd v3, over gRPC.
    Etcd,
}

impl TargetKind {
    /// The name in tables and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Varve => "varve",
            Self::Etcd => "etcd",
        }
    }
}

/// Which members the connections go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Spread {
    /// Spread evenly over all endpoints.
    All,
    /// All to the leader, as found before the run.
    Leader,
}

/// The load: the same for every target of a comparison.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadShape {
    /// Clients; each has exactly one operation outstanding.
    #[arg(long, default_value_t = 1000)]
    pub(crate) clients: usize,
    /// Connections that the clients share evenly.
    #[arg(long, default_value_t = 100)]
    pub(crate) conns: usize,
    /// Bytes of each value.
    #[arg(long, default_value_t = 256)]
    pub(crate) value_size: usize,
    /// Number of keys, chosen from uniformly.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) keys: u32,
    /// How long each operation is measured: 10s, 1m30s, 500ms, or seconds.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Load before the measurement starts.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    /// Percent of gets in a mixed load.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_ratio: u8,
    /// Threads of the generator; each owns its share of the connections.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Where the connections go.
    #[arg(long, value_enum, default_value_t = Spread::All)]
    pub(crate) to: Spread,
    /// How long to wait, after the end, for operations still outstanding.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) patience: Duration,
    /// Seed of the choice of keys.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Do not write every key before the first operation that reads.
    #[arg(long, conflicts_with = "prefill")]
    pub(crate) no_prefill: bool,
    /// Write every key before the first operation, also if that only writes.
    #[arg(long)]
    pub(crate) prefill: bool,
    /// Operations a second, over all connections; latency then counts from when an operation
    /// was due. 0: as many as there are answers.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,
    /// While an operation is measured, compact up to the current revision this often.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) compact_every: Option<Duration>,
    /// Do not read everything back at the end.
    #[arg(long)]
    pub(crate) no_verify: bool,
}

impl LoadShape {
    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.clients == 0 || self.conns == 0 || self.keys == 0 || self.threads == 0 {
            return Err("--clients, --conns, --keys and --threads must be at least 1".into());
        }
        if self.conns > self.clients {
            return Err(format!(
                "--conns {} is more than --clients {}: connections without clients would idle",
                self.conns, self.clients
            ));
        }
        if self.threads > self.conns {
            return Err(format!(
                "--threads {} is more than --conns {}",
                self.threads, self.conns
            ));
        }
        if self.value_size < MIN_VALUE_SIZE {
            return Err(format!(
                "--value-size {} is too small: values carry {MIN_VALUE_SIZE} bytes of sequence number and checksum so that they can be verified",
                self.value_size
            ));
        }
        if self.duration.is_zero() {
            return Err("--duration must not be zero".into());
        }
        if !(self.rate == 0.0 || (1e-3..=1e9).contains(&self.rate)) {
            return Err(format!(
                "--rate {} is not from 0.001 to 1000000000 operations a second, nor 0 for no rate",
                self.rate
            ));
        }
        if self.compact_every.is_some_and(|every| every.is_zero()) {
            return Err("--compact-every must not be zero".into());
        }
        Ok(())
    }
}

/// How nodes are started.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpawnArgs {
    /// The node binary; default is `varve` beside this binary.
    #[arg(long, value_name = "PATH")]
    pub(crate) varve: Option<PathBuf>,
    /// Another argument for each Varve node, such as --varve-arg=--disk=psync. Repeatable.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) varve_arg: Vec<String>,
    /// Another argument for each etcd node. Repeatable.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) etcd_arg: Vec<String>,
    /// Folder in which the nodes' temporary folder is made; default is the system's.
    #[arg(long, value_name = "PATH")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the nodes' data and logs, and say where they are.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Arguments of `load`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadArgs {
    /// Operations, each measured in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put")]
    pub(crate) op: Vec<OpMix>,
    /// What the endpoints speak.
    #[arg(long, value_enum, default_value_t = TargetKind::Varve)]
    pub(crate) target: TargetKind,
    /// Client endpoints of a running cluster.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "127.0.0.1:2379",
        conflicts_with = "spawn"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Start this many nodes in a temporary folder and take them down after.
    #[arg(long, value_name = "N")]
    pub(crate) spawn: Option<usize>,
    /// The etcd binary, for --target etcd --spawn.
    #[arg(long, value_name = "PATH", default_value = "etcd")]
    pub(crate) etcd: PathBuf,
    #[command(flatten)]
    pub(crate) shape: LoadShape,
    #[command(flatten)]
    pub(crate) nodes: SpawnArgs,
    /// Write the results here.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Arguments of `compare`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    /// Nodes of each cluster.
    #[arg(long, default_value_t = 1)]
    pub(crate) nodes: usize,
    /// The etcd binary.
    #[arg(long, value_name = "PATH", default_value = "etcd")]
    pub(crate) etcd: PathBuf,
    /// Operations, each measured in turn.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "put,get,sget"
    )]
    pub(crate) op: Vec<OpMix>,
    /// Also measure the latency of one client on one connection.
    #[arg(long)]
    pub(crate) latency: bool,
    #[command(flatten)]
    pub(crate) shape: LoadShape,
    #[command(flatten)]
    pub(crate) spawn: SpawnArgs,
    /// Write the results here.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Arguments of `upkeep`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpkeepArgs {
    /// Nodes of the cluster that is started.
    #[arg(long, default_value_t = 1)]
    pub(crate) nodes: usize,
    /// Revisions that there are before the compaction.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) revisions: i64,
    /// MiB of other keys that are written, and deleted before the vacuum.
    #[arg(long, default_value_t = 256)]
    pub(crate) ballast_mib: usize,
    #[command(flatten)]
    pub(crate) shape: LoadShape,
    #[command(flatten)]
    pub(crate) spawn: SpawnArgs,
    /// Write the results here.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Reads Go's durations (`1h2m3.5s`, `500ms`, `250us`) and plain seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration: write 10s, 1m30s, 500ms, or seconds");
    let seconds = |value: f64| Duration::try_from_secs_f64(value).map_err(|_| bad());
    if let Ok(plain) = text.parse::<f64>() {
        return seconds(plain);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let scale = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        rest = &rest[unit_end..];
        total += number * scale;
    }
    if text.is_empty() {
        return Err(bad());
    }
    seconds(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2.5"), Ok(Duration::from_millis(2500)));
        for bad in ["", "s", "10x", "-1", "1m30", "ten", "1e400", "nan", "."] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn compare_defaults_are_the_targets() {
        let cli = Cli::try_parse_from(["varve-bench", "compare", "--nodes", "3"]).unwrap();
        let Command::Compare(args) = cli.command else {
            panic!("not compare")
        };
        assert_eq!(
            (args.shape.clients, args.shape.conns, args.shape.value_size),
            (1000, 100, 256)
        );
        assert_eq!(args.shape.keys, 100_000);
        assert_eq!(args.op, [OpMix::Put, OpMix::Get, OpMix::Sget]);
        assert!(args.shape.check().is_ok());
    }
}
