use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use rustix::fs::{FallocateFlags, OFlags};
use varve_engine::disk::Disk;
use varve_engine::disk::psync::PsyncDisk;

use super::names::ROOT;
use super::*;

fn image() -> (tempfile::TempDir, Image) {
    let folder = tempfile::tempdir().unwrap();
    let image = Image::new(folder.path());
    (folder, image)
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn all(image: &Image, inode: u64) -> Vec<u8> {
    image.file(inode).unwrap().read(0, 1 << 20).unwrap()
}

fn listed(image: &Image, directory: u64) -> Vec<String> {
    let names = image.names();
    let found = names.list(directory).unwrap().keys();
    found
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn what_is_synced_stays_and_the_rest_can_go() {
    for keeps in [Keeps::Nothing, Keeps::Everything] {
        let (_folder, image) = image();
        let inode = image.create(ROOT, name("a"), 0o600).unwrap();
        image.sync_directory(ROOT).unwrap();
        let file = image.file(inode).unwrap();
        file.write(0, &[1; 1024]).unwrap();
        image.sync(inode).unwrap();
        file.write(512, &[2; 1024]).unwrap();
        assert_eq!(all(&image, inode), [vec![1; 512], vec![2; 1024]].concat());
        let lost = image.lose(&mut Rng::new(1), keeps).unwrap();
        match keeps {
            Keeps::Nothing => {
                assert_eq!(all(&image, inode), vec![1; 1024]);
                assert_eq!(lost.bytes, 1024);
            }
            _ => {
                assert_eq!(all(&image, inode), [vec![1; 512], vec![2; 1024]].concat());
                assert_eq!(lost, Lost::default());
            }
        }
        // It was found so after the loss: it is durable.
        let found = all(&image, inode);
        image.lose(&mut Rng::new(2), Keeps::Nothing).unwrap();
        assert_eq!(all(&image, inode), found);
    }
}

#[test]
fn a_durable_write_makes_nothing_else_durable() {
    let (_folder, image) = image();
    let inode = image.create(ROOT, name("a"), 0o600).unwrap();
    image.sync_directory(ROOT).unwrap();
    let file = image.file(inode).unwrap();
    file.write(0, &[1; 4096]).unwrap();
    image.sync(inode).unwrap();
    file.write(0, &[2; 2048]).unwrap();
    let mark = file.write(1024, &[3; 512]).unwrap();
    image.sync_range(inode, 1024, 512, mark).unwrap();
    file.write(1024, &[4; 512]).unwrap();
    image.lose(&mut Rng::new(1), Keeps::Nothing).unwrap();
    let expected = [vec![1; 1024], vec![3; 512], vec![1; 2560]].concat();
    assert_eq!(all(&image, inode), expected);
    // With the length that it needs.
    let mark = file.write(8192, &[5; 512]).unwrap();
    image.sync_range(inode, 8192, 512, mark).unwrap();
    file.write(8704, &[6; 512]).unwrap();
    image.lose(&mut Rng::new(2), Keeps::Nothing).unwrap();
    let expected = [expected, vec![0; 4096], vec![5; 512]].concat();
    assert_eq!(all(&image, inode), expected);
}

#[test]
fn a_write_is_torn_between_sectors_and_nowhere_else() {
    let mut mixed = 0;
    for seed in 0..40 {
        let (_folder, image) = image();
        let inode = image.create(ROOT, name("a"), 0o600).unwrap();
        image.sync_directory(ROOT).unwrap();
        let file = image.file(inode).unwrap();
        file.write(0, &[1; 8192]).unwrap();
        image.sync(inode).unwrap();
        file.write(0, &[2; 8192]).unwrap();
        file.write(100, &[3; 8000]).unwrap();
        let versions = |at: usize| {
            let is_written = (100..8100).contains(&at);
            [1, 2, if is_written { 3 } else { 2 }]
        };
        image.lose(&mut Rng::new(seed), Keeps::Percent(50)).unwrap();
        let found = all(&image, inode);
        assert_eq!(found.len(), 8192);
        let mut kinds = std::collections::BTreeSet::new();
        for (sector, bytes) in found.chunks(512).enumerate() {
            let of = |version: usize| {
                let bytes = (0..512).map(|at| versions(sector * 512 + at)[version]);
                bytes.collect::<Vec<u8>>()
            };
            let version = (0..3).find(|version| of(*version) == bytes);
            assert!(version.is_some(), "seed {seed}: sector {sector} is torn");
            kinds.insert(version);
        }
        mixed += usize::from(kinds.len() > 1);
    }
    assert!(mixed > 10, "{mixed}");
}

/// Whatever is done to a file: after a loss it has a length that it had since the last
/// sync, and each byte is one that was there since then.
#[test]
fn after_a_loss_a_file_is_made_of_what_it_was_since_its_sync() {
    let mut changed = 0;
    for seed in 0..300 {
        let (_folder, image) = image();
        let mut rng = Rng::new(seed);
        let inode = image.create(ROOT, name("a"), 0o600).unwrap();
        image.sync_directory(ROOT).unwrap();
        let file = image.file(inode).unwrap();
        for _ in 0..4 {
            let mut versions = vec![all(&image, inode)];
            for step in 0..rng.below(12) {
                let (at, length) = (rng.below(12_000), 1 + rng.below(4000));
                match rng.below(8) {
                    0 => file.set_length(rng.below(16_000)).unwrap(),
                    1 => {
                        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                        file.allocate(flags, at..at + length).unwrap();
                    }
                    2 => {
                        let flags = FallocateFlags::empty();
                        file.allocate(flags, at..at + length).unwrap();
                    }
                    3 => {
                        image.sync(inode).unwrap();
                        versions.clear();
                    }
                    _ => {
                        let byte = (seed + step) as u8 | 1;
                        file.write(at, &vec![byte; length as usize]).unwrap();
                    }
                }
                versions.push(all(&image, inode));
            }
            let keeps = Keeps::by_chance(&mut rng);
            let newest = versions.last().cloned();
            image.lose(&mut rng, keeps).unwrap();
            let found = all(&image, inode);
            let is_length = |v: &Vec<u8>| v.len() == found.len();
            assert!(versions.iter().any(is_length), "seed {seed}: length");
            for (at, byte) in found.iter().enumerate() {
                let was = |v: &Vec<u8>| v.get(at).copied().unwrap_or(0) == *byte;
                assert!(versions.iter().any(was), "seed {seed}: byte {at}");
            }
            match keeps {
                Keeps::Nothing => assert_eq!(found, versions[0], "seed {seed}"),
                Keeps::Everything => assert_eq!(Some(&found), newest.as_ref(), "seed {seed}"),
                Keeps::Percent(_) => changed += usize::from(Some(&found) != newest.as_ref()),
            }
        }
    }
    assert!(changed > 100, "{changed}");
}

#[test]
fn names_stay_when_their_directory_is_synced() {
    let (folder, image) = image();
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    let directory = image.make_directory(ROOT, name("d"), 0o700).unwrap();
    image.sync_directory(ROOT).unwrap();
    image.create(directory, name("a"), 0o600).unwrap();
    image.sync_directory(directory).unwrap();
    image.create(directory, name("b"), 0o600).unwrap();
    image
        .rename((directory, name("a")), (directory, name("c")), true)
        .unwrap();
    assert_eq!(listed(&image, directory), ["b", "c"]);
    let lost = image.lose(&mut Rng::new(1), Keeps::Nothing).unwrap();
    assert_eq!(
        (listed(&image, directory), lost.names),
        (vec!["a".to_owned()], 2)
    );
    assert_eq!(files(), 1);
    // A removal, too, can be lost.
    image.remove(directory, name("a"), false).unwrap();
    image.lose(&mut Rng::new(1), Keeps::Nothing).unwrap();
    assert_eq!(listed(&image, directory), ["a"]);
    image.remove(directory, name("a"), false).unwrap();
    image.sync_directory(directory).unwrap();
    image.lose(&mut Rng::new(1), Keeps::Nothing).unwrap();
    assert_eq!((listed(&image, directory).len(), files()), (0, 0));
    // What was synced in a directory whose own name was not is gone with it.
    let other = image.make_directory(ROOT, name("e"), 0o700).unwrap();
    image.create(other, name("f"), 0o600).unwrap();
    image.sync_directory(other).unwrap();
    image.lose(&mut Rng::new(1), Keeps::Nothing).unwrap();
    assert_eq!((listed(&image, ROOT), files()), (vec!["d".to_owned()], 0));
}

#[test]
fn a_rename_is_there_or_not_as_a_whole() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let (_folder, image) = image();
        let [from, to] = ["from", "to"].map(|directory| {
            let directory = image.make_directory(ROOT, name(directory), 0o700);
            directory.unwrap()
        });
        let inode = image.create(from, name("a"), 0o600).unwrap();
        image.create(to, name("a"), 0o600).unwrap();
        for directory in [ROOT, from, to] {
            image.sync_directory(directory).unwrap();
        }
        image
            .rename((from, name("a")), (to, name("a")), true)
            .unwrap();
        if seed % 2 == 0 {
            image.sync_directory(from).unwrap();
        }
        image.lose(&mut Rng::new(seed), Keeps::Percent(50)).unwrap();
        let is_renamed = image.lookup(to, name("a")).unwrap() == inode;
        assert_eq!(listed(&image, from).is_empty(), is_renamed, "seed {seed}");
        assert!(is_renamed || seed % 2 == 1, "seed {seed}: synced, and lost");
        seen.insert((seed % 2, is_renamed));
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn after_the_cut_no_sync_comes_to_an_end() {
    let (_folder, image) = image();
    let inode = image.create(ROOT, name("a"), 0o600).unwrap();
    image.sync_directory(ROOT).unwrap();
    image.file(inode).unwrap().write(0, b"lost").unwrap();
    image.power().cut();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| image.sync(inode));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        image.power().release();
        assert!(waits.join().unwrap().is_err());
    });
    image.lose(&mut Rng::new(1), Keeps::Nothing).unwrap();
    assert_eq!(all(&image, inode), b"");
    image.power().restore();
    image.sync(inode).unwrap();
}

/// Through the kernel. Where nobody may mount there is nothing to be tested.
#[test]
fn a_mounted_one_loses_what_programs_did_not_sync() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match PowerDisk::new(folder.path(), "n1", &folder.path().join("below")) {
        Ok(disk) => disk,
        Err(reason)
            if !rustix::process::geteuid().is_root()
                || !Path::new("/dev/fuse").exists()
                || reason.contains("not permitted") =>
        {
            eprintln!("power loss: not to be had here ({reason})");
            return;
        }
        Err(reason) => panic!("{reason}"),
    };
    let data = disk.data_dir();
    let sync = |path: &Path| File::open(path).unwrap().sync_all().unwrap();
    // A seed that keeps nothing.
    let lose = || {
        let is_nothing = |seed: &u64| Keeps::by_chance(&mut Rng::new(*seed)) == Keeps::Nothing;
        disk.cut();
        disk.release();
        disk.lose((0..).find(is_nothing).unwrap()).unwrap()
    };
    std::fs::create_dir(&data).unwrap();
    sync(data.parent().unwrap());
    let path = data.join("a");
    {
        let mut file = File::create(&path).unwrap();
        file.write_all(&[1; 8192]).unwrap();
        file.sync_data().unwrap();
        sync(&data);
        std::fs::write(data.join("b"), b"no name").unwrap();
        file.write_all_at(&[2; 4096], 0).unwrap();
        let durable = OFlags::DSYNC | OFlags::DIRECT;
        let direct = File::options()
            .write(true)
            .custom_flags(durable.bits() as i32)
            .open(&path);
        // Memory of its own starts at a page: too large for the small pieces.
        let block = vec![3; 1 << 20];
        let start = block.as_ptr().align_offset(4096);
        direct
            .unwrap()
            .write_all_at(&block[start..start + 4096], 4096)
            .unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            [vec![2; 4096], vec![3; 4096]].concat()
        );
    }
    let lost = lose();
    assert_eq!((lost.bytes, lost.names), (4096 + 7, 1));
    assert_eq!(
        std::fs::read(&path).unwrap(),
        [vec![1; 4096], vec![3; 4096]].concat()
    );
    assert!(!data.join("b").exists());
    // A sync that is asked for counts, also after a durable write through the same handle.
    {
        let durable = File::options()
            .write(true)
            .custom_flags(OFlags::DSYNC.bits() as i32)
            .open(&path)
            .unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&[4; 512], 0)
            .unwrap();
        durable.write_all_at(&[5; 512], 4096).unwrap();
        durable.sync_data().unwrap();
    }
    assert_eq!(lose(), Lost::default());
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(
        (bytes[0], bytes[512], bytes[4096], bytes[4608]),
        (4, 1, 5, 3)
    );
    // The engine's own directories, with those above.
    let deep = data.join("d/e/f");
    PsyncDisk.create_dir(&deep).unwrap();
    assert_eq!(lose(), Lost::default());
    assert!(deep.exists());
    std::fs::rename(&path, data.join("c")).unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    assert!(!data.exists());
    lose();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}
