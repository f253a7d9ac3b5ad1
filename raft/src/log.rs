//! The Raft log over the write-ahead log.
//!
//! # Invariants
//! 1. `slots` has one slot for each index from `first` to the last, without gaps.
//! 2. A slot's `lsn` is 0 until its record is durable; until then, and until it
//!    was handed out to be applied, its entry is in the cache.
//! 3. The cache holds a contiguous end of the log, and no more than its limit in
//!    bytes beyond what invariant 2 demands.
//! 4. Positions grow with indexes: an entry is written after its predecessor.
//!
//! raft-rs reads through [`raft::Storage`]. Entries that left the cache are read
//! back from disk by whoever can wait: for followers that lag, raft-rs is told to
//! come back and a [`Fetch`] goes out.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, StorageError};
use varve_engine::wal::{Lsn, WalReader};

use crate::change;
use crate::error::RaftError;
use crate::record::{self, Record};

/// Bytes that an entry counts beside its data.
const ENTRY_OVERHEAD: usize = 64;

/// Read-ahead that may wait to be picked up by raft-rs.
const MAX_FETCHED: usize = 16;

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its term.
    pub(crate) term: u64,
    /// Position of its record; 0 until that is durable.
    pub(crate) lsn: Lsn,
    /// Bytes of its data.
    pub(crate) bytes: u32,
}

/// A request to read entries back from disk.
#[derive(Debug)]
pub(crate) struct Fetch {
    /// Index of the first.
    pub(crate) low: u64,
    /// Their positions.
    pub(crate) positions: Vec<Lsn>,
}

/// The log of one replica.
#[derive(Debug)]
pub(crate) struct RaftLog {
    first: u64,
    /// Term of the entry before `first`.
    before_term: u64,
    slots: VecDeque<Slot>,
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    cache_limit: usize,
    /// Entries up to this index may leave the cache.
    handed: u64,
    /// Index of the newest entry that changes the membership; it may be void since.
    newest_change: u64,
    initial: RaftState,
    reader: WalReader,
    fetches: RefCell<Fetches>,
    snapshots: RefCell<SnapshotState>,
}

#[derive(Debug, Default)]
struct Fetches {
    /// Asked for but not yet sent out.
    new: Vec<Fetch>,
    /// Asked for and not yet answered, by first index.
    waiting: HashMap<u64, GetEntriesContext>,
    /// Answered, to be picked up.
    done: HashMap<u64, Vec<Entry>>,
}

#[derive(Debug, Default)]
struct SnapshotState {
    applied: (u64, u64),
    conf_state: ConfState,
}

impl RaftLog {
    /// The log that begins after `before` = (index, term).
    pub(crate) fn new(before: (u64, u64), cache_limit: usize, reader: WalReader) -> Self {
        Self {
            first: before.0 + 1,
            before_term: before.1,
            slots: VecDeque::new(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_limit,
            handed: before.0,
            newest_change: 0,
            initial: RaftState::default(),
            reader,
            fetches: RefCell::default(),
            snapshots: RefCell::default(),
        }
    }

    /// Sets what raft-rs starts from.
    pub(crate) fn set_initial(&mut self, hard_state: HardState, conf_state: ConfState) {
        self.initial = RaftState::new(hard_state, conf_state);
    }

    /// Tells what a snapshot for a follower would be of.
    pub(crate) fn set_applied(&mut self, index: u64, conf_state: ConfState) {
        let term = self.term_at(index).unwrap_or(0);
        *self.snapshots.get_mut() = SnapshotState {
            applied: (index, term),
            conf_state,
        };
    }

    /// Index of the first entry held.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Index of the last entry.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.slots.len() as u64 - 1
    }

    /// The slot of an entry.
    pub(crate) fn slot(&self, index: u64) -> Option<Slot> {
        let offset = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.slots.get(offset).copied()
    }

    /// The term of an entry, or of the one before the first.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index + 1 == self.first {
            return Some(self.before_term);
        }
        self.slot(index).map(|slot| slot.term)
    }

    /// Appends entries that follow each other; they void what was there from the
    /// first one's index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index >= self.first && first.index <= self.last() + 1,
            "entry {} does not continue the log {}..={}",
            first.index,
            self.first,
            self.last()
        );
        self.truncate_from(first.index);
        for entry in entries {
            if change::is_change(entry) {
                self.newest_change = entry.index;
            }
            self.push(entry.clone(), 0);
        }
        self.evict();
    }

    /// Adds the next entry of a recovered log. Without the entry itself it can
    /// only be read back; no such one may follow one that is in memory.
    pub(crate) fn replay(&mut self, slot: Slot, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.push(entry, slot.lsn),
            None => {
                debug_assert!(self.cache.is_empty());
                self.slots.push_back(slot);
            }
        }
        self.handed = self.last();
        self.evict();
    }

    /// Tells a recovered log where its newest change of the membership is.
    pub(crate) fn set_newest_change(&mut self, index: u64) {
        self.newest_change = index;
    }

    /// Index of the newest entry that changes the membership, or 0. An index that another
    /// entry has taken since may be given.
    pub(crate) fn newest_change(&self) -> u64 {
        self.newest_change
    }

    fn push(&mut self, entry: Entry, lsn: Lsn) {
        self.slots.push_back(Slot {
            term: entry.term,
            lsn,
            bytes: entry.data.len() as u32,
        });
        self.cache_bytes += entry.data.len() + ENTRY_OVERHEAD;
        self.cache.push_back(entry);
    }

    /// Voids entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        while self.last() >= index && self.slots.pop_back().is_some() {
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry.data.len() + ENTRY_OVERHEAD;
            }
        }
        self.handed = self.handed.min(self.last());
        self.forget_fetched();
    }

    /// Notes that the record of an entry is durable at `lsn`, unless the entry
    /// was voided meanwhile.
    pub(crate) fn set_durable(&mut self, index: u64, term: u64, lsn: Lsn) {
        let Some(offset) = index.checked_sub(self.first) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(offset as usize)
            && slot.term == term
            && slot.lsn == 0
        {
            slot.lsn = lsn;
        }
    }

    /// Notes that entries up to `index` were handed out to be applied.
    pub(crate) fn set_handed(&mut self, index: u64) {
        self.handed = self.handed.max(index);
        self.evict();
    }

    /// Drops entries up to `index`; the log then begins after it.
    pub(crate) fn compact(&mut self, index: u64) {
        let Some(term) = self.term_at(index) else {
            return;
        };
        while self.first <= index && self.slots.pop_front().is_some() {
            if self.cache.len() > self.slots.len() {
                self.pop_cached();
            }
            self.first += 1;
        }
        self.before_term = term;
        self.handed = self.handed.max(index);
    }

    /// Voids all entries; the log then begins after (index, term).
    pub(crate) fn reset(&mut self, index: u64, term: u64) {
        self.slots.clear();
        self.cache.clear();
        self.cache_bytes = 0;
        (self.first, self.before_term, self.handed) = (index + 1, term, index);
        self.forget_fetched();
    }

    fn pop_cached(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= entry.data.len() + ENTRY_OVERHEAD;
        }
    }

    fn evict(&mut self) {
        while self.cache_bytes > self.cache_limit {
            let Some(entry) = self.cache.front() else {
                return;
            };
            let durable = self.slot(entry.index).is_some_and(|slot| slot.lsn != 0);
            if !durable || entry.index > self.handed {
                return;
            }
            self.pop_cached();
        }
    }

    fn cache_first(&self) -> u64 {
        self.last() + 1 - self.cache.len() as u64
    }

    /// Reads entries that are not in the cache, now.
    fn read_back(&self, low: u64, high: u64, max_bytes: u64) -> raft::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let Some(slot) = self.slot(index) else { break };
            bytes += u64::from(slot.bytes) + ENTRY_OVERHEAD as u64;
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            let entry = read_entry(&self.reader, slot.lsn, index)
                .map_err(|error| raft::Error::Store(StorageError::Other(error.into())))?;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn fetch_later(&self, low: u64, high: u64, max_bytes: u64, context: GetEntriesContext) {
        let mut fetches = self.fetches.borrow_mut();
        if fetches.waiting.contains_key(&low) {
            return; // the one that waits wakes raft-rs up
        }
        let mut positions = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let Some(slot) = self.slot(index) else { break };
            bytes += u64::from(slot.bytes) + ENTRY_OVERHEAD as u64;
            if !positions.is_empty() && bytes > max_bytes {
                break;
            }
            positions.push(slot.lsn);
        }
        fetches.waiting.insert(low, context);
        fetches.new.push(Fetch { low, positions });
    }

    /// The requests to read from disk that came up.
    pub(crate) fn take_fetches(&mut self) -> Vec<Fetch> {
        std::mem::take(&mut self.fetches.get_mut().new)
    }

    /// Takes in what a [`Fetch`] read (nothing, if it failed) and returns what to
    /// wake raft-rs with.
    pub(crate) fn fetched(&mut self, low: u64, entries: Vec<Entry>) -> Option<GetEntriesContext> {
        let still_ours = entries
            .iter()
            .all(|entry| self.term_at(entry.index) == Some(entry.term));
        let fetches = self.fetches.get_mut();
        let context = fetches.waiting.remove(&low)?;
        if entries.is_empty() || !still_ours {
            return None; // raft-rs asks again with the next heartbeat
        }
        if fetches.done.len() >= MAX_FETCHED {
            fetches.done.clear();
        }
        fetches.done.insert(low, entries);
        Some(context)
    }

    fn forget_fetched(&mut self) {
        self.fetches.get_mut().done.clear();
    }

    /// The least index such that the entries after it up to `last` have no more
    /// than `limit` bytes.
    pub(crate) fn index_with_bytes(&self, last: u64, limit: u64) -> u64 {
        let mut index = last;
        let mut bytes = 0;
        while let Some(slot) = self.slot(index) {
            bytes += u64::from(slot.bytes) + ENTRY_OVERHEAD as u64;
            if bytes > limit {
                break;
            }
            index -= 1;
        }
        index
    }
}

/// Reads the entry at `lsn`, which must have this index.
pub(crate) fn read_entry(reader: &WalReader, lsn: Lsn, index: u64) -> Result<Entry, RaftError> {
    let (kind, payload) = reader.read(lsn)?;
    match record::decode(lsn, kind, Bytes::from(payload))? {
        Record::Entry(entry) if entry.index == index => Ok(entry),
        _ => Err(RaftError::Inconsistent(format!(
            "entry {index} is not at {lsn}"
        ))),
    }
}

impl raft::Storage for RaftLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let cache_first = self.cache_first();
        if low < cache_first {
            if context.can_async()
                && let Some(mut entries) = self.fetches.borrow_mut().done.remove(&low)
            {
                entries.truncate((high - low) as usize);
                return Ok(entries);
            }
            let cold_end = high.min(cache_first);
            if context.can_async() {
                self.fetch_later(low, cold_end, max_bytes, context);
                return Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable));
            }
            let mut entries = self.read_back(low, cold_end, max_bytes)?;
            if cold_end < high && entries.len() as u64 == cold_end - low {
                let size = |e: &Entry| (e.data.len() + ENTRY_OVERHEAD) as u64;
                let used: u64 = entries.iter().map(size).sum();
                if used < max_bytes {
                    entries.extend(self.cached(cold_end, high, max_bytes - used, false));
                }
            }
            return Ok(entries);
        }
        Ok(self.cached(low, high, max_bytes, true))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index)
            .ok_or(raft::Error::Store(if index < self.first {
                StorageError::Compacted
            } else {
                StorageError::Unavailable
            }))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// What a snapshot would be of. The bulk is pinned when it is sent, and may
    /// be newer than this.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let state = self.snapshots.borrow();
        let (index, term) = state.applied;
        if index == 0 || term == 0 || index < request_index {
            return Err(raft::Error::Store(
                StorageError::SnapshotTemporarilyUnavailable,
            ));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.set_conf_state(state.conf_state.clone());
        Ok(snapshot)
    }
}

impl RaftLog {
    /// Entries from the cache; at least one if `at_least_one` and there is one.
    fn cached(&self, low: u64, high: u64, max_bytes: u64, at_least_one: bool) -> Vec<Entry> {
        let start = (low - self.cache_first()) as usize;
        let count = (high - low) as usize;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.cache.iter().skip(start).take(count) {
            bytes += (entry.data.len() + ENTRY_OVERHEAD) as u64;
            if bytes > max_bytes && !(at_least_one && entries.is_empty()) {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }
}
