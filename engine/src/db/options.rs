//! What can be chosen when a store is opened.

use std::path::PathBuf;
use std::time::Duration;

use crate::backend;
use crate::mvcc::Limits;
use crate::wal::WalConfig;

/// Settings of a [`super::Db`] or a [`super::Kv`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The storage engine, one of [`backend::NAMES`]. `memory` keeps nothing
    /// beside the log: its log is never shortened and read whole at every open.
    pub engine: String,
    /// The engine's own settings.
    pub backend: backend::Options,
    /// Where the log is; `wal` in the store's directory if not set.
    pub wal_dir: Option<PathBuf>,
    /// Settings of the log.
    pub wal: WalConfig,
    /// Bytes logged after which a checkpoint is made.
    pub checkpoint_log_bytes: u64,
    /// Writers wait for the checkpoint while the log is longer than this. What
    /// is on the disk may be more by two segments, and what an open has to
    /// replay by what is in flight.
    pub max_log_bytes: u64,
    /// Bytes of batches that are submitted and not applied yet; past that
    /// writers wait. One batch is let through whatever its size.
    pub max_in_flight_bytes: usize,
    /// Time in which all that is on the disk is read and verified once, beside
    /// everything else ([`backend::scrub`]); zero for never.
    pub scrub_interval: Duration,
    /// What a transaction may hold.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: crate::btree::NAME.to_owned(),
            backend: backend::Options::default(),
            wal_dir: None,
            wal: WalConfig::default(),
            checkpoint_log_bytes: 256 << 20,
            max_log_bytes: 1 << 30,
            max_in_flight_bytes: 16 << 20,
            scrub_interval: Duration::from_secs(24 * 60 * 60),
            limits: Limits::default(),
        }
    }
}
