//! What the fuzz target `snapshot_file` and the mutation test run on any bytes:
//! reading a snapshot file never panics, and verifying says what loading says.

use std::sync::Arc;

use varve_types::RangeRequest;

use super::snapshot::CRC_BYTES;
use super::snapshot_file::{HEADER_BYTES, LENGTH_BYTES};
use super::{SnapshotFileReader, SnapshotFileWriter, SnapshotSink, SnapshotSource, Store};
use crate::backend::Backend;
use crate::backend::memory::Memory;

/// Bytes of a chunk before its kind: checksum and number.
const CHUNK_HEADER_BYTES: usize = CRC_BYTES + 8;

/// Verifies and loads `data` as a snapshot file; whether it is one.
///
/// # Panics
///
/// If verifying and loading disagree, or what was loaded is not what was announced.
pub fn read_snapshot(data: &[u8]) -> bool {
    let open = || SnapshotFileReader::new(data, data.len() as u64);
    let verified = open().and_then(SnapshotFileReader::verify);
    let target: Arc<dyn Backend> = Arc::new(Memory::new());
    let Ok(mut sink) = SnapshotSink::new(Arc::clone(&target)) else {
        return false;
    };
    let loaded = open()
        .and_then(|mut reader| reader.chunks(|chunk| sink.push(chunk)))
        .is_ok_and(|()| sink.finish().is_ok());
    let Ok(check) = verified else {
        assert!(!loaded, "loaded, but does not verify");
        return false;
    };
    assert!(loaded, "verified, but does not load");
    if let (Ok(store), Some(info)) = (Store::open(target), check.info()) {
        let view = store.view();
        assert_eq!((view.revision(), view.hash()), (info.revision, info.hash));
        // A forged history need not hold together, but is no reason to panic.
        let _ = view.check();
        for revision in [0, info.compacted, info.revision - 1] {
            let _ = view.range(&RangeRequest {
                key: b"\0",
                range_end: b"\0",
                revision,
                limit: 100,
                ..RangeRequest::default()
            });
        }
    }
    true
}

/// The same bytes with checksums and numbers put right, as far as the lengths lead:
/// chance alone does not find a checksum.
pub fn repair(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    let Some(header) = out.first_chunk_mut::<HEADER_BYTES>() else {
        return out;
    };
    header[..8].copy_from_slice(&super::snapshot_file::MAGIC);
    header[8..12].copy_from_slice(&super::snapshot_file::FORMAT.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    let (mut at, mut number) = (HEADER_BYTES, 0_u64);
    while let Some(length) = out[at..].first_chunk_mut::<LENGTH_BYTES>() {
        let announced = u32::from_le_bytes(*length) as usize;
        let start = at + LENGTH_BYTES;
        // A length beyond the end is cut to what is there.
        let bytes = announced.min(out.len() - start);
        out[at..start].copy_from_slice(&(bytes as u32).to_le_bytes());
        let chunk = &mut out[start..start + bytes];
        if chunk.len() >= CHUNK_HEADER_BYTES {
            chunk[CRC_BYTES..CHUNK_HEADER_BYTES].copy_from_slice(&number.to_le_bytes());
            let crc = crc32c::crc32c(&chunk[CRC_BYTES..]);
            chunk[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
        at = start + bytes;
        number += 1;
    }
    out
}

/// A whole file to start from: keys, deleted ones, and some history.
pub fn seed() -> Vec<u8> {
    let write = || {
        let mut store = Store::open(Arc::new(Memory::new()))?;
        for index in 1..=12_u64 {
            let mut txn = store.begin(super::BatchOptions::default())?;
            let key = [b'k', (index % 5) as u8];
            let put = varve_types::PutRequest {
                key: &key,
                value: &[7; 20],
                ..varve_types::PutRequest::default()
            };
            let delete = varve_types::DeleteRangeRequest {
                key: &key,
                ..varve_types::DeleteRangeRequest::default()
            };
            txn.apply_silent(&match index % 4 {
                0 => varve_types::Command::DeleteRange(delete),
                _ => varve_types::Command::Put(put),
            })?;
            txn.publish(crate::backend::Applied { term: 1, index })?;
        }
        let mut source = SnapshotSource::new(store.view());
        let mut chunks = Vec::new();
        while let Some(chunk) = source.next_chunk(120)? {
            chunks.push(chunk);
        }
        Ok::<_, super::MvccError>(chunks)
    };
    let mut writer = SnapshotFileWriter::new(Vec::new()).expect("memory does not fail");
    for chunk in write().expect("memory does not fail") {
        writer.push(&chunk).expect("a chunk of the source");
    }
    writer.finish().expect("the chunks are a whole").0
}
