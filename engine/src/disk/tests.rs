//! What all disks have in common, on real files and in memory; and what real
//! ones do when the kernel refuses.
#![allow(unsafe_code)] // maps, a seccomp filter, and a page that is made to fail

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use super::*;

/// Every disk with a directory to work in; the guard removes it.
fn disks() -> Vec<(Arc<dyn Disk>, PathBuf, Option<tempfile::TempDir>)> {
    let mut disks: Vec<(Arc<dyn Disk>, PathBuf, Option<tempfile::TempDir>)> = Vec::new();
    for name in NAMES {
        let dir = tempfile::tempdir().unwrap();
        disks.push((
            by_name(name).unwrap().disk,
            dir.path().join("a/b"),
            Some(dir),
        ));
    }
    disks.push((Arc::new(SimDisk::new()), "/a/b".into(), None));
    disks
}

#[test]
fn files_hold_what_was_written() {
    for (disk, dir, _guard) in disks() {
        disk.create_dir(&dir).unwrap();
        disk.create_dir(&dir).unwrap();
        let path = dir.join("f");
        for log in [false, true] {
            let file = match log {
                true => disk.open_log(&path, OpenMode::Create).unwrap(),
                false => disk.open(&path, OpenMode::Create).unwrap(),
            };
            file.truncate(0).unwrap();
            assert!(file.is_empty().unwrap());
            file.allocate(0, 3 * 4096).unwrap();
            let mut block = AlignedBuf::zeroed(4096);
            block.fill(1);
            // Aligned, not aligned, across the end; then aligned at the end.
            file.write_durable(&block, 4096).unwrap();
            file.write_durable(b"unaligned", 100).unwrap();
            file.write_durable(&block, 3 * 4096 - 8).unwrap();
            file.write_durable(&block, 4 * 4096).unwrap();
            file.sync().unwrap();
            assert_eq!(file.len().unwrap(), 5 * 4096);
            let mut bytes = vec![9; 6 * 4096];
            assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5 * 4096);
            assert_eq!(bytes[100..109], *b"unaligned");
            assert_eq!(bytes[4096..8192], block[..]);
            assert_eq!(bytes[8192..3 * 4096 - 8], [0; 4096 - 8]);
            assert_eq!(bytes[3 * 4096 - 8..4 * 4096 - 8], block[..]);
            assert_eq!(bytes[4 * 4096..5 * 4096], block[..]);
            let error = file.read_exact_at(&mut bytes, 0).unwrap_err().to_string();
            assert!(
                error.contains("the file ends 4096 bytes too early"),
                "{error}"
            );
            assert_eq!(file.path(), path);
        }
    }
}

#[test]
fn names_come_and_go() {
    for (disk, dir, _guard) in disks() {
        disk.create_dir(&dir).unwrap();
        let (one, two) = (dir.join("one"), dir.join("two"));
        assert!(
            disk.open(&one, OpenMode::Existing)
                .unwrap_err()
                .is_not_found()
        );
        disk.open(&two, OpenMode::Create).unwrap();
        disk.open(&one, OpenMode::CreateNew)
            .unwrap()
            .write_at(b"1", 0)
            .unwrap();
        let error = disk.open(&one, OpenMode::CreateNew).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(disk.list(&dir).unwrap(), ["one", "two"]);
        disk.rename(&one, &two).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["two"]);
        assert!(disk.exists(&two).unwrap() && !disk.exists(&one).unwrap());
        assert_eq!(
            disk.open(&two, OpenMode::Existing).unwrap().len().unwrap(),
            1
        );
        disk.remove(&two).unwrap();
        assert!(disk.remove(&two).unwrap_err().is_not_found());
        assert!(disk.rename(&one, &two).unwrap_err().is_not_found());
        assert!(disk.list(&dir.join("none")).unwrap_err().is_not_found());
    }
}

#[test]
fn a_map_and_the_file_are_the_same_bytes() {
    for (disk, dir, _guard) in disks() {
        disk.create_dir(&dir).unwrap();
        let file = disk.open(&dir.join("f"), OpenMode::Create).unwrap();
        file.write_at(&[1; 4096], 0).unwrap();
        let map = file.map(1 << 20).unwrap();
        assert_eq!(map.reserved_bytes(), 1 << 20);
        file.allocate(4096, 4096).unwrap();
        // SAFETY: the file has 8192 bytes and no slice of it is held elsewhere.
        unsafe {
            assert_eq!(map.slice(0, 4096), [1; 4096]);
            map.slice_mut(4096, 4096).fill(2);
            file.sync().unwrap();
            file.write_durable(&[3; 4096], 0).unwrap();
            assert_eq!(map.slice(0, 4096), [3; 4096]);
        }
        let mut bytes = vec![0; 8192];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[4096..], [2; 4096]);
    }
}

#[test]
#[should_panic(expected = "outside the map")]
fn a_map_refuses_what_is_outside() {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/d")).unwrap();
    let file = disk.open(Path::new("/d/f"), OpenMode::Create).unwrap();
    let map = file.map(8192).unwrap();
    // SAFETY: panics before it touches anything.
    unsafe { map.slice(8000, 200) };
}

#[test]
fn a_failed_durable_write_says_what_and_where() {
    for name in NAMES {
        let disk = by_name(name).unwrap().disk;
        let file = disk
            .open_log(Path::new("/dev/full"), OpenMode::Existing)
            .unwrap();
        for _ in 0..2 {
            let error = file
                .write_durable(&AlignedBuf::zeroed(4096), 8192)
                .unwrap_err();
            assert!(error.is_no_space(), "{name}: {error}");
            let expected = "write /dev/full at offset 8192: No space left on device";
            assert!(error.to_string().starts_with(expected), "{name}: {error}");
        }
    }
}

#[test]
fn unknown_disks_are_named() {
    let error = by_name("floppy").unwrap_err().to_string();
    assert_eq!(error, "unknown disk \"floppy\": use uring or psync");
}

/// Makes io_uring_setup fail with `errno` for this thread, as the seccomp profiles
/// of containers do.
fn forbid_io_uring(errno: i32) {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let step = |code, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut steps = [
        step(load, 0, 0, 0),
        step(equal, 0, 1, libc::SYS_io_uring_setup as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: both calls concern this thread only; the program is valid for the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
            0
        );
    }
}

#[test]
fn falls_back_where_io_uring_is_forbidden() {
    for (errno, reason) in [
        (libc::EPERM, "not permitted"),
        (libc::ENOSYS, "not implemented"),
    ] {
        std::thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            // One that was opened while it was allowed goes on as well.
            let before = uring::UringDisk::probe().ok();
            forbid_io_uring(errno);
            let opened = open_default();
            assert_eq!(opened.disk.name(), "psync");
            let text = opened.fallback.unwrap();
            assert!(text.starts_with("io_uring is not available: "), "{text}");
            assert!(text.contains(reason), "{text}");
            let mut disks = vec![opened.disk];
            disks.extend(before.map(|disk| Arc::new(disk) as Arc<dyn Disk>));
            for disk in disks {
                let file = disk
                    .open_log(&dir.path().join("f"), OpenMode::Create)
                    .unwrap();
                file.write_durable(&AlignedBuf::zeroed(4096), 0).unwrap();
            }
        })
        .join()
        .unwrap();
    }
}

/// Set in the process that is to lose a page.
const LOSE_A_PAGE: &str = "VARVE_TEST_LOSE_A_PAGE";

#[test]
fn a_lost_page_ends_the_process_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pages");
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "disk::tests::loses_a_page_if_asked",
            "--nocapture",
        ])
        .env(LOSE_A_PAGE, &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(sigbus::EXIT_STATUS),
        "{:?} {text}",
        output.status.signal()
    );
    let expected = format!(
        "varve: fatal: {}: page 2 (file offset 8192) cannot be read",
        path.display()
    );
    assert!(text.contains(&expected), "{text}");
}

/// Does nothing unless the test above runs it in a process of its own.
#[test]
fn loses_a_page_if_asked() {
    let Some(path) = std::env::var_os(LOSE_A_PAGE) else {
        return;
    };
    sigbus::install().unwrap();
    let file = psync::PsyncDisk::new()
        .open(Path::new(&path), OpenMode::Create)
        .unwrap();
    file.write_at(&[1; 4 * 4096], 0).unwrap();
    let map = file.map(1 << 20).unwrap();
    file.truncate(8192).unwrap();
    // SAFETY: none; the page is gone, which is what the handler is tested with.
    let byte = unsafe { map.slice(8192 + 5, 1)[0] };
    panic!("read {byte} from a page that is gone");
}
