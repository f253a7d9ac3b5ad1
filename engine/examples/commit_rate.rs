//! How many groups a second one writer commits: `commit_rate DIR [SECONDS [DISK]]`.
//!
//! Groups of one record of 300 bytes, each synced before the next, on io_uring
//! and on plain system calls; then through the committing thread with many groups
//! waiting. Reads all of it back at the end.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use varve_engine::disk;
use varve_engine::wal::{Committer, Group, Identity, Wal, WalConfig};

const PAYLOAD: [u8; 300] = [7; 300];
const WAITING: u64 = 256;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments
        .next()
        .ok_or("usage: commit_rate DIR [SECONDS [uring|psync]]")?;
    let duration = Duration::from_secs(arguments.next().map_or(Ok(3), |s| s.parse())?);
    let only = arguments.next();
    for name in disk::NAMES {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let opened = disk::by_name(name)?;
        if let Some(reason) = &opened.fallback {
            println!("{name}: {reason}");
            continue;
        }
        let dir = Path::new(&dir).join(format!("commit_rate.{name}"));
        let committed = one_by_one(&opened, &dir, duration)?;
        let waiting = many_waiting(&opened, &dir, duration)?;
        let (_, recovered) = open(&opened, &dir)?;
        assert_eq!(recovered.records, committed + waiting, "all of it is there");
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn open(opened: &disk::Opened, dir: &Path) -> Result<(Wal, varve_engine::wal::Recovered), Failure> {
    let identity = Identity {
        cluster_id: 1,
        member_id: 1,
    };
    let visit = &mut |_, _, payload: &[u8]| assert_eq!(payload, PAYLOAD);
    Ok(Wal::open(
        opened.disk.clone(),
        dir,
        WalConfig::default(),
        identity,
        visit,
    )?)
}

fn one_by_one(opened: &disk::Opened, dir: &Path, duration: Duration) -> Result<u64, Failure> {
    let (mut wal, _) = open(opened, dir)?;
    let (mut group, mut took) = (Group::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < duration {
        let begun = Instant::now();
        group.clear();
        group.push(1, &[&PAYLOAD])?;
        wal.commit(&mut group)?;
        took.push(begun.elapsed());
    }
    let rate = took.len() as f64 / start.elapsed().as_secs_f64();
    took.sort_unstable();
    let (median, high) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!(
        "{:5} one writer   {rate:8.0} groups/s  p50 {:4} us  p99 {:5} us",
        opened.disk.name(),
        median.as_micros(),
        high.as_micros(),
    );
    Ok(took.len() as u64)
}

fn many_waiting(opened: &disk::Opened, dir: &Path, duration: Duration) -> Result<u64, Failure> {
    let (wal, _) = open(opened, dir)?;
    let (sender, completions) = mpsc::channel();
    let committer = Committer::spawn(wal, Duration::from_millis(200), move |done| {
        // The receiver is gone only after the last group.
        let _ = sender.send(done);
    })?;
    let (mut submitted, mut completed) = (0, 0);
    let start = Instant::now();
    let mut spare = Vec::new();
    loop {
        while submitted - completed < WAITING && start.elapsed() < duration {
            let mut group: Group = spare.pop().unwrap_or_default();
            group.clear();
            group.push(1, &[&PAYLOAD])?;
            committer.submit(submitted, group)?;
            submitted += 1;
        }
        if submitted == completed {
            break;
        }
        let done = completions.recv()?;
        done.result?;
        spare.push(done.group);
        completed += 1;
    }
    let rate = completed as f64 / start.elapsed().as_secs_f64();
    let stats = committer.stats();
    println!(
        "{:5} {WAITING:3} waiting  {rate:8.0} groups/s  {:6.1} groups per sync",
        opened.disk.name(),
        completed as f64 / stats.batch_groups.count() as f64,
    );
    committer.shutdown()?;
    Ok(completed)
}
