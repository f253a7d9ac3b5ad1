//! `snapshot save`, `snapshot status`, `snapshot restore`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use varve::config::Engine;
use varve::restore::{RestoreError, RestoreOptions, open_snapshot, restore};
use varve_engine::mvcc::SnapshotFileWriter;
use varve_protocol::HashKvResponse;

use crate::cli::{SnapshotArgs, SnapshotCommand, SnapshotFileArgs, SnapshotRestoreArgs};
use crate::failure::{EXIT_ERROR, EXIT_INTERRUPTED, Failure};
use crate::output::{to_stderr, to_stdout};
use crate::printer::SnapshotStatus;
use crate::settings::Settings;

/// Rights of the file: it holds all that the store does.
const FILE_MODE: u32 = 0o600;

pub(super) async fn run(args: &SnapshotArgs, settings: &Settings) -> Result<(), Failure> {
    match &args.command {
        SnapshotCommand::Save(args) => save(args, settings).await,
        SnapshotCommand::Status(args) => status(args, settings),
        SnapshotCommand::Restore(args) => restore_to(args),
    }
}

/// The file, under another name until it is whole and durable.
async fn save(args: &SnapshotFileArgs, settings: &Settings) -> Result<(), Failure> {
    let [path] = args.args.as_slice() else {
        return Err(Failure::bad_args("snapshot save expects one argument"));
    };
    let [endpoint] = settings.endpoints.as_slice() else {
        return Err(Failure::new(
            EXIT_INTERRUPTED,
            format!(
                "snapshot must be requested to one selected node, not multiple [{}]",
                settings.endpoints.join(" ")
            ),
        ));
    };
    let path = PathBuf::from(path);
    let mut name = path.clone().into_os_string();
    name.push(".part");
    let part = PathBuf::from(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&part)
        .map_err(|error| failed(format!("could not open {} ({error})", part.display())))?;
    let saved = match fetch(file, endpoint, settings).await {
        Ok(()) => put_in_place(&part, &path),
        Err(error) => Err(error),
    };
    if let Err(error) = saved {
        // What went wrong before is what matters.
        let _ = std::fs::remove_file(&part);
        return Err(error);
    }
    to_stdout(format!("Snapshot saved at {}\n", path.display()).as_bytes())
}

async fn fetch(file: File, endpoint: &str, settings: &Settings) -> Result<(), Failure> {
    let mut snapshot = settings.client()?.snapshot(endpoint).await?;
    let mut writer = SnapshotFileWriter::new(file).map_err(failed)?;
    while let Some(chunk) = snapshot.next().await? {
        writer.push(&chunk).map_err(failed)?;
    }
    let (file, _) = writer.finish().map_err(failed)?;
    file.sync_all()
        .map_err(|error| failed(format!("could not sync the snapshot ({error})")))
}

fn put_in_place(part: &Path, path: &Path) -> Result<(), Failure> {
    let renamed = std::fs::rename(part, path).and_then(|()| {
        let parent = std::path::absolute(path)?;
        let parent = parent.parent().unwrap_or(Path::new("/")).to_owned();
        File::open(parent)?.sync_all()
    });
    renamed.map_err(|error| {
        failed(format!(
            "could not rename {} to {} ({error})",
            part.display(),
            path.display()
        ))
    })
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(EXIT_INTERRUPTED, error)
}

fn status(args: &SnapshotFileArgs, settings: &Settings) -> Result<(), Failure> {
    let [path] = args.args.as_slice() else {
        return Err(Failure::bad_args(
            "snapshot status requires exactly one argument",
        ));
    };
    let path = Path::new(path);
    let printer = settings.printer()?;
    let damaged = |error: RestoreError| Failure::new(EXIT_ERROR, error);
    let reader = open_snapshot(path).map_err(damaged)?;
    let total_size = reader.file_bytes();
    let check = reader.verify().map_err(|source| {
        damaged(RestoreError::Snapshot {
            path: path.to_owned(),
            source,
        })
    })?;
    // There is one: the file is whole.
    let info = check.info().unwrap_or_default();
    let hash = HashKvResponse {
        hash: info.hash,
        ..HashKvResponse::default()
    };
    to_stdout(&printer.snapshot_status(&SnapshotStatus {
        hash: hash.hash32(),
        revision: info.revision,
        total_keys: check.live_keys(),
        total_size,
    }))
}

fn restore_to(args: &SnapshotRestoreArgs) -> Result<(), Failure> {
    let [file] = args.args.as_slice() else {
        return Err(Failure::bad_args(
            "snapshot restore requires exactly one argument",
        ));
    };
    let engine = match &args.engine {
        Some(name) => Engine::named(name)
            .map_err(|why| Failure::bad_args(format!("--engine {name}: {why}")))?,
        None => Engine::default(),
    };
    let data_dir = match &args.data_dir {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(format!("{}.varve", args.name)),
    };
    // etcdutl's rules, but that both are on unless told otherwise.
    match (args.bump_revision, args.mark_compacted) {
        (..0, _) => return Err(Failure::bad_args("--bump-revision must not be negative")),
        (0, Some(true)) => {
            return Err(Failure::bad_args(
                "--mark-compacted required --bump-revision",
            ));
        }
        (1.., Some(false)) => {
            return Err(Failure::bad_args(
                "--bump-revision required --mark-compacted",
            ));
        }
        _ => {}
    }
    let options = RestoreOptions {
        file: PathBuf::from(file),
        data_dir,
        engine,
        name: args.name.clone(),
        initial_cluster: args.initial_cluster.clone(),
        initial_cluster_token: args.initial_cluster_token.clone(),
        advertise_peer_urls: args.initial_advertise_peer_urls.clone(),
        bump_revision: args.bump_revision,
    };
    if args.skip_hash_check {
        to_stderr("--skip-hash-check has no effect: every snapshot of varve has its checksums");
    }
    let restored = restore(&options).map_err(|error| Failure::new(EXIT_ERROR, error))?;
    to_stderr(&format!(
        "restored snapshot {} of revision {} into {} at revision {}: member {:x} of cluster {:x}",
        options.file.display(),
        restored.snapshot.revision,
        options.data_dir.display(),
        restored.revision,
        restored.member_id,
        restored.cluster_id
    ));
    Ok(())
}
