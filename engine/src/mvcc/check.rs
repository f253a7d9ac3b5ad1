//! The store's integrity check.
//!
//! It reads everything and holds the trees against each other. Memory does not
//! grow with the store: every change is looked up through the walk that readers
//! use, which also proves that each is reachable from the head of its key.

use std::ops::{Bound, ControlFlow};

use super::error::{MvccError, Result};
use super::hash::record_hash;
use super::history::{decode, decode_change, scan, version_at};
use super::keys::Revision;
use super::record::{Change, ChangeKind, Record, anchor_depth};
use super::state::State;
use super::{DEAD, LATEST, LOG};
use crate::backend::{Direction, Read, TreeId};

/// What the check went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MvccReport {
    /// Live keys.
    pub live: u64,
    /// Deleted keys that are not compacted.
    pub dead: u64,
    /// Changes in the history.
    pub changes: u64,
}

/// Checks the store as of `state`.
pub(super) fn check(read: &dyn Read, state: &State) -> Result<MvccReport> {
    let check = Check { read, state };
    let (live, hash) = check.live_keys()?;
    if hash != state.hash {
        return Err(failed(
            "the hashes of the live keys do not add up to the state hash",
        ));
    }
    let report = MvccReport {
        live,
        dead: check.dead_keys()?,
        changes: check.changes()?,
    };
    for (tree, entries) in [
        (LATEST, report.live),
        (DEAD, report.dead),
        (LOG, report.changes),
    ] {
        let sums = read.sums(tree, (Bound::Unbounded, Bound::Unbounded))?;
        if sums.entries != entries {
            return Err(failed(format!(
                "tree {} sums up to {} entries and has {entries}",
                tree.0, sums.entries
            )));
        }
    }
    Ok(report)
}

/// Called for each entry of a tree.
type EntryRule<'v> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'v;

fn failed(message: impl Into<String>) -> MvccError {
    MvccError::Check(message.into())
}

/// Fails with the key that breaks a rule.
fn rule(holds: bool, tree: TreeId, key: &[u8], what: &'static str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(MvccError::damaged(tree, key, what))
    }
}

struct Check<'r> {
    read: &'r dyn Read,
    state: &'r State,
}

impl Check<'_> {
    /// Visits a tree, in strictly ascending order.
    fn each(&self, tree: TreeId, visit: &mut EntryRule<'_>) -> Result<u64> {
        let mut former: Option<Vec<u8>> = None;
        let mut entries = 0;
        let everything = (Bound::Unbounded, Bound::Unbounded);
        scan(
            self.read,
            tree,
            everything,
            Direction::Forward,
            &mut |key, value| {
                let ascending = former.as_deref().is_none_or(|former| former < key);
                rule(ascending, tree, key, "out of order")?;
                let former = former.get_or_insert_default();
                former.clear();
                former.extend_from_slice(key);
                entries += 1;
                visit(key, value)?;
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok(entries)
    }

    fn live_keys(&self) -> Result<(u64, u128)> {
        let mut hash = 0u128;
        let live = self.each(LATEST, &mut |key, bytes| {
            let record = decode(LATEST, key, bytes)?;
            rule(record.live, LATEST, key, "a tombstone among live keys")?;
            rule(!key.is_empty(), LATEST, key, "an empty key")?;
            let own_hash = record_hash(key, &record);
            // Records of earlier builds have none.
            let fits = record.hash.is_none_or(|hash| hash == own_hash);
            rule(fits, LATEST, key, "a hash that is not its own")?;
            hash = hash.wrapping_add(own_hash);
            let both = self.read.get(DEAD, key)?.is_some();
            rule(!both, LATEST, key, "both live and dead")?;
            self.head(LATEST, key, &record, ChangeKind::Put)
        })?;
        Ok((live, hash))
    }

    fn dead_keys(&self) -> Result<u64> {
        self.each(DEAD, &mut |key, bytes| {
            let record = decode(DEAD, key, bytes)?;
            rule(!record.live, DEAD, key, "a live record among dead keys")?;
            let logged = self.read.get(LOG, &record.modified.log_key())?.is_some();
            rule(logged, DEAD, key, "a tombstone that outlived its change")?;
            self.head(DEAD, key, &record, ChangeKind::Delete)
        })
    }

    /// The newest version of a key: its marks, and its change.
    fn head(&self, tree: TreeId, key: &[u8], record: &Record<'_>, kind: ChangeKind) -> Result<()> {
        let modified = record.modified;
        rule(
            modified.main <= self.state.revision,
            tree,
            key,
            "newer than the store",
        )?;
        self.marks(tree, key, record)?;
        if modified.main < self.state.compacted.max(2) {
            return Ok(());
        }
        let bytes = self.read.get(LOG, &modified.log_key())?;
        rule(
            bytes.is_some(),
            tree,
            key,
            "its last change is not in the log",
        )?;
        let change = decode_change(modified, bytes.as_deref().unwrap_or_default())?;
        rule(
            change.key == key && change.kind == kind,
            tree,
            key,
            "its last change is another's",
        )
    }

    fn marks(&self, tree: TreeId, key: &[u8], record: &Record<'_>) -> Result<()> {
        rule(record.depth >= 1, tree, key, "depth 0")?;
        if record.live {
            let created = 2..=record.modified.main;
            rule(
                created.contains(&record.create),
                tree,
                key,
                "create revision",
            )?;
            rule(record.version >= 1, tree, key, "version below 1")?;
        }
        let anchors = record.anchors();
        rule(anchors.is_some(), tree, key, "anchors that are none")?;
        for (level, anchor) in anchors.unwrap_or_default().as_slice().iter().enumerate() {
            if anchor.main <= self.state.compacted {
                continue;
            }
            let bytes = self.read.get(LOG, &anchor.log_key())?;
            let change = bytes.as_deref().and_then(Change::decode);
            let depth = change
                .filter(|change| change.key == key)
                .and_then(|change| change.replaced())
                .map(|replaced| replaced.map_or(0, |record| record.depth) + 1);
            let right = depth == Some(anchor_depth(record.depth, level));
            rule(right, tree, key, "an anchor that names another version")?;
        }
        Ok(())
    }

    /// All changes: revisions without gaps, hashes that follow from each
    /// other, and each one reachable from the head of its key.
    fn changes(&self) -> Result<u64> {
        let mut former: Option<(Revision, u128)> = None;
        let entries = self.each(LOG, &mut |log_key, bytes| {
            let revision = Revision::from_log_key(log_key);
            rule(revision.is_some(), LOG, log_key, "not a revision")?;
            let revision = revision.unwrap_or_default();
            let change = decode_change(revision, bytes)?;
            let follows = match former {
                None => revision.sub == 0 || self.state.compaction_pending(),
                Some((before, _)) if before.main == revision.main => {
                    before.sub.checked_add(1) == Some(revision.sub)
                }
                Some((before, _)) => revision == Revision::first_of(before.main + 1),
            };
            rule(follows, LOG, log_key, "a revision is missing before it")?;
            if revision.main > self.state.compacted {
                // Revision 1, the empty store, has the hash 0.
                let first = (revision == Revision::first_of(2)).then_some(0);
                let before = former.map(|(_, hash)| hash).or(first);
                self.change(revision, log_key, &change, before)?;
            }
            former = Some((revision, change.hash));
            Ok(())
        })?;
        let (last, hash) = former.unwrap_or((Revision::first_of(1), 0));
        if last.main != self.state.revision || hash != self.state.hash {
            return Err(failed(format!(
                "the log ends at revision {}, the store is at {}, or their hashes differ",
                last.main, self.state.revision
            )));
        }
        Ok(entries)
    }

    fn change(
        &self,
        revision: Revision,
        log_key: &[u8],
        change: &Change<'_>,
        hash_before: Option<u128>,
    ) -> Result<()> {
        let replaced = change.replaced();
        rule(replaced.is_some(), LOG, log_key, "not a record")?;
        let replaced = replaced.flatten();
        let version = version_at(self.read, change.key, revision)?;
        let new = version.as_ref().and_then(|version| version.record());
        // Without a version the tombstone would be missing.
        let reached = new.is_some_and(|new| new.modified == revision);
        rule(
            reached,
            LOG,
            log_key,
            "not reachable from the newest version of its key",
        )?;
        let Some(new) = new else { return Ok(()) };
        rule(
            new.live == (change.kind == ChangeKind::Put),
            LOG,
            log_key,
            "of another kind",
        )?;
        self.marks(LOG, change.key, &new)?;
        let depth = replaced.map_or(0, |record| record.depth) + 1;
        rule(new.depth == depth, LOG, log_key, "depth does not follow")?;
        if let Some(replaced) = &replaced {
            rule(
                replaced.modified < revision,
                LOG,
                log_key,
                "replaces a newer version",
            )?;
        }
        let lived = replaced.filter(|record| record.live);
        if new.live {
            let (create, version) = lived.map_or((revision.main, 1), |lived| {
                (lived.create, lived.version + 1)
            });
            let marks = new.create == create && new.version == version;
            rule(
                marks,
                LOG,
                log_key,
                "create revision or version does not follow",
            )?;
        } else {
            rule(lived.is_some(), LOG, log_key, "deletes what did not live")?;
        }
        let Some(before) = hash_before else {
            return Ok(());
        };
        let gone = lived.map_or(0, |lived| record_hash(change.key, &lived));
        let after = before
            .wrapping_add(record_hash(change.key, &new))
            .wrapping_sub(gone);
        rule(
            after == change.hash,
            LOG,
            log_key,
            "state hash does not follow",
        )
    }
}
