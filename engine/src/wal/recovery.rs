//! Recovery.

use super::Lsn;

/// What recovery found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Case {
    /// No log was there: a new one was made.
    New,
    /// The log ends with a whole group and zeroes after it.
    CleanEnd,
    /// The log ends with a whole group and records of a segment's earlier life after it.
    StaleRecords,
    /// The last group was not written to its end, and its first record is bad. Cut.
    TornTail,
    /// The last group was not written to its end, and some of its records are whole. Cut as a whole.
    TornGroup,
    /// The next segment was being prepared. Used again.
    HalfPreparedSegment,
    /// A record that had been acknowledged is bad. Error, nothing is changed.
    DamagedMiddle,
    /// The header of a segment with records is bad. Error, nothing is changed.
    DamagedHeader,
    /// A segment between others is not there. Error.
    MissingSegment,
    /// The log of another cluster. Error.
    ForeignCluster,
    /// The log of another member. Error.
    ForeignMember,
    /// Written by an older version that this one cannot read. Error.
    OlderVersion,
    /// Written by a newer version. Error.
    NewerVersion,
}

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// How the log ended.
    pub case: Case,
    /// Whether a half-prepared next segment was found.
    pub half_prepared: bool,
    /// The first position held.
    pub start_lsn: Lsn,
    /// Where the next record goes.
    pub end_lsn: Lsn,
    /// Bytes of an unfinished last group that were cut.
    pub truncated_bytes: u64,
    /// Records visited.
    pub records: u64,
    /// Segments found.
    pub segments: u64,
}
