//! Loading what is sorted, without logging it.
//!
//! The entries go straight into the tree, where those behind all others fill pages
//! from the bottom up ([`crate::backend::Batch::append`]), and are made durable by checkpoints:
//! each byte is written once.
//!
//! Invariant: what a load publishes applies as far of the log as what was there. So
//! an open after a crash replays what it would have without the load, on a store that
//! has the load's first entries up to some one of them, or all.

use super::batch::{WriteBatch, check_key, check_value};
use super::error::{DbError, Result};
use super::gate::Gate;
use crate::backend::{Backend, TreeId, memory};

/// Bytes of entries that are published together.
const PART_BYTES: usize = 4 << 20;
/// Bytes of entries between two checkpoints: as much is new in memory at most.
const CHECKPOINT_BYTES: usize = 64 << 20;

/// Puts `entries`, whose keys ascend, into `tree`; how many they were. All of them
/// are durable then.
pub(super) fn load<T, K, V>(
    gate: &Gate<T>,
    tree: TreeId,
    entries: impl IntoIterator<Item = (K, V)>,
) -> Result<u64>
where
    K: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let mut part = Part::default();
    let mut last: Option<Vec<u8>> = None;
    let (mut count, mut new_bytes) = (0_u64, 0);
    for (key, value) in entries {
        let (key, value) = (key.as_ref(), value.as_ref());
        check_key(key)?;
        check_value(key, value)?;
        let last = match &mut last {
            Some(last) if key <= &last[..] => return Err(DbError::NotSorted { entry: count }),
            Some(last) => last,
            None => last.insert(Vec::new()),
        };
        last.clear();
        last.extend_from_slice(key);
        if part.bytes.len() + key.len() + value.len() > PART_BYTES && !part.ends.is_empty() {
            new_bytes += part.bytes.len();
            part.publish(gate, tree)?;
            if new_bytes >= CHECKPOINT_BYTES {
                gate.checkpoint()?;
                new_bytes = 0;
            }
        }
        part.push(key, value);
        count += 1;
    }
    part.publish(gate, tree)?;
    gate.checkpoint()?;
    Ok(count)
}

/// Entries that are published together.
#[derive(Debug, Default)]
struct Part {
    /// Keys and values, one after another.
    bytes: Vec<u8>,
    /// Where each key and its value end.
    ends: Vec<(usize, usize)>,
}

impl Part {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((key_end, self.bytes.len()));
    }

    fn entries(&self) -> Vec<(&[u8], &[u8])> {
        let mut start = 0;
        let entry = |&(key_end, end): &(usize, usize)| {
            let entry = (&self.bytes[start..key_end], &self.bytes[key_end..end]);
            start = end;
            entry
        };
        self.ends.iter().map(entry).collect()
    }

    /// Makes what it has visible, and is empty after it.
    fn publish<T>(&mut self, gate: &Gate<T>, tree: TreeId) -> Result<()> {
        if let Some(why) = gate.stopped() {
            return Err(DbError::Stopped(why));
        }
        let backend = &**gate.backend();
        match backend.name() == memory::NAME {
            true => self.log(gate)?,
            false => self.append(backend, tree)?,
        }
        self.bytes.clear();
        self.ends.clear();
        Ok(())
    }

    fn append(&self, backend: &dyn Backend, tree: TreeId) -> Result<()> {
        let mut batch = backend.begin()?;
        // While the batch is open nothing else is published.
        let applied = backend.snapshot()?.applied();
        batch.append(tree, &self.entries())?;
        Ok(batch.publish(applied)?)
    }

    /// What keeps nothing beside the log has its entries there.
    fn log<T>(&self, gate: &Gate<T>) -> Result<()> {
        let mut batch = WriteBatch::new();
        for (key, value) in self.entries() {
            if batch.bytes() + key.len() + value.len() > PART_BYTES / 2 && !batch.is_empty() {
                gate.submit(&batch, false)?.wait()?;
                batch.clear();
            }
            batch.put(key, value)?;
        }
        if !batch.is_empty() {
            gate.submit(&batch, false)?.wait()?;
        }
        Ok(())
    }
}
