//! What the records of a replica's log say, for whoever only looks.

use bytes::Bytes;

use crate::entry;
use crate::error::RaftError;
use crate::record::{self, Record};

/// A record of a node's log in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSummary {
    /// `entry`, `config change`, `hard state` or `marker`.
    pub kind: &'static str,
    /// The index that it is of.
    pub index: Option<u64>,
    /// Its term.
    pub term: u64,
    /// The rest, in words.
    pub detail: String,
    /// The store that a marker names.
    pub store: Option<u64>,
}

/// Reads the record at `lsn`.
///
/// # Errors
///
/// `Record` for one that no replica writes.
pub fn summary(lsn: u64, kind: u8, payload: &[u8]) -> Result<RecordSummary, RaftError> {
    let record = record::decode(lsn, kind, Bytes::copy_from_slice(payload))?;
    Ok(match record {
        Record::Entry(entry) => {
            let is_change = entry.get_entry_type() != raft::eraftpb::EntryType::EntryNormal;
            RecordSummary {
                kind: if is_change { "config change" } else { "entry" },
                index: Some(entry.index),
                term: entry.term,
                detail: match entry::command_count(&entry.data) {
                    Some(count) if !is_change => format!("{count} commands"),
                    _ => String::new(),
                },
                store: None,
            }
        }
        Record::HardState(state) => RecordSummary {
            kind: "hard state",
            index: None,
            term: state.term,
            detail: format!("vote {:x}, commit {}", state.vote, state.commit),
            store: None,
        },
        Record::Marker(marker) => RecordSummary {
            kind: "marker",
            index: Some(marker.index),
            term: marker.term,
            detail: format!(
                "store {:06}, {} members{}",
                marker.store,
                marker.membership.members().count(),
                if marker.reset {
                    ", voids what was before"
                } else {
                    ""
                }
            ),
            store: Some(marker.store),
        },
    })
}
