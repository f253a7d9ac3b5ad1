//! `inspect`: what is in a store's file and in a log, without a node. Everything is
//! opened for reading; nothing is changed, whatever is found.

mod check;
mod log;
mod store;
mod target;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::failure::{EXIT_BAD_FEATURE, EXIT_ERROR, Failure};
use crate::go_format::quote;
use crate::output::to_stdout;
use crate::printer::Format;
use crate::settings::Settings;

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(subcommand)]
    command: InspectCommand,
}

#[derive(Debug, Subcommand)]
enum InspectCommand {
    /// Both meta pages of a store: which one counts, and why
    Meta(TargetArgs),
    /// One page of a store: header, checksum, keys
    Page(PageArgs),
    /// The trees of a store: depth, pages, how full they are, sums
    Tree(TreeArgs),
    /// The log: segments and records
    Wal(WalArgs),
    /// Verifies all of it: checksums, order, sums, free space, revisions, the log's chain.
    /// Ends with 1 if anything is damaged
    Check(TargetArgs),
}

/// What is looked at.
#[derive(Debug, Args)]
struct TargetArgs {
    /// A data directory, or a store's file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Directory of the log, if it is not in the data directory
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
}

/// Arguments of `inspect page`.
#[derive(Debug, Args)]
struct PageArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Its number
    #[arg(value_name = "NUMBER")]
    number: u64,
}

/// Arguments of `inspect tree`.
#[derive(Debug, Args)]
struct TreeArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Only this one: meta, latest, dead, log, or a number
    #[arg(long, value_name = "NAME")]
    tree: Option<String>,
}

/// Arguments of `inspect wal`.
#[derive(Debug, Args)]
struct WalArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// First index to show (of a log without Raft: first lsn)
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Most records to show, 0 for all
    #[arg(long, default_value_t = 0)]
    limit: u64,
    /// Only the segments
    #[arg(long)]
    segments: bool,
}

pub(super) fn run(args: &InspectArgs, settings: &Settings) -> Result<(), Failure> {
    let out = Out::new(settings)?;
    match &args.command {
        InspectCommand::Meta(args) => store::meta(args, &out),
        InspectCommand::Page(args) => store::page(args, &out),
        InspectCommand::Tree(args) => store::tree(args, &out),
        InspectCommand::Wal(args) => log::wal(args, &out),
        InspectCommand::Check(args) => check::check(args, &out),
    }
}

/// How to print.
struct Out {
    json: bool,
    hex: bool,
}

impl Out {
    fn new(settings: &Settings) -> Result<Self, Failure> {
        let printer = settings.printer()?;
        let json = match printer.format {
            Format::Simple { .. } => false,
            Format::Json => true,
            Format::Fields | Format::Table => {
                let message = "inspect prints the formats simple and json";
                return Err(Failure::new(EXIT_BAD_FEATURE, message));
            }
        };
        let hex = printer.hex;
        Ok(Self { json, hex })
    }

    /// Bytes as text: escaped as Go does it, or in hex.
    fn text(&self, bytes: &[u8]) -> String {
        match self.hex {
            true => hex(bytes),
            false => quote(bytes),
        }
    }

    /// Writes the one or the other.
    fn print(&self, simple: &str, json: impl FnOnce() -> Value) -> Result<(), Failure> {
        match self.json {
            true => to_stdout(format!("{}\n", json()).as_bytes()),
            false => to_stdout(simple.as_bytes()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A byte string in JSON: as in etcd's, base64 would hide what one looks for.
fn json_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => serde_json::json!({ "hex": hex(bytes) }),
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(EXIT_ERROR, error)
}
