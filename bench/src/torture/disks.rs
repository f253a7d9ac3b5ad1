//! A small file system for each member, on a file of its own, so that it can be full and
//! can hang. Only root may mount.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::shell;

/// Size of each: a few segments of the log and a store.
const SIZE_MIB: u64 = 768;
/// What a full one has left.
const LEFT_BYTES: u64 = 64 << 10;
/// The file that takes the rest.
const BALLAST: &str = "ballast";

/// One member's file system; unmounted when dropped.
pub(super) struct SmallDisk {
    mount_point: PathBuf,
    image: PathBuf,
    is_frozen: bool,
}

impl SmallDisk {
    /// Makes and mounts one.
    pub(super) async fn new(folder: &Path, name: &str) -> Result<Self, String> {
        let disk = Self {
            mount_point: folder.join(format!("{name}.disk")),
            image: folder.join(format!("{name}.image")),
            is_frozen: false,
        };
        let failed = |what: &Path, error: std::io::Error| format!("{}: {error}", what.display());
        let file = File::create(&disk.image).map_err(|error| failed(&disk.image, error))?;
        file.set_len(SIZE_MIB << 20)
            .map_err(|error| failed(&disk.image, error))?;
        std::fs::create_dir(&disk.mount_point).map_err(|error| failed(&disk.mount_point, error))?;
        let (image, point) = (disk.image.display(), disk.mount_point.display());
        shell::run(&format!("mkfs.ext4 -q -m 0 -F {image}")).await?;
        shell::run(&format!("mount -o loop {image} {point}")).await?;
        Ok(disk)
    }

    pub(super) fn describe() -> String {
        format!("an ext4 of {SIZE_MIB} MiB for each member, loop-mounted")
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Takes all space but for a little.
    pub(super) fn fill(&self) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("cannot fill a disk: {error}");
        let ballast = self.mount_point.join(BALLAST);
        let file = File::create(&ballast).map_err(|error| failed(&error))?;
        let mut taken = 0;
        // Blocks that describe the file take some, too.
        for _ in 0..20 {
            let space = statvfs(&self.mount_point).map_err(|error| failed(&error))?;
            let free = space.f_bavail * space.f_frsize;
            if free <= LEFT_BYTES {
                break;
            }
            let more = (free - LEFT_BYTES).min((free * 9 / 10).max(4096));
            if fallocate(&file, FallocateFlags::empty(), taken, more).is_err() {
                break; // others were faster
            }
            taken += more;
        }
        match taken {
            0 => Err(failed(&"there is no space to take")),
            _ => Ok(()),
        }
    }

    /// Gives the space back.
    pub(super) fn empty(&self) -> Result<(), String> {
        std::fs::remove_file(self.mount_point.join(BALLAST))
            .map_err(|error| format!("cannot empty a disk: {error}"))
    }

    /// Whatever is written from now on hangs.
    pub(super) async fn freeze(&mut self) -> Result<(), String> {
        self.is_frozen = true;
        shell::run(&format!("fsfreeze -f {}", self.mount_point.display())).await
    }

    pub(super) async fn thaw(&mut self) -> Result<(), String> {
        shell::run(&format!("fsfreeze -u {}", self.mount_point.display())).await?;
        self.is_frozen = false;
        Ok(())
    }

    /// So that a process that hangs in it can be killed.
    pub(super) fn thaw_at_the_end(&mut self) {
        if std::mem::take(&mut self.is_frozen) {
            shell::run_at_the_end(&format!("fsfreeze -u {}", self.mount_point.display()));
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.thaw_at_the_end();
        let point = self.mount_point.display();
        for _ in 0..50 {
            // The system may still be busy with a process that was killed.
            if shell::run_at_the_end(&format!("umount {point}")) || !is_mounted(&self.mount_point) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        eprintln!("varve-bench: {point} stays mounted");
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let path = path.display().to_string();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&path))
}
