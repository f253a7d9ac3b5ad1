//! A file system that loses what was not synced when the power goes.
//!
//! It lies over a folder (FUSE, mounted without a helper, so only root can), and passes
//! everything on to files there. Beside them it keeps in memory what no sync has made
//! durable: the former bytes of each write, truncation and hole, and each change of a
//! name since its directory was synced. At a power loss no sync comes to an end any more,
//! the process is killed, the mount goes with the kernel's page cache of it, and then
//! pending changes are dropped by chance: writes by sectors of 512 bytes, lengths and
//! blocks from some change on, names in order or each by itself. That is what
//! `engine/FORMAT.md` says is not assumed of a disk, and nothing else.
//!
//! What the kernel holds back (pages that were written through a map) comes while the
//! process ends, counts as not synced, and is dropped or kept like all else.

mod content;
mod fuse;
mod image;
mod names;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::BackgroundSession;
use rustix::mount::{UnmountFlags, unmount};
use varve_engine::disk::sim::Rng;

use image::Image;

/// Threads that serve one mount. As many of its operations may hang at once when the
/// disk below does: the kernel has 12 of its own under way, a node a few more.
const THREADS: usize = 24;
/// How much of what was not synced a loss leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Nothing,
    Everything,
    Percent(u64),
}

impl Keeps {
    fn by_chance(rng: &mut Rng) -> Self {
        match rng.below(8) {
            0 | 1 => Self::Nothing,
            2 => Self::Everything,
            3 | 4 => Self::Percent(10),
            5 | 6 => Self::Percent(50),
            _ => Self::Percent(90),
        }
    }

    fn percent(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Everything => 100,
            Self::Percent(percent) => percent,
        }
    }
}

/// What was taken at a loss.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    /// Bytes that are as they were before.
    pub(super) bytes: u64,
    /// Files created, renamed or removed that are not.
    pub(super) names: u64,
}

/// One member's; unmounted when dropped.
#[derive(Debug)]
pub(super) struct PowerDisk {
    mount_point: PathBuf,
    image: Arc<Image>,
    session: Mutex<Option<BackgroundSession>>,
}

impl PowerDisk {
    /// Mounts an empty one in `folder`, its files in the folder `below`, which must not
    /// exist.
    pub(super) fn new(folder: &Path, name: &str, below: &Path) -> Result<Self, String> {
        let mount_point = folder.join(format!("{name}.power"));
        for folder in [below, &mount_point] {
            std::fs::create_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        let disk = Self {
            mount_point,
            image: Arc::new(Image::new(below)),
            session: Mutex::new(None),
        };
        disk.mount()?;
        Ok(disk)
    }

    /// Where a member keeps its data on it.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.mount_point.join("data")
    }

    /// From now on nothing becomes durable: whoever waits for a sync waits.
    pub(super) fn cut(&self) {
        self.image.power().cut();
    }

    /// The process is being killed: whoever waits for a sync is told that it failed.
    pub(super) fn release(&self) {
        self.image.power().release();
    }

    /// The process is gone: what was not synced is lost, by chance. Then there is power
    /// again.
    pub(super) fn lose(&self, seed: u64) -> Result<Lost, String> {
        let mut rng = Rng::new(seed);
        self.unmount()?;
        let keeps = Keeps::by_chance(&mut rng);
        let lost = self.image.lose(&mut rng, keeps);
        let lost = lost.map_err(|e| format!("cannot take back what was not synced: {e}"))?;
        self.image.power().restore();
        self.mount()?;
        Ok(lost)
    }

    fn session(&self) -> std::sync::MutexGuard<'_, Option<BackgroundSession>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mount(&self) -> Result<(), String> {
        let session = fuse::mount(&self.image, &self.mount_point, THREADS)
            .map_err(|e| format!("cannot mount {}: {e}", self.mount_point.display()))?;
        *self.session() = Some(session);
        Ok(())
    }

    /// Unmounts, and waits for the threads.
    fn unmount(&self) -> Result<(), String> {
        let Some(session) = self.session().take() else {
            return Ok(());
        };
        // By force: a member's namespace, made when this was mounted, would keep it alive.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        unmount(&self.mount_point, flags)
            .map_err(|e| format!("cannot unmount {}: {e}", self.mount_point.display()))?;
        match session.join() {
            // A request that was being read when the mount went by force.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => Ok(()),
            ended => ended.map_err(|e| format!("{}: {e}", self.mount_point.display())),
        }
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        self.release();
        if let Err(what) = self.unmount() {
            eprintln!("varve-bench: {what}");
        }
    }
}
