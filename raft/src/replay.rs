//! What a recovered write-ahead log says.

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use varve_engine::mutations::{Mutation, is_on};
use varve_engine::wal::{Lsn, WalReader};

use crate::change;
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
    newest_change: u64,
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
            newest_change: 0,
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
        match record::decode(lsn, kind, Bytes::copy_from_slice(payload)) {
            Ok(Record::HardState(state)) => self.hard_state = state,
            Ok(Record::Entry(entry)) => self.entry(lsn, entry),
            Ok(Record::Marker(marker)) => self.marker(marker),
            Err(error) => self.error = Some(error),
        }
    }

    fn last(&self) -> u64 {
        self.first + self.slots.len() as u64 - 1
    }

    fn entry(&mut self, lsn: Lsn, entry: Entry) {
        let index = entry.index;
        if self.first == 0 || index < self.first || index > self.last() + 1 {
            // What was between is gone with its segment: a later marker must say
            // that it may be, which `finish` checks.
            self.slots.clear();
            self.first = index;
        }
        self.slots.truncate((index - self.first) as usize);
        self.cached_bytes += entry.data.len();
        if change::is_change(&entry) {
            self.newest_change = index;
        }
        let slot = Slot {
            term: entry.term,
            lsn,
            bytes: entry.data.len() as u32,
        };
        self.slots.push((slot, Some(entry)));
        if self.cached_bytes > 2 * self.cache_limit {
            self.shed();
        }
    }

    /// Lets go of old entries; they can be read back.
    fn shed(&mut self) {
        self.cached_bytes = 0;
        let mut is_full = false;
        for (slot, entry) in self.slots.iter_mut().rev() {
            is_full |= self.cached_bytes + slot.bytes as usize > self.cache_limit;
            if !is_full {
                self.cached_bytes += slot.bytes as usize;
            } else if entry.take().is_none() {
                break; // so are all before it
            }
        }
    }

    fn marker(&mut self, marker: Marker) {
        if marker.reset || self.first == 0 || marker.index >= self.last() {
            self.slots.clear();
            self.first = marker.index + 1;
        } else if marker.index >= self.first {
            self.slots.drain(..(marker.index + 1 - self.first) as usize);
            self.first = marker.index + 1;
        }
        // Else entries after it are gone, as above.
        self.marker = Some(marker);
    }

    /// The log, if it holds anything; `None` for a new one.
    pub(crate) fn finish(mut self, reader: WalReader) -> Result<Option<Replayed>, RaftError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if is_on(Mutation::TruncatedLog) && self.slots.pop().is_some() {
            self.hard_state.commit = self.hard_state.commit.min(self.last());
        }
        if is_on(Mutation::TermForgotten) {
            let last = self.slots.last().map(|(slot, _)| slot.term);
            let term = last.or(self.marker.as_ref().map(|marker| marker.term));
            (self.hard_state.term, self.hard_state.vote) = (term.unwrap_or(0), 0);
        }
        let Some(marker) = self.marker else {
            if self.slots.is_empty() && self.hard_state == HardState::default() {
                return Ok(None);
            }
            return Err(RaftError::Inconsistent(
                "it has records but no marker that says where it begins".to_owned(),
            ));
        };
        if marker.index + 1 != self.first {
            return Err(RaftError::Inconsistent(format!(
                "it begins after entry {}, but the next one it holds is {}",
                marker.index, self.first
            )));
        }
        let last = self.first + self.slots.len() as u64 - 1;
        if self.hard_state.commit > last {
            return Err(RaftError::Inconsistent(format!(
                "entries are known as committed up to {}, but the last is {last}",
                self.hard_state.commit
            )));
        }
        let mut log = RaftLog::new((marker.index, marker.term), self.cache_limit, reader);
        log.set_newest_change(self.newest_change);
        let mut term = marker.term;
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
