//! Every setting: its name, default, help, and how its text is read.
//!
//! One table serves the flags, the environment, the config file and `--help`,
//! so that the four can't disagree.

use std::time::Duration;

use varve_engine::backend::Compression;
use varve_raft::InitialCluster;

use super::{ClusterState, Config, Disk, Engine, LogLevel, Url};

/// Where `--help` lists a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// About this member.
    Member,
    /// About the cluster.
    Clustering,
    /// About limits of requests.
    Limits,
    /// About storage.
    Storage,
    /// About logs and the process.
    Process,
}

impl Group {
    pub(super) const ALL: [(Self, &'static str); 5] = [
        (Self::Member, "Member"),
        (Self::Clustering, "Clustering"),
        (Self::Limits, "Limits"),
        (Self::Storage, "Storage"),
        (Self::Process, "Process"),
    ];
}

/// Reads a setting's text into the configuration. The error is what comes after
/// `invalid value "x" for flag -name: `.
type Setter = fn(&mut Config, &str) -> Result<(), String>;

/// One setting.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) default: &'static str,
    /// `{engines}` stands for the names of the storage engines.
    pub(super) help: &'static str,
    pub(super) set: Setter,
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| "parse error".to_owned())
}

/// As Go reads a truth value.
fn boolean(text: &str) -> Result<bool, String> {
    match text.trim() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("parse error".to_owned()),
    }
}

fn positive<T: std::str::FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let value: T = number(text)?;
    if value < T::from(1) {
        return Err("must be greater than 0".to_owned());
    }
    Ok(value)
}

/// Go's notation of a duration, such as `1h30m` or `250ms`; a bare number is nanoseconds.
fn duration(text: &str) -> Result<Duration, String> {
    let malformed = || "parse error".to_owned();
    if let Ok(nanos) = text.parse() {
        return Ok(Duration::from_nanos(nanos));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(malformed)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(malformed()),
        };
        let number: f64 = number.parse().map_err(|_| malformed())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| malformed())?;
        total = total.checked_add(part).ok_or_else(malformed)?;
        rest = tail;
    }
    if text.is_empty() {
        return Err(malformed());
    }
    Ok(total)
}

/// One of a few words.
fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words
        .iter()
        .find(|(known, _)| *known == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("invalid value, expected one of {}", known.join(", "))
        })
}

/// All settings, in the order of `--help`.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        name: "name",
        group: Group::Member,
        default: "default",
        help: "Human-readable name for this member.",
        set: |config, text| {
            config.name = text.to_owned();
            Ok(())
        },
    },
    Setting {
        name: "data-dir",
        group: Group::Member,
        default: "${name}.varve",
        help: "Path to the data directory.",
        set: |config, text| {
            config.data_dir = text.into();
            Ok(())
        },
    },
    Setting {
        name: "wal-dir",
        group: Group::Member,
        default: "",
        help: "Path to a directory for the log alone, such as one on a disk of its own.",
        set: |config, text| {
            config.wal_dir = (!text.is_empty()).then(|| text.into());
            Ok(())
        },
    },
    Setting {
        name: "listen-client-urls",
        group: Group::Member,
        default: "http://localhost:2379",
        help: "List of URLs to listen on for clients: the binary protocol and HTTP on one port.",
        set: |config, text| {
            config.listen_client_urls = Url::parse_list(text)?;
            Ok(())
        },
    },
    Setting {
        name: "listen-peer-urls",
        group: Group::Member,
        default: "http://localhost:2380",
        help: "List of URLs to listen on for other members.",
        set: |config, text| {
            config.listen_peer_urls = Url::parse_list(text)?;
            Ok(())
        },
    },
    Setting {
        name: "heartbeat-interval",
        group: Group::Member,
        default: "100",
        help: "Time (in milliseconds) of a heartbeat interval.",
        set: |config, text| {
            config.heartbeat_ms = number(text)?;
            Ok(())
        },
    },
    Setting {
        name: "election-timeout",
        group: Group::Member,
        default: "1000",
        help: "Time (in milliseconds) for an election to timeout.",
        set: |config, text| {
            config.election_ms = number(text)?;
            Ok(())
        },
    },
    Setting {
        name: "initial-cluster",
        group: Group::Clustering,
        default: "default=http://localhost:2380",
        help: "Members to start a new cluster with: name=peer-URL,name=peer-URL.",
        set: |config, text| {
            config.initial_cluster =
                InitialCluster::parse(text).map_err(|error| error.to_string())?;
            Ok(())
        },
    },
    Setting {
        name: "initial-cluster-state",
        group: Group::Clustering,
        default: "new",
        help: "'new' to start a cluster, 'existing' to join one.\nIgnored once the data directory is initialized.",
        set: |config, text| {
            config.initial_cluster_state = match text {
                "new" => ClusterState::New,
                "existing" => ClusterState::Existing,
                _ => return Err("invalid value".to_owned()),
            };
            Ok(())
        },
    },
    Setting {
        name: "initial-cluster-token",
        group: Group::Clustering,
        default: "etcd-cluster",
        help: "Token that keeps clusters with the same URLs apart; part of every id.",
        set: |config, text| {
            config.initial_cluster_token = text.to_owned();
            Ok(())
        },
    },
    Setting {
        name: "strict-reconfig-check",
        group: Group::Clustering,
        default: "true",
        help: "Refuse changes of the membership that would cost the quorum.",
        set: |config, text| {
            config.strict_reconfig_check = boolean(text)?;
            Ok(())
        },
    },
    Setting {
        name: "auto-heal",
        group: Group::Clustering,
        default: "true",
        help: "If this member's log or store is damaged, set it aside and come back as a\nlearner under a fresh id, which the cluster puts in its place; otherwise\nend and say what is damaged.",
        set: |config, text| {
            config.auto_heal = boolean(text)?;
            Ok(())
        },
    },
    Setting {
        name: "force-new-cluster",
        group: Group::Clustering,
        default: "false",
        help: "Start from this member's data as a cluster of one: keeps keys and revision, takes all\nother members out for good. For when the quorum is lost; only with the others down.",
        set: |config, text| {
            config.force_new_cluster = boolean(text)?;
            Ok(())
        },
    },
    Setting {
        name: "max-learners",
        group: Group::Clustering,
        default: "1",
        help: "Maximum number of learners in the cluster.",
        set: |config, text| {
            config.max_learners = number(text)?;
            Ok(())
        },
    },
    Setting {
        name: "initial-advertise-peer-urls",
        group: Group::Clustering,
        default: "http://localhost:2380",
        help: "List of this member's peer URLs to advertise to the rest of the cluster.",
        set: |config, text| {
            config.advertise_peer_urls = Url::parse_list(text)?;
            Ok(())
        },
    },
    Setting {
        name: "advertise-client-urls",
        group: Group::Clustering,
        default: "http://localhost:2379",
        help: "List of this member's client URLs to advertise to clients.",
        set: |config, text| {
            config.advertise_client_urls = Url::parse_list(text)?;
            Ok(())
        },
    },
    Setting {
        name: "max-request-bytes",
        group: Group::Limits,
        default: "1572864",
        help: "Maximum client request size in bytes the server will accept.",
        set: |config, text| {
            config.max_request_bytes = positive(text)?;
            Ok(())
        },
    },
    Setting {
        name: "max-txn-ops",
        group: Group::Limits,
        default: "128",
        help: "Maximum number of operations permitted in a transaction.",
        set: |config, text| {
            config.max_txn_ops = positive(text)?;
            Ok(())
        },
    },
    Setting {
        name: "max-connections",
        group: Group::Limits,
        default: "10000",
        help: "Maximum number of client connections held at once; further ones are closed.",
        set: |config, text| {
            config.max_connections = positive(text)?;
            Ok(())
        },
    },
    Setting {
        name: "snapshot-count",
        group: Group::Storage,
        default: "10000",
        help: "Number of applied entries between two checkpoints of the store.",
        set: |config, text| {
            config.snapshot_count = positive(text)?;
            Ok(())
        },
    },
    Setting {
        name: "snapshot-catchup-entries",
        group: Group::Storage,
        default: "5000",
        help: "Number of entries kept in the log behind a checkpoint for slow followers.",
        set: |config, text| {
            config.snapshot_catchup_entries = number(text)?;
            Ok(())
        },
    },
    Setting {
        name: "snapshot-rate-limit-mib",
        group: Group::Storage,
        default: "64",
        help: "Rate (in MiB a second) at which snapshots are sent to other members, all together;\n0 is no limit.",
        set: |config, text| {
            config.snapshot_rate_limit_mib = number::<u32>(text)?.into();
            Ok(())
        },
    },
    Setting {
        name: "experimental-initial-corrupt-check",
        group: Group::Storage,
        default: "false",
        help: "Verify the whole store before it is served; a damaged one is not.",
        set: |config, text| {
            config.initial_corrupt_check = boolean(text)?;
            Ok(())
        },
    },
    Setting {
        name: "corrupt-check-time",
        group: Group::Storage,
        default: "500ms",
        help: "How often the members' states are compared by their hashes; 0s is never.",
        set: |config, text| {
            config.corrupt_check_time = duration(text)?;
            Ok(())
        },
    },
    Setting {
        name: "engine",
        group: Group::Storage,
        default: "btree",
        help: "Storage engine, one of those compiled in: {engines}.",
        set: |config, text| {
            config.engine = Engine::named(text)?;
            Ok(())
        },
    },
    Setting {
        name: "disk",
        group: Group::Storage,
        default: "uring",
        help: "Disk access: uring (io_uring; falls back to psync where it is forbidden)\nor psync (pwrite and fdatasync).",
        set: |config, text| {
            config.disk = word(text, &[("uring", Disk::Uring), ("psync", Disk::Psync)])?;
            Ok(())
        },
    },
    Setting {
        name: "value-compression",
        group: Group::Storage,
        default: "none",
        help: "How values of 1 KiB and more are stored from now on: none or lz4. What is stored\nalready is read either way, and members may differ.",
        set: |config, text| {
            let words = [("none", Compression::None), ("lz4", Compression::Lz4)];
            config.value_compression = word(text, &words)?;
            Ok(())
        },
    },
    Setting {
        name: "scrub-interval",
        group: Group::Storage,
        default: "24h",
        help: "Time in which all that is on the disk is read and verified once, beside\neverything else. 0 to disable.",
        set: |config, text| {
            config.scrub_interval = duration(text)?;
            Ok(())
        },
    },
    Setting {
        name: "workers",
        group: Group::Process,
        default: "2",
        help: "Number of threads that serve sockets.",
        set: |config, text| {
            config.workers = positive::<u16>(text)?;
            Ok(())
        },
    },
    Setting {
        name: "watch-progress-notify-interval",
        group: Group::Process,
        default: "10m",
        help: "How often an idle watch that asked for it is told how far it has come.",
        set: |config, text| {
            config.watch_progress_interval = duration(text)?;
            Ok(())
        },
    },
    Setting {
        name: "log-level",
        group: Group::Process,
        default: "info",
        help: "Least severe level that is logged: debug, info, warn, error, panic, or fatal.",
        set: |config, text| {
            config.log_level = word(
                text,
                &[
                    ("debug", LogLevel::Debug),
                    ("info", LogLevel::Info),
                    ("warn", LogLevel::Warn),
                    ("error", LogLevel::Error),
                    ("dpanic", LogLevel::Error),
                    ("panic", LogLevel::Error),
                    ("fatal", LogLevel::Error),
                ],
            )
            .map_err(|_| format!("unrecognized level: {text:?}"))?;
            Ok(())
        },
    },
];

/// Settings that a bare flag turns on.
pub(super) const SWITCHES: &[&str] = &[
    "strict-reconfig-check",
    "auto-heal",
    "force-new-cluster",
    "experimental-initial-corrupt-check",
];

/// The setting with this name.
pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            ("250ms", 250),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("600000000000"), Ok(Duration::from_secs(600)));
        let too_long = "5000000000000000h5000000000000000h";
        for text in ["", "x", "1.2.3s", "10q", "-1s", "s", too_long] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
