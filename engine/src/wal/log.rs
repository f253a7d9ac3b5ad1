//! The log itself.

use std::path::Path;
use std::sync::Arc;

use super::{Group, Identity, Lsn, Recovered, Result, WalConfig, WalReader, WalStats};
use crate::disk::Disk;

/// Where a committed group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Position of the group's first record; a record's is this plus the offset
    /// that [`Group::push`] returned.
    pub first_lsn: Lsn,
    /// End of the group: where the next one goes.
    pub end_lsn: Lsn,
}

/// An open log. One owner writes; [`WalReader`]s read beside it.
#[derive(Debug)]
pub struct Wal {}

#[allow(unused_variables)]
impl Wal {
    /// Opens the log in `dir` (made if missing), repairs a torn tail, and calls
    /// `visit` with every record in order.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: WalConfig,
        identity: Identity,
        visit: &mut dyn FnMut(Lsn, u8, &[u8]),
    ) -> Result<(Self, Recovered)> {
        unimplemented!()
    }

    /// Where the next group goes, unless it needs a new segment.
    pub fn next_lsn(&self) -> Lsn {
        unimplemented!()
    }

    /// Writes the group and makes it durable. The group keeps its records;
    /// clear it before using it again. After an error every later call fails
    /// with [`super::WalError::Latched`].
    pub fn commit(&mut self, group: &mut Group) -> Result<Committed> {
        unimplemented!()
    }

    /// Writes a mark that tells all that was committed before from a torn tail,
    /// unless the last record is one. For idle moments and shutdown.
    pub fn sync_mark(&mut self) -> Result<()> {
        unimplemented!()
    }

    /// Everything below `lsn` is no longer needed: lets go of segments that are
    /// wholly below it.
    pub fn release(&mut self, lsn: Lsn) -> Result<()> {
        unimplemented!()
    }

    /// A reader.
    pub fn reader(&self) -> WalReader {
        unimplemented!()
    }

    /// Counters.
    pub fn stats(&self) -> Arc<WalStats> {
        unimplemented!()
    }
}
