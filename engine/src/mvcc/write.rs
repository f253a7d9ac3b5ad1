//! The changes that every write comes down to: one key put, one key deleted.
//!
//! A put reads the key's record, appends it as it is to the new LOG entry, and
//! writes the new record in its place: one descent that is read and written,
//! one append, and for short values nothing is allocated. A long value, which lies
//! apart, is neither read nor copied: LOG takes it over. Only a put of a key that
//! does not live looks into DEAD.

use std::ops::{Bound, ControlFlow};

use varve_types::{DeleteRangeResponse, KeyRange, KeyValue, PutRequest};

use super::error::{MvccError, Result};
use super::hash::{keeps_hash, kept_hash, record_hash};
use super::history::{decode, has_marks, scan};
use super::keys::Revision;
use super::live::{Collector, event_of};
use super::options::CompactBudget;
use super::record::{Change, ChangeKind, LiveMarks, NewVersion, seal_change};
use super::reply::ReplyBudget;
use super::state::State;
use super::{DEAD, LATEST, LOG};
use crate::backend::{Batch, Bounds, Direction, Keep, Peek};

/// Buffers that live as long as the store.
#[derive(Default)]
pub(super) struct Scratch {
    record: Vec<u8>,
    change: Vec<u8>,
    doomed: Doomed,
}

/// Keys with their records, copied out of a scan.
#[derive(Default)]
struct Doomed {
    bytes: Vec<u8>,
    /// Ends of key and record.
    ends: Vec<(usize, usize)>,
}

/// Keys of a large deletion that are held at a time.
const DOOMED_KEYS: usize = 512;
/// Bytes of them.
const DOOMED_BYTES: usize = 1 << 20;

impl Doomed {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn push(&mut self, key: &[u8], record: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(record);
        self.ends.push((key_end, self.bytes.len()));
    }

    fn is_full(&self) -> bool {
        self.ends.len() >= DOOMED_KEYS || self.bytes.len() >= DOOMED_BYTES
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        self.ends
            .iter()
            .enumerate()
            .map(|(number, (key_end, end))| {
                let start = number
                    .checked_sub(1)
                    .map_or(0, |before| self.ends[before].1);
                (&self.bytes[start..*key_end], &self.bytes[*key_end..*end])
            })
    }
}

/// The writing side of an open batch.
pub(super) struct Writer<'b> {
    pub(super) batch: Box<dyn Batch + 'b>,
    pub(super) state: State,
    pub(super) scratch: &'b mut Scratch,
    pub(super) collector: Option<Collector>,
    /// Changes of the command that is being applied.
    pub(super) changes: u32,
    /// What the batch added to the history.
    pub(super) added: CompactBudget,
}

impl Writer<'_> {
    /// Whether the command that is being applied has changed something.
    pub(super) fn wrote(&self) -> bool {
        self.changes > 0
    }

    /// Ends a command: its changes, if any, become a revision.
    pub(super) fn end_command(&mut self) -> i64 {
        if self.wrote() {
            self.state.revision += 1;
            self.changes = 0;
        }
        self.state.revision
    }

    fn next_revision(&self) -> Revision {
        Revision {
            main: self.state.revision + 1,
            sub: self.changes,
        }
    }

    /// Writes a key. With `ignore_value` or `ignore_lease` the key must live;
    /// that is checked before a command changes anything.
    pub(super) fn put(
        &mut self,
        put: &PutRequest<'_>,
        budget: &mut ReplyBudget,
    ) -> Result<Option<KeyValue>> {
        let modified = self.next_revision();
        let key = put.key;
        let Scratch { record, change, .. } = &mut *self.scratch;
        Change::start(key, change);
        let is_watched = self.collector.as_ref().is_some_and(Collector::is_open);
        let looks_at_value = put.ignore_value || is_watched || put.prev_kv && budget.wanted;
        let mut former = self.batch.peek(LATEST, key)?;
        let part = former.as_ref().filter(|former| !former.is_whole());
        let lies_apart = part.is_some();
        if part.is_some_and(|part| looks_at_value || !has_marks(&part.bytes)) {
            former = self.batch.get(LATEST, key)?.map(Peek::whole);
        }
        let mut was_dead = false;
        if former.is_none() {
            former = self.batch.get(DEAD, key)?.map(Peek::whole);
            was_dead = former.is_some();
        }
        let former_length = former.as_ref().map_or(0, |former| former.length);
        let replaced = match &former {
            None => None,
            Some(former) => Some(decode(LATEST, key, &former.bytes)?),
        };
        let lived = replaced.filter(|record| record.live);
        let mut live = LiveMarks {
            create: lived.map_or(modified.main, |lived| lived.create),
            version: lived.map_or(0, |lived| lived.version) + 1,
            lease: match lived {
                Some(lived) if put.ignore_lease => lived.lease,
                _ => put.lease,
            },
            value: match lived {
                Some(lived) if put.ignore_value => lived.value,
                _ => put.value,
            },
            hash: None,
        };
        let new = live.record(modified);
        let new_hash = record_hash(key, &new);
        live.hash = keeps_hash(key, live.value).then_some(new_hash);
        record.clear();
        let version = NewVersion {
            modified,
            live: Some(live),
        };
        version
            .encode(replaced.as_ref(), record)
            .ok_or_else(|| MvccError::damaged(LATEST, key, "anchors that are none"))?;
        let mut hash = self.state.hash.wrapping_add(new_hash);
        if let Some(lived) = &lived {
            hash = hash.wrapping_sub(kept_hash(key, lived));
        }
        if let Some(collector) = &mut self.collector {
            let event = event_of(
                ChangeKind::Put,
                key,
                modified,
                Some(&new),
                replaced.as_ref(),
            );
            collector.push(&event);
        }
        let prev_kv = budget.keep(put.prev_kv, key, replaced.as_ref());
        seal_change(change, ChangeKind::Put, hash);
        let log_key = modified.log_key();
        let logged = log_key.len() + change.len() + former_length;
        if lies_apart {
            drop(former);
            let keep = Keep {
                tree: LOG,
                key: &log_key,
                head: change,
            };
            self.batch.put_and_keep(LATEST, key, record, keep)?;
        } else {
            if let Some(former) = former {
                change.extend_from_slice(&former.bytes);
            }
            self.batch.put(LATEST, key, record)?;
            if was_dead {
                self.batch.delete(DEAD, key)?;
            }
            self.batch.put(LOG, &log_key, change)?;
        }
        self.book(logged, hash);
        Ok(prev_kv)
    }

    /// Counts a change of so many bytes of LOG, after which the state's hash is `hash`.
    fn book(&mut self, logged: usize, hash: u128) {
        self.added.add_entry(logged);
        self.state.hash = hash;
        self.changes += 1;
    }

    /// Deletes the live keys of `range`.
    pub(super) fn delete_range(
        &mut self,
        range: KeyRange<'_>,
        prev_kv: bool,
        budget: &mut ReplyBudget,
    ) -> Result<DeleteRangeResponse> {
        let mut response = DeleteRangeResponse::default();
        if range.is_empty() {
            return Ok(response);
        }
        let mut doomed = std::mem::take(&mut self.scratch.doomed);
        loop {
            // What is deleted is out of the way, so each round starts from the front.
            self.collect(range.bounds(), &mut doomed)?;
            let (Some((first, _)), Some((last, _))) =
                (doomed.iter().next(), doomed.iter().next_back())
            else {
                break;
            };
            for (key, record) in doomed.iter() {
                response.deleted += 1;
                let kv = self.bury(key, record, prev_kv, budget)?;
                response.prev_kvs.extend(kv);
            }
            if doomed.ends.len() == 1 {
                self.batch.delete(LATEST, first)?;
            } else {
                let bounds = (Bound::Included(first), Bound::Included(last));
                self.batch.delete_range(LATEST, bounds)?;
            }
            if !doomed.is_full() {
                break;
            }
        }
        doomed.clear();
        self.scratch.doomed = doomed;
        Ok(response)
    }

    fn collect(&self, bounds: Bounds<'_>, doomed: &mut Doomed) -> Result<()> {
        doomed.clear();
        scan(
            &*self.batch,
            LATEST,
            bounds,
            Direction::Forward,
            &mut |key, record| {
                doomed.push(key, record);
                Ok(if doomed.is_full() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            },
        )
    }

    /// Writes everything of a deletion but the removal from LATEST.
    fn bury(
        &mut self,
        key: &[u8],
        former: &[u8],
        prev_kv: bool,
        budget: &mut ReplyBudget,
    ) -> Result<Option<KeyValue>> {
        let modified = self.next_revision();
        let Scratch { record, change, .. } = &mut *self.scratch;
        let replaced = decode(LATEST, key, former)?;
        record.clear();
        let tombstone = NewVersion {
            modified,
            live: None,
        };
        tombstone
            .encode(Some(&replaced), record)
            .ok_or_else(|| MvccError::damaged(LATEST, key, "anchors that are none"))?;
        let hash = self.state.hash.wrapping_sub(kept_hash(key, &replaced));
        Change::start(key, change);
        change.extend_from_slice(former);
        seal_change(change, ChangeKind::Delete, hash);
        if let Some(collector) = &mut self.collector {
            let event = event_of(ChangeKind::Delete, key, modified, None, Some(&replaced));
            collector.push(&event);
        }
        self.batch.put(DEAD, key, record)?;
        let log_key = modified.log_key();
        self.batch.put(LOG, &log_key, change)?;
        let logged = log_key.len() + change.len();
        self.book(logged, hash);
        Ok(budget.keep(prev_kv, key, Some(&replaced)))
    }
}
