//! Errors of a replica.

use std::path::PathBuf;

use thiserror::Error;
use varve_engine::backend::BackendError;
use varve_engine::disk::DiskError;
use varve_engine::mvcc::{MvccError, SnapshotFileError};
use varve_engine::wal::{Case, WalError};
use varve_types::DecodeError;

use crate::initial_cluster::InitialClusterError;

/// Why a node does not start, or stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RaftError {
    /// The initial cluster is not one that this member can form.
    #[error(transparent)]
    InitialCluster(#[from] InitialClusterError),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The log failed, or is damaged.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The storage engine failed.
    #[error(transparent)]
    Engine(#[from] BackendError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] MvccError),
    /// A snapshot stream that cannot be taken in.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// A snapshot stream that comes while another is taken in.
    #[error("snapshot: another one is being loaded")]
    SnapshotBusy,
    /// A snapshot file cannot be read.
    #[error("snapshot: {0}")]
    SnapshotFile(#[from] SnapshotFileError),
    /// The data directory belongs to another member or cluster.
    #[error(
        "{}: this data directory belongs to member {found_member:x} of cluster {found_cluster:x}, \
         but the flags describe member {expected_member:x} of cluster {expected_cluster:x}: \
         use another --data-dir, or the flags it was created with",
        path.display()
    )]
    Foreign {
        /// The data directory.
        path: PathBuf,
        /// The member it belongs to.
        found_member: u64,
        /// The cluster it belongs to.
        found_cluster: u64,
        /// The member that was to be started.
        expected_member: u64,
        /// Its cluster.
        expected_cluster: u64,
    },
    /// The data directory belongs to a member that was removed from its cluster.
    #[error(
        "{}: member {member:x} has been permanently removed from cluster {cluster:x}; {hint}",
        path.display()
    )]
    Removed {
        /// The data directory.
        path: PathBuf,
        /// The member.
        member: u64,
        /// The cluster.
        cluster: u64,
        /// What to do.
        hint: &'static str,
    },
    /// A log record does not decode although its checksum holds.
    #[error("log record at {lsn} of kind {kind}: {source}")]
    Record {
        /// Its log sequence number.
        lsn: u64,
        /// Its kind.
        kind: u8,
        /// What is wrong.
        source: DecodeError,
    },
    /// A damaged member that does not heal by itself.
    #[error("{0}")]
    CannotHeal(String),
    /// Log records that contradict each other, or the store.
    #[error("the log is inconsistent: {0}")]
    Inconsistent(String),
    /// An election timeout or heartbeat interval that raft-rs refuses.
    #[error("{0}")]
    Settings(String),
    /// A thread of the node is gone.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

impl RaftError {
    /// Whether a file is not what was written to it. At the start of a node a log that is
    /// [`RaftError::Inconsistent`] shows the same: something of it, or of the store, is
    /// gone. Failed reads and writes are none: what is on the disk is not known then. Nor
    /// is what may be another member's, another version's or another program's.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Log(WalError::DamagedRecord { .. }) => true,
            Self::Log(WalError::Unrecoverable { case, .. }) => matches!(
                case,
                Case::DamagedMiddle | Case::DamagedHeader | Case::MissingSegment
            ),
            Self::Engine(error) => matches!(error, BackendError::Damaged { .. }),
            Self::Store(error) => is_damaged_store(error),
            _ => false,
        }
    }

    /// Whether the disk of the store is full: what met it was not done, and can be
    /// once there is room.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Engine(error) | Self::Store(MvccError::Backend(error)) => error.is_no_space(),
            _ => false,
        }
    }
}

/// Whether the store says that a page or an entry is not what was written.
pub fn is_damaged_store(error: &MvccError) -> bool {
    matches!(
        error,
        MvccError::Backend(BackendError::Damaged { .. })
            | MvccError::Damaged { .. }
            | MvccError::HalfLoaded
    )
}
