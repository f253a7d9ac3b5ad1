//! `inspect check`: the checks that the engine's own tests end with, on files that
//! nobody has open.

use std::sync::Arc;

use serde_json::json;
use varve_engine::backend::{Backend, Compression, compressed};
use varve_engine::btree::inspect::Inspector;
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::frozen::FrozenDisk;
use varve_engine::mvcc::{MvccError, Store};
use varve_engine::wal::inspect;
use varve_raft::inspect::summary;

use super::target::Target;
use super::{Out, TargetArgs, failed};
use crate::failure::{EXIT_ERROR, Failure};

/// The log of an embedded database has records of its own.
const EMBEDDED: [u64; 2] = [
    u64::from_le_bytes(*b"varve-db"),
    u64::from_le_bytes(*b"varve-kv"),
];

pub(super) fn check(args: &TargetArgs, out: &Out) -> Result<(), Failure> {
    let target = Target::find(args)?;
    if target.is_in_use {
        return Err(failed(
            "inspect check needs files that nobody writes to; stop that process",
        ));
    }
    let mut damage = Vec::new();
    let mut good = Vec::new();
    let mut note = |name: &str, outcome: Result<String, String>| match outcome {
        Ok(said) => good.push(format!("{name}: ok: {said}")),
        Err(what) => damage.push(format!("{name}: {what}")),
    };
    let identity = match target.has_wal() {
        false => None,
        true => inspect::identity(&FrozenDisk::new(), target.wal()?)
            .ok()
            .flatten(),
    };
    let has_revisions = identity.is_none_or(|identity| identity.cluster_id != EMBEDDED[1]);
    // Whoever has a log only, or a store only, has that checked.
    if !target.has_wal() || target.store().is_ok() {
        check_store(&target, has_revisions, &mut note)?;
    }
    if target.has_wal() {
        check_log(&target, &mut note)?;
    }
    let mut text = String::new();
    for line in good.iter().chain(&damage) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(match damage.is_empty() {
        true => "no damage\n",
        false => "DAMAGED\n",
    });
    out.print(
        &text,
        || json!({ "ok": damage.is_empty(), "checks": good, "damage": damage }),
    )?;
    match damage.is_empty() {
        true => Ok(()),
        false => Err(Failure::silent(EXIT_ERROR)),
    }
}

type Note<'n> = dyn FnMut(&str, Result<String, String>) + 'n;

fn check_store(target: &Target, has_revisions: bool, note: &mut Note<'_>) -> Result<(), Failure> {
    let path = target.store()?;
    // First page by page: an opening stops at the first damage, and this names all.
    let inspector = Inspector::open(&FrozenDisk::new(), path).map_err(failed)?;
    for tree in 0..varve_engine::backend::MAX_TREES {
        match inspector.tree(tree) {
            Ok(view) => {
                for fault in view.faults {
                    note("pages", Err(fault));
                }
            }
            Err(error) => {
                note("pages", Err(error.to_string()));
                break;
            }
        }
    }
    let opened = Btree::open(&FrozenDisk::new(), path, Options { map_bytes: 0 });
    let store = match opened {
        Ok(store) => store,
        Err(error) => {
            note("store", Err(error.to_string()));
            return Ok(());
        }
    };
    let checked = store.check();
    let is_whole = checked.is_ok();
    note(
        "store",
        checked
            .map(|report| format!("{} pages, {} entries", report.pages, report.entries))
            .map_err(|error| error.to_string()),
    );
    if is_whole && has_revisions {
        let plain = compressed::wrap(Arc::new(store), Compression::None);
        let opened = plain.map_err(MvccError::from).and_then(Store::open);
        let checked = opened.and_then(|store| {
            let view = store.view();
            view.check().map(|report| (view.revision(), report))
        });
        note(
            "revisions",
            checked
                .map(|(revision, report)| {
                    format!(
                        "revision {revision}, {} live keys, {} deleted, {} changes",
                        report.live, report.dead, report.changes
                    )
                })
                .map_err(|error| error.to_string()),
        );
    }
    Ok(())
}

fn check_log(target: &Target, note: &mut Note<'_>) -> Result<(), Failure> {
    let (disk, dir) = (FrozenDisk::new(), target.wal()?);
    let identity = match inspect::identity(&disk, dir) {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            note("wal", Ok("it has no segment with a header".to_owned()));
            return Ok(());
        }
        Err(error) => {
            note("wal", Err(error.to_string()));
            return Ok(());
        }
    };
    let is_node = !EMBEDDED.contains(&identity.cluster_id);
    let mut unreadable = None;
    let checked = inspect::check(&disk, dir, identity, &mut |lsn, kind, payload| {
        if is_node && let Err(error) = summary(lsn, kind, payload) {
            unreadable.get_or_insert_with(|| error.to_string());
        }
    });
    note(
        "wal",
        match (checked, unreadable) {
            (Err(error), _) => Err(error.to_string()),
            (Ok(_), Some(what)) => Err(what),
            (Ok(found), None) => Ok(format!(
                "{:?}, {} records in {} segments, lsn {} to {}",
                found.case, found.records, found.segments, found.start_lsn, found.end_lsn
            )),
        },
    );
    Ok(())
}
