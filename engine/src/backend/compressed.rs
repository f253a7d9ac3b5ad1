//! Compression of long values, around any engine.
//!
//! What is above does not know: it gives and gets plain values, so the state hash,
//! snapshots, the log and answers are the same whatever a member has chosen. What is
//! below stores bytes. LZ4 it is: blocks that decompress at memory's speed, in Rust.
//!
//! | first byte of a stored value | what it is |
//! |---|---|
//! | below 128, or no byte at all | the value itself |
//! | 128 | its length (LEB128), then an LZ4 block of it |
//! | 129 | the value itself follows: its first byte is 128 or more |
//!
//! Records and changes of the revisioned store never begin with 128 or more, so that
//! stores from before are read as they are. Tree 0 is left alone, and tree 7 holds the
//! mark that a store may have such values: without it, and without the wish to
//! compress, nothing stands between the caller and the engine.
//!
//! Invariant: no value decompresses to more than [`MAX_PLAIN_BYTES`], whatever its
//! stored bytes say; longer ones are stored as they are.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::{
    Applied, Backend, BackendError, Batch, Bounds, CheckReport, Damage, Direction, Entry,
    MAX_TREES, Read, Result, ScrubStep, Snapshot, Stats, Sums, TreeId, VacuumExtent, Visitor,
};

/// How values are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4, from [`MIN_PLAIN_BYTES`] on.
    Lz4,
}

/// Shorter values are stored as they are: below, a page holds some of them, and a
/// block has little to find.
pub const MIN_PLAIN_BYTES: usize = 1024;
/// Longer values are stored as they are. No record of the log holds as much.
pub const MAX_PLAIN_BYTES: usize = 8 << 20;
/// What is saved must be this part of a value at least,
const LEAST_SAVED_PART: usize = 8;
/// and, of a value that stays so long that it has pages of the engine for itself, a
/// page; their first one has a header.
const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = 32;
/// Up to this length it shares a page with others, unless its key is very long.
const SHORT_BYTES: usize = 1900;

const LZ4: u8 = 128;
const ESCAPED: u8 = 129;

/// The tree that is never touched: what it holds may begin with any byte.
const PLAIN_TREE: TreeId = TreeId(0);
/// Where the mark is.
const MARK_TREE: TreeId = TreeId(MAX_TREES as u8 - 1);
const MARK: &[u8] = b"compressed values";

/// Puts the compression in front of `backend`, if it is wanted or was used before.
///
/// # Errors
///
/// The engine's, when the mark is read or written.
pub fn wrap(backend: Arc<dyn Backend>, compression: Compression) -> Result<Arc<dyn Backend>> {
    let snapshot = backend.snapshot()?;
    let is_marked = snapshot.get(MARK_TREE, MARK)?.is_some();
    let applied = snapshot.applied();
    drop(snapshot);
    if !is_marked {
        if compression == Compression::None {
            return Ok(backend);
        }
        let mut batch = backend.begin()?;
        batch.put(MARK_TREE, MARK, &[])?;
        batch.publish(applied)?;
    }
    Ok(Arc::new(Compressed {
        inner: backend,
        compression,
    }))
}

struct Compressed {
    inner: Arc<dyn Backend>,
    compression: Compression,
}

/// What is read through it is plain.
struct Plain(Arc<dyn Snapshot>);

struct CompressedBatch<'b> {
    inner: Box<dyn Batch + 'b>,
    compression: Compression,
    /// The stored form of the value at hand.
    stored: Vec<u8>,
}

impl CompressedBatch<'_> {
    /// The stored forms of the entries' values; none where that is the value itself.
    fn stored(&self, tree: TreeId, entries: &[Entry<'_>]) -> Vec<Option<Vec<u8>>> {
        let encode = |(_, value): &Entry<'_>| {
            let mut out = Vec::new();
            match encode(value, self.compression, &mut out) {
                stored if std::ptr::eq(stored, *value) => None,
                stored => Some(stored.to_vec()),
            }
        };
        match is_plain(tree) {
            true => vec![None; entries.len()],
            false => entries.iter().map(encode).collect(),
        }
    }
}

fn as_stored<'e>(entries: &[Entry<'e>], stored: &'e [Option<Vec<u8>>]) -> Vec<Entry<'e>> {
    let entries = entries.iter().zip(stored);
    let entries = entries.map(|((key, value), stored)| (*key, stored.as_deref().unwrap_or(value)));
    entries.collect()
}

fn is_plain(tree: TreeId) -> bool {
    tree == PLAIN_TREE || tree == MARK_TREE
}

/// The stored form of `value`, in `out` unless it is the value itself.
fn encode<'v>(value: &'v [u8], compression: Compression, out: &'v mut Vec<u8>) -> &'v [u8] {
    let length = value.len();
    let is_wanted = compression == Compression::Lz4;
    if is_wanted && (MIN_PLAIN_BYTES..=MAX_PLAIN_BYTES).contains(&length) {
        out.clear();
        out.push(LZ4);
        put_length(out, length);
        let start = out.len();
        // No larger than would be worth it.
        let most = length - length / LEAST_SAVED_PART;
        out.resize(start + lz4_flex::block::get_maximum_output_size(length), 0);
        if let Ok(written) = lz4_flex::block::compress_into(value, &mut out[start..])
            && start + written <= most
            && saves_a_page(length, start + written)
        {
            out.truncate(start + written);
            return out;
        }
    }
    match value.first() {
        Some(LZ4..) => {
            out.clear();
            out.push(ESCAPED);
            out.extend_from_slice(value);
            out
        }
        _ => value,
    }
}

fn saves_a_page(plain: usize, stored: usize) -> bool {
    let pages = |bytes: usize| (HEADER_BYTES + bytes).div_ceil(PAGE_BYTES);
    stored <= SHORT_BYTES || pages(stored) < pages(plain)
}

/// The value that `stored` stands for, in `out` where it must be decompressed.
fn decode<'v>(stored: &'v [u8], out: &'v mut Vec<u8>) -> Option<&'v [u8]> {
    match stored.split_first() {
        None | Some((..LZ4, _)) => Some(stored),
        Some((&ESCAPED, value)) => Some(value),
        Some((&LZ4, mut rest)) => {
            let length = take_length(&mut rest)?;
            out.clear();
            out.resize(length, 0);
            let written = lz4_flex::block::decompress_into(rest, out).ok()?;
            (written == length).then_some(out)
        }
        Some(_) => None,
    }
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 128 {
        out.push(length as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
}

/// A length that a compressed value can have.
fn take_length(input: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        length |= usize::from(byte & 127) << shift;
        if *byte < 128 {
            return (MIN_PLAIN_BYTES..=MAX_PLAIN_BYTES)
                .contains(&length)
                .then_some(length);
        }
    }
    None
}

fn damaged(tree: TreeId, key: &[u8]) -> BackendError {
    BackendError::Other {
        engine: "compression",
        message: format!(
            "tree {}, key {:?}: not a value that was stored compressed; the store is damaged: \
             restore it from another member or from a snapshot",
            tree.0,
            String::from_utf8_lossy(key)
        ),
    }
}

/// What an engine has found, plain.
fn plain<'r>(
    tree: TreeId,
    key: &[u8],
    found: Option<Cow<'r, [u8]>>,
) -> Result<Option<Cow<'r, [u8]>>> {
    match found {
        Some(stored) if !is_plain(tree) && matches!(stored.first(), Some(LZ4..)) => {
            let mut out = Vec::new();
            let value = decode(&stored, &mut out).map(|value| value.to_vec());
            let value = value.ok_or_else(|| damaged(tree, key))?;
            Ok(Some(Cow::Owned(value)))
        }
        found => Ok(found),
    }
}

/// Scans `inner`, and shows `visit` plain values.
fn plain_scan(
    inner: &dyn Read,
    tree: TreeId,
    bounds: Bounds<'_>,
    direction: Direction,
    visit: &mut Visitor<'_>,
) -> Result<()> {
    if is_plain(tree) {
        return inner.scan(tree, bounds, direction, visit);
    }
    let mut out = Vec::new();
    let mut error = None;
    let visit = &mut |key: &[u8], stored: &[u8]| match decode(stored, &mut out) {
        Some(value) => visit(key, value),
        None => {
            error = Some(damaged(tree, key));
            ControlFlow::Break(())
        }
    };
    inner.scan(tree, bounds, direction, visit)?;
    match error {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl Read for Plain {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        plain(tree, key, self.0.get(tree, key)?)
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        plain_scan(&*self.0, tree, bounds, direction, visit)
    }

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        self.0.sums(tree, bounds)
    }
}

impl Snapshot for Plain {
    fn applied(&self) -> Applied {
        self.0.applied()
    }
}

impl Read for CompressedBatch<'_> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        plain(tree, key, self.inner.get(tree, key)?)
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        plain_scan(&*self.inner, tree, bounds, direction, visit)
    }

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        self.inner.sums(tree, bounds)
    }
}

impl Batch for CompressedBatch<'_> {
    fn prefetch(&self, tree: TreeId, keys: &[&[u8]]) {
        self.inner.prefetch(tree, keys);
    }

    fn read_ahead(&mut self, tree: TreeId, keys: &[&[u8]], _whole: bool) {
        // A put of the revisioned store copies the compressed value that it replaces.
        self.inner.read_ahead(tree, keys, true);
    }

    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<()> {
        if is_plain(tree) {
            return self.inner.put(tree, key, value);
        }
        let stored = encode(value, self.compression, &mut self.stored);
        self.inner.put(tree, key, stored)
    }

    fn put_all(&mut self, tree: TreeId, entries: &[Entry<'_>]) -> Result<()> {
        let stored = self.stored(tree, entries);
        self.inner.put_all(tree, &as_stored(entries, &stored))
    }

    fn append(&mut self, tree: TreeId, entries: &[Entry<'_>]) -> Result<()> {
        let stored = self.stored(tree, entries);
        self.inner.append(tree, &as_stored(entries, &stored))
    }

    fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        self.inner.delete(tree, key)
    }

    fn delete_range(&mut self, tree: TreeId, bounds: Bounds<'_>) -> Result<u64> {
        self.inner.delete_range(tree, bounds)
    }

    fn vacuum_step(&mut self) -> Result<bool> {
        self.inner.vacuum_step()
    }

    fn publish(self: Box<Self>, applied: Applied) -> Result<()> {
        self.inner.publish(applied)
    }
}

impl Backend for Compressed {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn snapshot(&self) -> Result<Arc<dyn Snapshot>> {
        Ok(Arc::new(Plain(self.inner.snapshot()?)))
    }

    fn begin(&self) -> Result<Box<dyn Batch + '_>> {
        Ok(Box::new(CompressedBatch {
            inner: self.inner.begin()?,
            compression: self.compression,
            stored: Vec::new(),
        }))
    }

    fn checkpoint(&self) -> Result<Applied> {
        self.inner.checkpoint()
    }

    fn durable(&self) -> Applied {
        self.inner.durable()
    }

    fn wants_checkpoint(&self, has_time: bool) -> bool {
        self.inner.wants_checkpoint(has_time)
    }

    fn may_wait(&self) -> bool {
        self.inner.may_wait()
    }

    fn wants_vacuum(&self, idle: bool) -> bool {
        self.inner.wants_vacuum(idle)
    }

    fn start_vacuum(&self, extent: VacuumExtent) {
        self.inner.start_vacuum(extent);
    }

    fn vacuums(&self) -> bool {
        self.inner.vacuums()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn check(&self) -> Result<CheckReport> {
        self.inner.check()
    }

    fn scrub_step(&self, budget_bytes: u64) -> ScrubStep {
        self.inner.scrub_step(budget_bytes)
    }

    fn damage(&self) -> Damage {
        self.inner.damage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(value: &[u8]) -> Vec<u8> {
        encode(value, Compression::Lz4, &mut Vec::new()).to_vec()
    }

    fn text(length: usize) -> Vec<u8> {
        let words = b"{\"kind\":\"Pod\",\"namespace\":\"default\"},";
        words.iter().copied().cycle().take(length).collect()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let byte = |_| {
            state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ 5;
            (state >> 32) as u8
        };
        (0..length).map(byte).collect()
    }

    #[test]
    fn every_value_comes_back() {
        let mut values = vec![
            Vec::new(),
            vec![0],
            vec![127],
            vec![128],
            vec![129; 2000],
            vec![255],
        ];
        for length in [1, 1023, 1024, 5000, MAX_PLAIN_BYTES, MAX_PLAIN_BYTES + 1] {
            values.extend([text(length), noise(length), vec![200; length]]);
        }
        for value in values {
            let stored = stored(&value);
            assert_eq!(decode(&stored, &mut Vec::new()), Some(&value[..]));
            let plain = encode(&value, Compression::None, &mut Vec::new()).to_vec();
            assert_eq!(decode(&plain, &mut Vec::new()), Some(&value[..]));
            assert!(stored.len() <= value.len() + 1);
        }
        assert!(stored(&text(4000)).len() < 200);
        assert_eq!(stored(&text(1000)), text(1000), "short");
        let noise = noise(4000);
        assert!(stored(&noise).len() >= 4000, "nothing to find");
        // To three quarters, which is one page as before.
        let mixed = [&text(1200)[..], &noise[..2700]].concat();
        assert!(stored(&mixed) == mixed, "saves no page");
        let mixed = [&noise[..3800], &text(1200)].concat();
        assert!(stored(&mixed).len() < 4000);
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(stored(b"abc"), b"abc");
        assert_eq!(stored(b"\x80abc"), b"\x81\x80abc");
        let zeros = stored(&[7; 2000]);
        assert_eq!(zeros[..3], [128, 0xd0, 0x0f], "mark, and 2000 in LEB128");
        // As any LZ4 block decoder reads it.
        assert_eq!(
            lz4_flex::block::decompress(&zeros[3..], 2000).unwrap(),
            [7; 2000]
        );
    }

    #[test]
    fn what_was_never_stored_is_refused_within_bounds() {
        let mut out = Vec::new();
        let whole = stored(&text(3000));
        for cut in 0..whole.len() {
            assert!(
                cut == 0 || decode(&whole[..cut], &mut out).is_none(),
                "{cut}"
            );
        }
        // Claims of any length: nothing is allocated beyond the bound.
        for claim in [
            &[128_u8, 0xff, 0xff, 0xff, 0x7f, 1, 2][..],
            &[128, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[128, 5, 0x50, 1, 2, 3, 4, 5],
            &[130, 1],
            &[255],
        ] {
            assert_eq!(decode(claim, &mut out), None, "{claim:?}");
            assert!(out.capacity() <= MAX_PLAIN_BYTES);
        }
        let mut wrong = whole.clone();
        for at in 0..whole.len() {
            for xor in [1, 0x40, 0x80, 0xff] {
                wrong[at] ^= xor;
                let _ = decode(&wrong, &mut out);
                wrong[at] ^= xor;
            }
        }
    }
}
