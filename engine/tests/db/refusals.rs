//! What does not belong together is refused, and nothing of it is changed.

use std::path::PathBuf;
use std::sync::Arc;

use varve_engine::db::{Db, DbError, Options};
use varve_engine::disk::{Disk, SimDisk};
use varve_engine::wal::{Case, Committed, Group, Identity, Wal, WalError};

use crate::{db_on, dir, kv_on, options, wal_dir};

fn inconsistent(error: DbError) -> String {
    match error {
        DbError::Inconsistent { what, .. } => what,
        other => panic!("not an inconsistency: {other}"),
    }
}

/// A store with a checkpoint behind which the log was let go.
fn used() -> SimDisk {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    for number in 0..100u8 {
        db.put(&[number], &[0; 3000]).unwrap();
    }
    db.close().unwrap();
    disk
}

#[test]
fn a_store_without_its_log() {
    let disk = used();
    for name in disk.list(wal_dir()).unwrap() {
        disk.remove(&wal_dir().join(name)).unwrap();
    }
    let what = inconsistent(db_on(&disk).err().unwrap());
    assert!(what.contains("the log was removed or lost"), "{what}");
}

#[test]
fn a_log_without_its_store() {
    let disk = used();
    disk.remove(&dir().join("tree.btree")).unwrap();
    for _ in 0..2 {
        // The second time too: the first made nothing that looks whole.
        let what = inconsistent(db_on(&disk).err().unwrap());
        assert!(what.contains("engine btree has no store here"), "{what}");
    }
}

#[test]
fn a_store_that_is_older_than_its_log() {
    let disk = used();
    let old = disk.crash_now(1);
    let db = db_on(&disk).unwrap();
    for number in 0..100u8 {
        db.put(&[number], &[1; 3000]).unwrap();
    }
    db.close().unwrap();
    // The old store's file under the new log.
    let path = dir().join("tree.btree");
    let from = old.open(&path, varve_engine::disk::OpenMode::Existing);
    let from = from.unwrap();
    let mut bytes = vec![0; from.len().unwrap() as usize];
    from.read_exact_at(&mut bytes, 0).unwrap();
    disk.remove(&path).unwrap();
    let to = disk.open(&path, varve_engine::disk::OpenMode::CreateNew);
    to.unwrap().write_at(&bytes, 0).unwrap();
    let what = inconsistent(db_on(&disk).err().unwrap());
    assert!(what.contains("does not"), "{what}");
}

#[test]
fn a_map_is_no_revisioned_store() {
    let disk = used();
    let error = kv_on(&disk).err().unwrap();
    let case = match &error {
        DbError::Wal(WalError::Unrecoverable { case, .. }) => *case,
        other => panic!("{other}"),
    };
    assert_eq!(case, Case::ForeignCluster);
    db_on(&disk).unwrap().check().unwrap();
}

#[test]
fn a_record_of_another_program() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    db.put(b"a", b"1").unwrap();
    drop(db);
    let identity = Identity {
        cluster_id: u64::from_le_bytes(*b"varve-db"),
        member_id: 1,
    };
    for (kind, payload) in [(9, &[][..]), (1, &[2]), (1, &[1, 7])] {
        let disk = disk.crash_now(1);
        let as_disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let (mut wal, _) = Wal::open(
            as_disk,
            wal_dir(),
            options().wal,
            identity,
            &mut |_, _, _| {},
        )
        .unwrap();
        let mut group = Group::new();
        group.push(kind, &[payload]).unwrap();
        let Committed { first_lsn, .. } = wal.commit(&mut group).unwrap();
        drop(wal);
        match db_on(&disk).err().unwrap() {
            DbError::Record { lsn, .. } => assert_eq!(lsn, first_lsn),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_directory_that_is_open_already() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("store");
    let db = Db::open(&path, Options::default()).unwrap();
    let error = Db::open(&path, Options::default()).err().unwrap();
    assert!(matches!(error, DbError::Locked(_)), "{error}");
    db.close().unwrap();
    Db::open(&path, Options::default()).unwrap();
}

#[test]
fn an_engine_that_is_not_there() {
    let disk = SimDisk::new();
    let options = Options {
        engine: "nothing".to_owned(),
        ..options()
    };
    let error = crate::db_with(&disk, options).err().unwrap();
    assert!(error.to_string().contains("there is no engine"), "{error}");
}

#[test]
fn commands_that_cannot_be_done() {
    let disk = SimDisk::new();
    let db = db_on(&disk).unwrap();
    assert!(db.put(b"", b"").unwrap_err().api().is_some());
    assert!(db.compact(7).unwrap_err().api().is_some());
    assert!(!db.delete(b"nothing").unwrap());
    assert_eq!(db.revision(), 1);
    db.put(b"a", b"").unwrap();
    db.check().unwrap();
}
