//! (a): one tree by (key, newest first) with the record inline, one by revision.

use std::ops::{Bound, ControlFlow};

use varve_engine::backend::{Batch, Direction, Read, TreeId};

use crate::{KEY_BYTES, Key, Layout, MARKS, Result};

const VERSIONS: TreeId = TreeId(1);
const CHANGES: TreeId = TreeId(3);

pub(crate) struct Inline;

type VersionKey = [u8; KEY_BYTES + 8];

fn version_key(key: &Key, revision: u64) -> VersionKey {
    let mut out = [0; KEY_BYTES + 8];
    out[..KEY_BYTES].copy_from_slice(key);
    out[KEY_BYTES..].copy_from_slice(&(!revision).to_be_bytes());
    out
}

/// The newest version at `revision` or before: its revision and the length of its value.
fn newest_at(read: &dyn Read, key: &Key, revision: u64) -> Result<Option<(u64, usize)>> {
    let (first, last) = (version_key(key, revision), version_key(key, 0));
    let mut found = None;
    let bounds = (Bound::Included(&first[..]), Bound::Included(&last[..]));
    read.scan(VERSIONS, bounds, Direction::Forward, &mut |key, record| {
        found = Some((revision_of(key), record.len() - MARKS.len()));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

fn revision_of(key: &[u8]) -> u64 {
    !u64::from_be_bytes(key[KEY_BYTES..].try_into().expect("8 bytes"))
}

fn changes(read: &dyn Read, from: u64, to: u64, most: usize) -> Result<Vec<(u64, Key)>> {
    let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
    let mut changes = Vec::new();
    let bounds = (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
    read.scan(CHANGES, bounds, Direction::Forward, &mut |revision, key| {
        let revision = u64::from_be_bytes(revision.try_into().expect("8 bytes"));
        changes.push((revision, key.try_into().expect("a key")));
        if changes.len() == most {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(changes)
}

impl Layout for Inline {
    fn name(&self) -> &'static str {
        "(a) versions inline"
    }

    fn put(&self, batch: &mut dyn Batch, key: &Key, revision: u64, value: &[u8]) -> Result<()> {
        let marks = newest_at(&*batch, key, revision)?.map_or(MARKS, |_| MARKS);
        batch.put(
            VERSIONS,
            &version_key(key, revision),
            &[&marks[..], value].concat(),
        )?;
        batch.put(CHANGES, &revision.to_be_bytes(), key)?;
        Ok(())
    }

    fn get(&self, read: &dyn Read, key: &Key) -> Result<usize> {
        self.get_at(read, key, u64::MAX)
    }

    fn get_at(&self, read: &dyn Read, key: &Key, revision: u64) -> Result<usize> {
        Ok(newest_at(read, key, revision)?.map_or(0, |(_, length)| length))
    }

    fn scan(&self, read: &dyn Read, from: &Key, count: usize) -> Result<usize> {
        let first = version_key(from, u64::MAX);
        let (mut bytes, mut left) = (0, count);
        let mut former = [0; KEY_BYTES];
        let bounds = (Bound::Included(&first[..]), Bound::Unbounded);
        read.scan(VERSIONS, bounds, Direction::Forward, &mut |key, record| {
            if key[..KEY_BYTES] != former {
                if left == 0 {
                    return ControlFlow::Break(());
                }
                former.copy_from_slice(&key[..KEY_BYTES]);
                bytes += record.len() - MARKS.len();
                left -= 1;
            }
            ControlFlow::Continue(())
        })?;
        Ok(bytes)
    }

    fn replay(&self, read: &dyn Read, from: u64) -> Result<(usize, usize)> {
        let changes = changes(read, from, u64::MAX, usize::MAX)?;
        let mut bytes = 0;
        for (revision, key) in &changes {
            let record = read.get(VERSIONS, &version_key(key, *revision))?;
            bytes += record.map_or(0, |record| record.len() - MARKS.len());
        }
        Ok((changes.len(), bytes))
    }

    fn compact(&self, batch: &mut dyn Batch, revision: u64, most: usize) -> Result<usize> {
        let changes = changes(&*batch, 0, revision, most)?;
        for (changed, key) in &changes {
            let kept = newest_at(&*batch, key, revision)?;
            if kept.is_some_and(|(kept, _)| kept != *changed) {
                batch.delete(VERSIONS, &version_key(key, *changed))?;
            }
        }
        if let Some((last, _)) = changes.last() {
            let last = last.to_be_bytes();
            batch.delete_range(CHANGES, (Bound::Unbounded, Bound::Included(&last)))?;
        }
        Ok(changes.len())
    }
}
