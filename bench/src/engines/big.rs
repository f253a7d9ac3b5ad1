//! Data larger than memory: a store is loaded, opened cold, read and updated by
//! processes under a memory limit; then read and updated without one.
//!
//! The program starts itself for each part, so that an open is a cold one and
//! the limit holds for all that the part does, its page cache included.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::BigArgs;
use super::data::{KEY_BYTES, Random, Values, key, sorted};
use super::disk;
use super::group::{self, Group};
use super::row::{self, Change, Row, Snapshot};
use super::size::{Size, status_bytes};
use super::{folder, need_space};
use crate::error::{BenchError, Result};
use crate::machine::{Machine, commit};
use crate::report::grouped;

/// Steps of the load whose rates are told.
const STEPS: u32 = 20;

/// What loading came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Loaded {
    /// Keys per second in each step.
    rates: Vec<f64>,
    /// All of it.
    per_second: f64,
    /// The most anonymous memory after a step, in bytes: the heap.
    heap: u64,
}

/// What reading and updating came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Worked {
    open_ms: f64,
    first_get_ms: f64,
    /// Of all keys, where the engine knows without a walk.
    count_ms: Option<f64>,
    heap_after_open: u64,
    gets_per_second: f64,
    updates_per_second: f64,
    heap: u64,
}

/// Runs `big`, or the part of it that this process was started for.
pub(crate) fn run(args: &BigArgs) -> Result<bool> {
    args.data.check().map_err(BenchError::Usage)?;
    match &args.part {
        None => orchestrate(args),
        Some(part) => run_part(part, args),
    }
}

fn run_part(part: &str, args: &BigArgs) -> Result<bool> {
    if let Some(path) = &args.group {
        group::join(path)?;
    }
    let Some(store) = &args.store else {
        return Err(BenchError::Usage("--part needs --store".into()));
    };
    let result = match part {
        "load" => serde_json::to_string(&load(args, store)?),
        _ => serde_json::to_string(&work(args, store)?),
    };
    let path = result_path(store);
    let written = result
        .map_err(Into::into)
        .and_then(|text| fs::write(&path, text));
    written.map_err(|source| BenchError::Io {
        action: "write",
        path,
        source,
    })?;
    Ok(true)
}

fn result_path(store: &Path) -> PathBuf {
    store.with_extension("result.json")
}

fn load(args: &BigArgs, store: &Path) -> Result<Loaded> {
    let mut row = row::open(&args.row, store, &args.data)?;
    let values = Values::new(args.data.value_size, args.data.compressible);
    let start = Instant::now();
    let mut steps = Steps::new(args.keys);
    if args.bulk {
        row.load_sorted(&mut sorted(args.keys).map(|number| {
            steps.loaded(1);
            let mut value = Vec::with_capacity(values.size());
            values.push(number, 0, &mut value);
            (key(number), value)
        }))?;
    } else {
        let mut next = 0;
        while next < args.keys {
            let end = next.saturating_add(args.data.batch as u32).min(args.keys);
            write(&mut *row, &values, next..end, 0)?;
            steps.loaded(end - next);
            next = end;
        }
        row.finish()?;
    }
    let per_second = f64::from(args.keys) / start.elapsed().as_secs_f64();
    row.close()?;
    let Steps { rates, heap, .. } = steps;
    Ok(Loaded {
        rates,
        per_second,
        heap,
    })
}

/// Tells how a load goes.
struct Steps {
    keys_per_step: u32,
    loaded: u32,
    /// How many there were when the last step ended, and when that was.
    last: (u32, Instant),
    rates: Vec<f64>,
    heap: u64,
}

impl Steps {
    fn new(keys: u32) -> Self {
        Self {
            keys_per_step: keys.div_ceil(STEPS),
            loaded: 0,
            last: (0, Instant::now()),
            rates: Vec::new(),
            heap: 0,
        }
    }

    fn loaded(&mut self, keys: u32) {
        self.loaded += keys;
        let count = self.loaded - self.last.0;
        if count < self.keys_per_step {
            return;
        }
        let rate = f64::from(count) / self.last.1.elapsed().as_secs_f64();
        self.last = (self.loaded, Instant::now());
        self.rates.push(rate);
        let heap = status_bytes("RssAnon");
        self.heap = self.heap.max(heap);
        println!(
            "loaded {:>12}: {:>10} keys/s, heap {} MB",
            grouped(f64::from(self.loaded)),
            grouped(rate.round()),
            heap / 1_000_000
        );
    }
}

fn write(
    row: &mut dyn Row,
    values: &Values,
    numbers: impl Iterator<Item = u32>,
    round: u32,
) -> Result<()> {
    let numbers: Vec<u32> = numbers.collect();
    let mut bytes = Vec::with_capacity(numbers.len() * values.size());
    for number in &numbers {
        values.push(*number, round, &mut bytes);
    }
    let keys: Vec<_> = numbers.iter().map(|number| key(*number)).collect();
    let changes: Vec<_> = keys
        .iter()
        .zip(bytes.chunks(values.size()))
        .map(|(key, value)| Change {
            key,
            value: Some(value),
        })
        .collect();
    row.write(&changes)
}

fn work(args: &BigArgs, store: &Path) -> Result<Worked> {
    let values = Values::new(args.data.value_size, args.data.compressible);
    let limit = Duration::from_secs(args.seconds);
    let start = Instant::now();
    let mut row = row::open(&args.row, store, &args.data)?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    // Different keys each time, or the page cache would know them.
    let mut random = Random::new(u64::from(std::process::id()));
    let (mut first_get_ms, mut count_ms, mut gets_per_second) = (0.0, None, 0.0);
    let heap_after_open = status_bytes("RssAnon");
    row.read(&mut |snapshot| {
        let first = Instant::now();
        get(snapshot, &values, random.below(args.keys))?;
        first_get_ms = first.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        if let Some(count) = snapshot.count()? {
            count_ms = Some(start.elapsed().as_secs_f64() * 1e3);
            if count != u64::from(args.keys) {
                return Err(BenchError::Mismatch(format!("{count} keys were counted")));
            }
        }
        let (start, mut count) = (Instant::now(), 0u64);
        while start.elapsed() < limit {
            for _ in 0..64 {
                get(snapshot, &values, random.below(args.keys))?;
            }
            count += 64;
        }
        gets_per_second = count as f64 / start.elapsed().as_secs_f64();
        Ok(())
    })?;
    let mut heap = heap_after_open.max(status_bytes("RssAnon"));
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < limit {
        let numbers: Vec<_> = (0..args.data.batch)
            .map(|_| random.below(args.keys))
            .collect();
        write(&mut *row, &values, numbers.into_iter(), 1)?;
        count += args.data.batch as u64;
        heap = heap.max(status_bytes("RssAnon"));
    }
    row.finish()?;
    let updates_per_second = count as f64 / start.elapsed().as_secs_f64();
    row.close()?;
    Ok(Worked {
        open_ms,
        first_get_ms,
        count_ms,
        heap_after_open,
        gets_per_second,
        updates_per_second,
        heap,
    })
}

/// Every key is there, with its value as loaded or as updated.
fn get(snapshot: &dyn Snapshot, values: &Values, number: u32) -> Result<()> {
    let mut is_right = false;
    snapshot.get(&key(number), &mut |value| {
        let round = Values::says(value).map_or(0, |(_, round)| round);
        is_right = round <= 1 && values.is(number, round, value);
    })?;
    match is_right {
        true => Ok(()),
        false => Err(BenchError::Mismatch(format!(
            "key {number} has a wrong value"
        ))),
    }
}

fn orchestrate(args: &BigArgs) -> Result<bool> {
    let payload = u64::from(args.keys) * (KEY_BYTES + args.data.value_size) as u64;
    let limit = args.memory_mib.map_or(payload / 4, |mib| mib << 20);
    let base = folder(&args.data)?;
    // Full pages, or pages of any fill and what waits for a checkpoint; logs.
    let most = match args.bulk {
        true => payload * 13 / 10 + (4 << 30),
        false => payload * 5 / 2 + (6 << 30),
    };
    need_space(base.path(), most)?;
    let machine = Machine::describe(Some(base.path()));
    let commit = commit();
    println!(
        "{} ({} cores, {} GiB), Linux {}, {}; commit {commit}",
        machine.cpu, machine.cores, machine.memory_gib, machine.kernel, machine.file_system
    );
    println!(
        "{}: {} keys of {KEY_BYTES} bytes, values of {}, {} MB; limit {} MB, page cache included",
        args.row,
        grouped(f64::from(args.keys)),
        args.data.value_size,
        payload / 1_000_000,
        limit / 1_000_000
    );
    let store = base.path().join("store");
    let group = Group::make(limit)?;
    let loaded: Loaded = part("load", &store, Some(group.path()))?;
    let size = Size::of(&store)?;
    println!(
        "load: {} keys/s; heap {} MB; files {} MB, of which log {} MB",
        grouped(loaded.per_second.round()),
        loaded.heap / 1_000_000,
        size.allocated / 1_000_000,
        size.log / 1_000_000
    );
    evict(&store)?;
    let reads = disk::random_reads(&store)?;
    println!(
        "the disk alone, pages of 4 KiB of the same files at random places: {}/s one at a time, \
         {}/s by {} at a time",
        grouped(reads.one.round()),
        grouped(reads.many.round()),
        disk::MANY
    );
    let limited: Worked = part("work", &store, Some(group.path()))?;
    tell("larger than memory", &limited);
    println!(
        "larger than memory against the disk one at a time: get {:.2} x",
        limited.gets_per_second / reads.one
    );
    drop(group);
    let mut unlimited = None;
    if !args.no_unlimited {
        read_all(&store)?;
        let worked: Worked = part("work", &store, None)?;
        tell("without a limit, files in the page cache", &worked);
        println!(
            "larger than memory against that: get {:.3} x, update {:.3} x",
            limited.gets_per_second / worked.gets_per_second,
            limited.updates_per_second / worked.updates_per_second
        );
        unlimited = Some(worked);
    }
    if let Some(file) = &args.json {
        let all = json!({
            "machine": machine,
            "commit": commit,
            "row": args.row,
            "keys": args.keys,
            "value_size": args.data.value_size,
            "batch": args.data.batch,
            "in_flight": args.data.in_flight,
            "limit_bytes": limit,
            "bulk": args.bulk,
            "disk_reads": reads,
            "size": size,
            "load": loaded,
            "larger_than_memory": limited,
            "unlimited": unlimited,
        });
        crate::report::write_json(file, &all)?;
    }
    Ok(true)
}

fn tell(what: &str, worked: &Worked) {
    println!(
        "{what}: open {:.1} ms, first get {:.1} ms{}, heap after open {} MB; get {}/s, update \
         {}/s, heap at most {} MB",
        worked.open_ms,
        worked.first_get_ms,
        worked
            .count_ms
            .map_or(String::new(), |ms| format!(", count of all {ms:.1} ms")),
        worked.heap_after_open / 1_000_000,
        grouped(worked.gets_per_second.round()),
        grouped(worked.updates_per_second.round()),
        worked.heap / 1_000_000
    );
}

/// Has a process of this program do a part; what it says.
fn part<T: for<'de> Deserialize<'de>>(name: &str, store: &Path, group: Option<&Path>) -> Result<T> {
    let program = std::env::current_exe().map_err(|source| BenchError::Io {
        action: "find",
        path: "this program".into(),
        source,
    })?;
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1));
    command.args(["--part", name]).arg("--store").arg(store);
    if let Some(group) = group {
        command.arg("--group").arg(group);
    }
    let result = result_path(store);
    let io = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| BenchError::Io {
            action,
            path,
            source,
        }
    };
    let status = command.status().map_err(io("run", &program))?;
    if !status.success() {
        return Err(BenchError::Mismatch(format!(
            "part {name} failed: {status}"
        )));
    }
    let text = fs::read_to_string(&result).map_err(io("read", &result))?;
    fs::remove_file(&result).map_err(io("remove", &result))?;
    serde_json::from_str(&text).map_err(|error| io("read", &result)(error.into()))
}

/// Calls `each` with every file below `folder`.
fn files(folder: &Path, each: &mut dyn FnMut(&mut File) -> std::io::Result<()>) -> Result<()> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BenchError::Io {
            action: "read",
            path,
            source,
        }
    };
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        if path.is_dir() {
            files(&path, each)?;
        } else {
            let done = File::open(&path).and_then(|mut file| each(&mut file));
            done.map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// Takes the files out of the page cache.
fn evict(folder: &Path) -> Result<()> {
    files(folder, &mut |file| {
        file.sync_all()?;
        Ok(rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed)?)
    })
}

/// Takes the files into the page cache, as far as memory goes.
fn read_all(folder: &Path) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    files(folder, &mut |file| {
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    })
}
