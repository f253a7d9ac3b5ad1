//! `inspect meta`, `inspect page`, `inspect tree`.

use std::fmt::Write;

use serde_json::{Value, json};
use varve_engine::btree::inspect::{Inspector, MetaPage, PageView, Payload, TreeView};
use varve_engine::disk::frozen::FrozenDisk;

use super::target::Target;
use super::{Out, PageArgs, TargetArgs, TreeArgs, failed, json_bytes};
use crate::failure::Failure;

/// Names of the trees of a revisioned store; an embedded `Kv` has all in tree 0.
const TREES: [&str; 4] = ["meta", "latest", "dead", "log"];
/// Bytes of a value that are shown.
const SHOWN_BYTES: usize = 32;

fn open(target: &Target) -> Result<Inspector, Failure> {
    Inspector::open(&FrozenDisk::new(), target.store()?).map_err(failed)
}

fn tree_name(tree: usize) -> String {
    TREES
        .get(tree)
        .map_or_else(|| tree.to_string(), |name| (*name).to_owned())
}

pub(super) fn meta(args: &TargetArgs, out: &Out) -> Result<(), Failure> {
    let target = Target::find(args)?;
    let inspector = open(&target)?;
    let pages = inspector.meta().map_err(failed)?;
    let sequence = |page: &MetaPage| match page {
        MetaPage::Valid(fields) => Some(fields.sequence),
        _ => None,
    };
    let (chosen, why) = match (sequence(&pages[0]), sequence(&pages[1])) {
        (Some(first), Some(second)) => (
            Some(usize::from(second > first)),
            "both are valid; the higher sequence number counts",
        ),
        (Some(_), None) => (Some(0), "the other one is not valid"),
        (None, Some(_)) => (Some(1), "the other one is not valid"),
        (None, None) => (None, "neither is valid: the store does not open"),
    };
    let file = target.store()?.display().to_string();
    let mut text = format!("{file}: {} pages of 4096 bytes\n", inspector.pages());
    let mut list = Vec::new();
    for (number, page) in pages.iter().enumerate() {
        let (said, value) = meta_page(page);
        let mark = if chosen == Some(number) {
            " (in use)"
        } else {
            ""
        };
        let _ = write!(text, "page {number}{mark}: {said}");
        list.push(value);
    }
    let verdict = match chosen {
        Some(page) => format!("page {page} counts: {why}"),
        None => why.to_owned(),
    };
    let _ = writeln!(text, "{verdict}");
    out.print(&text, || {
        json!({ "file": file, "pages": inspector.pages(), "meta": list, "chosen": chosen, "why": why })
    })?;
    match chosen {
        Some(_) => Ok(()),
        None => Err(Failure::silent(crate::failure::EXIT_ERROR)),
    }
}

fn meta_page(page: &MetaPage) -> (String, Value) {
    let fields = match page {
        MetaPage::Valid(fields) => fields,
        MetaPage::Blank => return ("blank\n".to_owned(), json!({ "state": "blank" })),
        MetaPage::Invalid(what) => {
            let value = json!({ "state": "damaged", "what": what });
            return (format!("damaged: {what}\n"), value);
        }
        MetaPage::Foreign(what) => {
            let value = json!({ "state": "foreign", "what": what });
            return (format!("foreign: {what}\n"), value);
        }
    };
    let (term, index) = (fields.applied.term, fields.applied.index);
    let mut text = format!(
        "sequence {}, state {}, applied term {term} index {index}, {} pages, free map at page {}\n",
        fields.sequence, fields.state, fields.end, fields.directory
    );
    let mut trees = Vec::new();
    for (tree, (root, sums)) in fields.roots.iter().enumerate() {
        if *root != 0 {
            let name = tree_name(tree);
            let _ = writeln!(
                text,
                "  tree {name}: root {root}, {} entries, {} bytes",
                sums.entries, sums.bytes
            );
            trees.push(
                json!({ "tree": name, "root": root, "entries": sums.entries, "bytes": sums.bytes }),
            );
        }
    }
    let value = json!({
        "state": "valid", "sequence": fields.sequence, "number": fields.state,
        "appliedTerm": term, "appliedIndex": index, "pages": fields.end,
        "directory": fields.directory, "trees": trees,
    });
    (text, value)
}

pub(super) fn page(args: &PageArgs, out: &Out) -> Result<(), Failure> {
    let target = Target::find(&args.target)?;
    if args.number < 2 {
        return meta(&args.target, out);
    }
    let inspector = open(&target)?;
    let page = inspector.page(args.number).map_err(failed)?;
    let simple = page_text(args.number, &page, out);
    out.print(&simple, || page_json(args.number, &page))?;
    match page.fault {
        None => Ok(()),
        Some(_) => Err(Failure::silent(crate::failure::EXIT_ERROR)),
    }
}

fn page_text(number: u64, page: &PageView, out: &Out) -> String {
    let header = &page.header;
    let mut text = format!(
        "page {number}: {}, level {}, {} slots, heap at {}, {} bytes of garbage\n",
        header.kind.unwrap_or("of no known kind"),
        header.level,
        header.count,
        header.heap,
        header.garbage
    );
    let _ = writeln!(
        text,
        "  says it is page {}, born in state {}",
        header.number, header.birth
    );
    let (stored, actual) = header.checksums;
    let verdict = if stored == actual { "ok" } else { "WRONG" };
    let _ = writeln!(
        text,
        "  checksum {stored:08x}, of the bytes {actual:08x}: {verdict}"
    );
    let used = match page.is_used {
        Some(true) => "in use",
        Some(false) => "free",
        None => "unknown: it cannot be read",
    };
    let _ = writeln!(text, "  free map of the last checkpoint: {used}");
    if header.kind == Some("overflow") {
        let _ = writeln!(
            text,
            "  starts a run of a value of {} bytes",
            header.run_length
        );
    }
    if let Some(fault) = &page.fault {
        let _ = writeln!(text, "  DAMAGED: {fault}");
    }
    if !header.prefix.is_empty() {
        let _ = writeln!(text, "  prefix {}", out.text(&header.prefix));
    }
    let shown = |value: &[u8]| {
        let shown = &value[..value.len().min(SHOWN_BYTES)];
        let more = if shown.len() < value.len() { "..." } else { "" };
        format!("{} bytes: {}{more}", value.len(), out.text(shown))
    };
    for (index, (key, payload)) in page.slots.iter().enumerate() {
        let what = match payload {
            Payload::Inline(value) => shown(value),
            Payload::Run {
                page,
                length,
                before,
            } => {
                let run = format!("{length} bytes in the run at page {page}");
                match before.is_empty() {
                    true => run,
                    false => format!("{}, then {run}", shown(before)),
                }
            }
            Payload::Child { page, sums, .. } => {
                format!(
                    "page {page}: {} entries, {} bytes",
                    sums.entries, sums.bytes
                )
            }
        };
        let _ = writeln!(text, "  {index}: {} = {what}", out.text(key));
    }
    text
}

fn page_json(number: u64, page: &PageView) -> Value {
    let header = &page.header;
    let slots = page.slots.iter().map(|(key, payload)| match payload {
        Payload::Inline(value) => {
            json!({ "key": json_bytes(key), "length": value.len(), "value": json_bytes(value) })
        }
        Payload::Run {
            page,
            length,
            before,
        } => json!({
            "key": json_bytes(key), "length": before.len() + *length as usize,
            "before": json_bytes(before), "run": page,
        }),
        Payload::Child {
            page,
            sums,
            has_overflow,
        } => json!({
            "key": json_bytes(key), "page": page, "entries": sums.entries, "bytes": sums.bytes,
            "longValues": has_overflow,
        }),
    });
    let slots: Vec<Value> = slots.collect();
    json!({
        "page": number, "kind": header.kind, "level": header.level, "count": header.count,
        "heap": header.heap, "garbage": header.garbage, "prefix": json_bytes(&header.prefix),
        "birth": header.birth, "number": header.number, "checksum": header.checksums.0,
        "actualChecksum": header.checksums.1, "runLength": header.run_length,
        "used": page.is_used, "damage": page.fault, "slots": slots,
    })
}

pub(super) fn tree(args: &TreeArgs, out: &Out) -> Result<(), Failure> {
    let target = Target::find(&args.target)?;
    let inspector = open(&target)?;
    let wanted = match &args.tree {
        None => None,
        Some(name) => Some(tree_number(name)?),
    };
    let mut text = String::new();
    let (mut list, mut is_damaged) = (Vec::new(), false);
    for number in 0..varve_engine::backend::MAX_TREES {
        if wanted.is_some_and(|wanted| wanted != number) {
            continue;
        }
        let view = inspector.tree(number).map_err(failed)?;
        is_damaged |= view.fault_count > 0;
        if view.root == 0 && wanted.is_none() {
            continue;
        }
        tree_text(&mut text, number, &view);
        list.push(tree_json(number, &view));
    }
    let free = inspector.free_pages();
    let said = match &free {
        Ok(free) => format!("{free} of {} pages are free", inspector.pages()),
        Err(error) => format!("DAMAGED: the free map: {error}"),
    };
    is_damaged |= free.is_err();
    let _ = writeln!(text, "{said}");
    out.print(
        &text,
        || json!({ "trees": list, "pages": inspector.pages(), "freePages": free.as_ref().ok() }),
    )?;
    match is_damaged {
        false => Ok(()),
        true => Err(Failure::silent(crate::failure::EXIT_ERROR)),
    }
}

fn tree_number(name: &str) -> Result<usize, Failure> {
    let named = TREES.iter().position(|tree| *tree == name);
    let number = named.or_else(|| name.parse().ok());
    number
        .filter(|number| *number < varve_engine::backend::MAX_TREES)
        .ok_or_else(|| {
            let names = TREES.join(", ");
            Failure::bad_args(format!(
                "there is no tree {name:?}: {names}, or a number up to 7"
            ))
        })
}

fn tree_text(text: &mut String, number: usize, view: &TreeView) {
    let _ = writeln!(
        text,
        "tree {}: root {}, depth {}, {} entries, {} bytes",
        tree_name(number),
        view.root,
        view.depth,
        view.found.entries,
        view.found.bytes
    );
    let _ = writeln!(
        text,
        "  {} leaves {:.1} % full, {} branches {:.1} % full, {} long values in {} pages",
        view.leaves,
        view.leaf_fill() * 100.0,
        view.branches,
        view.branch_fill() * 100.0,
        view.runs,
        view.run_pages
    );
    for fault in &view.faults {
        let _ = writeln!(text, "  DAMAGED: {fault}");
    }
    let more = view.fault_count - view.faults.len() as u64;
    if more > 0 {
        let _ = writeln!(text, "  DAMAGED: {more} more places");
    }
}

fn tree_json(number: usize, view: &TreeView) -> Value {
    json!({
        "tree": tree_name(number), "root": view.root, "depth": view.depth,
        "entries": view.found.entries, "bytes": view.found.bytes,
        "bookedEntries": view.booked.entries, "bookedBytes": view.booked.bytes,
        "leaves": view.leaves, "leafFill": view.leaf_fill(),
        "branches": view.branches, "branchFill": view.branch_fill(),
        "longValues": view.runs, "longValuePages": view.run_pages,
        "damagedPlaces": view.fault_count, "damage": view.faults,
    })
}
