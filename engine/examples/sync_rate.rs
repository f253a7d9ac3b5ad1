//! How fast one durable write is, by disk and by manner: `sync_rate DIR [SECONDS]`.
//!
//! Prints the median, the 99th percentile and the rate of 4 KiB group writes at
//! rising offsets of a preallocated file, for io_uring and for plain system
//! calls, each past the page cache (O_DIRECT and O_DSYNC) and through it.

use std::path::Path;
use std::time::{Duration, Instant};

use varve_engine::disk::{self, AlignedBuf, BLOCK_BYTES, Disk, OpenMode};

const FILE_BYTES: usize = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: sync_rate DIR [SECONDS]")?;
    let seconds = arguments.next().map_or(Ok(2), |s| s.parse())?;
    let path = Path::new(&dir).join("sync_rate.tmp");
    for name in disk::NAMES {
        let opened = disk::by_name(name)?;
        if let Some(reason) = &opened.fallback {
            println!("{name}: {reason}");
            continue;
        }
        for direct in [true, false] {
            measure(&*opened.disk, &path, direct, Duration::from_secs(seconds))?;
        }
    }
    Ok(())
}

fn measure(
    disk: &dyn Disk,
    path: &Path,
    direct: bool,
    duration: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let file = match direct {
        true => disk.open_log(path, OpenMode::Create)?,
        false => disk.open(path, OpenMode::Create)?,
    };
    let zeroes = AlignedBuf::zeroed(1 << 20);
    for offset in (0..FILE_BYTES).step_by(zeroes.len()) {
        file.write_at(&zeroes, offset as u64)?;
    }
    file.sync()?;
    let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
    let (start, mut took, mut offset) = (Instant::now(), Vec::new(), 0u64);
    while start.elapsed() < duration {
        block[..8].copy_from_slice(&offset.to_le_bytes());
        let begun = Instant::now();
        file.write_durable(&block, offset % FILE_BYTES as u64)?;
        took.push(begun.elapsed());
        offset += BLOCK_BYTES as u64;
    }
    took.sort_unstable();
    println!(
        "{:6} {:9} {:6.0}/s  p50 {:4} us  p99 {:5} us",
        disk.name(),
        if direct { "direct" } else { "buffered" },
        took.len() as f64 / duration.as_secs_f64(),
        took[took.len() / 2].as_micros(),
        took[took.len() * 99 / 100].as_micros(),
    );
    drop(file);
    disk.remove(path)?;
    Ok(())
}
