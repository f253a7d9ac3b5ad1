//! `varvectl snapshot restore`: a data directory from a snapshot file, whole or
//! not at all.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use varve_engine::backend::Compression;
use varve_engine::mvcc::{SnapshotFileError, SnapshotFileReader};
use varve_raft::{Config, InitialCluster, InitialClusterError, RaftError, Restored, parse_urls};

use crate::config::{Disk, Engine};
use crate::storage::Storage;

const DIR_MODE: u32 = 0o700;
/// Ends the name of the directory until it is whole.
const UNFINISHED: &str = ".restore";

/// What to restore, and whose data directory to make.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The snapshot.
    pub file: PathBuf,
    /// The data directory; not there yet, or empty.
    pub data_dir: PathBuf,
    /// The engine of the store.
    pub engine: Engine,
    /// `--name`.
    pub name: String,
    /// `--initial-cluster`.
    pub initial_cluster: String,
    /// `--initial-cluster-token`.
    pub initial_cluster_token: String,
    /// `--initial-advertise-peer-urls`.
    pub advertise_peer_urls: String,
    /// By how much the revision is raised, with all before it compacted; 0 for not.
    pub bump_revision: i64,
}

/// Why nothing was restored. Texts are etcd's where it has the error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The data directory holds something.
    #[error("data-dir {:?} not empty or could not be read", .0.display().to_string())]
    DataDirInUse(PathBuf),
    /// A restore into this directory was cut short.
    #[error("{} is there, left by a restore that was cut short or is under way; remove it first", .0.display())]
    Unfinished(PathBuf),
    /// An engine that keeps nothing.
    #[error("engine {0} keeps nothing on disk: nothing can be restored into it")]
    Engine(&'static str),
    /// A file or directory can't be used.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The flags do not describe a cluster.
    #[error(transparent)]
    InitialCluster(#[from] InitialClusterError),
    /// The snapshot is damaged.
    #[error("snapshot {}: {source}", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        source: SnapshotFileError,
    },
    /// The store or the log could not be made.
    #[error(transparent)]
    Raft(RaftError),
}

/// Opens the snapshot file at `path`.
pub fn open_snapshot(path: &Path) -> Result<SnapshotFileReader<io::BufReader<File>>, RestoreError> {
    let failed = |source| RestoreError::Io {
        action: "open",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    SnapshotFileReader::new(io::BufReader::new(file), bytes).map_err(|source| {
        RestoreError::Snapshot {
            path: path.to_owned(),
            source,
        }
    })
}

/// Restores. The directory gets its name only once everything in it is durable.
pub fn restore(options: &RestoreOptions) -> Result<Restored, RestoreError> {
    if options.engine.name() == varve_engine::backend::memory::NAME {
        return Err(RestoreError::Engine(options.engine.name()));
    }
    let target =
        std::path::absolute(&options.data_dir).map_err(io_failed("find", &options.data_dir))?;
    if target.exists() && !is_empty_dir(&target) {
        return Err(RestoreError::DataDirInUse(options.data_dir.clone()));
    }
    let mut file = open_snapshot(&options.file)?;
    let mut name = target.clone().into_os_string();
    name.push(UNFINISHED);
    let unfinished = PathBuf::from(name);
    let storage = Storage::open(Disk::Psync);
    let config = Config {
        name: options.name.clone(),
        advertise_peer_urls: parse_urls(&options.advertise_peer_urls)?,
        initial_cluster: InitialCluster::parse(&options.initial_cluster)?,
        initial_cluster_token: options.initial_cluster_token.clone(),
        restore_bump: options.bump_revision,
        ..Config::new(
            &unfinished,
            Arc::clone(&storage.disk),
            storage.opener(options.engine, Compression::None),
        )
    };
    let parent = target.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(parent)
        .map_err(io_failed("create", parent))?;
    match DirBuilder::new().mode(DIR_MODE).create(&unfinished) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(RestoreError::Unfinished(unfinished));
        }
        Err(error) => return Err(io_failed("create", &unfinished)(error)),
    }
    let outcome = varve_raft::restore(&config, &mut file)
        .map_err(|error| match error {
            RaftError::SnapshotFile(source) => RestoreError::Snapshot {
                path: options.file.clone(),
                source,
            },
            other => RestoreError::Raft(other),
        })
        .and_then(|restored| {
            std::fs::rename(&unfinished, &target).map_err(io_failed("rename to", &target))?;
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(io_failed("sync", parent))?;
            Ok(restored)
        });
    if outcome.is_err() {
        // What went wrong before is what matters.
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    outcome
}

fn is_empty_dir(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn io_failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> RestoreError {
    move |source| RestoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
