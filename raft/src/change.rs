//! A change of the membership: as it is asked for, sent to the leader, and logged.
//!
//! In the log: `[u8 format = 2][u64 origin][u64 number][u8 kind][u64 member id]`
//! and, for kinds 0, 1, 3, 5 and 6, `[u32 count]` of peer URLs, each with a `u32`
//! length; for kind 6 then `[u64 id]` and the name of the new member.
//! Origin and number find who waits for the outcome. Kinds: 0 add a voter, 1 add
//! a learner, 2 remove, 3 new peer URLs, 4 promote, 5 add a learner that gets its vote
//! by itself, 6 replace by such a one. Kind 3 is an entry of its own; the others change
//! who votes, so that Raft must know them: they are the context of its `ConfChange`
//! (protobuf, as raft-rs reads it on the leader).
//!
//! A replacement is one entry, so that there is no moment at which the member has gone
//! and nothing says who may take its place. It changes one voter, as a removal does: the
//! learner that comes with it is in no quorum.

use std::fmt;

use bytes::Bytes;
use raft::eraftpb::{ConfChangeType, Entry, EntryType};
use varve_types::{DecodeError, Reader};

use crate::membership::Member;

/// First byte of a change in the log.
pub(crate) const FORMAT: u8 = 2;

/// Whether an entry of the log changes the membership.
pub(crate) fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal || entry.data.first() == Some(&FORMAT)
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A member joins, with or without a vote. Only id, peer URLs and vote count.
    Add(Member),
    /// A member leaves for good: its id never comes back.
    Remove(u64),
    /// A member is reached at other peer URLs.
    Update {
        /// The member.
        id: u64,
        /// Where it is from now on.
        peer_urls: Vec<String>,
    },
    /// A learner gets its vote.
    Promote(u64),
    /// A damaged member leaves for good, and a learner takes its place: with the same
    /// name and peer URLs, and with a fresh id.
    Replace {
        /// The damaged member.
        id: u64,
        /// The one that comes. Only id, name and peer URLs count.
        by: Member,
    },
}

/// Ids in hex, as everywhere.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(member) => {
                let (id, urls) = (member.id, member.peer_urls.join(", "));
                let with = if member.is_learner { "without" } else { "with" };
                write!(f, "member {id:x} at {urls} joins, {with} a vote")
            }
            Self::Remove(id) => write!(f, "member {id:x} leaves"),
            Self::Update { id, peer_urls } => {
                write!(f, "member {id:x} is at {}", peer_urls.join(", "))
            }
            Self::Promote(id) => write!(f, "learner {id:x} gets its vote"),
            Self::Replace { id, by } => {
                write!(f, "learner {:x} takes the place of {id:x}", by.id)
            }
        }
    }
}

/// A change, and who waits for its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tagged {
    /// The member that was asked.
    pub(crate) origin: u64,
    /// Its number there.
    pub(crate) number: u64,
    pub(crate) change: Change,
}

impl Change {
    /// The member that it is about.
    pub fn member_id(&self) -> u64 {
        match self {
            Self::Add(member) => member.id,
            Self::Remove(id)
            | Self::Promote(id)
            | Self::Update { id, .. }
            | Self::Replace { id, .. } => *id,
        }
    }

    /// What Raft has to know of it.
    pub(crate) fn conf_change(&self) -> Option<ConfChangeType> {
        match self {
            Self::Add(member) if member.is_learner => Some(ConfChangeType::AddLearnerNode),
            Self::Add(_) | Self::Promote(_) => Some(ConfChangeType::AddNode),
            Self::Remove(_) | Self::Replace { .. } => Some(ConfChangeType::RemoveNode),
            Self::Update { .. } => None,
        }
    }

    /// The learner that comes with it.
    pub(crate) fn replacement(&self) -> Option<u64> {
        match self {
            Self::Replace { by, .. } => Some(by.id),
            _ => None,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Add(member) if member.is_learner && member.is_promotable => 5,
            Self::Add(member) => u8::from(member.is_learner),
            Self::Remove(_) => 2,
            Self::Update { .. } => 3,
            Self::Promote(_) => 4,
            Self::Replace { .. } => 6,
        }
    }
}

impl Tagged {
    /// Encodes it with `format` as the first byte.
    pub(crate) fn encode(&self, format: u8) -> Vec<u8> {
        let mut out = vec![format];
        out.extend_from_slice(&self.origin.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.push(self.change.kind());
        out.extend_from_slice(&self.change.member_id().to_le_bytes());
        let urls = match &self.change {
            Change::Add(member) => &member.peer_urls,
            Change::Update { peer_urls, .. } => peer_urls,
            Change::Replace { by, .. } => &by.peer_urls,
            Change::Remove(_) | Change::Promote(_) => return out,
        };
        out.extend_from_slice(&(urls.len() as u32).to_le_bytes());
        for url in urls {
            out.extend_from_slice(&(url.len() as u32).to_le_bytes());
            out.extend_from_slice(url.as_bytes());
        }
        if let Change::Replace { by, .. } = &self.change {
            out.extend_from_slice(&by.id.to_le_bytes());
            out.extend_from_slice(&(by.name.len() as u32).to_le_bytes());
            out.extend_from_slice(by.name.as_bytes());
        }
        out
    }

    /// Reads what [`Tagged::encode`] wrote with the same `format`.
    pub(crate) fn decode(format: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.u8("change format")? != format {
            return Err(Reader::new(bytes).error("change format"));
        }
        let (origin, number) = (reader.u64("origin")?, reader.u64("change number")?);
        let kind = reader.u8("change kind")?;
        let id = reader.u64("member id")?;
        let mut urls = || -> Result<Vec<String>, DecodeError> {
            let count = reader.count(4, "url count")?;
            (0..count)
                .map(|_| reader.string("url").map(str::to_owned))
                .collect()
        };
        let change = match kind {
            0 | 1 | 5 => Change::Add(Member {
                id,
                peer_urls: urls()?,
                is_learner: kind != 0,
                is_promotable: kind == 5,
                ..Member::default()
            }),
            2 => Change::Remove(id),
            3 => Change::Update {
                id,
                peer_urls: urls()?,
            },
            4 => Change::Promote(id),
            6 => Change::Replace {
                id,
                by: Member {
                    peer_urls: urls()?,
                    id: reader.u64("new member id")?,
                    name: reader.string("new member name")?.to_owned(),
                    ..Member::default()
                },
            },
            _ => return Err(reader.error("change kind")),
        };
        reader.finish()?;
        Ok(Self {
            origin,
            number,
            change,
        })
    }

    /// Reads the data of a log entry; `in_conf_change` for those that Raft knows.
    pub(crate) fn of_entry(data: &Bytes, in_conf_change: bool) -> Result<Self, DecodeError> {
        if in_conf_change {
            Self::decode(FORMAT, context_of(data)?)
        } else {
            Self::decode(FORMAT, data)
        }
    }
}

impl Tagged {
    /// As raft-rs would have it in the log: the context of a `ConfChange` in protobuf.
    pub(crate) fn encode_conf_change(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let kind = self.change.conf_change().unwrap_or_default();
        if kind as u64 > 0 {
            out.push(2 << 3);
            put_varint(&mut out, kind as u64);
        }
        out.push(3 << 3);
        put_varint(&mut out, self.change.member_id());
        out.push(4 << 3 | 2);
        let context = self.encode(FORMAT);
        put_varint(&mut out, context.len() as u64);
        out.extend_from_slice(&context);
        out
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The context of a `ConfChange` in protobuf. Read here, as the generated reader
/// recurses without a bound (RUSTSEC-2024-0437): only the four fields that there
/// are, the context last.
fn context_of(data: &[u8]) -> Result<&[u8], DecodeError> {
    const CONTEXT: u8 = 4 << 3 | 2;
    const NUMBERS: [u8; 3] = [1 << 3, 2 << 3, 3 << 3];
    let mut reader = Reader::new(data);
    loop {
        match reader.u8("conf change field")? {
            field if NUMBERS.contains(&field) => {
                varint(&mut reader)?;
            }
            CONTEXT => {
                let length = varint(&mut reader)?;
                let context = reader.take(length as usize, "conf change context")?;
                reader.finish()?;
                return Ok(context);
            }
            _ => return Err(reader.error("conf change field")),
        }
    }
}

fn varint(reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = reader.u8("conf change number")?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(reader.error("conf change number"))
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use raft::eraftpb::ConfChange;

    use super::*;

    fn all() -> Vec<Tagged> {
        let member = |is_learner| Member {
            id: 0x1234_5678_9abc_def0,
            peer_urls: vec!["http://h:1".into(), "http://i:2".into()],
            is_learner,
            ..Member::default()
        };
        let changes = [
            Change::Add(member(false)),
            Change::Add(member(true)),
            Change::Remove(7),
            Change::Update {
                id: 7,
                peer_urls: vec!["http://j:3".into()],
            },
            Change::Promote(u64::MAX),
            Change::Add(Member {
                is_promotable: true,
                ..member(true)
            }),
            Change::Replace {
                id: 7,
                by: Member {
                    name: "n".into(),
                    ..member(false)
                },
            },
        ];
        changes
            .into_iter()
            .map(|change| Tagged {
                origin: 5,
                number: 6,
                change,
            })
            .collect()
    }

    #[test]
    fn encodings_come_back_and_cut_ones_do_not() {
        for (kind, tagged) in all().into_iter().enumerate() {
            let bytes = tagged.encode(FORMAT);
            assert_eq!(bytes[17], kind as u8);
            assert_eq!(Tagged::decode(FORMAT, &bytes).unwrap(), tagged);
            assert!(Tagged::decode(FORMAT + 1, &bytes).is_err());
            for cut in 0..bytes.len() {
                assert!(Tagged::decode(FORMAT, &bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn encoding_is_golden() {
        assert_eq!(
            all()[3].encode(FORMAT),
            [
                &[2, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 3][..],
                &[7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0],
                b"http://j:3",
            ]
            .concat()
        );
    }

    #[test]
    fn read_out_of_what_raft_rs_writes() {
        for tagged in all() {
            let Some(kind) = tagged.change.conf_change() else {
                continue;
            };
            let mut conf_change = ConfChange::default();
            conf_change.set_change_type(kind);
            conf_change.node_id = tagged.change.member_id();
            conf_change.context = tagged.encode(FORMAT).into();
            let data = Bytes::from(conf_change.write_to_bytes().unwrap());
            assert_eq!(Tagged::of_entry(&data, true).unwrap(), tagged);
            for cut in 0..data.len() {
                assert!(Tagged::of_entry(&data.slice(..cut), true).is_err());
            }
        }
        for bad in [&[0x0b][..], &[0x08, 0x80], &[0x22, 0xff, 0xff, 0xff, 0x7f]] {
            assert!(context_of(bad).is_err());
        }
        assert!(context_of(&[0xff; 32]).is_err());
        assert!(context_of(&[&[0x08][..], &[0x80; 11]].concat()).is_err());
    }
}
