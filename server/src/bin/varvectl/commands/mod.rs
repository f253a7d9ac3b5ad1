//! One file per command.

mod alarm;
mod compaction;
mod defrag;
pub(crate) mod del;
mod endpoint;
pub(crate) mod get;
pub(crate) mod inspect;
mod member;
mod move_leader;
pub(crate) mod put;
mod snapshot;
mod space;
mod txn;
mod version;
mod watch;
mod watch_args;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use varve_types::KeyRange;

use crate::cli::Command;
use crate::failure::Failure;
use crate::settings::Settings;

/// Runs a command.
pub(crate) async fn run(command: Command, settings: Settings) -> Result<(), Failure> {
    match command {
        Command::Get(args) => get::run(&args, &settings).await,
        Command::Put(args) => put::run(&args, &settings).await,
        Command::Del(args) => del::run(&args, &settings).await,
        Command::Txn(args) => txn::run(&args, &settings).await,
        Command::Compaction(args) => compaction::run(&args, &settings).await,
        Command::Watch(args) => watch::run(args, &settings).await,
        Command::Endpoint(args) => endpoint::run(&args, &settings).await,
        Command::Alarm(args) => alarm::run(&args, &settings).await,
        Command::Defrag(args) => defrag::run(&args, &settings).await,
        Command::Space(args) => space::run(&args, &settings).await,
        Command::Member(args) => member::run(&args, &settings).await,
        Command::MoveLeader(args) => move_leader::run(&args, &settings).await,
        Command::Snapshot(args) => snapshot::run(&args, &settings).await,
        Command::Inspect(args) => inspect::run(&args, &settings),
        Command::Version => version::run(),
    }
}

/// The keys that `get` and `del` take: a key with an optional range end, a prefix, or a first key.
fn keys_of(args: &[OsString], prefix: bool, from_key: bool) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    if prefix && from_key {
        return Err(Failure::bad_args(
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
        ));
    }
    let key = args.first().map_or(&b""[..], |key| key.as_bytes());
    let range_end = args.get(1).map(|end| end.as_bytes());
    if range_end.is_some() && (prefix || from_key) {
        return Err(Failure::bad_args(
            "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
        ));
    }
    Ok(match (prefix || from_key, key) {
        (false, key) => (key.to_vec(), range_end.unwrap_or_default().to_vec()),
        (true, []) => (vec![0], vec![0]),
        (true, key) if prefix => (key.to_vec(), KeyRange::prefix_end(key)),
        (true, key) => (key.to_vec(), vec![0]),
    })
}

/// The value of `--consistency`: whether to read linearizably.
fn is_linearizable(consistency: &str) -> Result<bool, Failure> {
    match consistency {
        "l" => Ok(true),
        "s" => Ok(false),
        other => Err(Failure::new(
            crate::failure::EXIT_BAD_FEATURE,
            format!(
                "unknown consistency flag {}",
                crate::go_format::quote(other.as_bytes())
            ),
        )),
    }
}
