//! Making a data directory from a snapshot: the first state of a new cluster.
//!
//! All members that are restored from one snapshot with one initial cluster get
//! the same: the store of the snapshot with the new members, and a log that begins
//! at the entry up to which that store applies. So they need nothing of each other
//! to start. The revision goes on past where the snapshot's ended, as far as asked for.

use std::io::Read;

use varve_engine::backend::Applied;
use varve_engine::mvcc::{
    BatchOptions, CompactBudget, SnapshotFileReader, SnapshotInfo, SnapshotSink, Store, WriteTxn,
};
use varve_engine::wal::{Identity, Wal, WalConfig};
use varve_types::{Command, CompactionRequest, DeleteRangeRequest, PutRequest};

use crate::config::Config;
use crate::error::RaftError;
use crate::meta;
use crate::record::Marker;
use crate::start;
use crate::stores::{FIRST_STORE, StoreFiles};

/// Written and deleted at the last revisions of a bump, so that they are there.
const BUMP_KEY: &[u8] = b"\0varve/restored";

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// What the snapshot was of.
    pub snapshot: SnapshotInfo,
    /// The revision that the new cluster begins at.
    pub revision: i64,
    /// The new cluster.
    pub cluster_id: u64,
    /// This member of it.
    pub member_id: u64,
}

/// Fills `config.data_dir`, which is empty, with the state in `file`, as the member
/// `config.name` of the cluster `config.initial_cluster`. After a failure the
/// directory is of no use and has to be removed.
pub fn restore<R: Read>(
    config: &Config,
    file: &mut SnapshotFileReader<R>,
) -> Result<Restored, RaftError> {
    let (cluster, disk) = (&config.initial_cluster, &config.disk);
    cluster.verify(&config.name, &config.advertise_peer_urls)?;
    let membership = cluster.membership(&config.initial_cluster_token)?;
    let own = membership.members().find(|own| own.name == config.name);
    let identity = Identity {
        cluster_id: membership.cluster_id(),
        member_id: own.map_or(0, |own| own.id),
    };
    disk.create_dir(&config.data_dir)?;
    let files = StoreFiles::new(
        config.data_dir.clone(),
        disk.clone(),
        config.open_store.clone(),
    );
    // Not the bootstrap's: a start that does not find it must not make a new one.
    let store_number = FIRST_STORE + 1;
    let backend = files.open(store_number)?;
    let mut sink = SnapshotSink::new(backend.clone())?;
    file.chunks(|chunk| sink.push(chunk))?;
    let snapshot = sink.finish()?;
    let applied = Applied {
        term: snapshot.applied.term.max(1),
        index: snapshot.applied.index.max(1),
    };
    let mut store = Store::open(backend.clone())?;
    let mut txn = store.begin(BatchOptions::default())?;
    txn.put_meta(meta::MEMBERS, &meta::encode_members(&membership))?;
    if config.restore_bump > 0 {
        bump(&mut txn, config.restore_bump)?;
    }
    let revision = txn.revision();
    txn.publish(applied)?;
    // Nothing reads it yet: what the bump dropped goes now, in steps.
    while store.compaction_pending() {
        let mut txn = store.begin(BatchOptions::default())?;
        txn.compact_step(CompactBudget::default())?;
        txn.publish(applied)?;
    }
    backend.checkpoint()?;
    let marker = Marker {
        index: applied.index,
        term: applied.term,
        store: store_number,
        reset: true,
        membership,
    };
    let (mut wal, _) = Wal::open(
        disk.clone(),
        &start::wal_dir(config),
        WalConfig {
            segment_bytes: config.wal_segment_bytes,
            ..WalConfig::default()
        },
        identity,
        &mut |_, _, _| {},
    )?;
    start::write_first_marker(&mut wal, &marker)?;
    start::claim(&**disk, &config.data_dir, identity)?;
    Ok(Restored {
        snapshot,
        revision,
        cluster_id: identity.cluster_id,
        member_id: identity.member_id,
    })
}

/// Raises the revision by `count` (2 at least), and compacts there: whoever saw
/// revisions that the former cluster came to after the snapshot is told that they are
/// compacted, instead of being shown other changes at them, or none at all. Every
/// member comes to the same.
fn bump(txn: &mut WriteTxn<'_>, count: i64) -> Result<(), RaftError> {
    txn.skip_revisions((count - 2).max(0))?;
    let put = PutRequest {
        key: BUMP_KEY,
        ..PutRequest::default()
    };
    let delete = DeleteRangeRequest {
        key: BUMP_KEY,
        ..DeleteRangeRequest::default()
    };
    for command in [Command::Put(put), Command::DeleteRange(delete)] {
        txn.apply(&command)?;
    }
    txn.apply(&Command::Compaction(CompactionRequest {
        revision: txn.revision(),
        physical: false,
    }))?;
    Ok(())
}
