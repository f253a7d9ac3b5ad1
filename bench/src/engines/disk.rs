//! What the disk alone does, to hold an engine against: reads of single pages at random
//! places, past the page cache.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde::Serialize;

use super::data::Random;
use crate::error::{BenchError, Result};

/// Bytes of a read.
const PAGE_BYTES: usize = 4096;
/// Reads that are on their way at a time in the second figure.
pub(super) const MANY: u32 = 32;
/// How long either is measured.
const TIME: Duration = Duration::from_secs(5);

/// Reads a second.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct RandomReads {
    /// One after another.
    pub(super) one: f64,
    /// [`MANY`] at a time.
    pub(super) many: f64,
}

/// Reads pages of the largest file below `folder`.
pub(super) fn random_reads(folder: &Path) -> Result<RandomReads> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| BenchError::Io {
            action: "read pages of",
            path,
            source,
        }
    };
    let (length, path) = largest(folder).map_err(io(folder))?;
    let pages = (length / PAGE_BYTES as u64).min(u64::from(u32::MAX)) as u32;
    if pages == 0 {
        return Ok(RandomReads {
            one: 0.0,
            many: 0.0,
        });
    }
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32);
    let file = options.open(&path).map_err(io(&path))?;
    let rate = |threads| reads(&file, pages, threads).map_err(io(&path));
    Ok(RandomReads {
        one: rate(1)?,
        many: rate(MANY)?,
    })
}

fn largest(folder: &Path) -> std::io::Result<(u64, PathBuf)> {
    let mut found = (0, folder.to_owned());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let one = match entry.file_type()?.is_dir() {
            true => largest(&entry.path())?,
            false => (entry.metadata()?.len(), entry.path()),
        };
        if one.0 > found.0 {
            found = one;
        }
    }
    Ok(found)
}

/// Reads a second of so many threads, each with one read on its way.
fn reads(file: &File, pages: u32, threads: u32) -> std::io::Result<f64> {
    let count = AtomicU64::new(0);
    let start = Instant::now();
    let read = |seed: u32| -> std::io::Result<()> {
        let mut random = Random::new(u64::from(seed) << 32);
        // What is read without the page cache must lie at a multiple of its length.
        let mut memory = vec![0; 2 * PAGE_BYTES];
        let first = memory.as_ptr().align_offset(PAGE_BYTES);
        let page = &mut memory[first..first + PAGE_BYTES];
        while start.elapsed() < TIME {
            let at = u64::from(random.below(pages)) * PAGE_BYTES as u64;
            file.read_exact_at(page, at)?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let read = &read;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=threads)
            .map(|seed| scope.spawn(move || read(seed)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(std::io::Error::other("a reading thread panicked")))
        })
    })?;
    Ok(count.into_inner() as f64 / start.elapsed().as_secs_f64())
}
