//! Settings of a node: flags over environment over config file over defaults,
//! by etcd's names and with etcd's checks.

mod env;
mod file;
mod flags;
mod help;
mod options;
mod urls;
mod validate;

use std::path::PathBuf;
use std::time::Duration;

pub use urls::{Scheme, Url, join};
use varve_engine::backend::{self, Compression};
use varve_raft::InitialCluster;

/// Exit code of an error in the flags.
pub const EXIT_FLAGS: u8 = 2;
/// Exit code of a node that could not start.
pub const EXIT_START: u8 = 1;

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The command line can't be read.
    #[error("{0}")]
    Flag(String),
    /// A variable's value can't be read.
    #[error("invalid value {value:?} for {variable}: {why}")]
    Environment {
        /// The variable.
        variable: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The config file can't be read.
    #[error("config file {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The settings contradict each other.
    #[error("{0}")]
    Invalid(String),
}

impl ConfigError {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag(_) => EXIT_FLAGS,
            _ => EXIT_START,
        }
    }
}

/// `--initial-cluster-state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Start a cluster.
    New,
    /// Join one.
    Existing,
}

/// `--engine`: one of those that are compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Engine(&'static str);

impl Engine {
    /// The engine of that name, or the names that there are.
    pub fn named(text: &str) -> Result<Self, String> {
        let known = backend::NAMES.iter().find(|name| **name == text);
        known.map(|name| Self(name)).ok_or_else(|| {
            format!(
                "invalid value, expected one of {}",
                backend::NAMES.join(", ")
            )
        })
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self(backend::NAMES[0])
    }
}

/// `--disk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// io_uring.
    Uring,
    /// pwrite and fdatasync.
    Psync,
}

/// `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What an operator should look at.
    Warn,
    /// What failed.
    Error,
}

/// The settings of a node.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // Each is the flag of its name; `--help` describes them.
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    pub wal_dir: Option<PathBuf>,
    pub listen_client_urls: Vec<Url>,
    pub listen_peer_urls: Vec<Url>,
    pub advertise_client_urls: Vec<Url>,
    pub advertise_peer_urls: Vec<Url>,
    pub initial_cluster: InitialCluster,
    pub initial_cluster_state: ClusterState,
    pub initial_cluster_token: String,
    pub strict_reconfig_check: bool,
    pub auto_heal: bool,
    pub max_learners: u16,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    pub snapshot_count: u64,
    /// `--scrub-interval`.
    pub scrub_interval: Duration,
    pub snapshot_catchup_entries: u64,
    /// Whether this member goes on alone with what it has.
    pub force_new_cluster: bool,
    /// Whether the whole store is verified before it is served.
    pub initial_corrupt_check: bool,
    /// How often the members' states are compared; zero for never.
    pub corrupt_check_time: Duration,
    /// Rate at which snapshots are sent to other members, in MiB a second; 0 is no limit.
    pub snapshot_rate_limit_mib: u64,
    pub max_request_bytes: u32,
    pub max_txn_ops: u32,
    pub max_connections: u32,
    pub engine: Engine,
    pub disk: Disk,
    pub value_compression: Compression,
    pub workers: u16,
    pub watch_progress_interval: Duration,
    pub log_level: LogLevel,
    /// Whether the operator named the cluster (`--initial-cluster`), so that
    /// the data directory can be held against it.
    pub cluster_given: bool,
    /// Whether the operator gave `--initial-cluster-token`.
    pub token_given: bool,
    /// What should be said once logging works.
    pub warnings: Vec<String>,
}

impl Config {
    /// How long a request may take before it is answered with a timeout: 5 s
    /// for a queue and a slow disk and two elections, as in etcd.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(5_000 + 2 * self.election_ms)
    }

    fn blank() -> Self {
        Self {
            name: String::new(),
            data_dir: PathBuf::new(),
            wal_dir: None,
            listen_client_urls: Vec::new(),
            listen_peer_urls: Vec::new(),
            advertise_client_urls: Vec::new(),
            advertise_peer_urls: Vec::new(),
            initial_cluster: InitialCluster::single("", String::new()),
            initial_cluster_state: ClusterState::New,
            initial_cluster_token: String::new(),
            strict_reconfig_check: true,
            auto_heal: true,
            max_learners: 0,
            heartbeat_ms: 0,
            election_ms: 0,
            snapshot_count: 0,
            scrub_interval: Duration::ZERO,
            snapshot_catchup_entries: 0,
            snapshot_rate_limit_mib: 0,
            corrupt_check_time: Duration::ZERO,
            force_new_cluster: false,
            initial_corrupt_check: false,
            max_request_bytes: 0,
            max_txn_ops: 0,
            max_connections: 0,
            engine: Engine::default(),
            disk: Disk::Uring,
            value_compression: Compression::None,
            workers: 0,
            watch_progress_interval: Duration::ZERO,
            log_level: LogLevel::Info,
            cluster_given: false,
            token_given: false,
            warnings: Vec::new(),
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run a node.
    Run(Box<Config>),
    /// Print this and end.
    Print(String),
}

/// Reads the command line (without the program's name), the environment and the
/// config file, and checks what they say.
pub fn load(
    arguments: &[String],
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Invocation, ConfigError> {
    let flags = flags::parse(arguments)?;
    if flags.help {
        return Ok(Invocation::Print(help::usage()));
    }
    if flags.version {
        return Ok(Invocation::Print(help::version()));
    }
    let environment = env::read(variables);
    let path = flags
        .config_file
        .or(environment.config_file)
        .map(PathBuf::from);
    let from_file = match &path {
        Some(path) => file::read(path)?,
        None => Vec::new(),
    };

    let mut config = Config::blank();
    let mut given = Vec::new();
    for setting in options::SETTINGS {
        // A default that its own setter refuses is a mistake in the table; a test sets all.
        (setting.set)(&mut config, setting.default).map_err(ConfigError::Invalid)?;
    }
    let mut apply = |name: &'static str, text: &str| {
        given.push(name);
        match options::find(name) {
            Some(setting) => (setting.set)(&mut config, text),
            None => Ok(()),
        }
    };
    for (name, text) in &from_file {
        apply(name, text).map_err(|why| ConfigError::File {
            path: path.clone().unwrap_or_default(),
            why: format!("invalid value {text:?} for {name}: {why}"),
        })?;
    }
    for (name, text) in &environment.settings {
        apply(name, text).map_err(|why| ConfigError::Environment {
            variable: env::variable(name),
            value: text.clone(),
            why,
        })?;
    }
    for (name, text) in &flags.settings {
        apply(name, text).map_err(|why| {
            ConfigError::Flag(format!("invalid value {text:?} for flag -{name}: {why}"))
        })?;
    }
    config.warnings = environment
        .unknown
        .iter()
        .map(|name| format!("unrecognized environment variable {name}"))
        .collect();
    finish(&mut config, &given)?;
    validate::settings(&config, &given)?;
    Ok(Invocation::Run(Box::new(config)))
}

/// Defaults that follow from other settings.
fn finish(config: &mut Config, given: &[&str]) -> Result<(), ConfigError> {
    if !given.contains(&"data-dir") {
        config.data_dir = format!("{}.varve", config.name).into();
    }
    config.cluster_given = given.contains(&"initial-cluster");
    config.token_given = given.contains(&"initial-cluster-token");
    if !config.cluster_given {
        let pairs: Vec<_> = config
            .advertise_peer_urls
            .iter()
            .map(|url| format!("{}={url}", config.name))
            .collect();
        config.initial_cluster = InitialCluster::parse(&pairs.join(","))
            .map_err(|error| ConfigError::Invalid(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use varve_engine::backend::conformance::Random;

    use super::*;

    fn run(line: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let variables = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        match load(&arguments, variables).map_err(|error| error.to_string())? {
            Invocation::Run(config) => Ok(*config),
            Invocation::Print(text) => Err(text),
        }
    }

    #[test]
    fn defaults() {
        let config = run("", &[]).unwrap();
        assert_eq!(config.name, "default");
        assert_eq!(config.data_dir, PathBuf::from("default.varve"));
        assert_eq!(join(&config.listen_client_urls), "http://localhost:2379");
        assert_eq!(
            config.initial_cluster.to_string(),
            "default=http://localhost:2380"
        );
        assert_eq!((config.heartbeat_ms, config.election_ms), (100, 1000));
        assert_eq!(
            (config.snapshot_count, config.snapshot_catchup_entries),
            (10_000, 5_000)
        );
        assert_eq!(config.max_request_bytes, 1_572_864);
        assert_eq!(config.request_timeout(), Duration::from_secs(7));
        assert!(!config.cluster_given);
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "name: from-file\nheartbeat-interval: 10\nelection-timeout: 100\n",
        )
        .unwrap();
        let path = file.path().display();
        let config = run(
            &format!("-config-file {path} --name from-flag"),
            &[
                ("VARVE_NAME", "from-env"),
                ("VARVE_HEARTBEAT_INTERVAL", "20"),
                ("VARVE_X", ""),
            ],
        )
        .unwrap();
        assert_eq!(config.name, "from-flag");
        assert_eq!((config.heartbeat_ms, config.election_ms), (20, 100));
        assert_eq!(config.data_dir, PathBuf::from("from-flag.varve"));
        assert_eq!(
            config.warnings,
            ["unrecognized environment variable VARVE_X"]
        );
    }

    #[test]
    fn values_are_refused_with_their_source() {
        assert_eq!(
            run("--heartbeat-interval abc", &[]).unwrap_err(),
            "invalid value \"abc\" for flag -heartbeat-interval: parse error"
        );
        assert_eq!(
            run("", &[("VARVE_HEARTBEAT_INTERVAL", "abc")]).unwrap_err(),
            "invalid value \"abc\" for VARVE_HEARTBEAT_INTERVAL: parse error"
        );
        assert!(
            run("--initial-cluster-state bad", &[])
                .unwrap_err()
                .starts_with(
                    "invalid value \"bad\" for flag -initial-cluster-state: invalid value"
                )
        );
        assert!(
            run("--config-file /no/such/file", &[])
                .unwrap_err()
                .contains("/no/such/file")
        );
    }

    /// Values are put together from pieces that mean something to one of the parsers.
    #[test]
    fn whatever_is_given_is_taken_or_refused() {
        let pieces = [
            "http://",
            "https://",
            "unix://",
            "127.0.0.1",
            "[::1",
            "]",
            ":",
            "2380",
            "99999",
            ",",
            "=",
            "n1",
            "/",
            "?",
            "-1",
            "18446744073709551616",
            "1e9",
            "5s",
            "h",
            "true",
            "é",
            "%00",
            "\0",
            " ",
            "new",
            "[",
            "{a: b}",
            "\"",
            "*x",
            "&x",
            "!!",
            "\n",
            "- ",
            "a: ",
        ];
        let mut random = Random::new(1);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let setting = &options::SETTINGS[random.below(options::SETTINGS.len())];
            let parts = (0..random.below(6)).map(|_| pieces[random.below(pieces.len())]);
            let value: String = parts.collect();
            let variable = (env::variable(setting.name), value.clone());
            let flag = [format!("--{}={value}", setting.name)];
            let none = std::iter::empty::<(String, String)>;
            for outcome in [load(&flag, none()), load(&[], [variable].into_iter())] {
                match outcome {
                    Ok(_) => taken += 1,
                    Err(_) => refused += 1,
                }
            }
            let _ = file::parse(&format!("{}: {value}", setting.name));
            let _ = file::parse(&value);
        }
        assert!(
            taken > 1000 && refused > 1000,
            "{taken} taken, {refused} refused"
        );
    }
}
