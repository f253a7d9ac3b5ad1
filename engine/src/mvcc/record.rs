//! Bytes of records (LATEST, DEAD) and of changes (LOG).
//!
//! A record is one version of a key. It starts with
//! `flags u8 | mod main | mod sub | depth`, a live one goes on with
//! `mod main - create | version | lease (if flagged) | hash (if flagged)`, then, if
//! flagged, `anchors length u8 | anchors`, and a live one ends with its value.
//! Numbers are LEB128; the hash is that of the record, 16 bytes.
//!
//! Records whose key and value are long have their hash, so that the next version
//! can be written without a look at the value.
//!
//! `depth` counts the versions of the key since its history began, from 1. An
//! anchor of level `j` is the revision of the newest version, this one
//! included, whose depth is a multiple of 8^j: `mod main - main | sub`. A
//! version of depth 8^j or more has anchors of levels 1 to j (10 at most).
//!
//! A change is `kind u8 | state hash after it, 16 bytes | key length | key`
//! and then the record it replaced, byte for byte; nothing if there was none.

use super::keys::Revision;
use super::varint;

const LIVE: u8 = 1;
const HAS_LEASE: u8 = 2;
const HAS_ANCHORS: u8 = 4;
const HAS_HASH: u8 = 8;

/// Versions between two anchors of a level, as a power of two.
const ANCHOR_BITS: u32 = 3;
/// Levels of anchors; the highest is a step of 8^10 versions.
const MAX_ANCHORS: usize = 10;

/// A version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// False for a tombstone.
    pub(super) live: bool,
    /// The change that made it.
    pub(super) modified: Revision,
    /// Number of versions up to it, itself included.
    pub(super) depth: u64,
    /// Main revision of the put that created the key; 0 in a tombstone.
    pub(super) create: i64,
    /// Puts since then; 0 in a tombstone.
    pub(super) version: i64,
    /// Attached lease; 0 is none.
    pub(super) lease: i64,
    /// Its hash, if it has that with it.
    pub(super) hash: Option<u128>,
    /// Encoded anchors.
    anchors: &'a [u8],
    /// The value; empty in a tombstone.
    pub(super) value: &'a [u8],
}

/// Revisions of earlier versions, by level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Anchors {
    revisions: [Revision; MAX_ANCHORS],
    length: usize,
}

impl Anchors {
    /// The anchors, level 1 first.
    pub(super) fn as_slice(&self) -> &[Revision] {
        &self.revisions[..self.length]
    }

    fn encode(&self, modified: Revision, out: &mut Vec<u8>) {
        let length_at = out.len();
        out.push(0);
        for anchor in self.as_slice() {
            varint::put(out, (modified.main - anchor.main) as u64);
            varint::put(out, u64::from(anchor.sub));
        }
        // At most 10 anchors of at most 15 bytes.
        out[length_at] = (out.len() - length_at - 1) as u8;
    }
}

/// Depth of the version that the anchor of level index `level` (from 0) names
/// in a record of depth `depth`.
pub(super) fn anchor_depth(depth: u64, level: usize) -> u64 {
    let bits = ANCHOR_BITS * (level as u32 + 1);
    depth >> bits << bits
}

impl<'a> Record<'a> {
    /// Reads a record that fills `input`.
    #[inline]
    pub(super) fn decode(mut input: &'a [u8]) -> Option<Self> {
        let (flags, rest) = input.split_first()?;
        input = rest;
        let live = flags & LIVE != 0;
        let known = if live {
            LIVE | HAS_LEASE | HAS_HASH | HAS_ANCHORS
        } else {
            HAS_ANCHORS
        };
        if flags & !known != 0 {
            return None;
        }
        let modified = Revision {
            main: varint::take_i64(&mut input)?,
            sub: varint::take_u32(&mut input)?,
        };
        let depth = varint::take(&mut input)?;
        let (mut create, mut version, mut lease, mut hash) = (0, 0, 0, None);
        if live {
            create = modified.main.checked_sub(varint::take_i64(&mut input)?)?;
            version = varint::take_i64(&mut input)?;
            if flags & HAS_LEASE != 0 {
                lease = varint::take(&mut input)? as i64;
            }
            if flags & HAS_HASH != 0 {
                let bytes = varint::take_bytes(&mut input, 16)?;
                hash = Some(u128::from_le_bytes(bytes.try_into().ok()?));
            }
        }
        let mut anchors: &[u8] = &[];
        if flags & HAS_ANCHORS != 0 {
            let length = *varint::take_bytes(&mut input, 1)?.first()?;
            anchors = varint::take_bytes(&mut input, usize::from(length))?;
        }
        if !live && !input.is_empty() {
            return None;
        }
        Some(Self {
            live,
            modified,
            depth,
            create,
            version,
            lease,
            hash,
            anchors,
            value: input,
        })
    }

    /// Its anchors, decoded.
    pub(super) fn anchors(&self) -> Option<Anchors> {
        let mut anchors = Anchors::default();
        let mut input = self.anchors;
        while !input.is_empty() {
            let main = self
                .modified
                .main
                .checked_sub(varint::take_i64(&mut input)?)?;
            let sub = varint::take_u32(&mut input)?;
            *anchors.revisions.get_mut(anchors.length)? = Revision { main, sub };
            anchors.length += 1;
        }
        Some(anchors)
    }
}

/// Marks of a version to be written; its place in the chain comes from the
/// record that it replaces.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewVersion<'a> {
    pub(super) modified: Revision,
    /// `None` writes a tombstone.
    pub(super) live: Option<LiveMarks<'a>>,
}

/// What a live version has beyond its place in the chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct LiveMarks<'a> {
    pub(super) create: i64,
    pub(super) version: i64,
    pub(super) lease: i64,
    pub(super) value: &'a [u8],
    /// The hash of the record, where it goes with it.
    pub(super) hash: Option<u128>,
}

impl<'a> LiveMarks<'a> {
    /// The version, without its place in the chain.
    pub(super) fn record(&self, modified: Revision) -> Record<'a> {
        Record {
            live: true,
            modified,
            depth: 0,
            create: self.create,
            version: self.version,
            lease: self.lease,
            hash: self.hash,
            anchors: &[],
            value: self.value,
        }
    }
}

impl NewVersion<'_> {
    /// Appends the record that follows `replaced`. `None` if that one is damaged.
    pub(super) fn encode(&self, replaced: Option<&Record<'_>>, out: &mut Vec<u8>) -> Option<()> {
        let depth = replaced.map_or(0, |record| record.depth).checked_add(1)?;
        let anchors = if depth >> ANCHOR_BITS == 0 {
            Anchors::default()
        } else {
            self.anchors(depth, replaced?)?
        };
        let mut flags = 0;
        if let Some(live) = &self.live {
            flags |= LIVE;
            if live.lease != 0 {
                flags |= HAS_LEASE;
            }
            if live.hash.is_some() {
                flags |= HAS_HASH;
            }
        }
        if anchors.length > 0 {
            flags |= HAS_ANCHORS;
        }
        out.push(flags);
        varint::put(out, self.modified.main as u64);
        varint::put(out, u64::from(self.modified.sub));
        varint::put(out, depth);
        if let Some(live) = &self.live {
            varint::put(out, (self.modified.main - live.create) as u64);
            varint::put(out, live.version as u64);
            if live.lease != 0 {
                varint::put(out, live.lease as u64);
            }
            if let Some(hash) = live.hash {
                out.extend_from_slice(&hash.to_le_bytes());
            }
        }
        if anchors.length > 0 {
            anchors.encode(self.modified, out);
        }
        if let Some(live) = &self.live {
            out.extend_from_slice(live.value);
        }
        Some(())
    }

    fn anchors(&self, depth: u64, replaced: &Record<'_>) -> Option<Anchors> {
        let former = replaced.anchors()?;
        let mut anchors = Anchors::default();
        for level in 0..MAX_ANCHORS {
            match anchor_depth(depth, level) {
                0 => break,
                at if at == depth => anchors.revisions[level] = self.modified,
                _ => anchors.revisions[level] = *former.as_slice().get(level)?,
            }
            anchors.length += 1;
        }
        Some(anchors)
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ChangeKind {
    Put = 0,
    Delete = 1,
}

/// An entry of LOG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change<'a> {
    pub(super) kind: ChangeKind,
    /// State hash after it.
    pub(super) hash: u128,
    pub(super) key: &'a [u8],
    /// The record it replaced, encoded; empty if there was none.
    pub(super) undo: &'a [u8],
}

const HASH_AT: usize = 1;
const KEY_AT: usize = HASH_AT + 16;

impl<'a> Change<'a> {
    pub(super) fn decode(input: &'a [u8]) -> Option<Self> {
        let (head, mut rest) = input.split_at_checked(KEY_AT)?;
        let kind = match head[0] {
            0 => ChangeKind::Put,
            1 => ChangeKind::Delete,
            _ => return None,
        };
        let hash = Self::hash_of(head)?;
        let length = usize::try_from(varint::take(&mut rest)?).ok()?;
        let key = varint::take_bytes(&mut rest, length)?;
        Some(Self {
            kind,
            hash,
            key,
            undo: rest,
        })
    }

    /// The state hash in the beginning of an entry.
    pub(super) fn hash_of(beginning: &[u8]) -> Option<u128> {
        let hash = beginning.get(HASH_AT..KEY_AT)?;
        Some(u128::from_le_bytes(hash.try_into().ok()?))
    }

    /// Whether the beginning of an entry is that of a put.
    pub(super) fn is_put(beginning: &[u8]) -> bool {
        beginning.first() == Some(&(ChangeKind::Put as u8))
    }

    /// The record it replaced: `Some(None)` if there was none, `None` if damaged.
    #[allow(clippy::option_option)]
    pub(super) fn replaced(&self) -> Option<Option<Record<'a>>> {
        if self.undo.is_empty() {
            return Some(None);
        }
        Record::decode(self.undo).map(Some)
    }

    /// Starts an entry in `out`, up to where the replaced record is to be
    /// appended. [`seal_change`] completes it.
    pub(super) fn start(key: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.resize(KEY_AT, 0);
        varint::put(out, key.len() as u64);
        out.extend_from_slice(key);
    }
}

/// Fills in what is known last.
pub(super) fn seal_change(entry: &mut [u8], kind: ChangeKind, hash: u128) {
    entry[0] = kind as u8;
    entry[HASH_AT..KEY_AT].copy_from_slice(&hash.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(main: i64, replaced: Option<&Record<'_>>, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let version = NewVersion {
            modified: Revision { main, sub: 1 },
            live: Some(LiveMarks {
                create: 2,
                version: 3,
                lease: 0,
                value,
                hash: None,
            }),
        };
        version.encode(replaced, &mut out).unwrap();
        out
    }

    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        let version = NewVersion {
            modified: Revision { main: 300, sub: 2 },
            live: Some(LiveMarks {
                create: 298,
                version: 5,
                lease: 9,
                value: b"v",
                hash: None,
            }),
        };
        version.encode(None, &mut out).unwrap();
        // flags live+lease, main 300, sub 2, depth 1, main-create 2, version 5, lease 9, value.
        assert_eq!(out, b"\x03\xac\x02\x02\x01\x02\x05\x09v");

        let mut hashed = Vec::new();
        let mut live = version.live.unwrap();
        live.hash = Some(0x0102);
        let version = NewVersion {
            live: Some(live),
            ..version
        };
        version.encode(None, &mut hashed).unwrap();
        // The flag, and 16 bytes behind the lease.
        let mut expected = b"\x0b\xac\x02\x02\x01\x02\x05\x09\x02\x01".to_vec();
        expected.extend_from_slice(&[0; 14]);
        expected.push(b'v');
        assert_eq!(hashed, expected);
        assert_eq!(Record::decode(&hashed).unwrap().hash, Some(0x0102));

        let mut tombstone = Vec::new();
        let version = NewVersion {
            modified: Revision { main: 301, sub: 0 },
            live: None,
        };
        let replaced = Record::decode(&out).unwrap();
        version.encode(Some(&replaced), &mut tombstone).unwrap();
        assert_eq!(tombstone, b"\x00\xad\x02\x00\x02");

        let mut change = Vec::new();
        Change::start(b"key", &mut change);
        change.extend_from_slice(&tombstone);
        seal_change(&mut change, ChangeKind::Put, 0x0102);
        let mut expected = b"\x00\x02\x01".to_vec();
        expected.extend_from_slice(&[0; 14]);
        expected.extend_from_slice(b"\x03key\x00\xad\x02\x00\x02");
        assert_eq!(change, expected);
        let decoded = Change::decode(&change).unwrap();
        assert_eq!(decoded.key, b"key");
        assert_eq!(decoded.hash, 0x0102);
        assert!(!decoded.replaced().unwrap().unwrap().live);
    }

    #[test]
    fn golden_anchors() {
        let mut record = live(10, None, b"");
        for main in 11..=27 {
            record = live(main, Some(&Record::decode(&record).unwrap()), b"x");
        }
        // Depth 18: the newest version at a multiple of 8 is depth 16, revision 25.
        assert_eq!(record, b"\x05\x1b\x01\x12\x19\x03\x02\x02\x01x");
    }

    #[test]
    fn anchors_name_the_multiples() {
        let mut record = Vec::new();
        for depth in 1..=1200u64 {
            let replaced = (depth > 1).then(|| Record::decode(&record).unwrap());
            let next = live(depth as i64 * 3, replaced.as_ref(), b"v");
            record = next;
            let decoded = Record::decode(&record).unwrap();
            assert_eq!(decoded.depth, depth);
            let anchors = decoded.anchors().unwrap();
            for (level, anchor) in anchors.as_slice().iter().enumerate() {
                let at = anchor_depth(depth, level);
                assert_eq!(at % 8u64.pow(level as u32 + 1), 0);
                assert_eq!(anchor.main, at as i64 * 3, "depth {depth} level {level}");
            }
            assert_eq!(anchors.as_slice().len() as u32, depth.ilog(8));
        }
    }

    #[test]
    fn damage_is_an_error() {
        let whole = live(400, None, b"");
        for cut in 0..whole.len() {
            assert_eq!(Record::decode(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(Record::decode(b"\xf0"), None);
        assert_eq!(Record::decode(b"\x00\x01\x00\x01trailing"), None);
        assert_eq!(Change::decode(&[0; 16]), None);
        assert_eq!(Change::decode(&[7; 40]), None);
        let mut long_key = vec![0; KEY_AT];
        long_key.push(5);
        assert_eq!(Change::decode(&long_key), None);
    }
}
