//! Who the members of the cluster are, and which of them vote.

use std::collections::BTreeMap;

use raft::eraftpb::ConfState;
use varve_types::{DecodeError, MemberAttributes, Reader};

use crate::identity;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name; empty until it has published itself, unless it came with the bootstrap.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has published itself.
    pub client_urls: Vec<String>,
    /// Whether it follows without a vote.
    pub is_learner: bool,
}

/// The members by id. Kept in the store, in the same batch as the entries that
/// change it, and restated in the log's snapshot marker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    members: BTreeMap<u64, Member>,
}

impl Membership {
    /// The member with `id`.
    pub fn get(&self, id: u64) -> Option<&Member> {
        self.members.get(&id)
    }

    /// All members, by ascending id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Adds or replaces a member; the one that was there.
    pub fn insert(&mut self, member: Member) -> Option<Member> {
        self.members.insert(member.id, member)
    }

    /// Takes in what a member says of itself; whether it is a member.
    pub fn publish(&mut self, attributes: MemberAttributes) -> bool {
        match self.members.get_mut(&attributes.member_id) {
            Some(member) => {
                member.name = attributes.name;
                member.client_urls = attributes.client_urls;
                true
            }
            None => false,
        }
    }

    /// The cluster id of these members; only right for those of the bootstrap.
    pub fn cluster_id(&self) -> u64 {
        identity::cluster_id(self.members.keys().copied())
    }

    /// What raft-rs needs to know of it.
    pub(crate) fn conf_state(&self) -> ConfState {
        let mut conf_state = ConfState::default();
        for member in self.members.values() {
            if member.is_learner {
                conf_state.mut_learners().push(member.id);
            } else {
                conf_state.mut_voters().push(member.id);
            }
        }
        conf_state
    }

    /// Appends the encoding: `[u32 count]`, then for each member
    /// `[u64 id][u8 is_learner][name][u32 count, peer URLs][u32 count, client URLs]`,
    /// strings with a `u32` length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, self.members.len());
        for member in self.members.values() {
            out.extend_from_slice(&member.id.to_le_bytes());
            out.push(u8::from(member.is_learner));
            put_string(out, &member.name);
            for urls in [&member.peer_urls, &member.client_urls] {
                put_u32(out, urls.len());
                for url in urls {
                    put_string(out, url);
                }
            }
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count(21, "member count")?;
        let mut membership = Self::default();
        for _ in 0..count {
            let id = reader.u64("member id")?;
            let is_learner = reader.u8("learner flag")? != 0;
            let name = reader.string("member name")?.to_owned();
            let mut urls = || -> Result<Vec<String>, DecodeError> {
                let count = reader.count(4, "url count")?;
                (0..count)
                    .map(|_| reader.string("url").map(str::to_owned))
                    .collect()
            };
            let (peer_urls, client_urls) = (urls()?, urls()?);
            membership.insert(Member {
                id,
                name,
                peer_urls,
                client_urls,
                is_learner,
            });
        }
        Ok(membership)
    }
}

fn put_u32(out: &mut Vec<u8>, value: usize) {
    // Members and their URLs are few; a list of 4 GiB never gets here.
    out.extend_from_slice(&(value as u32).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Membership {
        let mut membership = Membership::default();
        membership.insert(Member {
            id: 2,
            name: "b".into(),
            peer_urls: vec!["http://h:2".into()],
            client_urls: vec![],
            is_learner: true,
        });
        membership.insert(Member {
            id: 1,
            name: "a".into(),
            peer_urls: vec!["http://h:1".into(), "http://i:1".into()],
            client_urls: vec!["http://h:9".into()],
            is_learner: false,
        });
        membership
    }

    #[test]
    fn encoding_round_trips_and_is_golden() {
        let mut bytes = Vec::new();
        example().encode(&mut bytes);
        assert_eq!(
            bytes[..18],
            [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'a']
        );
        let mut reader = Reader::new(&bytes);
        assert_eq!(Membership::decode(&mut reader).unwrap(), example());
        reader.finish().unwrap();
        for cut in 0..bytes.len() {
            assert!(Membership::decode(&mut Reader::new(&bytes[..cut])).is_err());
        }
    }

    #[test]
    fn learners_do_not_vote() {
        let conf_state = example().conf_state();
        assert_eq!(conf_state.get_voters(), [1]);
        assert_eq!(conf_state.get_learners(), [2]);
    }

    #[test]
    fn publishing_changes_name_and_client_urls() {
        let mut membership = example();
        let mut attributes = MemberAttributes {
            member_id: 2,
            name: "bee".into(),
            client_urls: vec!["http://h:3".into()],
        };
        assert!(membership.publish(attributes.clone()));
        let member = membership.get(2).unwrap();
        assert_eq!(member.name, "bee");
        assert_eq!(member.peer_urls, ["http://h:2"]);
        attributes.member_id = 3;
        assert!(!membership.publish(attributes));
    }
}
