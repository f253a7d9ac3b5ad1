//! Opening a data directory: from files to a replica that can go on.
//!
//! | log | store | what happens |
//! |---|---|---|
//! | new | none | bootstrap: marker and members at index 1, term 1; a member that joins: marker at index 0, all else comes by snapshot |
//! | new | there | refused: the log is gone |
//! | begins with the bootstrap | empty | the crash came within the bootstrap, or the engine keeps nothing: members are written, the log is applied from its start |
//! | there | behind the log's beginning | refused |
//! | there | within the log | goes on; committed entries after it are applied |
//! | begins with a restore | within the log | as above: see [`crate::restore`] |
//! | there | ahead of the log, or of another term | refused: the log has lost entries |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::HardState;
use varve_engine::backend::Applied;
use varve_engine::disk::{Disk, OpenMode};
use varve_engine::mvcc::{BatchOptions, Store};
use varve_engine::wal::{Group, Identity, Wal, WalConfig};
use varve_types::Reader;

use crate::config::Config;
use crate::error::RaftError;
use crate::identity;
use crate::loading::Loading;
use crate::log::RaftLog;
use crate::membership::{Member, Membership};
use crate::meta;
use crate::record::{self, Marker};
use crate::replay::{Replay, Replayed};
use crate::stores::{FIRST_STORE, StoreFiles};

/// The file that says whose data directory it is.
pub const MEMBER_FILE: &str = "member";
const MEMBER_FILE_NEW: &str = "member.new";
/// Begins the line with the members of the cluster that was joined, encoded, in hex.
const JOINED: &str = "joined ";
/// Longest such file.
const MAX_MEMBER_FILE_BYTES: u64 = 1 << 20;
/// Its last line once the member has been removed from the cluster.
const REMOVED_LINE: &str = "removed\n";

/// A data directory, opened.
pub(crate) struct Started {
    pub(crate) identity: Identity,
    pub(crate) wal: Wal,
    pub(crate) replayed: Replayed,
    pub(crate) store: Store,
    pub(crate) membership: Arc<Membership>,
    pub(crate) files: StoreFiles,
    /// Where stores from other members go.
    pub(crate) loading: Loading,
}

/// Opens or makes everything in the data directory.
pub(crate) fn open(config: &Config, wal_config: WalConfig) -> Result<Started, RaftError> {
    let disk = &config.disk;
    disk.create_dir(&config.data_dir)?;
    let bootstrap = config
        .initial_cluster
        .membership(&config.initial_cluster_token)?;
    let (owner, doubt) = identify(config, &bootstrap)?;
    let identity = owner.identity;

    let mut replay = Replay::new(config.log_cache_bytes);
    let (mut wal, recovered) = Wal::open(
        disk.clone(),
        &wal_dir(config),
        wal_config,
        identity,
        &mut |lsn, kind, payload| {
            replay.visit(lsn, kind, payload);
        },
    )?;
    tracing::info!(
        "log: {:?}, {} records in {} segments, {} bytes cut",
        recovered.case,
        recovered.records,
        recovered.segments,
        recovered.truncated_bytes
    );
    let files = StoreFiles::new(
        config.data_dir.clone(),
        disk.clone(),
        config.open_store.clone(),
    );
    let replayed = match replay.finish(wal.reader())? {
        Some(replayed) => replayed,
        None => begin_log(&mut wal, &files, &bootstrap, owner.joined.as_ref(), config)?,
    };
    let store = open_store(&files, &replayed)?;
    let membership = match meta::members(&store.view())? {
        Some(membership) => membership,
        None if replayed.marker.index == 0 => Arc::new(replayed.marker.membership.clone()),
        None => {
            return Err(RaftError::Inconsistent(
                "the store names no members".to_owned(),
            ));
        }
    };
    if membership.is_removed(identity.member_id) {
        return Err(removed(config, identity));
    }
    if let Some((urls, foreign)) = doubt
        && !has_moved(config, &membership, identity.member_id, &urls)
    {
        return Err(foreign);
    }
    let loading = Loading::recover(
        &files,
        replayed.marker.store,
        config.snapshot_checkpoint_bytes,
    )?;
    Ok(Started {
        identity,
        wal,
        replayed,
        store,
        membership,
        files,
        loading,
    })
}

/// Where the log is.
pub(crate) fn wal_dir(config: &Config) -> PathBuf {
    match &config.wal_dir {
        Some(dir) => dir.clone(),
        None => config.data_dir.join("wal"),
    }
}

/// What to do about the directory of a removed member: etcd's words.
pub const REMOVED_HINT: &str = "the data-dir used by this member must be removed";

fn removed(config: &Config, identity: Identity) -> RaftError {
    RaftError::Removed {
        path: config.data_dir.clone(),
        member: identity.member_id,
        cluster: identity.cluster_id,
        hint: REMOVED_HINT,
    }
}

/// Whether the flags describe the member after all, at URLs that it got by an update
/// (its id is a hash over the first ones): the store knows it by these, and the ids of
/// others vouch for the token.
fn has_moved(config: &Config, members: &Membership, id: u64, urls: &[String]) -> bool {
    let token = &config.initial_cluster_token;
    let vouches = |other: &Member| identity::member_id(&other.peer_urls, token) == other.id;
    members
        .get(id)
        .is_some_and(|member| member.peer_urls == urls)
        && members
            .members()
            .any(|member| member.id != id && vouches(member))
}

/// The peer URLs of the flags and the error, if their hash is another member's id.
type Doubt = Option<(Vec<String>, RaftError)>;

/// Whose a data directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    identity: Identity,
    /// The members of the cluster that it joined, as they were then: the log begins
    /// with them, also if the first start is cut short before that.
    joined: Option<Membership>,
    is_removed: bool,
}

/// Whose data directory it is. Written once, and never changed but when the member
/// has been removed.
fn identify(config: &Config, bootstrap: &Membership) -> Result<(Owner, Doubt), RaftError> {
    let own = bootstrap
        .members()
        .find(|member| member.name == config.name);
    let path = config.data_dir.join(MEMBER_FILE);
    if config.disk.exists(&path)? {
        let owner = read_member_file(&*config.disk, &path)?;
        let found = owner.identity;
        if owner.is_removed {
            return Err(removed(config, found));
        }
        let foreign = |own: &Member| RaftError::Foreign {
            path: config.data_dir.clone(),
            found_member: found.member_id,
            found_cluster: found.cluster_id,
            expected_member: own.id,
            expected_cluster: bootstrap.cluster_id(),
        };
        let doubt = own
            .filter(|own| own.id != found.member_id)
            .map(|own| (own.peer_urls.clone(), foreign(own)));
        return Ok((owner, doubt));
    }
    let identity = match &config.join {
        Some(join) => Identity {
            cluster_id: join.cluster_id,
            member_id: join.member_id,
        },
        None => {
            config
                .initial_cluster
                .verify(&config.name, &config.advertise_peer_urls)?;
            Identity {
                cluster_id: bootstrap.cluster_id(),
                member_id: own.map_or(0, |own| own.id),
            }
        }
    };
    let owner = Owner {
        identity,
        joined: config.join.as_ref().map(|join| join.members.clone()),
        is_removed: false,
    };
    write_member_file(&*config.disk, &config.data_dir, &owner)?;
    Ok((owner, None))
}

/// Says whose a data directory is that has everything else already.
pub(crate) fn claim(disk: &dyn Disk, data_dir: &Path, identity: Identity) -> Result<(), RaftError> {
    let owner = Owner {
        identity,
        joined: None,
        is_removed: false,
    };
    write_member_file(disk, data_dir, &owner)
}

/// Notes in the data directory that its member has been removed, so that it does not
/// start again.
pub(crate) fn mark_removed(
    disk: &dyn Disk,
    data_dir: &Path,
    identity: Identity,
) -> Result<(), RaftError> {
    let owner = Owner {
        identity,
        joined: None,
        is_removed: true,
    };
    write_member_file(disk, data_dir, &owner)
}

fn write_member_file(disk: &dyn Disk, data_dir: &Path, owner: &Owner) -> Result<(), RaftError> {
    let mut text = format!(
        "varve 1\ncluster {:016x}\nmember {:016x}\n",
        owner.identity.cluster_id, owner.identity.member_id,
    );
    if let Some(members) = &owner.joined {
        let bytes = meta::encode_members(members);
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!("{JOINED}{digits}\n"));
    }
    if owner.is_removed {
        text.push_str(REMOVED_LINE);
    }
    let new = data_dir.join(MEMBER_FILE_NEW);
    let file = disk.open(&new, OpenMode::Create)?;
    file.truncate(0)?;
    file.write_at(text.as_bytes(), 0)?;
    file.sync()?;
    disk.rename(&new, &data_dir.join(MEMBER_FILE))?;
    Ok(disk.sync_dir(data_dir)?)
}

fn read_member_file(disk: &dyn Disk, path: &Path) -> Result<Owner, RaftError> {
    let file = disk.open(path, OpenMode::Existing)?;
    let mut bytes = vec![0; file.len()?.min(MAX_MEMBER_FILE_BYTES) as usize];
    let read = file.read_at(&mut bytes, 0)?;
    let text = String::from_utf8_lossy(&bytes[..read]);
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    match (
        text.starts_with("varve 1\n"),
        field("cluster "),
        field("member "),
    ) {
        (true, Some(cluster_id), Some(member_id)) => {
            let joined = text.lines().find_map(|line| line.strip_prefix(JOINED));
            let members = joined.map(decode_joined);
            if members.as_ref().is_some_and(Option::is_none) {
                return Err(RaftError::Inconsistent(format!(
                    "{} does not name the members of the cluster that was joined",
                    path.display()
                )));
            }
            Ok(Owner {
                identity: Identity {
                    cluster_id,
                    member_id,
                },
                joined: members.flatten(),
                is_removed: text.ends_with(REMOVED_LINE),
            })
        }
        _ => Err(RaftError::Inconsistent(format!(
            "{} does not name a member and a cluster",
            path.display()
        ))),
    }
}

fn decode_joined(digits: &str) -> Option<Membership> {
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let bytes = bytes?;
    let mut reader = Reader::new(&bytes);
    let members = Membership::decode(&mut reader).ok()?;
    reader.finish().ok()?;
    Some(members)
}

/// Writes the first marker: every member of the bootstrap writes the same. A member
/// that joins has a log from index 0, which is nobody's: so it is sent a snapshot.
fn begin_log(
    wal: &mut Wal,
    files: &StoreFiles,
    bootstrap: &Membership,
    joined: Option<&Membership>,
    config: &Config,
) -> Result<Replayed, RaftError> {
    if let Some(number) = files.numbers()?.first() {
        return Err(RaftError::Inconsistent(format!(
            "it is empty, but there is store {number}: the log was removed or lost; \
             this member must be replaced"
        )));
    }
    let (first, members) = match joined {
        Some(members) => (0, members),
        None => (1, bootstrap),
    };
    let marker = Marker {
        index: first,
        term: first,
        store: FIRST_STORE,
        reset: true,
        membership: members.clone(),
    };
    let hard_state = write_first_marker(wal, &marker)?;
    let log = RaftLog::new((first, first), config.log_cache_bytes, wal.reader());
    Ok(Replayed {
        log,
        hard_state,
        marker,
    })
}

/// Begins a log with `marker`, and with a hard state that goes with it.
pub(crate) fn write_first_marker(wal: &mut Wal, marker: &Marker) -> Result<HardState, RaftError> {
    let hard_state = HardState {
        term: marker.term,
        commit: marker.index,
        ..HardState::default()
    };
    let mut group = Group::new();
    record::push_marker(&mut group, marker)?;
    record::push_hard_state(&mut group, &hard_state)?;
    wal.commit(&mut group)?;
    Ok(hard_state)
}

fn open_store(files: &StoreFiles, replayed: &Replayed) -> Result<Store, RaftError> {
    let Replayed { log, marker, .. } = replayed;
    if marker.store != FIRST_STORE && !files.exists(marker.store)? {
        return Err(RaftError::Inconsistent(format!(
            "it names store {}, which is not there: this member must be replaced",
            marker.store
        )));
    }
    let mut store = Store::open(files.open(marker.store)?)?;
    let applied = store.view().applied();
    if applied.index == 0 && marker.store == FIRST_STORE && marker.index == 1 {
        let mut txn = store.begin(BatchOptions::default())?;
        txn.put_meta(meta::MEMBERS, &meta::encode_members(&marker.membership))?;
        txn.publish(Applied {
            term: marker.term,
            index: marker.index,
        })?;
        return Ok(store);
    }
    if applied.index < marker.index {
        return Err(RaftError::Inconsistent(format!(
            "it begins after {}, but the store applies only to {}: this member must be replaced",
            marker.index, applied.index
        )));
    }
    if log.term_at(applied.index) != Some(applied.term) {
        return Err(RaftError::Inconsistent(format!(
            "the store applies to entry {} of term {}, which the log (up to {}) does not hold: \
             it has lost entries, this member must be replaced",
            applied.index,
            applied.term,
            log.last()
        )));
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use varve_engine::backend::Backend;
    use varve_engine::backend::memory::Memory;
    use varve_engine::disk::SimDisk;

    use super::*;

    fn owner(joined: bool) -> Owner {
        let mut members = Membership::default();
        members.insert(Member {
            id: 7,
            peer_urls: vec!["http://h:1".into()],
            ..Member::default()
        });
        Owner {
            identity: Identity {
                cluster_id: 5,
                member_id: 7,
            },
            joined: joined.then_some(members),
            is_removed: false,
        }
    }

    fn disk() -> Arc<dyn Disk> {
        let disk = SimDisk::new();
        disk.create_dir(Path::new("/data")).unwrap();
        Arc::new(disk)
    }

    #[test]
    fn the_member_file_comes_back() {
        let (disk, dir) = (disk(), Path::new("/data"));
        let path = dir.join(MEMBER_FILE);
        for joined in [false, true] {
            write_member_file(&*disk, dir, &owner(joined)).unwrap();
            assert_eq!(read_member_file(&*disk, &path).unwrap(), owner(joined));
        }
        mark_removed(&*disk, dir, owner(true).identity).unwrap();
        assert!(read_member_file(&*disk, &path).unwrap().is_removed);
    }

    /// A member that joins must not form a cluster of its own, although the start after
    /// a crash does not ask the others again.
    #[test]
    fn joining_goes_on_after_a_crash_before_the_log_began() {
        let disk = disk();
        write_member_file(&*disk, Path::new("/data"), &owner(true)).unwrap();
        let open = |_: &Path| {
            let memory: Arc<dyn Backend> = Arc::new(Memory::new());
            Ok(memory)
        };
        let mut config = Config::new("/data", disk, Arc::new(open));
        config.name = "other".to_owned();
        let wal_config = WalConfig {
            prepare_in_background: false,
            ..WalConfig::default()
        };
        let started = super::open(&config, wal_config).unwrap();
        assert_eq!(started.identity, owner(true).identity);
        assert_eq!(Some((*started.membership).clone()), owner(true).joined);
        assert_eq!(started.replayed.marker.index, 0);
    }
}
