//! Storage engines side by side, in this process: Varve's behind its log, and
//! its peers through their own interfaces.

pub(crate) mod args;
pub(crate) mod big;
mod data;
mod disk;
#[cfg(feature = "engines")]
mod fjall;
mod group;
#[cfg(feature = "engines")]
mod lmdb;
mod measure;
#[cfg(feature = "engines")]
mod redb;
mod row;
mod size;
mod table;
mod targets;
mod varve;

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use self::args::{DataArgs, EnginesArgs};
use self::measure::{Outcome, Plan, SCAN, measure};
use self::row::KINDS;
use crate::error::{BenchError, Result};
use crate::machine::{Machine, commit};
use crate::report::grouped;

/// A folder that goes when it is dropped.
fn folder(args: &DataArgs) -> Result<TempDir> {
    let made = match &args.dir {
        Some(dir) => TempDir::with_prefix_in("varve-engines-", dir),
        None => TempDir::with_prefix("varve-engines-"),
    };
    made.map_err(|source| BenchError::Io {
        action: "make a folder in",
        path: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        source,
    })
}

/// Fails if fewer bytes than this are free where `path` is.
fn need_space(path: &Path, bytes: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(path).map_err(|error| BenchError::Io {
        action: "ask for the free space at",
        path: path.to_owned(),
        source: error.into(),
    })?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < bytes {
        return Err(BenchError::Usage(format!(
            "{} has {} MB free, but up to {} MB are needed: choose fewer --keys or another --dir",
            path.display(),
            free / 1_000_000,
            bytes / 1_000_000
        )));
    }
    Ok(())
}

/// The rows that were asked for.
fn names(args: &EnginesArgs) -> Vec<String> {
    let all = KINDS.iter().map(|kind| kind.name.to_owned());
    let mut names: Vec<String> = match args.only.is_empty() {
        true => all.collect(),
        false => args.only.clone(),
    };
    names.extend(args.engine.iter().map(|engine| format!("varve-{engine}")));
    names
}

/// Runs `engines`; whether all answers were right (targets are told, not held).
pub(crate) fn run(args: &EnginesArgs) -> Result<bool> {
    args.check().map_err(BenchError::Usage)?;
    let base = folder(&args.data)?;
    let payload = u64::from(args.keys) * (19 + args.data.value_size as u64);
    // History, an LSM tree before its compaction, and logs.
    need_space(base.path(), payload * 12 + (4 << 30))?;
    let machine = Machine::describe(Some(base.path()));
    let commit = commit();
    print_head(args, &machine, &commit);

    let plan = Plan::new(args);
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut failed = None;
    for name in names(args) {
        match one(&name, base.path(), &plan) {
            Ok(outcome) => {
                eprintln!("{}", table::line(&outcome));
                outcomes.push(outcome);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }

    table::print(&outcomes);
    let verdicts = targets::verdicts(&outcomes, args.keys, args.data.value_size);
    println!();
    for verdict in &verdicts {
        println!("{}", verdict.line());
    }
    // What was measured until then is told all the same.
    if let Some(error) = failed {
        return Err(error);
    }
    if let Some(file) = &args.json {
        let all = json!({
            "machine": machine,
            "commit": commit,
            "keys": args.keys,
            "key_bytes": data::KEY_BYTES,
            "value_size": args.data.value_size,
            "compressible": args.data.compressible,
            "batch": args.data.batch,
            "rounds": args.rounds,
            "scans": args.scans,
            "scan_entries": SCAN,
            "touch_mib": args.touch_mib,
            "rest_seconds": args.rest_seconds,
            "in_flight": args.data.in_flight,
            "cache_mib": args.data.cache_mib,
            "checkpoint_log_mib": args.data.checkpoint_log_mib,
            "rows": outcomes,
            "targets": verdicts,
        });
        crate::report::write_json(file, &all)?;
    }
    Ok(true)
}

/// Measures the row `name` in a folder of its own, and removes that.
fn one(name: &str, base: &Path, plan: &Plan<'_>) -> Result<Outcome> {
    let path = base.join(name);
    let progress = |step: &str| eprintln!("{name}: {step}");
    progress("bulk load");
    let bulk = measure::bulk_load(row::open(name, &path, &plan.args.data)?, &path, plan)?;
    remove(&path)?;
    let row = row::open(name, &path, &plan.args.data)?;
    let outcome = measure(name, row, &path, plan, bulk, &progress)?;
    remove(&path)?;
    Ok(outcome)
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_dir_all(path).map_err(|source| BenchError::Io {
        action: "remove",
        path: path.to_owned(),
        source,
    })?;
    // What one left for the kernel to write must not slow the next.
    rustix::fs::sync();
    Ok(())
}

fn print_head(args: &EnginesArgs, machine: &Machine, commit: &str) {
    println!(
        "{} ({} cores, {} GiB), Linux {}, {}; commit {commit}",
        machine.cpu, machine.cores, machine.memory_gib, machine.kernel, machine.file_system
    );
    println!(
        "{} random keys of 19 bytes, {} values of {} bytes, {} per batch, one thread; \
         {} rounds of updates; gets and scans after them, from one snapshot; every value compared",
        grouped(f64::from(args.keys)),
        match args.data.compressible {
            true => "compressible",
            false => "random",
        },
        args.data.value_size,
        grouped(args.data.batch as f64),
        args.rounds,
    );
    println!(
        "btree, memory, varve: up to {} batches on their way, a checkpoint every {} MiB of log, \
         threads of their own for log, applying and checkpoints; redb, fjall: {} MiB of cache, \
         fjall also threads of its own; {} MiB of memory used and let go before each load and \
         update; rested: {} s after the load",
        args.data.in_flight,
        args.data.checkpoint_log_mib,
        args.data.cache_mib,
        args.touch_mib,
        args.rest_seconds
    );
    println!();
}
