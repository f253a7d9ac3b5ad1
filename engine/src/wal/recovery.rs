//! Opening a log: what is found, and what is done about it.
//!
//! A group that is not whole is at position *p*. It is *damage* if something
//! shows that *p* had been durable: a whole record later in the segment whose
//! `durable_lsn` is over *p*, a later segment with a header, or a record in the
//! prepared next segment. Else the power went while it was written.
//!
//! | what is found | case | what is done |
//! |---|---|---|
//! | no segment, or only a first one without header and records | `New` | a log is made |
//! | whole groups, then zeroes | `CleanEnd` | go on there |
//! | whole groups, then bytes of a segment's earlier life (records of lower positions) | `StaleRecords` | go on there, overwriting them |
//! | last group not whole, its first record bad, nothing shows it was durable | `TornTail` | cut: what is left of it is zeroed, go on there |
//! | last group not whole, its first records whole, nothing shows it was durable | `TornGroup` | cut as a whole, as above |
//! | a file for the next segment without header and records | `HalfPreparedSegment` | used as the next segment |
//! | a group not whole, and something shows it was durable | `DamagedMiddle` | error; nothing is changed |
//! | a segment without a whole header, but others or records after it; or one that does not follow its predecessor | `DamagedHeader` | error; nothing is changed |
//! | a number left out, or a sealed segment without successor | `MissingSegment` | error; nothing is changed |
//! | a header with another cluster id | `ForeignCluster` | error; nothing is changed |
//! | a header with another member id | `ForeignMember` | error; nothing is changed |
//! | a header of version 0 | `OlderVersion` | error; nothing is changed |
//! | a header of a higher version | `NewerVersion` | error; nothing is changed |
//!
//! A group is cut as a whole, also where some of its records are there: nobody
//! was told that it is durable, and all or nothing is simpler to build on. What
//! is left of it is zeroed durably before anything new is written, so that a
//! later, shorter group cannot be continued by its remains.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{self, Flaw, KIND_SEAL, MAX_GROUP_BYTES};
use super::scan::{self, Window, user_records};
use super::segment::{HEADER_BYTES, Segment, SegmentHeader, VERSION, number_of, segment_path};
use super::{FIRST_LSN, Identity, Lsn, Result, WalError};
use crate::disk::{AlignedBuf, Disk, OpenMode, align};

/// What recovery found; see the table of the module's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Case {
    /// No log was there: a new one was made.
    New,
    /// The log ends with a whole group and zeroes after it.
    CleanEnd,
    /// The log ends with a whole group, and bytes of a segment's earlier life
    /// after it.
    StaleRecords,
    /// The last group was not written to its end, and its first record is bad.
    TornTail,
    /// The last group was not written to its end, and some of its records are
    /// whole.
    TornGroup,
    /// The next segment was being prepared.
    HalfPreparedSegment,
    /// A group that had been durable is bad.
    DamagedMiddle,
    /// The header of a segment is bad, and it is not the next one being prepared.
    DamagedHeader,
    /// A segment is not there.
    MissingSegment,
    /// The log of another cluster.
    ForeignCluster,
    /// The log of another member.
    ForeignMember,
    /// Written by an older version that this one cannot read.
    OlderVersion,
    /// Written by a newer version.
    NewerVersion,
}

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// How the log ended: one of the first five cases.
    pub case: Case,
    /// Whether a next segment was found that has no header yet
    /// ([`Case::HalfPreparedSegment`]); usual, as it is prepared ahead.
    pub half_prepared: bool,
    /// The first position held.
    pub start_lsn: Lsn,
    /// Where the next record goes.
    pub end_lsn: Lsn,
    /// Bytes of an unfinished last group that were cut.
    pub truncated_bytes: u64,
    /// Records visited.
    pub records: u64,
    /// Segments with records, or ready for them.
    pub segments: u64,
}

/// A log ready to be written to.
pub(super) struct Found {
    pub(super) recovered: Recovered,
    /// In order; empty if there is no log yet.
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) spares: Vec<PathBuf>,
    pub(super) prev_crc: u32,
    pub(super) last_kind: u8,
}

/// Visits a record: position, kind, payload.
pub(super) type Visit<'v> = dyn FnMut(Lsn, u8, &[u8]) + 'v;

/// Finds the log in `dir`, which exists.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    visit: &mut Visit<'_>,
) -> Result<Found> {
    let names = disk.list(dir)?;
    let spares = names
        .iter()
        .filter(|name| number_of(name, "spare").is_some());
    let spares = spares.map(|name| dir.join(name)).collect();
    let numbers = names.iter().filter_map(|name| number_of(name, "wal"));
    let mut files = open_all(disk, dir, numbers)?;
    check_versions_and_identity(&files, identity)?;
    let next = take_headerless_last(dir, &mut files)?;
    let segments = into_segments(files)?;
    let Some(last) = segments.last() else {
        if let Some(file) = &next {
            check_headerless(file, FIRST_LSN)?;
        }
        return Ok(empty(spares, next.is_some()));
    };
    let mut walk = Walk::new(&segments);
    for (at, segment) in segments.iter().enumerate() {
        walk.segment(segment, segments.get(at + 1).map(|next| &**next), visit)?;
    }
    if let Some(file) = &next {
        check_headerless(file, walk.lsn)?;
    } else if walk.last_kind == KIND_SEAL {
        return Err(missing(dir, last.number + 1, walk.lsn));
    }
    let (case, truncated_bytes) = cut_tail(last, &walk)?;
    // The last group may have been written and not yet synced when the process
    // ended; from now on it counts as durable. A sync alone would not do: after
    // one that failed, the kernel shows what the disk does not have and syncs it
    // no more.
    write_again(last, walk.lsn)?;
    last.file.sync()?;
    let recovered = Recovered {
        case,
        half_prepared: next.is_some(),
        start_lsn: segments[0].base_lsn,
        end_lsn: walk.lsn,
        truncated_bytes,
        records: walk.records,
        segments: segments.len() as u64,
    };
    Ok(Found {
        recovered,
        spares,
        prev_crc: walk.prev_crc,
        last_kind: walk.last_kind,
        segments,
    })
}

fn empty(spares: Vec<PathBuf>, half_prepared: bool) -> Found {
    let recovered = Recovered {
        case: Case::New,
        half_prepared,
        start_lsn: FIRST_LSN,
        end_lsn: FIRST_LSN,
        truncated_bytes: 0,
        records: 0,
        segments: 0,
    };
    Found {
        recovered,
        segments: Vec::new(),
        spares,
        prev_crc: 0,
        last_kind: 0,
    }
}

/// A segment file and its header, if that is whole.
struct SegmentFile {
    segment: Segment,
    header: Option<SegmentHeader>,
}

/// Opens the segments, whose numbers must leave no gap.
fn open_all(
    disk: &dyn Disk,
    dir: &Path,
    numbers: impl Iterator<Item = u64>,
) -> Result<Vec<SegmentFile>> {
    let mut files: Vec<SegmentFile> = Vec::new();
    for number in numbers {
        if let Some(before) = files.last()
            && before.segment.number + 1 != number
        {
            return Err(missing(
                dir,
                before.segment.number + 1,
                before.segment.base_lsn,
            ));
        }
        let path = segment_path(dir, number);
        let file = disk.open_log(&path, OpenMode::Existing)?;
        let mut block = [0; HEADER_BYTES as usize];
        let read = file.read_at(&mut block, 0)?;
        let header = SegmentHeader::decode(&block[..read]);
        let base_lsn = header.map_or(0, |header| header.base_lsn);
        let file_bytes = file.len()?;
        let segment = Segment {
            number,
            base_lsn,
            path,
            file,
            file_bytes,
        };
        files.push(SegmentFile { segment, header });
    }
    Ok(files)
}

fn check_versions_and_identity(files: &[SegmentFile], identity: Identity) -> Result<()> {
    for file in files {
        let Some(header) = &file.header else { continue };
        let found = header.identity;
        let (case, message) = if header.version > VERSION {
            let version = header.version;
            (
                Case::NewerVersion,
                format!(
                    "format {version} is newer than this program's {VERSION}; run a newer varve"
                ),
            )
        } else if header.version < VERSION {
            let version = header.version;
            (
                Case::OlderVersion,
                format!(
                    "format {version} is older than this program's {VERSION}, and there is no way to read it; run an older varve"
                ),
            )
        } else if found.cluster_id != identity.cluster_id {
            let (theirs, ours) = (found.cluster_id, identity.cluster_id);
            (
                Case::ForeignCluster,
                format!(
                    "this is the log of cluster {theirs:x}, not of {ours:x}; check the data directory and the initial cluster settings"
                ),
            )
        } else if found.member_id != identity.member_id {
            let (theirs, ours) = (found.member_id, identity.member_id);
            (
                Case::ForeignMember,
                format!(
                    "this is the log of member {theirs:x}, not of {ours:x}; check the data directory"
                ),
            )
        } else {
            continue;
        };
        return Err(unrecoverable(case, &file.segment.path, message, None));
    }
    Ok(())
}

/// Takes the last file off if it has no header: the next segment, perhaps. The
/// first segment of all may be one, too.
fn take_headerless_last(dir: &Path, files: &mut Vec<SegmentFile>) -> Result<Option<Segment>> {
    let Some(last) = files.pop_if(|last| last.header.is_none()) else {
        return Ok(None);
    };
    if files.is_empty() && last.segment.number != 1 {
        let message = format!(
            "the header is damaged, and the segments before it are gone from {}; set the directory aside and let the member be replaced",
            dir.display()
        );
        return Err(unrecoverable(
            Case::DamagedHeader,
            &last.segment.path,
            message,
            None,
        ));
    }
    Ok(Some(last.segment))
}

fn into_segments(files: Vec<SegmentFile>) -> Result<Vec<Arc<Segment>>> {
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    for SegmentFile { segment, header } in files {
        let follows = segments
            .last()
            .is_none_or(|before| segment.base_lsn > before.base_lsn);
        let names_itself = header.is_some_and(|header| header.number == segment.number);
        if !names_itself || !follows {
            let message = "the header is damaged; the records in it may be whole. Nothing was changed: set the directory aside and let the member be replaced";
            return Err(unrecoverable(
                Case::DamagedHeader,
                &segment.path,
                message.into(),
                None,
            ));
        }
        segments.push(Arc::new(segment));
    }
    Ok(segments)
}

/// Makes sure that a file without header holds no record at or after `end`, as it
/// would if the header had been damaged later.
fn check_headerless(file: &Segment, end: Lsn) -> Result<()> {
    let Some((offset, lsn)) = scan::find_any_record(file, end)? else {
        return Ok(());
    };
    let message = format!(
        "the header is damaged, but there are records in it (lsn {lsn} at offset {offset}). Nothing was changed: set the directory aside and let the member be replaced"
    );
    Err(unrecoverable(
        Case::DamagedHeader,
        &file.path,
        message,
        Some(lsn),
    ))
}

/// Goes from group to group over all segments.
struct Walk<'s> {
    segments: &'s [Arc<Segment>],
    lsn: Lsn,
    prev_crc: u32,
    /// The kind of the last record in the segment, 0 if it has none.
    last_kind: u8,
    records: u64,
    /// Why the walk ended where it did: the flaw of the record at the end, and
    /// whole records of its group before it.
    end: (Flaw, usize),
}

impl<'s> Walk<'s> {
    fn new(segments: &'s [Arc<Segment>]) -> Self {
        let lsn = segments[0].base_lsn;
        Self {
            segments,
            lsn,
            prev_crc: 0,
            last_kind: 0,
            records: 0,
            end: (Flaw::Empty, 0),
        }
    }

    /// Visits the records of one segment. If there is a next one, its header says
    /// that this one was durable to its end.
    fn segment(
        &mut self,
        segment: &Segment,
        next: Option<&Segment>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let header_crc = read_prev_crc(segment)?;
        if self.lsn != segment.base_lsn
            || (segment.number != self.segments[0].number && self.prev_crc != header_crc)
        {
            let message = format!(
                "the segment does not follow the one before it, which ends at lsn {}. Nothing was changed: set the directory aside and let the member be replaced",
                self.lsn
            );
            let lsn = Some(segment.base_lsn);
            return Err(unrecoverable(
                Case::DamagedHeader,
                &segment.path,
                message,
                lsn,
            ));
        }
        self.prev_crc = header_crc;
        self.last_kind = 0;
        let mut window = Window::new(segment);
        let mut sealed = false;
        while !sealed && self.lsn < segment.limit_lsn() {
            let (whole, group) = match window.group(self.lsn, Some(self.prev_crc))? {
                Ok(found) => found,
                Err(bad) => {
                    let lsn = self.lsn + bad.offset as u64;
                    self.end = (bad.flaw, bad.whole);
                    return self.check_not_durable(segment, next, &mut window, lsn);
                }
            };
            for (offset, kind, payload) in record::records_of(group) {
                if kind <= record::MAX_KIND {
                    visit(self.lsn + offset as u64, kind, payload);
                }
            }
            self.records += user_records(group);
            self.lsn += whole.padded_bytes();
            self.prev_crc = whole.last_crc;
            self.last_kind = whole.last_kind;
            sealed = whole.last_kind == KIND_SEAL;
        }
        self.end = (Flaw::Empty, 0);
        match next {
            Some(_) if !sealed => self.check_not_durable(segment, next, &mut window, self.lsn),
            _ => Ok(()),
        }
    }

    /// Fails if something shows that position `bad` had been durable.
    fn check_not_durable(
        &self,
        segment: &Segment,
        next: Option<&Segment>,
        window: &mut Window<'_>,
        bad: Lsn,
    ) -> Result<()> {
        let evidence = window.find_evidence(bad + 1, bad)?;
        if evidence.is_none() && next.is_none() {
            return Ok(());
        }
        let mut whole = String::new();
        if let Some(from) = evidence {
            let (records, to) = window.whole_after(from)?;
            whole = format!("; after it {records} records from lsn {from} to {to} are whole");
        }
        if let (Some(next), Some(last)) = (next, self.segments.last()) {
            whole += &format!("; segments {} to {} follow it", next.number, last.number);
        }
        let message = format!(
            "record at offset {} (lsn {bad}) of segment {} is damaged: {}. It had been synced{whole}. Records before it, up to lsn {}, are whole. Nothing was changed: set the directory aside and let the member be replaced",
            segment.offset_of(bad),
            segment.number,
            self.end.0.as_str(),
            self.lsn,
        );
        Err(unrecoverable(
            Case::DamagedMiddle,
            &segment.path,
            message,
            Some(bad),
        ))
    }
}

fn read_prev_crc(segment: &Segment) -> Result<u32> {
    let mut block = [0; HEADER_BYTES as usize];
    segment.file.read_exact_at(&mut block, 0)?;
    Ok(SegmentHeader::decode(&block).map_or(0, |header| header.prev_crc))
}

/// Takes what is left of an unfinished group out of the way; how the log ended,
/// and how many bytes that were.
fn cut_tail(last: &Segment, walk: &Walk<'_>) -> Result<(Case, u64)> {
    if walk.last_kind == KIND_SEAL {
        return Ok((Case::CleanEnd, 0));
    }
    let leftover = Window::new(last).leftover(walk.lsn)?;
    let Some((from, to)) = leftover.records else {
        // Bytes without a record of their position can never be read as one.
        return Ok((
            if leftover.zero {
                Case::CleanEnd
            } else {
                Case::StaleRecords
            },
            0,
        ));
    };
    let zeroes = AlignedBuf::zeroed((to - from) as usize);
    last.file.write_durable(&zeroes, last.offset_of(from))?;
    let case = if walk.end.1 == 0 {
        Case::TornTail
    } else {
        Case::TornGroup
    };
    Ok((case, to - walk.lsn))
}

/// Writes the end of the segment up to `end`, a group at least, and its header once
/// more: the header may be the last thing that was written before a sync failed.
fn write_again(last: &Segment, end: Lsn) -> Result<()> {
    let end = last.offset_of(end);
    let block = align::BLOCK_BYTES as u64;
    let from = end.saturating_sub(MAX_GROUP_BYTES as u64) / block * block;
    if from > 0 {
        write_range_again(last, 0, block)?;
    }
    write_range_again(last, from, end.max(block))
}

fn write_range_again(segment: &Segment, from: u64, to: u64) -> Result<()> {
    let mut bytes = AlignedBuf::zeroed((to - from) as usize);
    segment.file.read_exact_at(&mut bytes, from)?;
    segment.file.write_durable(&bytes, from)?;
    Ok(())
}

fn missing(dir: &Path, number: u64, lsn: Lsn) -> WalError {
    let message = format!(
        "segment {number} is missing, though others show that it was there. Nothing was changed: bring the file back, or set the directory aside and let the member be replaced"
    );
    let path = segment_path(dir, number);
    unrecoverable(Case::MissingSegment, &path, message, Some(lsn))
}

fn unrecoverable(case: Case, path: &Path, message: String, lsn: Option<Lsn>) -> WalError {
    WalError::Unrecoverable {
        case,
        path: path.to_owned(),
        message,
        lsn,
    }
}
