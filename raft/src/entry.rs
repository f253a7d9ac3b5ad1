//! What an entry of the Raft log holds: the proposals of one member.
//!
//! `[u8 format = 1][u64 proposer][u64 number][u32 proposal count]`, then for each
//! proposal `[u32 command count][u32 byte length]` and its commands, each
//! `[u32 length of the rest][u8 opcode][body]`. Integers are little-endian. The
//! first proposal has the number given, each next one the next number; the
//! proposer finds those who wait for the answers by them.

use bytes::Bytes;
use varve_types::{Commands, DecodeError, Reader};

pub use varve_types::push_command;

const FORMAT: u8 = 1;
/// Bytes before the first proposal.
pub(crate) const HEADER_BYTES: usize = 21;
/// Bytes before a proposal's commands.
pub(crate) const PROPOSAL_HEADER_BYTES: usize = 8;

/// Who proposed what an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    /// The member.
    pub(crate) proposer: u64,
    /// The number of its first proposal in the entry.
    pub(crate) number: u64,
    /// How many proposals follow.
    pub(crate) count: u32,
}

/// Encodes the proposals `(commands, command count)` as one entry.
pub(crate) fn encode<'a>(
    proposer: u64,
    number: u64,
    proposals: impl ExactSizeIterator<Item = (&'a [u8], u32)>,
    total_bytes: usize,
) -> Bytes {
    let mut out =
        Vec::with_capacity(HEADER_BYTES + proposals.len() * PROPOSAL_HEADER_BYTES + total_bytes);
    out.push(FORMAT);
    out.extend_from_slice(&proposer.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    // An entry holds about 1 MiB, so counts and lengths are far below 4 GiB.
    out.extend_from_slice(&(proposals.len() as u32).to_le_bytes());
    for (commands, count) in proposals {
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&(commands.len() as u32).to_le_bytes());
        out.extend_from_slice(commands);
    }
    Bytes::from(out)
}

/// Reads an entry's header and stands before its first proposal.
pub(crate) fn decode(data: &[u8]) -> Result<(EntryHeader, Proposals<'_>), DecodeError> {
    let mut reader = Reader::new(data);
    if reader.u8("entry format")? != FORMAT {
        return Err(Reader::new(data).error("entry format"));
    }
    let header = EntryHeader {
        proposer: reader.u64("proposer")?,
        number: reader.u64("proposal number")?,
        count: reader.count(PROPOSAL_HEADER_BYTES, "proposal count")? as u32,
    };
    Ok((
        header,
        Proposals {
            reader,
            left: header.count,
        },
    ))
}

/// Checks the whole structure of an entry, but not the commands' bodies.
pub(crate) fn validate(data: &[u8]) -> Result<EntryHeader, DecodeError> {
    let (header, mut proposals) = decode(data)?;
    while let Some((count, mut commands)) = proposals.next_proposal()? {
        let mut found = 0u32;
        while commands.next_command()?.is_some() {
            found += 1;
        }
        if found != count {
            return Err(Reader::new(data).error("command count"));
        }
    }
    Ok(header)
}

/// How many commands an entry holds; `None` if it is malformed.
pub(crate) fn command_count(data: &[u8]) -> Option<u64> {
    let (_, mut proposals) = decode(data).ok()?;
    let mut commands = 0;
    while let Some((count, _)) = proposals.next_proposal().ok()? {
        commands += u64::from(count);
    }
    Some(commands)
}

/// The proposals of an entry.
#[derive(Clone)]
pub(crate) struct Proposals<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Proposals<'a> {
    /// The next proposal: its command count and commands.
    pub(crate) fn next_proposal(&mut self) -> Result<Option<(u32, Commands<'a>)>, DecodeError> {
        if self.left == 0 {
            self.reader.finish()?;
            return Ok(None);
        }
        self.left -= 1;
        let count = self.reader.u32("command count")?;
        let bytes = self.reader.bytes("commands")?;
        Ok(Some((count, Commands::new(bytes))))
    }

    /// Opcodes and bodies of the commands that are left, up to what is malformed.
    pub(crate) fn raw_commands(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut proposals = self.clone();
        let left = std::iter::from_fn(move || proposals.next_proposal().ok().flatten());
        left.flat_map(|(_, commands)| commands.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Bytes {
        let mut first = Vec::new();
        push_command(&mut first, 2, b"xy");
        push_command(&mut first, 3, b"");
        let second = Vec::new();
        let proposals = [(&first[..], 2), (&second[..], 0)];
        encode(7, 100, proposals.into_iter(), first.len())
    }

    #[test]
    fn encoding_is_golden() {
        assert_eq!(
            example()[..],
            [
                1, 7, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, //
                2, 0, 0, 0, 12, 0, 0, 0, 3, 0, 0, 0, 2, b'x', b'y', 1, 0, 0, 0, 3, //
                0, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn proposals_and_commands_come_back() {
        let data = example();
        let header = validate(&data).unwrap();
        assert_eq!(
            header,
            EntryHeader {
                proposer: 7,
                number: 100,
                count: 2
            }
        );
        let (_, mut proposals) = decode(&data).unwrap();
        let (count, mut commands) = proposals.next_proposal().unwrap().unwrap();
        assert_eq!(count, 2);
        assert_eq!(commands.next_command().unwrap(), Some((2, &b"xy"[..])));
        assert_eq!(commands.next_command().unwrap(), Some((3, &b""[..])));
        assert_eq!(commands.next_command().unwrap(), None);
        let (count, mut commands) = proposals.next_proposal().unwrap().unwrap();
        assert_eq!((count, commands.next_command().unwrap()), (0, None));
        assert!(proposals.next_proposal().unwrap().is_none());
    }

    #[test]
    fn cut_or_wrong_entries_are_refused() {
        let data = example();
        for cut in 0..data.len() {
            assert!(validate(&data[..cut]).is_err(), "cut at {cut}");
        }
        for at in [0, 17, 21, 25] {
            let mut wrong = data.to_vec();
            wrong[at] = wrong[at].wrapping_add(1);
            assert!(validate(&wrong).is_err(), "byte {at}");
        }
    }
}
