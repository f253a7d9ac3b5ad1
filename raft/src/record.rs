//! The records that a replica keeps in the write-ahead log.
//!
//! | kind | payload, little-endian |
//! |---|---|
//! | 1 entry | `index u64, term u64, type u8, 7 zero bytes`, data |
//! | 2 hard state | `term u64, vote u64, commit u64` |
//! | 3 marker | `index u64, term u64, store u64, flags u8, 7 zero bytes`, membership |
//!
//! A later record wins over an earlier one: an entry voids all entries from its
//! index on, a hard state the one before it. A marker says where the log begins:
//! entries up to its index are not needed, and the store file that it names holds
//! their effect. With flag 1 (the store came from another member, or from the
//! bootstrap) it voids all entries, also those after its index.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, HardState};
use varve_engine::wal::{Group, Lsn};
use varve_types::{DecodeError, Reader};

use crate::error::RaftError;
use crate::membership::Membership;

pub(crate) const KIND_ENTRY: u8 = 1;
pub(crate) const KIND_HARD_STATE: u8 = 2;
pub(crate) const KIND_MARKER: u8 = 3;

/// Bytes of an entry record before its data.
pub(crate) const ENTRY_HEADER_BYTES: usize = 24;

const FLAG_RESET: u8 = 1;

/// Where the log begins, and which store goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    /// The last index that the log does not hold any more.
    pub(crate) index: u64,
    /// Its term.
    pub(crate) term: u64,
    /// The store file: the index of the snapshot that it was loaded from, 1 for
    /// that of the bootstrap.
    pub(crate) store: u64,
    /// Whether entries after `index` are void as well.
    pub(crate) reset: bool,
    /// The members as of `index` or later.
    pub(crate) membership: Membership,
}

/// A decoded record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    Entry(Entry),
    HardState(HardState),
    Marker(Marker),
}

/// Adds an entry's record to `group` and returns its offset in it. The data is
/// copied once, straight into the group.
pub(crate) fn push_entry(group: &mut Group, entry: &Entry) -> Result<u64, RaftError> {
    let mut header = [0; ENTRY_HEADER_BYTES];
    header[..8].copy_from_slice(&entry.index.to_le_bytes());
    header[8..16].copy_from_slice(&entry.term.to_le_bytes());
    header[16] = type_number(entry.get_entry_type());
    Ok(group.push(KIND_ENTRY, &[&header, &entry.data])?)
}

/// Adds a hard state's record to `group`.
pub(crate) fn push_hard_state(group: &mut Group, state: &HardState) -> Result<(), RaftError> {
    let mut payload = [0; 24];
    payload[..8].copy_from_slice(&state.term.to_le_bytes());
    payload[8..16].copy_from_slice(&state.vote.to_le_bytes());
    payload[16..].copy_from_slice(&state.commit.to_le_bytes());
    group.push(KIND_HARD_STATE, &[&payload])?;
    Ok(())
}

/// Adds a marker's record to `group`, and returns its offset in it.
pub(crate) fn push_marker(group: &mut Group, marker: &Marker) -> Result<u64, RaftError> {
    let mut payload = Vec::with_capacity(256);
    for field in [marker.index, marker.term, marker.store] {
        payload.extend_from_slice(&field.to_le_bytes());
    }
    payload.push(if marker.reset { FLAG_RESET } else { 0 });
    payload.extend_from_slice(&[0; 7]);
    marker.membership.encode(&mut payload);
    Ok(group.push(KIND_MARKER, &[&payload])?)
}

/// Decodes the record at `lsn`.
pub(crate) fn decode(lsn: Lsn, kind: u8, payload: Bytes) -> Result<Record, RaftError> {
    let wrap = |source| RaftError::Record { lsn, kind, source };
    match kind {
        KIND_ENTRY => decode_entry(payload).map(Record::Entry).map_err(wrap),
        KIND_HARD_STATE => decode_hard_state(&payload)
            .map(Record::HardState)
            .map_err(wrap),
        KIND_MARKER => decode_marker(&payload).map(Record::Marker).map_err(wrap),
        _ => Err(wrap(Reader::new(&payload).error("record kind"))),
    }
}

fn decode_entry(payload: Bytes) -> Result<Entry, DecodeError> {
    let mut reader = Reader::new(&payload);
    let mut entry = Entry {
        index: reader.u64("index")?,
        term: reader.u64("term")?,
        ..Entry::default()
    };
    entry.set_entry_type(match reader.u8("entry type")? {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(reader.error("entry type")),
    });
    reader.take(7, "padding")?;
    entry.data = payload.slice(ENTRY_HEADER_BYTES..);
    Ok(entry)
}

fn decode_hard_state(payload: &[u8]) -> Result<HardState, DecodeError> {
    let mut reader = Reader::new(payload);
    let state = HardState {
        term: reader.u64("term")?,
        vote: reader.u64("vote")?,
        commit: reader.u64("commit")?,
        ..HardState::default()
    };
    reader.finish()?;
    Ok(state)
}

fn decode_marker(payload: &[u8]) -> Result<Marker, DecodeError> {
    let mut reader = Reader::new(payload);
    let (index, term) = (reader.u64("index")?, reader.u64("term")?);
    let store = reader.u64("store")?;
    let flags = reader.u8("flags")?;
    reader.take(7, "padding")?;
    let membership = Membership::decode(&mut reader)?;
    reader.finish()?;
    Ok(Marker {
        index,
        term,
        store,
        reset: flags & FLAG_RESET != 0,
        membership,
    })
}

fn type_number(entry_type: EntryType) -> u8 {
    match entry_type {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}
