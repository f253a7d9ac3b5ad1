//! The crash model does what its page says.
#![allow(unsafe_code)] // writes through maps

use super::*;

fn path() -> &'static Path {
    Path::new("/d/f")
}

fn disk_with_file(disk: SimDisk) -> (SimDisk, Arc<dyn File>) {
    disk.create_dir(Path::new("/d")).unwrap();
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    (disk, file)
}

fn read_all(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Existing).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn synced_bytes_survive_and_others_need_not() {
    let (disk, file) = disk_with_file(SimDisk::new());
    file.write_at(&[1; 2048], 0).unwrap();
    file.sync().unwrap();
    file.write_at(&[2; 2048], 0).unwrap();
    assert_eq!(read_all(&disk, path()), [2; 2048]);
    assert_eq!(read_all(&disk.crash_now(0), path()), [1; 2048]);
    assert_eq!(read_all(&disk.crash_now(1), path()), [2; 2048]);
    let mut mixed = 0;
    for seed in 2..200 {
        let bytes = read_all(&disk.crash_now(seed), path());
        assert_eq!(
            bytes,
            read_all(&disk.crash_now(seed), path()),
            "seed {seed} is not repeatable"
        );
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert!(
            bytes.chunks(512).all(|s| s.iter().all(|b| *b == s[0])),
            "half a sector"
        );
        mixed += usize::from(sectors.contains(&1) && sectors.contains(&2));
    }
    assert!(mixed > 30, "only {mixed} of 198 crashes tore the write");
}

#[test]
fn a_durable_write_covers_only_its_own_bytes() {
    let (disk, file) = disk_with_file(SimDisk::new());
    file.write_at(&[1; 1024], 0).unwrap();
    file.write_durable(&[2; 512], 512).unwrap();
    let bytes = read_all(&disk.crash_now(0), path());
    assert_eq!(bytes[..512], [0; 512]);
    assert_eq!(bytes[512..], [2; 512]);
    for seed in 1..50 {
        let bytes = read_all(&disk.crash_now(seed), path());
        assert_eq!(
            bytes[512..],
            [2; 512],
            "seed {seed}: older bytes over newer durable ones"
        );
    }
}

#[test]
fn what_was_written_back_needs_the_disk_s_cache_synced() {
    let (disk, file) = disk_with_file(SimDisk::new());
    let map = file.map(1 << 20).unwrap();
    file.write_at(&[1; 2048], 0).unwrap();
    file.write_back(512, 1024).unwrap();
    assert_eq!(read_all(&disk.crash_now(0), path()), []);
    // Too late for what was written back.
    file.write_at(&[2; 512], 1024).unwrap();
    file.sync_written_back(&map).unwrap();
    let bytes = read_all(&disk.crash_now(0), path());
    assert_eq!(bytes[..512], [0; 512]);
    assert_eq!(bytes[512..1536], [1; 1024]);
    let bytes = read_all(&disk.crash_now(1), path());
    assert_eq!(bytes[..512], [1; 512]);
    assert_eq!(bytes[1024..1536], [2; 512]);
    file.sync().unwrap();
    assert_eq!(read_all(&disk.crash_now(0), path())[1024..1536], [2; 512]);
}

#[test]
fn names_need_a_directory_sync() {
    let (disk, file) = disk_with_file(SimDisk::new());
    file.write_durable(b"x", 0).unwrap();
    let other = Path::new("/d/g");
    disk.rename(path(), other).unwrap();
    let lost = disk.crash_now(0);
    assert!(lost.exists(path()).unwrap() && !lost.exists(other).unwrap());
    let kept = disk.crash_now(1);
    assert!(!kept.exists(path()).unwrap() && kept.exists(other).unwrap());
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(read_all(&disk.crash_now(0), other), b"x");
    disk.open(Path::new("/d/h"), OpenMode::CreateNew)
        .unwrap()
        .write_durable(b"y", 0)
        .unwrap();
    assert_eq!(disk.crash_now(0).list(Path::new("/d")).unwrap(), ["g"]);
    assert_eq!(disk.crash_now(1).list(Path::new("/d")).unwrap(), ["g", "h"]);
}

#[test]
fn bytes_written_through_a_map_are_pending_until_a_sync() {
    let (disk, file) = disk_with_file(SimDisk::recording());
    file.allocate(0, 8192).unwrap();
    file.sync().unwrap();
    let map = file.map(1 << 20).unwrap();
    // SAFETY: the file has 8192 bytes and nobody else uses the map.
    unsafe { map.slice_mut(4096, 4096) }.fill(7);
    let before = disk.op_count();
    assert_eq!(read_all(&disk, path())[4096..], [7; 4096]);
    assert_eq!(read_all(&disk.crash(before, 0), path()), [0; 8192]);
    file.sync().unwrap();
    let after = disk.op_count();
    assert_eq!(read_all(&disk.crash(after, 0), path())[4096..], [7; 4096]);
    assert_eq!(
        read_all(&disk.crash(before, 0), path()),
        [0; 8192],
        "an earlier prefix again"
    );
    let torn = (2..40).filter(|seed| {
        let bytes = read_all(&disk.crash(before, *seed), path());
        bytes[4096..].contains(&7) && bytes[4096..].contains(&0)
    });
    assert!(torn.count() > 5);
}

#[test]
fn a_failed_sync_is_not_healed_by_the_next() {
    let (disk, file) = disk_with_file(SimDisk::new());
    file.write_at(&[1; 512], 0).unwrap();
    disk.inject(Fault {
        on: FaultOn::Sync,
        after: 0,
        forever: false,
        path_contains: "f".into(),
        errno: libc::EIO,
    });
    let error = file.sync().unwrap_err();
    assert!(
        error.to_string().starts_with("sync /d/f at offset 0: "),
        "{error}"
    );
    file.write_at(&[2; 512], 512).unwrap();
    file.sync().unwrap();
    let bytes = read_all(&disk.crash_now(0), path());
    assert_eq!(
        bytes[..512],
        [0; 512],
        "the retry must not look as if it helped"
    );
    assert_eq!(bytes[512..], [2; 512]);
    assert_eq!(disk.sync_count(), 2);
}

#[test]
fn a_full_disk_says_so() {
    let (disk, file) = disk_with_file(SimDisk::new());
    disk.set_capacity(Some(8192));
    file.allocate(0, 8192).unwrap();
    file.write_at(&[1; 8192], 0).unwrap();
    assert!(file.write_at(&[1], 8192).unwrap_err().is_no_space());
    assert!(file.allocate(0, 8193).unwrap_err().is_no_space());
    let other = disk.open(Path::new("/d/g"), OpenMode::CreateNew).unwrap();
    assert!(other.write_at(&[1], 0).unwrap_err().is_no_space());
    drop(file);
    disk.remove(path()).unwrap();
    other.write_at(&[1], 0).unwrap();
    assert_eq!(disk.used_bytes(), 1);
}

#[test]
fn lengths_are_pending_too() {
    let (disk, file) = disk_with_file(SimDisk::new());
    file.write_at(&[1; 1000], 0).unwrap();
    file.sync().unwrap();
    file.truncate(10).unwrap();
    assert_eq!(read_all(&disk.crash_now(0), path()).len(), 1000);
    assert_eq!(read_all(&disk.crash_now(1), path()).len(), 10);
    file.sync().unwrap();
    assert_eq!(read_all(&disk.crash_now(0), path()), [1; 10]);
    disk.corrupt(path(), 3, 0x80).unwrap();
    assert_eq!(read_all(&disk, path())[3], 0x81);
    assert_eq!(read_all(&disk.crash_now(0), path())[3], 0x81);
}
