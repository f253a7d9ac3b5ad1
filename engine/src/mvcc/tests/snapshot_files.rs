//! Snapshots in files: whole, cut, or with a bit flipped.

use std::sync::Arc;

use super::super::fuzz;
use super::super::{
    SnapshotFileError, SnapshotFileReader, SnapshotFileWriter, SnapshotSink, SnapshotSource,
};
use super::Bench;
use crate::backend::Backend;
use crate::backend::conformance::Random;
use crate::backend::memory::Memory;

fn filled() -> Bench {
    let mut bench = Bench::new();
    for number in 0..20 {
        bench.put(&format!("key{number}"), "value");
    }
    bench.delete("key7");
    bench
}

fn file_of(bench: &Bench) -> Vec<u8> {
    let mut source = SnapshotSource::new(bench.view());
    let mut writer = SnapshotFileWriter::new(Vec::new()).unwrap();
    while let Some(chunk) = source.next_chunk(100).unwrap() {
        writer.push(&chunk).unwrap();
    }
    writer.finish().unwrap().0
}

fn verify(file: &[u8]) -> Result<(i64, u128, u64), SnapshotFileError> {
    let check = SnapshotFileReader::new(file, file.len() as u64)?.verify()?;
    let info = check.info().unwrap();
    Ok((info.revision, info.hash, check.live_keys()))
}

fn load(file: &[u8]) -> Result<Bench, SnapshotFileError> {
    let target: Arc<dyn Backend> = Arc::new(Memory::new());
    let mut sink = SnapshotSink::new(Arc::clone(&target)).unwrap();
    SnapshotFileReader::new(file, file.len() as u64)?.chunks(|chunk| sink.push(chunk))?;
    sink.finish()
        .map_err(|source| SnapshotFileError::Chunk { offset: 0, source })?;
    Ok(Bench::on(target))
}

#[test]
fn a_file_says_what_it_holds_and_loads() {
    let bench = filled();
    let file = file_of(&bench);
    let view = bench.view();
    assert_eq!(verify(&file).unwrap(), (view.revision(), view.hash(), 19));
    let copied = load(&file).unwrap();
    assert_eq!(copied.view().hash(), view.hash());
    assert_eq!(copied.dump(0), bench.dump(0));
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let file = file_of(&filled());
    for at in 0..file.len() {
        for bit in [1, 0x10, 0x80] {
            let mut damaged = file.clone();
            damaged[at] ^= bit;
            assert!(verify(&damaged).is_err(), "byte {at}, bit {bit:x}");
        }
        let error = verify(&file[..at]).unwrap_err().to_string();
        let named = error.contains("cut off") || error.contains("ended") || at < 16;
        assert!(named, "cut at {at}: {error}");
    }
    let mut longer = file;
    longer.push(0);
    assert!(matches!(
        verify(&longer),
        Err(SnapshotFileError::Cut { .. })
    ));
}

/// Also behind checksums that fit.
#[test]
fn changed_files_never_panic() {
    let file = fuzz::seed();
    assert!(fuzz::read_snapshot(&file));
    assert_eq!(fuzz::repair(&file), file);
    let mut random = Random::new(5);
    let mut whole = 0;
    for _ in 0..5000 {
        let mut changed = file.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(changed.len());
            match random.below(4) {
                0 => changed[at] = random.number() as u8,
                1 => changed[at] ^= 1 << random.below(8),
                2 => changed.truncate(at.max(1)),
                _ => drop(changed.drain(at..(at + random.below(30)).min(changed.len()))),
            }
            if changed.is_empty() {
                changed.push(0);
            }
        }
        fuzz::read_snapshot(&changed);
        whole += usize::from(fuzz::read_snapshot(&fuzz::repair(&changed)));
    }
    assert!(whole > 20, "{whole} of the changed files are whole");
}
