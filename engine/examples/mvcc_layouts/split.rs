//! (b): newest records by key, all records by revision, and an index of (key, revision).

use std::ops::{Bound, ControlFlow};

use varve_engine::backend::{Batch, Direction, Read, TreeId};

use crate::{KEY_BYTES, Key, Layout, MARKS, Result};

const NEWEST: TreeId = TreeId(1);
const INDEX: TreeId = TreeId(2);
const RECORDS: TreeId = TreeId(3);

/// Revision and marks before a value in NEWEST.
const HEAD: usize = 8 + MARKS.len();

pub(crate) struct Split;

type IndexKey = [u8; KEY_BYTES + 8];

fn index_key(key: &Key, revision: u64) -> IndexKey {
    let mut out = [0; KEY_BYTES + 8];
    out[..KEY_BYTES].copy_from_slice(key);
    out[KEY_BYTES..].copy_from_slice(&revision.to_be_bytes());
    out
}

fn newest_at(read: &dyn Read, key: &Key, revision: u64) -> Result<Option<u64>> {
    let (first, last) = (index_key(key, 0), index_key(key, revision));
    let mut found = None;
    let bounds = (Bound::Included(&first[..]), Bound::Included(&last[..]));
    read.scan(INDEX, bounds, Direction::Backward, &mut |key, _| {
        found = Some(u64::from_be_bytes(
            key[KEY_BYTES..].try_into().expect("8 bytes"),
        ));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

impl Layout for Split {
    fn name(&self) -> &'static str {
        "(b) newest, log of new values, index"
    }

    fn put(&self, batch: &mut dyn Batch, key: &Key, revision: u64, value: &[u8]) -> Result<()> {
        let marks = batch.get(NEWEST, key)?.map_or(MARKS, |_| MARKS);
        let at = revision.to_be_bytes();
        batch.put(NEWEST, key, &[&at[..], &marks, value].concat())?;
        batch.put(RECORDS, &at, &[&key[..], &marks, value].concat())?;
        batch.put(INDEX, &index_key(key, revision), &[])?;
        Ok(())
    }

    fn get(&self, read: &dyn Read, key: &Key) -> Result<usize> {
        Ok(read
            .get(NEWEST, key)?
            .map_or(0, |record| record.len() - HEAD))
    }

    fn get_at(&self, read: &dyn Read, key: &Key, revision: u64) -> Result<usize> {
        let Some(found) = newest_at(read, key, revision)? else {
            return Ok(0);
        };
        let record = read.get(RECORDS, &found.to_be_bytes())?;
        Ok(record.map_or(0, |record| record.len() - KEY_BYTES - MARKS.len()))
    }

    fn scan(&self, read: &dyn Read, from: &Key, count: usize) -> Result<usize> {
        let (mut bytes, mut left) = (0, count);
        let bounds = (Bound::Included(&from[..]), Bound::Unbounded);
        read.scan(NEWEST, bounds, Direction::Forward, &mut |_, record| {
            bytes += record.len() - HEAD;
            left -= 1;
            if left == 0 {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(bytes)
    }

    fn replay(&self, read: &dyn Read, from: u64) -> Result<(usize, usize)> {
        let from = from.to_be_bytes();
        let (mut events, mut bytes) = (0, 0);
        let bounds = (Bound::Included(&from[..]), Bound::Unbounded);
        read.scan(RECORDS, bounds, Direction::Forward, &mut |_, record| {
            events += 1;
            bytes += record.len() - KEY_BYTES - MARKS.len();
            ControlFlow::Continue(())
        })?;
        Ok((events, bytes))
    }

    /// A record below `revision` stays if it is the one that a read there finds;
    /// so the front of RECORDS does not get empty, and where the last step came
    /// to would have to be stored. Here it is kept in the empty key's value.
    fn compact(&self, batch: &mut dyn Batch, revision: u64, most: usize) -> Result<usize> {
        const PROGRESS: TreeId = TreeId(0);
        let from = batch
            .get(PROGRESS, b"p")?
            .map_or(Vec::new(), |at| at.into_owned());
        let to = revision.to_be_bytes();
        let mut changes: Vec<(u64, Key)> = Vec::new();
        let bounds = (Bound::Excluded(&from[..]), Bound::Excluded(&to[..]));
        batch.scan(RECORDS, bounds, Direction::Forward, &mut |at, record| {
            let at = u64::from_be_bytes(at.try_into().expect("8 bytes"));
            changes.push((at, record[..KEY_BYTES].try_into().expect("a key")));
            if changes.len() == most {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        for (changed, key) in &changes {
            if newest_at(&*batch, key, revision)? != Some(*changed) {
                batch.delete(INDEX, &index_key(key, *changed))?;
                batch.delete(RECORDS, &changed.to_be_bytes())?;
            }
        }
        if let Some((last, _)) = changes.last() {
            batch.put(PROGRESS, b"p", &last.to_be_bytes())?;
        }
        Ok(changes.len())
    }
}
