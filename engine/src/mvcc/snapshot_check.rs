//! Verifying a snapshot chunk by chunk, wherever its entries go.

use varve_types::Reader;

use super::error::{MvccError, Result};
use super::hash::record_hash;
use super::history::decode;
use super::keys::STATE;
use super::snapshot::{
    CRC_BYTES, KIND_END, KIND_ENTRIES, KIND_INFO, ORDER, SnapshotInfo, SnapshotPosition, place,
    refused,
};
use super::state::State;
use super::{LATEST, META, varint};
use crate::backend::TreeId;

/// Takes an entry of a snapshot: its tree, key and value.
pub type EntryVisitor<'v, 'c> = dyn FnMut(TreeId, &'c [u8], &'c [u8]) -> Result<()> + 'v;

/// The chunks of a snapshot so far, and whether they hold together.
#[derive(Debug, Clone, Default)]
pub struct SnapshotCheck {
    pub(super) position: SnapshotPosition,
    pub(super) info: Option<SnapshotInfo>,
    pub(super) counts: [u64; ORDER.len()],
    pub(super) hash: u128,
    pub(super) state: Option<Vec<u8>>,
    pub(super) is_complete: bool,
}

impl SnapshotCheck {
    /// What the snapshot is of, known after the first chunk.
    pub fn info(&self) -> Option<SnapshotInfo> {
        self.info
    }

    /// Live keys so far.
    pub fn live_keys(&self) -> u64 {
        self.counts[place(LATEST.0)]
    }

    /// Whether the last chunk has come.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Takes the next chunk and shows its entries to `visit`. After an error it is
    /// of no more use: whoever wants the chunk again goes on with a copy made before.
    pub fn accept<'c>(&mut self, chunk: &'c [u8], visit: &mut EntryVisitor<'_, 'c>) -> Result<()> {
        let (crc, rest) = chunk
            .split_first_chunk::<CRC_BYTES>()
            .ok_or_else(|| refused("a chunk without a header"))?;
        if crc32c::crc32c(rest) != u32::from_le_bytes(*crc) {
            return Err(refused(format!(
                "chunk {} is damaged (checksum); send it again",
                self.position.chunks
            )));
        }
        let (number, rest) = rest
            .split_first_chunk::<8>()
            .ok_or_else(|| refused("a chunk without a header"))?;
        let number = u64::from_le_bytes(*number);
        if number != self.position.chunks || self.is_complete {
            return Err(refused(format!(
                "chunk {number} where {} was due",
                self.position.chunks
            )));
        }
        match rest {
            [KIND_INFO, body @ ..] if number == 0 => self.info = Some(SnapshotInfo::decode(body)?),
            [KIND_ENTRIES, body @ ..] if number > 0 => self.entries(body, visit)?,
            [KIND_END, body @ ..] if number > 0 => self.end(body)?,
            _ => return Err(refused(format!("chunk {number} is of an unknown kind"))),
        }
        self.position.chunks += 1;
        Ok(())
    }

    fn entries<'c>(&mut self, body: &'c [u8], visit: &mut EntryVisitor<'_, 'c>) -> Result<()> {
        let former = self.position.after.take();
        let mut after = former.as_ref().map(|(tree, key)| (*tree, &key[..]));
        let mut input = body;
        while !input.is_empty() {
            let (tree, key, value) = take_entry(&mut input)
                .ok_or_else(|| refused("an entry is cut off; send the chunk again"))?;
            let number = place(tree);
            let count = self
                .counts
                .get_mut(number)
                .ok_or_else(|| refused(format!("an entry of tree {tree}, which is none")))?;
            let ordered =
                after.is_none_or(|(former, before)| (place(former), before) < (number, key));
            if !ordered {
                return Err(refused("entries are out of order"));
            }
            *count += 1;
            if ORDER[number] == LATEST {
                let record = decode(LATEST, key, value)?;
                let hash = record_hash(key, &record);
                if record.hash.is_some_and(|kept| kept != hash) {
                    return Err(refused("a record has a hash that is not its own"));
                }
                self.hash = self.hash.wrapping_add(hash);
            }
            if ORDER[number] == META && key == STATE {
                self.state = Some(value.to_vec());
            }
            visit(ORDER[number], key, value)?;
            after = Some((tree, key));
        }
        self.position.after = after.map(|(tree, key)| (tree, key.to_vec()));
        Ok(())
    }

    fn end(&mut self, body: &[u8]) -> Result<()> {
        let mut reader = Reader::new(body);
        let mut expected = [0; ORDER.len()];
        for count in &mut expected {
            *count = reader
                .u64("entries of a tree")
                .map_err(|error| refused(error.to_string()))?;
        }
        if reader.finish().is_err() || expected != self.counts {
            return Err(refused(format!(
                "holds other numbers of entries than were loaded ({:?}); load it again",
                self.counts
            )));
        }
        self.is_complete = true;
        Ok(())
    }

    /// After the last chunk: whether the whole is what the first one announced.
    pub fn finish(&self) -> Result<SnapshotInfo> {
        let (Some(info), true) = (self.info, self.is_complete) else {
            return Err(refused(format!(
                "ended after {} chunks, before its last one; load it again",
                self.position.chunks
            )));
        };
        if self.hash != info.hash {
            return Err(refused(format!(
                "hash {:032x} of what was loaded is not the {:032x} of the source",
                self.hash, info.hash
            )));
        }
        let state = match &self.state {
            Some(bytes) => State::decode(bytes)
                .ok_or_else(|| MvccError::damaged(META, STATE, "not a state of format 1"))?,
            None => State::default(),
        };
        if (state.revision, state.compacted, state.hash)
            != (info.revision, info.compacted, info.hash)
        {
            return Err(refused("the loaded state is not what the first chunk said"));
        }
        Ok(info)
    }
}

fn take_entry<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8], &'a [u8])> {
    let tree = *varint::take_bytes(input, 1)?.first()?;
    let key_length = usize::try_from(varint::take(input)?).ok()?;
    let value_length = usize::try_from(varint::take(input)?).ok()?;
    let key = varint::take_bytes(input, key_length)?;
    let value = varint::take_bytes(input, value_length)?;
    Some((tree, key, value))
}
