//! Copies of a store: complete, resumed, damaged, half done.

use std::sync::Arc;

use super::super::{BatchOptions, MvccError, SnapshotSink, SnapshotSource, Store};
use super::{Bench, copy};
use crate::backend::Backend;
use crate::backend::memory::Memory;

fn filled() -> Bench {
    let mut bench = Bench::new();
    for number in 0..200 {
        bench.put(&format!("k{:02}", number % 40), &"v".repeat(number));
    }
    bench.delete("k07");
    bench.delete("k09");
    bench.compact(50).unwrap();
    bench.compact_step(20);
    let applied = bench.next();
    let mut txn = bench.store.begin(BatchOptions::default()).unwrap();
    txn.put_meta(b"raft/conf", b"members").unwrap();
    txn.publish(applied).unwrap();
    bench
}

fn chunks(bench: &Bench, chunk_bytes: usize) -> Vec<Vec<u8>> {
    let mut source = SnapshotSource::new(bench.view());
    let mut chunks = Vec::new();
    while let Some(chunk) = source.next_chunk(chunk_bytes).unwrap() {
        chunks.push(chunk);
    }
    assert_eq!(source.next_chunk(chunk_bytes).unwrap(), None);
    chunks
}

fn empty() -> Arc<dyn Backend> {
    Arc::new(Memory::new())
}

fn same(copied: &Bench, bench: &Bench) {
    let (copied, view) = (copied.view(), bench.view());
    assert_eq!(copied.hash(), view.hash());
    assert_eq!(copied.revision(), view.revision());
    assert_eq!(copied.compacted(), view.compacted());
    assert_eq!(copied.applied(), view.applied());
    assert_eq!(
        copied.meta(b"raft/conf").unwrap(),
        view.meta(b"raft/conf").unwrap()
    );
}

#[test]
fn a_copy_is_the_same_with_any_size_of_chunks() {
    let bench = filled();
    for chunk_bytes in [0, 1, 100, 5000, 1 << 30] {
        let target = empty();
        copy(bench.view(), Arc::clone(&target), chunk_bytes).unwrap();
        let mut copied = Bench::on(target);
        same(&copied, &bench);
        for revision in 50..=bench.revision() {
            assert_eq!(copied.dump(revision), bench.dump(revision));
        }
        let events = |bench: &Bench| bench.events_from(50, true).unwrap();
        assert_eq!(events(&copied), events(&bench));
        // It goes on where the other stands, removal of history included.
        copied.compact_fully();
        assert_eq!(copied.put("new", "v"), bench.revision() + 1);
    }
}

#[test]
fn an_empty_store_can_be_copied() {
    let bench = Bench::new();
    let target = empty();
    let info = copy(bench.view(), Arc::clone(&target), 100).unwrap();
    assert_eq!((info.revision, info.hash), (1, 0));
    assert_eq!(Bench::on(target).revision(), 1);
}

#[test]
fn a_broken_transfer_goes_on_where_it_was() {
    let bench = filled();
    let target = empty();
    let mut sink = SnapshotSink::new(Arc::clone(&target)).unwrap();
    // The source is made anew for each chunk, as after as many breaks.
    loop {
        let mut source = SnapshotSource::resume(bench.view(), sink.position());
        let Some(chunk) = source.next_chunk(900).unwrap() else {
            break;
        };
        sink.push(&chunk).unwrap();
        if source.next_chunk(900).unwrap().is_none() {
            break;
        }
    }
    sink.finish().unwrap();
    same(&Bench::on(target), &bench);
}

#[test]
fn loading_goes_on_in_another_process() {
    let bench = filled();
    let chunks = chunks(&bench, 900);
    let target = empty();
    assert!(SnapshotSink::resume(Arc::clone(&target)).unwrap().is_none());
    let mut sink = SnapshotSink::labelled(Arc::clone(&target), b"of a member").unwrap();
    for (number, chunk) in chunks.iter().enumerate() {
        sink.push(chunk).unwrap();
        if number + 1 == chunks.len() {
            break;
        }
        let before = sink.position();
        drop(sink);
        let (again, label) = SnapshotSink::resume(Arc::clone(&target)).unwrap().unwrap();
        assert_eq!(
            (again.position(), &label[..]),
            (before, &b"of a member"[..])
        );
        sink = again;
    }
    sink.finish().unwrap();
    same(&Bench::on(Arc::clone(&target)), &bench);
    assert!(SnapshotSink::resume(target).unwrap().is_none());
}

#[test]
fn a_damaged_chunk_is_refused_and_can_be_sent_again() {
    let bench = filled();
    let chunks = chunks(&bench, 900);
    let target = empty();
    let mut sink = SnapshotSink::new(Arc::clone(&target)).unwrap();
    for chunk in &chunks {
        for at in [0, 5, chunk.len() / 2, chunk.len() - 1] {
            let mut damaged = chunk.clone();
            damaged[at] ^= 0x10;
            assert!(matches!(sink.push(&damaged), Err(MvccError::Snapshot(_))));
        }
        assert!(sink.push(&chunk[..chunk.len() / 2]).is_err());
        assert!(sink.push(&chunk[..3]).is_err());
        sink.push(chunk).unwrap();
        assert!(sink.push(chunk).is_err(), "twice");
    }
    sink.finish().unwrap();
    same(&Bench::on(target), &bench);
}

#[test]
fn a_half_loaded_store_does_not_open() {
    let bench = filled();
    let chunks = chunks(&bench, 900);
    for sent in 1..chunks.len() {
        let target = empty();
        let mut sink = SnapshotSink::new(Arc::clone(&target)).unwrap();
        for chunk in &chunks[..sent] {
            sink.push(chunk).unwrap();
        }
        assert!(matches!(sink.finish(), Err(MvccError::Snapshot(_))));
        let opened = Store::open(Arc::clone(&target)).err();
        assert!(matches!(opened, Some(MvccError::HalfLoaded)));
        assert!(SnapshotSink::new(target).is_err());
    }
}

#[test]
fn a_store_with_something_in_it_is_no_target() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    let sink = SnapshotSink::new(Arc::clone(bench.store.backend()));
    assert!(matches!(sink, Err(MvccError::Snapshot(_))));
}

#[test]
fn entries_out_of_order_are_refused() {
    let bench = filled();
    let chunks = chunks(&bench, 900);
    let mut sink = SnapshotSink::new(empty()).unwrap();
    for chunk in &chunks[..2] {
        sink.push(chunk).unwrap();
    }
    // The entries of the former chunk once more, as if they were the next.
    let mut again = chunks[1].clone();
    again[4] = 2;
    let crc = crc32c::crc32c(&again[4..]).to_le_bytes();
    again[..4].copy_from_slice(&crc);
    assert!(matches!(sink.push(&again), Err(MvccError::Snapshot(_))));
    for chunk in &chunks[2..] {
        sink.push(chunk).unwrap();
    }
    sink.finish().unwrap();
}

#[test]
fn a_source_that_lies_about_its_hash_is_refused() {
    let bench = filled();
    let mut chunks = chunks(&bench, 1 << 20);
    let last = chunks[0].len() - 1;
    chunks[0][last] ^= 1;
    let crc = crc32c::crc32c(&chunks[0][4..]).to_le_bytes();
    chunks[0][..4].copy_from_slice(&crc);
    let mut sink = SnapshotSink::new(empty()).unwrap();
    for chunk in &chunks {
        sink.push(chunk).unwrap();
    }
    assert!(matches!(sink.finish(), Err(MvccError::Snapshot(_))));
}
