//! The measurement of one row, step by step. Everything that is read is compared
//! with what was written.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::EnginesArgs;
use super::data::{self, Key, Random, Values, key, shuffled};
use super::row::{Change, Row, Snapshot};
use super::size::{Size, written_bytes};
use crate::error::{BenchError, Result};
use crate::machine::touch_memory;

/// Entries of a scan.
pub(crate) const SCAN: u32 = 100;

/// From the first key on. LMDB has no empty key to begin with.
const FIRST: &[u8] = b"\0";

/// How fast something was.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Rate {
    /// Keys, or entries.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// Bytes that the process wrote to disk meanwhile, for each byte of keys and values.
    pub(crate) write_amplification: f64,
}

/// What one row came to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    pub(crate) row: String,
    pub(crate) durability: &'static str,
    pub(crate) load: Rate,
    pub(crate) update: Rate,
    pub(crate) get: Rate,
    pub(crate) scan: Rate,
    pub(crate) old_get: Option<Rate>,
    pub(crate) delete: Rate,
    /// Sorted keys into an empty store, in the way that the engine offers for that.
    pub(crate) bulk: Rate,
    pub(crate) size_loaded: Size,
    /// Left alone for a while after that.
    pub(crate) size_rested: Size,
    pub(crate) size_updated: Size,
    /// After the compaction that is named.
    pub(crate) size_compacted: Option<Size>,
    pub(crate) compaction: Option<&'static str>,
    pub(crate) compaction_seconds: f64,
    /// After the bulk load.
    pub(crate) size_bulk: Size,
}

/// The keys, and the orders in which they are used: the same for all rows.
pub(crate) struct Plan<'a> {
    pub(crate) args: &'a EnginesArgs,
    pub(crate) values: Values,
    keys: Vec<Key>,
    /// The keys that have enough after them for a scan, sorted.
    sorted: Vec<Key>,
    gets: Vec<u32>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(args: &'a EnginesArgs) -> Self {
        let keys: Vec<Key> = (0..args.keys).map(key).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        Self {
            args,
            values: Values::new(args.data.value_size, args.data.compressible),
            keys,
            sorted,
            gets: shuffled(args.keys, 1000),
        }
    }

    fn payload_bytes(&self) -> u64 {
        (data::KEY_BYTES + self.values.size()) as u64
    }
}

/// Counts time and bytes written from its making on.
struct Clock {
    start: Instant,
    written: u64,
}

impl Clock {
    fn start() -> Self {
        let written = written_bytes();
        Self {
            start: Instant::now(),
            written,
        }
    }

    fn stop(self, count: u64, payload_bytes: u64) -> Rate {
        let seconds = self.start.elapsed().as_secs_f64();
        let written = written_bytes().saturating_sub(self.written);
        Rate {
            count,
            seconds,
            per_second: count as f64 / seconds,
            write_amplification: written as f64 / (count * payload_bytes).max(1) as f64,
        }
    }
}

/// Measures the open, empty `row`, whose files are in `folder`, and what a bulk load
/// came to.
pub(crate) fn measure(
    name: &str,
    mut row: Box<dyn Row>,
    folder: &Path,
    plan: &Plan<'_>,
    (bulk, size_bulk): (Rate, Size),
    progress: &dyn Fn(&str),
) -> Result<Outcome> {
    let payload = plan.payload_bytes();
    let keys = u64::from(plan.args.keys);

    progress("load");
    touch_memory(plan.args.touch_mib << 20);
    let clock = Clock::start();
    write(&mut *row, plan, 0..plan.args.keys, Some(0))?;
    let load = clock.stop(keys, payload);
    verify(&*row, plan, 0)?;
    let has_revisions = row.mark_revision();
    row.checkpoint()?;
    let size_loaded = Size::of(folder)?;
    std::thread::sleep(Duration::from_secs(plan.args.rest_seconds));
    let size_rested = Size::of(folder)?;

    progress("update");
    touch_memory(plan.args.touch_mib << 20);
    let orders =
        (1..=plan.args.rounds).map(|round| (round, shuffled(plan.args.keys, round.into())));
    let orders: Vec<_> = orders.collect();
    let clock = Clock::start();
    for (round, order) in &orders {
        write(&mut *row, plan, order.iter().copied(), Some(*round))?;
    }
    let update = clock.stop(keys * u64::from(plan.args.rounds), payload);
    verify(&*row, plan, plan.args.rounds)?;
    row.checkpoint()?;
    let size_updated = Size::of(folder)?;

    progress("get");
    let mut get = None;
    row.read(&mut |snapshot| {
        let clock = Clock::start();
        gets(snapshot, plan, plan.args.rounds)?;
        get = Some(clock.stop(keys, payload));
        Ok(())
    })?;
    progress("scan");
    let mut scan = None;
    row.read(&mut |snapshot| {
        let clock = Clock::start();
        let entries = scans(snapshot, plan)?;
        scan = Some(clock.stop(entries, payload));
        Ok(())
    })?;
    let mut old_get = None;
    if has_revisions {
        progress("old get");
        row.read_marked(&mut |snapshot| {
            let clock = Clock::start();
            gets(snapshot, plan, 0)?;
            old_get = Some(clock.stop(keys, payload));
            Ok(())
        })?;
    }

    progress("compact");
    let start = Instant::now();
    let compaction = row.compact()?;
    let compaction_seconds = start.elapsed().as_secs_f64();
    let size_compacted = match compaction {
        Some(_) => Some(Size::of(folder)?),
        None => None,
    };
    verify(&*row, plan, plan.args.rounds)?;
    row.check()?;

    progress("delete");
    let order = shuffled(plan.args.keys, 2000);
    let clock = Clock::start();
    write(&mut *row, plan, order.iter().copied(), None)?;
    let delete = clock.stop(keys, payload);
    verify_empty(&*row)?;
    let durability = row.durability();
    row.close()?;
    let missing = || BenchError::Mismatch("a snapshot was not read".to_owned());
    Ok(Outcome {
        row: name.to_owned(),
        durability,
        load,
        update,
        get: get.ok_or_else(missing)?,
        scan: scan.ok_or_else(missing)?,
        old_get,
        delete,
        bulk,
        size_loaded,
        size_rested,
        size_updated,
        size_compacted,
        compaction,
        compaction_seconds,
        size_bulk,
    })
}

/// Measures a bulk load into the open, empty `row`, whose files are in `folder`.
pub(crate) fn bulk_load(
    mut row: Box<dyn Row>,
    folder: &Path,
    plan: &Plan<'_>,
) -> Result<(Rate, Size)> {
    // Not part of what is measured.
    let numbers: Vec<u32> = data::sorted(plan.args.keys).collect();
    touch_memory(plan.args.touch_mib << 20);
    let clock = Clock::start();
    row.load_sorted(&mut numbers.iter().map(|number| {
        let mut value = Vec::with_capacity(plan.values.size());
        plan.values.push(*number, 0, &mut value);
        (plan.keys[*number as usize], value)
    }))?;
    let rate = clock.stop(numbers.len() as u64, plan.payload_bytes());
    verify(&*row, plan, 0)?;
    row.checkpoint()?;
    row.check()?;
    let size = Size::of(folder)?;
    row.close()?;
    Ok((rate, size))
}

/// Writes the keys with these numbers, batch by batch: the values of `round`, or
/// deletions.
fn write(
    row: &mut dyn Row,
    plan: &Plan<'_>,
    mut numbers: impl Iterator<Item = u32>,
    round: Option<u32>,
) -> Result<()> {
    let (batch, size) = (plan.args.data.batch, plan.values.size());
    let mut chosen = Vec::with_capacity(batch);
    let mut bytes = Vec::with_capacity(batch * size);
    loop {
        chosen.clear();
        chosen.extend(numbers.by_ref().take(batch));
        if chosen.is_empty() {
            return row.finish();
        }
        bytes.clear();
        if let Some(round) = round {
            for number in &chosen {
                plan.values.push(*number, round, &mut bytes);
            }
        }
        let changes: Vec<_> = chosen
            .iter()
            .enumerate()
            .map(|(at, number)| Change {
                key: &plan.keys[*number as usize],
                value: round.map(|_| &bytes[at * size..(at + 1) * size]),
            })
            .collect();
        row.write(&changes)?;
    }
}

fn gets(snapshot: &dyn Snapshot, plan: &Plan<'_>, round: u32) -> Result<()> {
    for number in &plan.gets {
        let mut is_right = false;
        snapshot.get(&plan.keys[*number as usize], &mut |value| {
            is_right = plan.values.is(*number, round, value);
        })?;
        if !is_right {
            return Err(BenchError::Mismatch(format!(
                "key {number} does not have its value of round {round}"
            )));
        }
    }
    Ok(())
}

/// Scans from random keys, each of which has enough after it; the entries.
fn scans(snapshot: &dyn Snapshot, plan: &Plan<'_>) -> Result<u64> {
    let mut random = Random::new(3000);
    let starts = plan.args.keys - SCAN;
    let value_bytes = plan.values.size();
    for _ in 0..plan.args.scans {
        let start = random.below(starts) as usize;
        let (mut seen, mut is_right) = (0, true);
        let mut last: Key = [0; data::KEY_BYTES];
        snapshot.scan(&plan.sorted[start], SCAN as usize, &mut |key, value| {
            seen += 1;
            is_right &= value.len() == value_bytes;
            if let Ok(key) = key.try_into() {
                last = key;
            }
        })?;
        // The last one is where it must be only if those before it were.
        if !is_right || seen != SCAN || last != plan.sorted[start + SCAN as usize - 1] {
            return Err(BenchError::Mismatch(format!(
                "a scan from sorted key {start} gave {seen} entries, or wrong ones"
            )));
        }
    }
    Ok(u64::from(plan.args.scans) * u64::from(SCAN))
}

/// Reads everything: every key is there, in order, with its value of `round`.
fn verify(row: &dyn Row, plan: &Plan<'_>, round: u32) -> Result<()> {
    row.read(&mut |snapshot| {
        let mut expected = plan.sorted.iter();
        let mut wrong = None;
        snapshot.scan(FIRST, usize::MAX, &mut |key, value| {
            let is_next = expected.next().is_some_and(|expected| expected == key);
            let number = Values::says(value).map_or(u32::MAX, |(number, _)| number);
            let is_own = plan.keys.get(number as usize).is_some_and(|own| own == key);
            if !(is_next && is_own && plan.values.is(number, round, value)) {
                wrong.get_or_insert_with(|| key.to_vec());
            }
        })?;
        match (wrong, expected.len()) {
            (None, 0) => Ok(()),
            (wrong, missing) => Err(BenchError::Mismatch(format!(
                "after round {round}: {missing} keys missing, first wrong one {:?}",
                wrong.map(|key| key.escape_ascii().to_string())
            ))),
        }
    })
}

fn verify_empty(row: &dyn Row) -> Result<()> {
    row.read(&mut |snapshot| {
        let mut left = 0u64;
        snapshot.scan(FIRST, usize::MAX, &mut |_, _| left += 1)?;
        match left {
            0 => Ok(()),
            left => Err(BenchError::Mismatch(format!(
                "{left} deleted keys are there"
            ))),
        }
    })
}
