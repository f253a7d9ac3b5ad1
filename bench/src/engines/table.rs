//! The tables of `engines`.

use super::measure::{Outcome, Rate};
use super::size::Size;
use crate::report::grouped;

fn rate(rate: &Rate) -> String {
    grouped(rate.per_second.round())
}

fn megabytes(bytes: u64) -> String {
    grouped((bytes as f64 / 1e6).round())
}

/// Data, and Varve's log beside it.
fn size(size: &Size) -> String {
    match size.log {
        0 => megabytes(size.data()),
        log => format!("{} + {}", megabytes(size.data()), megabytes(log)),
    }
}

/// One row as it comes, for who does not want to wait for the table.
pub(super) fn line(outcome: &Outcome) -> String {
    format!(
        "{}: load {}/s, update {}/s, get {}/s, scan {}/s, delete {}/s; MB {}, updated {}",
        outcome.row,
        rate(&outcome.load),
        rate(&outcome.update),
        rate(&outcome.get),
        rate(&outcome.scan),
        rate(&outcome.delete),
        size(&outcome.size_loaded),
        size(&outcome.size_updated),
    )
}

/// All rows: rates per second, sizes in MB of blocks, data + log.
pub(super) fn print(outcomes: &[Outcome]) {
    let none = || "-".to_owned();
    let header = [
        "engine",
        "batch done when",
        "load/s",
        "update/s",
        "get/s",
        "scan/s",
        "old get/s",
        "delete/s",
        "bulk load/s",
    ];
    let rows = outcomes.iter().map(|outcome| {
        vec![
            outcome.row.clone(),
            outcome.durability.to_owned(),
            rate(&outcome.load),
            rate(&outcome.update),
            rate(&outcome.get),
            rate(&outcome.scan),
            outcome.old_get.as_ref().map_or_else(none, rate),
            rate(&outcome.delete),
            rate(&outcome.bulk),
        ]
    });
    lines(&header, rows);
    println!();
    let header = [
        "engine",
        "MB loaded",
        "rested",
        "MB updated",
        "MB compacted",
        "by",
        "in s",
        "MB bulk loaded",
        "lengths, MB",
        "written/byte: load",
        "update",
    ];
    let rows = outcomes.iter().map(|outcome| {
        vec![
            outcome.row.clone(),
            size(&outcome.size_loaded),
            size(&outcome.size_rested),
            size(&outcome.size_updated),
            outcome.size_compacted.as_ref().map_or_else(none, size),
            outcome.compaction.unwrap_or("-").to_owned(),
            format!("{:.1}", outcome.compaction_seconds),
            size(&outcome.size_bulk),
            megabytes(outcome.size_updated.length),
            format!("{:.1}", outcome.load.write_amplification),
            format!("{:.1}", outcome.update.write_amplification),
        ]
    });
    lines(&header, rows);
}

/// Prints cells in columns, the first two flush left.
pub(super) fn lines(header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut all = vec![header.iter().map(|cell| (*cell).to_owned()).collect()];
    all.extend(rows);
    let width = |column: usize| {
        let cells = all.iter().filter_map(|row: &Vec<String>| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    for row in &all {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
