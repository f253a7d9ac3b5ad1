//! `inspect wal`.

use std::ops::ControlFlow;

use serde_json::{Value, json};
use varve_engine::disk::frozen::FrozenDisk;
use varve_engine::wal::MAX_KIND;
use varve_engine::wal::inspect::{Item, SegmentView, walk};
use varve_raft::inspect::{RecordSummary, summary};

use super::target::Target;
use super::{Out, WalArgs, failed};
use crate::failure::Failure;
use crate::output::to_stdout;

pub(super) fn wal(args: &WalArgs, out: &Out) -> Result<(), Failure> {
    let target = Target::find(&args.target)?;
    let mut list = List {
        args,
        out,
        shown: 0,
        has_begun: args.from == 0,
    };
    // Lines leave as they come: a log is larger than memory may be.
    let mut outcome = Ok(());
    walk(&FrozenDisk::new(), target.wal()?, &mut |item| {
        outcome = list.item(item);
        match outcome.is_err() || (args.limit > 0 && list.shown >= args.limit) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .map_err(failed)?;
    outcome
}

struct List<'l> {
    args: &'l WalArgs,
    out: &'l Out,
    shown: u64,
    /// Whether the first record to show was met.
    has_begun: bool,
}

impl List<'_> {
    fn item(&mut self, item: Item<'_>) -> Result<(), Failure> {
        match item {
            Item::Segment(segment) => self.line(&segment_text(segment), || segment_json(segment)),
            Item::Stop { lsn, offset, flaw } => {
                let what = flaw.as_str();
                let text = format!("  nothing more: lsn {lsn} at offset {offset}: {what}");
                self.line(
                    &text,
                    || json!({ "stop": what, "lsn": lsn, "offset": offset }),
                )
            }
            Item::Record {
                header,
                offset,
                payload,
            } => {
                if self.args.segments {
                    return Ok(());
                }
                let summary = match header.kind {
                    1..=MAX_KIND => summary(header.lsn, header.kind, payload).ok(),
                    _ => None,
                };
                let position = summary.as_ref().and_then(|summary| summary.index);
                let position = match &summary {
                    Some(_) => position,
                    None => Some(header.lsn),
                };
                self.has_begun |= position.is_some_and(|position| position >= self.args.from);
                if !self.has_begun {
                    return Ok(());
                }
                self.shown += 1;
                let name = kind_name(header.kind, summary.as_ref());
                let text = record_text(&name, &header, offset, summary.as_ref());
                self.line(&text, || {
                    json!({
                        "lsn": header.lsn, "offset": offset, "kind": header.kind, "type": name,
                        "index": summary.as_ref().and_then(|summary| summary.index),
                        "term": summary.as_ref().map(|summary| summary.term),
                        "detail": summary.as_ref().map(|summary| &summary.detail),
                        "length": header.length, "checksum": header.crc,
                        "previous": header.prev_crc, "durableLsn": header.durable_lsn,
                    })
                })
            }
        }
    }

    fn line(&self, text: &str, value: impl FnOnce() -> Value) -> Result<(), Failure> {
        match self.out.json {
            true => to_stdout(format!("{}\n", value()).as_bytes()),
            false => to_stdout(format!("{text}\n").as_bytes()),
        }
    }
}

fn kind_name(kind: u8, summary: Option<&RecordSummary>) -> String {
    match (kind, summary) {
        (254, _) => "mark".to_owned(),
        (255, _) => "seal".to_owned(),
        (_, Some(summary)) => summary.kind.to_owned(),
        (1, None) => "batch".to_owned(),
        (kind, None) => format!("kind {kind}"),
    }
}

fn record_text(
    name: &str,
    header: &varve_engine::wal::record::Header,
    offset: u64,
    summary: Option<&RecordSummary>,
) -> String {
    let mut text = format!("  lsn {} offset {offset} {name}", header.lsn);
    if let Some(summary) = summary {
        if let Some(index) = summary.index {
            text.push_str(&format!(" index {index}"));
        }
        text.push_str(&format!(" term {}", summary.term));
        if !summary.detail.is_empty() {
            text.push_str(&format!(" ({})", summary.detail));
        }
    }
    text.push_str(&format!(
        ", {} bytes, crc {:08x}",
        header.length, header.crc
    ));
    text
}

fn segment_text(segment: &SegmentView) -> String {
    let path = segment.path.display();
    match &segment.header {
        None => format!(
            "{path}: {} bytes, no header: made ready, or damaged",
            segment.file_bytes
        ),
        Some(header) => format!(
            "{path}: {} bytes, format {}, from lsn {}, cluster {:x}, member {:x}",
            segment.file_bytes,
            header.version,
            header.base_lsn,
            header.identity.cluster_id,
            header.identity.member_id
        ),
    }
}

fn segment_json(segment: &SegmentView) -> Value {
    let header = segment.header.as_ref().map(|header| {
        json!({
            "version": header.version, "number": header.number, "baseLsn": header.base_lsn,
            "clusterId": header.identity.cluster_id, "memberId": header.identity.member_id,
            "previous": header.prev_crc,
        })
    });
    json!({
        "segment": segment.number, "file": segment.path.display().to_string(),
        "bytes": segment.file_bytes, "header": header,
    })
}
