//! The committing thread.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use super::*;
use crate::disk::sim::{Fault, FaultOn};

const IDLE: Duration = Duration::from_millis(20);

fn group_of(number: u64) -> Group {
    let mut group = Group::new();
    group.push(1, &[&number.to_le_bytes()]).unwrap();
    group
        .push(2, &[&vec![number as u8; number as usize % 900]])
        .unwrap();
    group
}

#[test]
fn completes_in_order_and_merges_what_is_queued() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    let (sender, completions) = mpsc::channel();
    let done = Arc::new(Mutex::new(()));
    let gate = done.clone();
    let held = gate.lock().unwrap();
    let committer = Committer::spawn(wal, IDLE, move |completion| {
        // The first completion waits, so that the others queue up behind it.
        drop(done.lock().unwrap());
        sender.send(completion).unwrap();
    })
    .unwrap();
    for ticket in 0..500 {
        committer.submit(ticket, group_of(ticket)).unwrap();
    }
    drop(held);
    let reader = committer.reader();
    for ticket in 0..500u64 {
        let completion = completions.recv().unwrap();
        assert_eq!(completion.ticket, ticket);
        let committed = completion.result.unwrap();
        let found = completion.group.iter();
        for (offset, kind, payload) in found {
            let read = reader.read(committed.first_lsn + offset).unwrap();
            assert_eq!(read, (kind, payload.to_vec()));
        }
    }
    let stats = committer.stats();
    assert_eq!(stats.groups.load(Ordering::Relaxed), 500);
    assert_eq!(stats.batch_groups.sum(), 500);
    assert!(stats.syncs.load(Ordering::Relaxed) < 60, "{stats:?}");
    let wal = committer.shutdown().unwrap();
    drop(wal);
    let (_, _, records) = open(&disk).unwrap();
    assert_eq!(records.len(), 1000);
}

#[test]
fn marks_when_idle_and_at_shutdown() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    let (sender, completions) = mpsc::channel();
    let committer =
        Committer::spawn(wal, IDLE, move |done| sender.send(done.ticket).unwrap()).unwrap();
    let stats = committer.stats();
    committer.submit(7, group_of(1)).unwrap();
    assert_eq!(completions.recv().unwrap(), 7);
    while stats.syncs.load(Ordering::Relaxed) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(3 * IDLE);
    assert_eq!(stats.syncs.load(Ordering::Relaxed), 2, "one mark is enough");
    committer.submit(8, group_of(2)).unwrap();
    let wal = committer.shutdown().unwrap();
    assert_eq!(wal.stats().syncs.load(Ordering::Relaxed), 4);
    assert_eq!(
        completions.recv().unwrap(),
        8,
        "what was queued is committed first"
    );
}

#[test]
fn the_first_error_stops_all_later_groups() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    let (sender, completions) = mpsc::channel();
    let committer =
        Committer::spawn(wal, IDLE, move |done| sender.send(done.result).unwrap()).unwrap();
    let errno = libc::EIO;
    let path_contains = String::new();
    disk.inject(Fault {
        on: FaultOn::Sync,
        after: 1,
        forever: false,
        path_contains,
        errno,
    });
    committer.submit(0, group_of(0)).unwrap();
    completions.recv().unwrap().unwrap();
    for ticket in 1..10 {
        committer.submit(ticket, group_of(ticket)).unwrap();
    }
    for ticket in 1..10 {
        let error = completions.recv().unwrap().unwrap_err();
        assert!(
            error.to_string().contains("sync /data/wal/"),
            "{ticket}: {error}"
        );
    }
    let mut wal = committer.shutdown().unwrap();
    assert!(matches!(
        wal.commit(&mut group_of(1)),
        Err(WalError::Latched(_))
    ));
}

#[test]
fn releases_in_turn() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    let (sender, completions) = mpsc::channel();
    let committer = Committer::spawn(wal, IDLE, move |done| {
        sender.send(done.result.unwrap()).unwrap()
    })
    .unwrap();
    let mut lsn = 0;
    for number in 0..100 {
        committer.submit(number, group_of(number)).unwrap();
        lsn = completions.recv().unwrap().first_lsn;
    }
    committer.release(lsn);
    let stats = committer.stats();
    let wal = committer.shutdown().unwrap();
    assert_eq!(stats.segments.load(Ordering::Relaxed), 1);
    assert_eq!(
        stats.start_lsn.load(Ordering::Relaxed),
        wal.reader().range().0
    );
    assert!(wal.reader().range().0 <= lsn);
}

/// Submits groups until the log is full; what was submitted and what completed.
fn fill(committer: &Committer, completions: &mpsc::Receiver<Completion>) -> (u64, u64) {
    for ticket in 0.. {
        let mut group = Group::new();
        group.push(1, &[&[ticket as u8; 6000]]).unwrap();
        committer.submit(ticket, group).unwrap();
        match completions.recv_timeout(Duration::from_millis(400)) {
            Ok(completion) => assert_eq!(completion.result.map(drop).ok(), Some(())),
            Err(_) => return (ticket + 1, ticket),
        }
    }
    unreachable!("the log is never full")
}

#[test]
fn groups_wait_in_order_while_the_disk_is_full() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let (sender, completions) = mpsc::channel();
    let complete = move |completion| sender.send(completion).unwrap();
    let committer = Committer::spawn(wal, IDLE, complete).unwrap();
    let (mut submitted, done) = fill(&committer, &completions);
    let stats = committer.stats();
    assert_eq!(stats.low_space.load(Ordering::Relaxed), 1);
    assert_eq!(stats.latched.load(Ordering::Relaxed), 0);
    // A small one would fit, but must not overtake.
    let mut group = Group::new();
    group.push(1, &[&[0xEE]]).unwrap();
    committer.submit(submitted, group).unwrap();
    submitted += 1;
    let early = completions.recv_timeout(Duration::from_millis(400));
    assert!(early.is_err(), "{early:?}");
    disk.set_capacity(None);
    for ticket in done..submitted {
        let completion = completions.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(completion.ticket, ticket);
        completion.result.unwrap();
    }
    assert_eq!(stats.low_space.load(Ordering::Relaxed), 0);
    drop(committer.shutdown().unwrap());
    let (_, _, records) = open(&disk).unwrap();
    assert_eq!(records.len() as u64, submitted);
}

#[test]
fn a_shutdown_on_a_full_disk_refuses_what_waits_and_leaves_no_hole() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let (sender, completions) = mpsc::channel();
    let complete = move |completion| sender.send(completion).unwrap();
    let committer = Committer::spawn(wal, IDLE, complete).unwrap();
    let (submitted, done) = fill(&committer, &completions);
    let mut group = Group::new();
    group.push(1, &[&[0xEE]]).unwrap();
    committer.submit(submitted, group).unwrap();
    drop(committer.shutdown().unwrap());
    let refused: Vec<_> = completions
        .iter()
        .map(|completion| completion.result.is_err())
        .collect();
    assert_eq!(refused, [true, true]);
    disk.set_capacity(None);
    let (_, _, records) = open(&disk).unwrap();
    assert_eq!(records.len() as u64, done);
}
