//! The command lines of `engines` and `big`.

use std::path::PathBuf;

use clap::Args;

use super::data::MIN_VALUE_SIZE;

/// What is written, the same for every engine.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// Bytes of each value.
    #[arg(long, default_value_t = 256)]
    pub(crate) value_size: usize,
    /// Keys written per batch.
    #[arg(long, default_value_t = 1000)]
    pub(crate) batch: usize,
    /// Values of text that compresses to about a third, instead of random bytes.
    #[arg(long)]
    pub(crate) compressible: bool,
    /// Batches that Varve's rows may have on their way: while one syncs, the
    /// next is made. 1 waits for each. The peers' interfaces always wait.
    #[arg(long, default_value_t = 16)]
    pub(crate) in_flight: usize,
    /// Cache that redb and fjall are given, in MiB. Varve and LMDB have none of
    /// their own: they read from the page cache.
    #[arg(long, default_value_t = 1024)]
    pub(crate) cache_mib: u64,
    /// Bytes of log after which Varve's rows make a checkpoint, in MiB.
    #[arg(long, default_value_t = 256)]
    pub(crate) checkpoint_log_mib: u64,
    /// Folder in which a temporary one is made, on the disk to be measured;
    /// default is the system's.
    #[arg(long, value_name = "PATH")]
    pub(crate) dir: Option<PathBuf>,
}

impl DataArgs {
    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.batch == 0 || self.in_flight == 0 {
            return Err("--batch and --in-flight must be at least 1".into());
        }
        if self.value_size < MIN_VALUE_SIZE || self.value_size > 1 << 20 {
            return Err(format!(
                "--value-size must be from {MIN_VALUE_SIZE}, so that values can be verified, to 1 MiB"
            ));
        }
        if self.batch.saturating_mul(self.value_size + 64) > 4 << 20 {
            return Err("--batch times --value-size must stay below 4 MiB".into());
        }
        Ok(())
    }
}

/// Arguments of `engines`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EnginesArgs {
    /// Number of keys: 19 bytes each, random, all different.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) keys: u32,
    /// How often every key is updated, in another random order each time.
    #[arg(long, default_value_t = 2)]
    pub(crate) rounds: u32,
    /// Scans of 100 entries.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) scans: u32,
    /// Memory, in MiB, that is used and let go before each load and each update (at most
    /// half of what is available), so that no row pays for pages that a virtual machine
    /// gave back to its host.
    #[arg(long, default_value_t = 3072)]
    pub(crate) touch_mib: usize,
    /// How long a row is left alone after its load before its size is told once more, in
    /// seconds.
    #[arg(long, default_value_t = 5)]
    pub(crate) rest_seconds: u64,
    /// Only these rows; default is all that are built in.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Also the revisioned store on these engines, as rows `varve-NAME`.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) engine: Vec<String>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Write the results here.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl EnginesArgs {
    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.keys < 1000 {
            return Err("--keys must be at least 1,000".into());
        }
        self.data.check()
    }
}

/// Arguments of `big`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BigArgs {
    /// Number of keys.
    #[arg(long, default_value_t = 20_000_000)]
    pub(crate) keys: u32,
    /// The row of `engines` to load and read.
    #[arg(long, default_value = "btree")]
    pub(crate) row: String,
    /// Memory that the process may have, page cache included, in MiB; default
    /// is a quarter of the keys' and values' bytes. Needs a memory cgroup that
    /// this user may make.
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib: Option<u64>,
    /// How long gets and updates are measured each, in seconds.
    #[arg(long, default_value_t = 20)]
    pub(crate) seconds: u64,
    /// Load the keys in their order, in the way that the row offers for that: much
    /// faster, and without the empty room that keys in any order leave in pages.
    #[arg(long)]
    pub(crate) bulk: bool,
    /// Leave out the comparison without a limit.
    #[arg(long)]
    pub(crate) no_unlimited: bool,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Write the results here.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Set by the program itself: which part this process does.
    #[arg(long, hide = true)]
    pub(crate) part: Option<String>,
    /// Set by the program itself: the group of processes to join.
    #[arg(long, hide = true)]
    pub(crate) group: Option<PathBuf>,
    /// Set by the program itself: where the store is.
    #[arg(long, hide = true)]
    pub(crate) store: Option<PathBuf>,
}
