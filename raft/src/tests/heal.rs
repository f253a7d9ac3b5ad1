//! Healing, step by step, on a disk in memory.

use std::sync::Arc;

use raft::eraftpb::Entry;
use varve_engine::backend::Backend;
use varve_engine::backend::memory::Memory;
use varve_engine::disk::psync::PsyncDisk;
use varve_engine::disk::sim::{Fault, FaultOn};
use varve_engine::disk::{OpenMode, SimDisk};
use varve_engine::wal::{Group, WalConfig};

use super::*;
use crate::membership::Member;
use crate::record;

const CLUSTER: u64 = 5;
const DAMAGED: u64 = 7;

fn config() -> Config {
    config_on(SimDisk::new())
}

fn config_on(disk: SimDisk) -> Config {
    let disk: Arc<dyn Disk> = Arc::new(disk);
    disk.create_dir(Path::new("/data/wal")).unwrap();
    let open = |_: &Path| {
        let memory: Arc<dyn Backend> = Arc::new(Memory::new());
        Ok(memory)
    };
    let mut config = Config::new("/data", disk, Arc::new(open));
    config.name = "n1".to_owned();
    config.advertise_peer_urls = vec!["http://h:1".to_owned()];
    for file in ["wal/1.wal", "wal/2.wal", "store-000001.db", "lock"] {
        put(&config, file, file);
    }
    let owner = Owner {
        joined: Some(members(DAMAGED)),
        ..Owner::new(Identity {
            cluster_id: CLUSTER,
            member_id: DAMAGED,
        })
    };
    member_file::write(&*config.disk, &config.data_dir, &owner).unwrap();
    config
}

/// Two members: one of this id at this member's URL, and another one.
fn members(id: u64) -> Membership {
    let mut members = Membership::default();
    for (id, url) in [(id, "http://h:1"), (9, "http://i:1")] {
        members.insert(Member {
            id,
            peer_urls: vec![url.into()],
            ..Member::default()
        });
    }
    members
}

fn put(config: &Config, name: &str, text: &str) {
    let path = config.data_dir.join(name);
    let file = config.disk.open(&path, OpenMode::Create).unwrap();
    file.write_at(text.as_bytes(), 0).unwrap();
    file.sync().unwrap();
}

fn names(config: &Config, dir: &str) -> Vec<String> {
    let names = config.disk.list(&config.data_dir.join(dir)).unwrap();
    let is_file = |name: &String| !name.starts_with(SET_ASIDE) && name != "wal";
    names.into_iter().filter(is_file).collect()
}

fn begin(config: &Config) -> Healing {
    let damaged = Healing::damaged_member(config).unwrap();
    let told = ["http://j:1".to_owned(), "http://h:1".to_owned()];
    Healing::begin(config, damaged, "a page\nis damaged", told).unwrap()
}

#[test]
fn what_is_damaged_is_set_aside_and_nothing_of_it_is_lost() {
    let config = config();
    assert_eq!(Healing::under_way(&config).unwrap(), None);
    let healing = begin(&config);
    assert_eq!((healing.cluster_id, healing.damaged_id), (CLUSTER, DAMAGED));
    assert!(![0, 9, DAMAGED].contains(&healing.fresh_id));
    assert_eq!(healing.reason, "a page is damaged");
    // Not its own, but those that it was told and those that it knew.
    assert_eq!(healing.peer_urls, ["http://i:1", "http://j:1"]);
    // Whatever comes after this, the next start goes on with the same.
    assert_eq!(Healing::under_way(&config).unwrap(), Some(healing.clone()));
    let aside = healing.set_aside(&config).unwrap();
    healing.set_aside(&config).unwrap();
    assert_eq!(names(&config, ""), ["healing", "lock"]);
    assert_eq!(names(&config, "wal"), Vec::<String>::new());
    let aside = aside.file_name().unwrap().to_str().unwrap();
    assert_eq!(names(&config, aside), ["member", "store-000001.db"]);
    assert_eq!(names(&config, &format!("{aside}/wal")), ["1.wal", "2.wal"]);

    healing.finish(&config, &members(healing.fresh_id)).unwrap();
    assert_eq!(Healing::under_way(&config).unwrap(), None);
    assert_eq!(healed_from(&config), Some(DAMAGED));
    // As a learner that joins: it has no log, and is nobody that it was.
    let wal_config = WalConfig {
        prepare_in_background: false,
        ..WalConfig::default()
    };
    let started = start::open(&config, wal_config).unwrap();
    assert_eq!(started.identity.member_id, healing.fresh_id);
    assert_eq!(started.replayed.marker.index, 0);
    assert_eq!(started.replayed.hard_state.vote, 0);
}

#[test]
fn nothing_is_moved_into_a_directory_that_a_power_loss_could_take() {
    let disk = SimDisk::new();
    let config = config_on(disk.clone());
    let healing = begin(&config);
    disk.inject(Fault {
        on: FaultOn::SyncDir,
        after: 0,
        forever: true,
        path_contains: String::new(),
        errno: 5,
    });
    healing.set_aside(&config).unwrap_err();
    assert_eq!(names(&config, "wal"), ["1.wal", "2.wal"]);
    assert_eq!(
        names(&config, ""),
        ["healing", "lock", "member", "store-000001.db"]
    );
}

#[test]
fn it_goes_on_after_a_crash_at_any_step() {
    let config = config();
    let healing = begin(&config);
    // Some files are moved already.
    let aside = config.data_dir.join(&healing.directory);
    config.disk.create_dir(&aside.join("wal")).unwrap();
    let (from, to) = (config.data_dir.join("wal/1.wal"), aside.join("wal/1.wal"));
    config.disk.rename(&from, &to).unwrap();
    healing.set_aside(&config).unwrap();
    assert_eq!(names(&config, ""), ["healing", "lock"]);
    // The member file is there, the healing file still is.
    healing.finish(&config, &members(healing.fresh_id)).unwrap();
    write(&*config.disk, &config.data_dir, &healing).unwrap();
    assert!(healing.is_finished(&config).unwrap());
    healing.set_aside(&config).unwrap();
    assert_eq!(names(&config, ""), ["healing", "lock", "member"]);
    healing.finish(&config, &Membership::default()).unwrap();
    assert_eq!(healed_from(&config), Some(DAMAGED));
    let path = config.data_dir.join(MEMBER_FILE);
    let owner = member_file::read(&*config.disk, &path).unwrap();
    assert_eq!(owner.joined, Some(members(healing.fresh_id)));
}

#[test]
fn a_disk_that_damages_everything_is_not_filled() {
    // The disk in memory does not list directories.
    let directory = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: directory.path().to_owned(),
        disk: Arc::new(PsyncDisk::new()),
        ..config()
    };
    for _ in 0..MAX_SET_ASIDE {
        put(&config, "store-000001.db", "s");
        let damaged = Damaged {
            cluster_id: CLUSTER,
            member_id: DAMAGED,
        };
        let healing = Healing::begin(&config, damaged, "again", []).unwrap();
        healing.set_aside(&config).unwrap();
        healing.finish(&config, &members(healing.fresh_id)).unwrap();
    }
    assert_eq!(set_aside(&config).unwrap().len(), MAX_SET_ASIDE);
    let damaged = Healing::damaged_member(&config).unwrap();
    let error = Healing::begin(&config, damaged, "once more", []).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("once more; 3 sets of damaged files are in "),
        "{text}"
    );
}

#[test]
fn a_log_that_was_begun_must_be_there() {
    let config = config();
    let healing = begin(&config);
    healing.set_aside(&config).unwrap();
    healing.finish(&config, &members(healing.fresh_id)).unwrap();
    let open = || {
        let wal_config = WalConfig {
            prepare_in_background: false,
            ..WalConfig::default()
        };
        start::open(&config, wal_config)
    };
    drop(open().unwrap());
    drop(open().unwrap());
    for name in names(&config, "wal") {
        config
            .disk
            .remove(&config.data_dir.join("wal").join(name))
            .unwrap();
    }
    let Err(error) = open() else {
        panic!("it started with nothing, as a member that may have voted")
    };
    assert!(error.to_string().contains("it had been begun"), "{error}");
}

#[test]
fn a_healing_file_that_cannot_be_read_is_not_passed_over() {
    let config = config();
    begin(&config);
    let path = config.data_dir.join(HEALING_FILE);
    let file = config.disk.open(&path, OpenMode::Existing).unwrap();
    file.truncate(file.len().unwrap() - 1).unwrap();
    let error = Healing::under_way(&config).unwrap_err();
    assert!(
        error.to_string().contains("being healed, but not how"),
        "{error}"
    );
}

/// Each of them is damage, whichever segment is missing.
#[test]
fn a_missing_segment_is_damage() {
    for missing in 0..3 {
        let config = config();
        let path = config.data_dir.join("wal");
        config
            .disk
            .remove(&config.data_dir.join("store-000001.db"))
            .unwrap();
        for name in names(&config, "wal") {
            config.disk.remove(&path.join(name)).unwrap();
        }
        let wal_config = || WalConfig {
            segment_bytes: 64 << 10,
            prepare_in_background: false,
            ..WalConfig::default()
        };
        let started = start::open(&config, wal_config()).unwrap();
        let (mut wal, log) = (started.wal, started.replayed.log);
        for index in log.last() + 1..20 {
            let mut group = Group::new();
            let entry = Entry {
                index,
                term: 2,
                data: vec![1; 9000].into(),
                ..Entry::default()
            };
            record::push_entry(&mut group, &entry).unwrap();
            wal.commit(&mut group).unwrap();
        }
        drop(wal);
        let mut segments = names(&config, "wal");
        segments.retain(|name| name.ends_with(".wal"));
        assert!(segments.len() >= 3, "{segments:?}");
        config.disk.remove(&path.join(&segments[missing])).unwrap();
        let Err(error) = start::open(&config, wal_config()) else {
            panic!("it starts without {}", segments[missing])
        };
        let is_known = error.is_damage() || matches!(error, RaftError::Inconsistent(_));
        assert!(is_known, "{error}");
    }
}
