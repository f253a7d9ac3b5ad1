//! What a recovered write-ahead log says.

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use varve_engine::wal::{Lsn, WalReader};

use crate::error::RaftError;
use crate::log::{RaftLog, Slot};
use crate::record::{self, Marker, Record};

/// Takes the records of a log in order. Segments are let go as a whole, so the
/// first records may belong before the first marker, or be void.
#[derive(Debug)]
pub(crate) struct Replay {
    slots: Vec<(Slot, Option<Entry>)>,
    cached_bytes: usize,
    cache_limit: usize,
    first: u64,
    before_term: Option<u64>,
    hard_state: HardState,
    marker: Option<Marker>,
    error: Option<RaftError>,
}

/// The log as it was, ready to go on.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) log: RaftLog,
    pub(crate) hard_state: HardState,
    pub(crate) marker: Marker,
}

impl Replay {
    /// Keeps about `cache_limit` bytes of the newest entries in memory.
    pub(crate) fn new(cache_limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            cached_bytes: 0,
            cache_limit,
            first: 0,
            before_term: None,
            hard_state: HardState::default(),
            marker: None,
            error: None,
        }
    }

    /// Takes the next record. The first error is kept for [`Replay::finish`].
    pub(crate) fn visit(&mut self, lsn: Lsn, kind: u8, payload: &[u8]) {
        if self.error.is_some() {
            return;
        }
        let result = record::decode(lsn, kind, Bytes::copy_from_slice(payload))
            .and_then(|record| self.take(lsn, record));
        self.error = result.err();
    }

    fn take(&mut self, lsn: Lsn, record: Record) -> Result<(), RaftError> {
        match record {
            Record::HardState(state) => self.hard_state = state,
            Record::Entry(entry) => self.entry(lsn, entry)?,
            Record::Marker(marker) => self.marker(lsn, marker)?,
        }
        Ok(())
    }

    fn last(&self) -> u64 {
        self.first + self.slots.len() as u64 - 1
    }

    fn entry(&mut self, lsn: Lsn, entry: Entry) -> Result<(), RaftError> {
        let index = entry.index;
        if self.first == 0 || (index < self.first && self.marker.is_none()) {
            // Nothing is known of what was before the first segment held.
            self.slots.clear();
            self.first = index;
        }
        if index < self.first || index > self.last() + 1 {
            return Err(RaftError::Inconsistent(format!(
                "entry {index} at {lsn} does not continue entries {} to {}",
                self.first,
                self.last()
            )));
        }
        self.slots.truncate((index - self.first) as usize);
        self.cached_bytes += entry.data.len();
        let slot = Slot {
            term: entry.term,
            lsn,
            bytes: entry.data.len() as u32,
        };
        self.slots.push((slot, Some(entry)));
        if self.cached_bytes > 2 * self.cache_limit {
            self.shed();
        }
        Ok(())
    }

    /// Lets go of old entries; they can be read back.
    fn shed(&mut self) {
        self.cached_bytes = 0;
        for (slot, entry) in self.slots.iter_mut().rev() {
            if self.cached_bytes + slot.bytes as usize > self.cache_limit {
                if entry.take().is_none() {
                    break;
                }
            } else {
                self.cached_bytes += slot.bytes as usize;
            }
        }
    }

    fn marker(&mut self, lsn: Lsn, marker: Marker) -> Result<(), RaftError> {
        if marker.reset || self.first == 0 || marker.index >= self.last() {
            self.slots.clear();
        } else if marker.index + 1 < self.first {
            return Err(RaftError::Inconsistent(format!(
                "the marker at {lsn} begins the log after {}, but the first entry is {}",
                marker.index, self.first
            )));
        } else {
            self.slots.drain(..(marker.index + 1 - self.first) as usize);
        }
        self.first = marker.index + 1;
        self.before_term = Some(marker.term);
        self.marker = Some(marker);
        Ok(())
    }

    /// The log, if it holds anything; `None` for a new one.
    pub(crate) fn finish(self, reader: WalReader) -> Result<Option<Replayed>, RaftError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let Some(marker) = self.marker else {
            if self.slots.is_empty() && self.hard_state == HardState::default() {
                return Ok(None);
            }
            return Err(RaftError::Inconsistent(
                "it has records but no marker that says where it begins".to_owned(),
            ));
        };
        let last = self.first + self.slots.len() as u64 - 1;
        if self.hard_state.commit > last {
            return Err(RaftError::Inconsistent(format!(
                "entries are known as committed up to {}, but the last is {last}",
                self.hard_state.commit
            )));
        }
        let before_term = self.before_term.unwrap_or(marker.term);
        let mut log = RaftLog::new((marker.index, before_term), self.cache_limit, reader);
        let mut term = before_term;
        for (slot, entry) in self.slots {
            if slot.term < term {
                return Err(RaftError::Inconsistent(format!(
                    "the entry at {} is of term {}, after one of term {term}",
                    slot.lsn, slot.term
                )));
            }
            term = slot.term;
            log.replay(slot, entry);
        }
        Ok(Some(Replayed {
            log,
            hard_state: self.hard_state,
            marker,
        }))
    }
}
