//! Opening a data directory: from files to a replica that can go on.
//!
//! | log | store | what happens |
//! |---|---|---|
//! | new | none | bootstrap: marker and members at index 1, term 1; a member that joins: marker at index 0, all else comes by snapshot |
//! | new | there | refused: the log is gone |
//! | new, but it had been begun | none | refused: the log is gone |
//! | begins with the bootstrap | empty | the crash came within the bootstrap, or the engine keeps nothing: members are written, the log is applied from its start |
//! | there | behind the log's beginning | refused |
//! | there | within the log | goes on; committed entries after it are applied |
//! | begins with a restore | within the log | as above: see [`crate::restore`] |
//! | there | ahead of the log, or of another term | refused: the log has lost entries |
//!
//! What is refused here is damage ([`RaftError::is_damage`]): see [`crate::heal`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::HardState;
use varve_engine::backend::Applied;
use varve_engine::disk::Disk;
use varve_engine::mvcc::{BatchOptions, Store};
use varve_engine::wal::{Group, Identity, Wal, WalConfig};

use crate::config::Config;
use crate::error::RaftError;
use crate::force_new_cluster;
use crate::identity;
use crate::loading::Loading;
use crate::log::RaftLog;
use crate::member_file::{self, MEMBER_FILE, Owner};
use crate::membership::{Member, Membership};
use crate::meta;
use crate::record::{self, Marker};
use crate::replay::{Replay, Replayed};
use crate::stores::{FIRST_STORE, StoreFiles};

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
    let (mut owner, doubt) = identify(config, &bootstrap)?;
    let identity = owner.identity;

    let mut replay = Replay::new(config.log_cache_bytes);
    let (mut wal, recovered) = Wal::open(
        disk.clone(),
        &wal_dir(config),
        wal_config.clone(),
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
        None => begin_log(&mut wal, &files, &bootstrap, &owner, config)?,
    };
    let store = open_store(&files, &replayed)?;
    let engine = Some(store.backend().name().to_owned());
    if !owner.has_begun || owner.engine != engine {
        (owner.has_begun, owner.engine) = (true, engine);
        member_file::write(&**disk, &config.data_dir, &owner)?;
    }
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
    if let Some(doubt) = doubt
        && !is_described(config, &membership, &doubt, identity)
    {
        return Err(doubt.error);
    }
    if config.initial_corrupt_check {
        verify(&store)?;
    }
    let applied = store.view().applied().index;
    if config.force_new_cluster
        && force_new_cluster::append(
            &mut wal,
            &replayed,
            identity.member_id,
            applied,
            &membership,
        )?
    {
        // From here it is a log like any other, which says that the others are out.
        drop((wal, store, replayed));
        return open(
            &Config {
                force_new_cluster: false,
                ..config.clone()
            },
            wal_config,
        );
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

/// Whether the flags describe the member after all, although its id is not the hash of
/// their URLs: the store knows it by these URLs. It got them by an update, or its id when
/// it came in the place of a damaged member. That the flags mean this cluster its id
/// vouches for, which is a hash over all members of the bootstrap, or the id of another
/// member, which is one over the token.
fn is_described(config: &Config, members: &Membership, doubt: &Doubt, own: Identity) -> bool {
    let token = &config.initial_cluster_token;
    let vouches = |other: &Member| identity::member_id(&other.peer_urls, token) == other.id;
    let mut others = members.members();
    members
        .get(own.member_id)
        .is_some_and(|member| member.peer_urls == doubt.peer_urls)
        && (doubt.cluster_id == own.cluster_id
            || others.any(|member| member.id != own.member_id && vouches(member)))
}

/// What the flags say, if the hash of their URLs is another member's id than the
/// directory's.
struct Doubt {
    peer_urls: Vec<String>,
    cluster_id: u64,
    error: RaftError,
}

/// Whose data directory it is. Written once, and never changed but when the member
/// has been removed.
fn identify(config: &Config, bootstrap: &Membership) -> Result<(Owner, Option<Doubt>), RaftError> {
    let own = bootstrap
        .members()
        .find(|member| member.name == config.name);
    let path = config.data_dir.join(MEMBER_FILE);
    if config.disk.exists(&path)? {
        let owner = member_file::read(&*config.disk, &path)?;
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
            .map(|own| Doubt {
                peer_urls: own.peer_urls.clone(),
                cluster_id: bootstrap.cluster_id(),
                error: foreign(own),
            });
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
        joined: config.join.as_ref().map(|join| join.members.clone()),
        ..Owner::new(identity)
    };
    member_file::write(&*config.disk, &config.data_dir, &owner)?;
    Ok((owner, None))
}

/// Says whose a data directory is that has everything else already.
pub(crate) fn claim(disk: &dyn Disk, data_dir: &Path, identity: Identity) -> Result<(), RaftError> {
    let owner = Owner {
        has_begun: true,
        ..Owner::new(identity)
    };
    member_file::write(disk, data_dir, &owner)
}

/// Notes in the data directory that its member has been removed, so that it does not
/// start again.
pub(crate) fn mark_removed(
    disk: &dyn Disk,
    data_dir: &Path,
    identity: Identity,
) -> Result<(), RaftError> {
    let owner = Owner {
        is_removed: true,
        ..Owner::new(identity)
    };
    member_file::write(disk, data_dir, &owner)
}

/// Writes the first marker: every member of the bootstrap writes the same. A member
/// that joins has a log from index 0, which is nobody's: so it is sent a snapshot.
fn begin_log(
    wal: &mut Wal,
    files: &StoreFiles,
    bootstrap: &Membership,
    owner: &Owner,
    config: &Config,
) -> Result<Replayed, RaftError> {
    if owner.has_begun {
        return Err(RaftError::Inconsistent(
            "it is empty, but it had been begun: the log was removed or lost; this member must be \
             replaced"
                .to_owned(),
        ));
    }
    if let Some(number) = files.numbers()?.first() {
        return Err(RaftError::Inconsistent(format!(
            "it is empty, but there is store {number}: the log was removed or lost; \
             this member must be replaced"
        )));
    }
    let (first, members) = match &owner.joined {
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

/// Goes over all of the store: that every checksum holds, and that its running hash is
/// that of what it holds.
fn verify(store: &Store) -> Result<(), RaftError> {
    let started = std::time::Instant::now();
    let report = store.check()?;
    tracing::info!(
        "initial corruption checking passed: {report:?} in {:?}",
        started.elapsed()
    );
    Ok(())
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
    use varve_engine::disk::{OpenMode, SimDisk};

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
            healed: joined.then_some(3),
            has_begun: false,
            engine: joined.then(|| "btree".to_owned()),
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
            member_file::write(&*disk, dir, &owner(joined)).unwrap();
            assert_eq!(member_file::read(&*disk, &path).unwrap(), owner(joined));
        }
        // No bit of it may change without being noticed.
        let file = disk.open(&path, OpenMode::Existing).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        for at in 0..bytes.len() {
            file.write_at(&[bytes[at] ^ 1], at as u64).unwrap();
            let found = member_file::read(&*disk, &path);
            assert!(found.is_err() || found.is_ok_and(|found| found == owner(true)));
            file.write_at(&bytes[at..=at], at as u64).unwrap();
        }
        mark_removed(&*disk, dir, owner(true).identity).unwrap();
        assert!(member_file::read(&*disk, &path).unwrap().is_removed);
    }

    /// A member that joins must not form a cluster of its own, although the start after
    /// a crash does not ask the others again.
    #[test]
    fn joining_goes_on_after_a_crash_before_the_log_began() {
        let disk = disk();
        member_file::write(&*disk, Path::new("/data"), &owner(true)).unwrap();
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
