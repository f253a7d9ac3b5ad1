//! (c): newest records by key, and replaced records by revision. Bare: without
//! anchors, hash and tombstones.

use std::ops::{Bound, ControlFlow};

use varve_engine::backend::{Batch, Direction, Read, TreeId};

use crate::{KEY_BYTES, Key, Layout, MARKS, Result};

const NEWEST: TreeId = TreeId(1);
const LOG: TreeId = TreeId(3);

/// Revision and marks before a value.
const HEAD: usize = 8 + MARKS.len();

pub(crate) struct Undo;

fn revision_of(record: &[u8]) -> u64 {
    u64::from_be_bytes(record[..8].try_into().expect("8 bytes"))
}

impl Layout for Undo {
    fn name(&self) -> &'static str {
        "(c) newest, log of replaced values"
    }

    fn put(&self, batch: &mut dyn Batch, key: &Key, revision: u64, value: &[u8]) -> Result<()> {
        let mut change = key.to_vec();
        if let Some(former) = batch.get(NEWEST, key)? {
            change.extend_from_slice(&former);
        }
        let at = revision.to_be_bytes();
        batch.put(NEWEST, key, &[&at[..], &MARKS, value].concat())?;
        batch.put(LOG, &at, &change)?;
        Ok(())
    }

    fn get(&self, read: &dyn Read, key: &Key) -> Result<usize> {
        Ok(read
            .get(NEWEST, key)?
            .map_or(0, |record| record.len() - HEAD))
    }

    fn get_at(&self, read: &dyn Read, key: &Key, revision: u64) -> Result<usize> {
        let Some(mut bytes) = read.get(NEWEST, key)? else {
            return Ok(0);
        };
        let mut record_at = 0;
        while bytes.len() > record_at && revision_of(&bytes[record_at..]) > revision {
            let log_key = revision_of(&bytes[record_at..]).to_be_bytes();
            bytes = read.get(LOG, &log_key)?.ok_or("a change is missing")?;
            record_at = KEY_BYTES;
        }
        Ok(bytes.len().saturating_sub(record_at + HEAD))
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
        let at = from.to_be_bytes();
        let mut changes: Vec<(u64, Key)> = Vec::new();
        let bounds = (Bound::Included(&at[..]), Bound::Unbounded);
        read.scan(LOG, bounds, Direction::Forward, &mut |at, change| {
            let revision = u64::from_be_bytes(at.try_into().expect("8 bytes"));
            changes.push((revision, change[..KEY_BYTES].try_into().expect("a key")));
            ControlFlow::Continue(())
        })?;
        let mut bytes = 0;
        for (revision, key) in &changes {
            bytes += self.get_at(read, key, *revision)?;
        }
        Ok((changes.len(), bytes))
    }

    fn compact(&self, batch: &mut dyn Batch, revision: u64, most: usize) -> Result<usize> {
        let (mut count, mut last) = (0, [0; 8]);
        let to = revision.to_be_bytes();
        let bounds = (Bound::Unbounded, Bound::Excluded(&to[..]));
        batch.scan(LOG, bounds, Direction::Forward, &mut |at, _| {
            count += 1;
            last.copy_from_slice(at);
            if count == most {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        if count > 0 {
            batch.delete_range(LOG, (Bound::Unbounded, Bound::Included(&last)))?;
        }
        Ok(count)
    }
}
