//! How far the loading of a snapshot has come, in bytes: kept in the store that is
//! being loaded, in the batch of the chunk that it is of, so that a process that was
//! killed goes on from the last checkpoint; and told to whoever sends.

use varve_types::{DecodeError, Reader, put_bytes};

use super::error::Result;
use super::snapshot::{ORDER, SnapshotInfo, SnapshotPosition, refused};
use super::snapshot_check::SnapshotCheck;

/// First byte of a progress.
const FORMAT: u8 = 1;

impl SnapshotPosition {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.chunks.to_le_bytes());
        match &self.after {
            None => out.push(0),
            Some((tree, key)) => {
                out.extend_from_slice(&[1, *tree]);
                put_bytes(out, key);
            }
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> std::result::Result<Self, DecodeError> {
        Ok(Self {
            chunks: reader.u64("chunks")?,
            after: match reader.u8("whether there is a last entry")? {
                0 => None,
                _ => Some((reader.u8("tree")?, reader.bytes("key")?.to_vec())),
            },
        })
    }
}

impl SnapshotCheck {
    /// The encoding, with the caller's `label` for what is being loaded.
    pub(super) fn encode(&self, label: &[u8]) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_bytes(&mut out, label);
        self.position.encode(&mut out);
        let mut info = Vec::new();
        if let Some(known) = self.info() {
            known.encode(&mut info);
        }
        put_bytes(&mut out, &info);
        for count in self.counts {
            out.extend_from_slice(&count.to_le_bytes());
        }
        out.extend_from_slice(&self.hash.to_le_bytes());
        put_bytes(&mut out, self.state.as_deref().unwrap_or_default());
        out
    }

    /// Reads an encoding: the progress, and the label. An error if it is of a version
    /// that this one does not know.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Vec<u8>)> {
        let (format, label, position, info, counts, hash, state) =
            fields(bytes).map_err(|error| refused(format!("its progress: {error}")))?;
        if format != FORMAT {
            return Err(refused(format!("its progress has format {format}")));
        }
        let info = match info {
            [] => None,
            info => Some(SnapshotInfo::decode(info)?),
        };
        let state = (!state.is_empty()).then(|| state.to_vec());
        let check = Self {
            position,
            info,
            counts,
            hash,
            state,
            is_complete: false,
        };
        Ok((check, label.to_vec()))
    }
}

type Fields<'a> = (
    u8,
    &'a [u8],
    SnapshotPosition,
    &'a [u8],
    [u64; ORDER.len()],
    u128,
    &'a [u8],
);

fn fields(bytes: &[u8]) -> std::result::Result<Fields<'_>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let format = reader.u8("format")?;
    let label = reader.bytes("label")?;
    let position = SnapshotPosition::decode(&mut reader)?;
    let info = reader.bytes("info")?;
    let mut counts = [0; ORDER.len()];
    for count in &mut counts {
        *count = reader.u64("entries of a tree")?;
    }
    let (low, high) = (reader.u64("hash")?, reader.u64("hash")?);
    let state = reader.bytes("state")?;
    reader.finish()?;
    let hash = u128::from(high) << 64 | u128::from(low);
    Ok((format, label, position, info, counts, hash, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let check = SnapshotCheck {
            position: SnapshotPosition {
                chunks: 3,
                after: Some((2, b"k".to_vec())),
            },
            info: None,
            counts: [1, 2, 3, 4],
            hash: 1 << 64 | 5,
            state: Some(b"s".to_vec()),
            is_complete: false,
        };
        let bytes = check.encode(b"from");
        let mut expected =
            b"\x01\x04\0\0\0from\x03\0\0\0\0\0\0\0\x01\x02\x01\0\0\0k\0\0\0\0".to_vec();
        for number in [1_u64, 2, 3, 4, 5, 1] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.extend_from_slice(b"\x01\0\0\0s");
        assert_eq!(bytes, expected);
        let (decoded, label) = SnapshotCheck::decode(&bytes).unwrap();
        assert_eq!(label, b"from");
        assert_eq!(decoded.encode(&label), bytes);
        for cut in 0..bytes.len() {
            assert!(
                SnapshotCheck::decode(&bytes[..cut]).is_err(),
                "cut at {cut}"
            );
        }
    }
}
