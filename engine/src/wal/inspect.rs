//! Looking at a log without opening it: what `varvectl inspect wal` shows. Any
//! bytes give an answer; nothing is changed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{self, Flaw, HEADER_BYTES as RECORD_HEADER_BYTES, Header, KIND_SEAL};
use super::recovery::{self, Recovered};
use super::scan::Window;
use super::segment::{HEADER_BYTES, Segment, SegmentHeader, number_of, segment_path};
use super::{Identity, Lsn, Result};
use crate::disk::{Disk, OpenMode};

/// A segment's file and what its header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentView {
    /// The file.
    pub path: PathBuf,
    /// Number in its name.
    pub number: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// `None` if the header is not whole: the next segment, made ready, or a damaged one.
    pub header: Option<HeaderView>,
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderView {
    /// Format version.
    pub version: u32,
    /// Number that it says it has.
    pub number: u64,
    /// Position of its first record.
    pub base_lsn: Lsn,
    /// Whose log it is.
    pub identity: Identity,
    /// Checksum of the last record before it.
    pub prev_crc: u32,
}

/// What a walk over a log meets, in order.
#[derive(Debug)]
pub enum Item<'i> {
    /// A segment begins.
    Segment(&'i SegmentView),
    /// A record of a whole group.
    Record {
        /// Its header; the checksum is right.
        header: Header,
        /// Offset in the segment's file.
        offset: u64,
        /// What is in it.
        payload: &'i [u8],
    },
    /// No whole group starts here, and nothing more of the segment is read. The end
    /// of the log, if it is the last segment and nothing later speaks against it.
    Stop {
        /// Position of the record that is not whole.
        lsn: Lsn,
        /// Its offset in the segment's file.
        offset: u64,
        /// What is wrong with it.
        flaw: Flaw,
    },
}

/// Walks over the log in `dir`, until `visit` breaks.
pub fn walk(
    disk: &dyn Disk,
    dir: &Path,
    visit: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let names = disk.list(dir)?;
    let mut prev_crc = None;
    for number in names.iter().filter_map(|name| number_of(name, "wal")) {
        let (view, segment) = open(disk, dir, number)?;
        if visit(Item::Segment(&view)).is_break() {
            return Ok(());
        }
        let Some(header) = view.header else {
            prev_crc = None;
            continue;
        };
        // A segment that does not follow shows itself at its first record.
        let first = prev_crc.take().unwrap_or(header.prev_crc);
        match walk_segment(&segment, first, visit)? {
            ControlFlow::Continue(last) => prev_crc = last,
            ControlFlow::Break(()) => return Ok(()),
        }
    }
    Ok(())
}

fn open(disk: &dyn Disk, dir: &Path, number: u64) -> Result<(SegmentView, Arc<Segment>)> {
    let path = segment_path(dir, number);
    let file = disk.open(&path, OpenMode::Existing)?;
    let mut block = [0; HEADER_BYTES as usize];
    let read = file.read_at(&mut block, 0)?;
    let header = SegmentHeader::decode(&block[..read]);
    let file_bytes = file.len()?;
    let view = SegmentView {
        path: path.clone(),
        number,
        file_bytes,
        header: header.map(|header| HeaderView {
            version: header.version,
            number: header.number,
            base_lsn: header.base_lsn,
            identity: header.identity,
            prev_crc: header.prev_crc,
        }),
    };
    let segment = Segment {
        number,
        base_lsn: header.map_or(0, |header| header.base_lsn),
        path,
        file,
        file_bytes,
    };
    Ok((view, Arc::new(segment)))
}

/// The last checksum, for the next segment to chain to, if this one is sealed.
fn walk_segment(
    segment: &Segment,
    mut prev_crc: u32,
    visit: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<(), Option<u32>>> {
    let mut window = Window::new(segment);
    let mut lsn = segment.base_lsn;
    while lsn < segment.limit_lsn() {
        let (whole, group) = match window.group(lsn, Some(prev_crc))? {
            Ok(found) => found,
            Err(bad) => {
                let lsn = lsn.saturating_add(bad.offset as u64);
                let (offset, flaw) = (segment.offset_of(lsn), bad.flaw);
                return Ok(match visit(Item::Stop { lsn, offset, flaw }) {
                    ControlFlow::Continue(()) => ControlFlow::Continue(None),
                    ControlFlow::Break(()) => ControlFlow::Break(()),
                });
            }
        };
        for (offset, _, payload) in record::records_of(group) {
            let at = lsn + offset as u64;
            let head = &group[offset..offset + RECORD_HEADER_BYTES];
            let Ok(header) = record::decode_header(head, at) else {
                continue; // the group was whole
            };
            let item = Item::Record {
                header,
                offset: segment.offset_of(at),
                payload,
            };
            if visit(item).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        prev_crc = whole.last_crc;
        lsn += whole.padded_bytes();
        if whole.last_kind == KIND_SEAL {
            return Ok(ControlFlow::Continue(Some(prev_crc)));
        }
    }
    Ok(ControlFlow::Continue(None))
}

/// Whose log is in `dir`, as the first whole header says; `None` if there is none.
pub fn identity(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>> {
    let mut found = None;
    walk(disk, dir, &mut |item| match item {
        Item::Segment(SegmentView {
            header: Some(header),
            ..
        }) => {
            found = Some(header.identity);
            ControlFlow::Break(())
        }
        Item::Segment(_) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    })?;
    Ok(found)
}

/// Recovers the log in `dir` as opening it would, on a disk that keeps nothing of
/// what is written: [`FrozenDisk`](crate::disk::frozen::FrozenDisk).
///
/// # Errors
///
/// Those of the cases that a log cannot go on from.
pub fn check(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    visit: &mut dyn FnMut(Lsn, u8, &[u8]),
) -> Result<Recovered> {
    Ok(recovery::recover(disk, dir, identity, visit)?.recovered)
}
