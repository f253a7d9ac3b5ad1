//! Many puts at a time: in the order of their keys, and by several threads.
//!
//! In order, because the keys below one branch then come one after another, while its
//! pages are in the processor's cache. By several threads, because the
//! branches of one level part the tree: below one of them the puts are those to a tree of
//! its own ([`Writer`]), made with pages that their thread has taken, and what has become
//! of it is put back into the branch above by the batch's thread alone (the idea is that
//! of PALM: Sewall et al., "Parallel architecture-friendly latch-free modifications to
//! B+ trees on many-core processors", VLDB 2011).
//!
//! Invariant: while threads are at work, a page below the parting branches belongs to one
//! of them, and a page above is changed by nobody.

use std::cmp::Ordering;
use std::num::NonZero;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::branch::{Child, Delta};
use super::page::Page;
use super::pager::View;
use super::pages::Pages;
use super::path::Place;
use super::prefetch;
use super::search::first_bytes;
use super::slotted::{KeyParts, common_prefix, joined};
use super::split::Split;
use super::state::Root;
use super::write::{Writer, check_length};
use crate::backend::lookahead::{FAR, NEAR};
use crate::backend::{Entry, Result, Sums};

/// For fewer entries it takes longer to part the tree, and to wake a thread, than it saves.
const WORTH_PARTING: usize = 256;
/// So many parts at least, if the tree has them: then threads have about as much to do.
const MIN_PARTS: usize = 32;
/// Entries that a thread takes at a time, or more.
const UNIT_ENTRIES: usize = 32;
/// What one batch uses of the machine at most.
const MAX_THREADS: usize = 4;

/// Puts `entries`; of those with the same key the last one counts.
pub(super) fn put_all(writer: &mut Writer<'_, '_>, entries: &[Entry<'_>]) -> Result<()> {
    // Before anything is changed.
    for (key, value) in entries {
        check_length(key, value)?;
    }
    let entries = in_order(entries);
    if !writer.pages.is_cold() {
        let step = entries.len() / FAR + 1;
        read_ahead(writer.pages, writer.root, entries.iter().step_by(step));
    }
    if writer.pages.is_cold() {
        return put_cold(writer, &entries);
    }
    let mut parts = part(writer, &entries)?;
    if parts.len() == 1 {
        return put_each(writer, &entries, 0);
    }
    work_all(writer.pages, &mut parts)?;
    for part in &parts {
        graft(writer, part)?;
    }
    writer.place.valid = false;
    Ok(())
}

/// In the order of their keys, each key once.
fn in_order<'e>(entries: &[Entry<'e>]) -> Vec<Entry<'e>> {
    let shared = shared_by_all(entries);
    let mut order: Vec<_> = entries
        .iter()
        .enumerate()
        .map(|(at, (key, _))| (u64::from_be_bytes(first_bytes(&key[shared..])), at))
        .collect();
    // Heads are seldom equal; else the key decides, and for the same key the place.
    order.sort_unstable_by(|left, right| {
        let by_key = || entries[left.1].0.cmp(entries[right.1].0);
        let by_place = || left.1.cmp(&right.1);
        (left.0.cmp(&right.0)).then_with(by_key).then_with(by_place)
    });
    let mut sorted: Vec<_> = order.iter().map(|(_, at)| entries[*at]).collect();
    sorted.dedup_by(|later, kept| {
        let is_same = later.0 == kept.0;
        if is_same {
            *kept = *later;
        }
        is_same
    });
    sorted
}

/// Bytes that all keys begin with.
fn shared_by_all(entries: &[Entry<'_>]) -> usize {
    let Some(((first, _), rest)) = entries.split_first() else {
        return 0;
    };
    rest.iter().fold(first.len(), |shared, (key, _)| {
        common_prefix((&[], &first[..shared]), (&[], key))
    })
}

fn read_ahead<'e>(
    pages: &mut Pages<'_>,
    root: &Root,
    entries: impl Iterator<Item = &'e Entry<'e>>,
) {
    let keys: Vec<&[u8]> = entries.map(|(key, _)| *key).collect();
    if prefetch::read_ahead(pages, root, &keys, false) {
        pages.set_cold();
    }
}

/// In a store that is not all in memory the disk sets the pace.
fn put_cold(writer: &mut Writer<'_, '_>, entries: &[Entry<'_>]) -> Result<()> {
    for entries in entries.chunks(FAR) {
        read_ahead(writer.pages, writer.root, entries.iter());
        put_each(writer, entries, 0)?;
    }
    Ok(())
}

/// Puts in the order given; the leaves of the first `asked` keys were asked for.
fn put_each(writer: &mut Writer<'_, '_>, entries: &[Entry<'_>], asked: usize) -> Result<()> {
    let (first, rest) = entries.split_at(asked);
    for (key, value) in first {
        writer.put(key, value)?;
    }
    for entries in rest.chunks(NEAR) {
        ask_for(writer.pages, writer.root, entries);
        for (key, value) in entries {
            writer.put(key, value)?;
        }
    }
    Ok(())
}

/// At most [`NEAR`] of them.
fn ask_for(pages: &Pages<'_>, root: &Root, entries: &[Entry<'_>]) {
    let mut keys = [&[][..]; NEAR];
    for (key, entry) in keys.iter_mut().zip(entries) {
        *key = entry.0;
    }
    prefetch::leaves(pages.view(), root, &keys[..entries.len().min(NEAR)]);
}

/// What is below one branch, while it is a tree of its own.
struct Part<'e> {
    /// A key that leads to it, and is not above any of its keys.
    low: Vec<u8>,
    level: u8,
    /// Whether it has the whole tree's last leaf.
    is_last: bool,
    before: Sums,
    root: Root,
    entries: &'e [Entry<'e>],
}

/// The parts of the tree that have to do with `entries`; one for all of it if parting
/// does not pay.
fn part<'e>(writer: &Writer<'_, '_>, entries: &'e [Entry<'e>]) -> Result<Vec<Part<'e>>> {
    let view = writer.pages.view();
    let level = match (entries.len() >= WORTH_PARTING, writer.root.page) {
        (false, _) | (_, 0) => 0,
        (true, root) => view.page(root)?.level(),
    };
    let mut parts = vec![Part {
        low: Vec::new(),
        level,
        is_last: writer.is_last,
        before: writer.root.sums,
        root: *writer.root,
        entries,
    }];
    for level in (1..level).rev() {
        if parts.len() >= MIN_PARTS {
            break;
        }
        let mut below = Vec::new();
        for part in &parts {
            part_below(view, part, level, &mut below)?;
        }
        parts = below;
    }
    Ok(parts)
}

/// The parts below one, of `level`, that have to do with its entries.
fn part_below<'e>(
    view: View<'_>,
    part: &Part<'e>,
    level: u8,
    below: &mut Vec<Part<'e>>,
) -> Result<()> {
    let page = view.page(part.root.page)?;
    let (mut rest, last) = (part.entries, page.count() - 1);
    for index in 0..=last {
        let count = match index == last {
            true => rest.len(),
            false => {
                let separator = page.key_parts(index + 1);
                rest.partition_point(|(key, _)| is_before(key, separator))
            }
        };
        let (entries, others) = rest.split_at(count);
        rest = others;
        if entries.is_empty() {
            continue;
        }
        let child = page.child(index);
        below.push(Part {
            low: low_of(page, index, &part.low),
            level,
            is_last: part.is_last && index == last,
            before: child.sums,
            root: Root {
                page: child.page,
                sums: child.sums,
            },
            entries,
        });
    }
    Ok(())
}

/// A key that leads to a child of a branch to which `low` leads.
fn low_of(branch: &Page, index: usize, low: &[u8]) -> Vec<u8> {
    match index {
        0 => low.to_vec(),
        _ => joined(branch.key_parts(index)),
    }
}

fn is_before(key: &[u8], (prefix, suffix): KeyParts<'_>) -> bool {
    let shared = key.len().min(prefix.len());
    let order = key[..shared].cmp(prefix);
    order.then_with(|| key[shared..].cmp(suffix)) == Ordering::Less
}

/// Parts in a row that nobody has taken yet.
type Units<'p, 'e> = Mutex<Vec<&'p mut [Part<'e>]>>;

/// Puts to all parts, with the help of other threads.
fn work_all(pages: &mut Pages<'_>, parts: &mut [Part<'_>]) -> Result<()> {
    let mut units = Vec::new();
    let mut rest = parts;
    while !rest.is_empty() {
        let mut entries = 0;
        let is_short = |part: &&Part<'_>| {
            let is_short = entries < UNIT_ENTRIES;
            entries += part.entries.len();
            is_short
        };
        let count = rest.iter().take_while(is_short).count();
        let (unit, others) = rest.split_at_mut(count);
        units.push(unit);
        rest = others;
    }
    let helpers = threads().min(units.len()) - 1;
    let units = Mutex::new(units);
    std::thread::scope(|scope| {
        let helpers = (0..helpers).filter_map(|_| {
            let mut pages = pages.apart();
            let thread = std::thread::Builder::new().name("apply-part".to_owned());
            let run = || {
                let done = work(&mut pages, &units);
                (pages, done)
            };
            // Without them it only takes longer.
            thread.spawn_scoped(scope, run).ok()
        });
        let helpers: Vec<_> = helpers.collect();
        let mut all_done = work(pages, &units);
        for helper in helpers {
            match helper.join() {
                Ok((apart, done)) => {
                    pages.absorb(apart);
                    all_done = worse(all_done, done);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all_done
    })
}

/// Of two errors that which stops the store, as a full disk does not.
fn worse(left: Result<()>, right: Result<()>) -> Result<()> {
    match (left, right) {
        (Err(left), Err(right)) if left.is_no_space() => Err(right),
        (Ok(()), right) => right,
        (left, _) => left,
    }
}

fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        let available = std::thread::available_parallelism();
        available.map_or(1, NonZero::get).min(MAX_THREADS)
    })
}

/// Takes one unit after another, until there are none; after an error nobody does.
fn work(pages: &mut Pages<'_>, units: &Units<'_, '_>) -> Result<()> {
    let units = || units.lock().unwrap_or_else(PoisonError::into_inner);
    let take = || units().pop();
    let mut place = Place::default();
    while let Some(unit) = take() {
        if let Err(error) = put_unit(pages, &mut place, unit) {
            units().clear();
            return Err(error);
        }
    }
    Ok(())
}

fn put_unit(pages: &mut Pages<'_>, place: &mut Place, unit: &mut [Part<'_>]) -> Result<()> {
    let first = |part: &Part<'_>| part.entries.len().min(NEAR);
    for part in &*unit {
        ask_for(pages, &part.root, &part.entries[..first(part)]);
    }
    for part in unit {
        place.valid = false;
        let asked = first(part);
        let mut writer = Writer {
            pages,
            root: &mut part.root,
            place,
            is_last: part.is_last,
        };
        put_each(&mut writer, part.entries, asked)?;
    }
    Ok(())
}

/// Puts a part back to where it was: its root has another page now, and, where it had to
/// be split, others beside it.
fn graft(writer: &mut Writer<'_, '_>, part: &Part<'_>) -> Result<()> {
    let has_overflow = writer.pages.page(part.root.page)?.has_overflow();
    let whole = Child {
        page: part.root.page,
        has_overflow,
        sums: part.root.sums,
    };
    let mut children = Vec::new();
    flatten(
        writer.pages,
        part.level,
        (part.low.clone(), whole),
        &mut children,
    )?;
    go_above(writer, part)?;
    if let [.., parent, _] = *writer.place.path.steps() {
        let branch = writer.pages.page_mut(parent.page);
        branch.set_child_page(parent.index, children[0].1.page);
    }
    let delta = Delta::between(part.before, part.root.sums);
    writer.ascend(delta, None, has_overflow)?;
    // Each is split off from the first one: the last one first. (Beyond the end of the tree
    // that leaves a branch with one child where the branch above is full, once.)
    for (separator, right) in children.drain(1..).rev() {
        go_above(writer, part)?;
        let overflow = right.has_overflow;
        writer.ascend(Delta::default(), Some(Split { separator, right }), overflow)?;
    }
    Ok(())
}

/// Has the writer's path lead to the part, and makes the branches above the batch's own.
fn go_above(writer: &mut Writer<'_, '_>, part: &Part<'_>) -> Result<()> {
    let path = &mut writer.place.path;
    path.descend_to(writer.pages.view(), writer.root.page, &part.low, part.level)?;
    let steps = path.steps_mut();
    let above = steps.len() - 1;
    let steps = &mut steps[..above];
    writer.pages.make_path_writable(writer.root, steps)
}

/// The pages of `level` in what grew from one such page, each with the key that parts it
/// from those before it.
fn flatten(
    pages: &mut Pages<'_>,
    level: u8,
    (low, child): (Vec<u8>, Child),
    out: &mut Vec<(Vec<u8>, Child)>,
) -> Result<()> {
    let page = pages.page(child.page)?;
    if page.level() == level {
        out.push((low, child));
        return Ok(());
    }
    let below = (0..page.count()).map(|index| (low_of(page, index, &low), page.child(index)));
    let below: Vec<_> = below.collect();
    pages.free(child.page)?;
    for child in below {
        flatten(pages, level, child, out)?;
    }
    Ok(())
}
