//! Who the members of the cluster are, and which of them vote.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::ConfState;
use varve_types::{
    Alarm, AlarmAction, AlarmKind, AlarmRequest, ApiError, DecodeError, MemberAttributes, Reader,
};

use crate::change::Change;
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
    /// Whether, as a learner, it gets its vote by itself once it has caught up.
    pub is_promotable: bool,
}

impl Member {
    /// Whether it has been up and told its name.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// The flags byte of the encoding.
    fn flags(&self) -> u8 {
        u8::from(self.is_learner) | u8::from(self.is_promotable) << 1
    }
}

/// Removed members that are remembered: the newest. Ids come from the time of the
/// change, so that one of those forgotten does not come back by chance.
const MAX_REMOVED: usize = 1 << 16;

/// The members by id. Kept in the store, in the same batch as the entries that
/// change it, and restated in the log's snapshot marker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    members: BTreeMap<u64, Member>,
    /// Who was a member and never will be again, the newest last.
    removed: Vec<u64>,
    /// What is wrong with members.
    alarms: BTreeSet<Alarm>,
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

    /// The alarms that are on, by member.
    pub fn alarms(&self) -> impl Iterator<Item = &Alarm> {
        self.alarms.iter()
    }

    /// Whether this alarm is on for this member.
    pub fn has_alarm(&self, member_id: u64, kind: AlarmKind) -> bool {
        self.alarms.contains(&Alarm { member_id, kind })
    }

    /// Whether the alarm CORRUPT names this member.
    pub fn is_corrupt(&self, id: u64) -> bool {
        self.has_alarm(id, AlarmKind::Corrupt)
    }

    /// Whether this alarm is on for any.
    pub fn is_on(&self, kind: AlarmKind) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == kind)
    }

    /// Does what is asked for about alarms; the ones that it was about. One that is
    /// raised is of a member, or of 0.
    pub fn alarm(&mut self, request: &AlarmRequest) -> Result<Vec<Alarm>, ApiError> {
        let id = request.member_id;
        match (request.action, request.kind) {
            (AlarmAction::Activate, Some(kind)) if id == 0 || self.get(id).is_some() => {
                let alarm = Alarm {
                    member_id: id,
                    kind,
                };
                self.alarms.insert(alarm);
                Ok(vec![alarm])
            }
            (AlarmAction::Activate, _) => Err(ApiError::MemberNotFound),
            (AlarmAction::Get, _) => Ok(self.matching(request)),
            (AlarmAction::Deactivate, _) => {
                let ended = self.matching(request);
                self.alarms.retain(|alarm| !request.matches(alarm));
                Ok(ended)
            }
        }
    }

    fn matching(&self, request: &AlarmRequest) -> Vec<Alarm> {
        let alarms = self.alarms.iter().copied();
        alarms.filter(|alarm| request.matches(alarm)).collect()
    }

    /// The members that vote, by ascending id.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members().filter(|member| !member.is_learner)
    }

    /// Whether `id` was a member and was removed.
    pub fn is_removed(&self, id: u64) -> bool {
        // Nearly always asked for one that is there.
        !self.members.contains_key(&id) && self.removed.contains(&id)
    }

    /// Makes a change, or says why it can't be made; the same on every member.
    pub fn change(&mut self, change: &Change) -> Result<(), ApiError> {
        let id = change.member_id();
        if self.is_removed(id) || (self.get(id).is_none() && !matches!(change, Change::Add(_))) {
            return Err(ApiError::MemberNotFound);
        }
        match change {
            Change::Add(member) => {
                if self.get(id).is_some() {
                    return Err(ApiError::MemberExists);
                }
                self.check_urls_are_free(id, &member.peer_urls)?;
                self.insert(Member {
                    id,
                    peer_urls: member.peer_urls.clone(),
                    is_learner: member.is_learner,
                    is_promotable: member.is_learner && member.is_promotable,
                    ..Member::default()
                });
            }
            Change::Replace { by, .. } => self.replace(id, by)?,
            Change::Remove(_) => {
                if self.voters().all(|voter| voter.id == id) {
                    return Err(ApiError::NotEnoughStarted);
                }
                self.forget(id);
            }
            Change::Update { peer_urls, .. } => {
                self.check_urls_are_free(id, peer_urls)?;
                if let Some(member) = self.members.get_mut(&id) {
                    member.peer_urls.clone_from(peer_urls);
                }
            }
            Change::Promote(_) => match self.members.get_mut(&id) {
                Some(member) if member.is_learner => {
                    (member.is_learner, member.is_promotable) = (false, false);
                }
                _ => return Err(ApiError::MemberNotLearner),
            },
        }
        Ok(())
    }

    /// Puts a learner in the place of member `id`, in one step: where the one was
    /// reached, by the name that it had.
    fn replace(&mut self, id: u64, by: &Member) -> Result<(), ApiError> {
        let Some(former) = self.get(id) else {
            return Err(ApiError::MemberNotFound);
        };
        if self.get(by.id).is_some() || self.is_removed(by.id) {
            return Err(ApiError::MemberExists);
        }
        if former.peer_urls != by.peer_urls || (former.is_started() && former.name != by.name) {
            return Err(ApiError::MemberBadUrls);
        }
        if !former.is_learner && self.voters().count() < 2 {
            return Err(ApiError::NotEnoughStarted);
        }
        let is_promotable = !former.is_learner || former.is_promotable;
        self.forget(id);
        self.insert(Member {
            is_learner: true,
            is_promotable,
            client_urls: Vec::new(),
            ..by.clone()
        });
        Ok(())
    }

    /// Removes a member for good.
    fn forget(&mut self, id: u64) {
        self.members.remove(&id);
        self.alarms.retain(|alarm| alarm.member_id != id);
        self.removed.push(id);
        if self.removed.len() > MAX_REMOVED {
            self.removed.remove(0);
        }
    }

    /// Whether no member but `id` is reached at one of `urls`.
    fn check_urls_are_free(&self, id: u64, urls: &[String]) -> Result<(), ApiError> {
        let mut others = self.members().filter(|member| member.id != id);
        match others.any(|member| member.peer_urls.iter().any(|url| urls.contains(url))) {
            true => Err(ApiError::PeerUrlExists),
            false => Ok(()),
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
    /// `[u64 id][u8 flags][name][u32 count, peer URLs][u32 count, client URLs]`,
    /// strings with a `u32` length; then `[u32 count]` and the ids of those removed; then,
    /// if there are any, `[u32 count]` and the alarms.
    /// Flags: 1 a learner, 2 one that gets its vote by itself.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, self.members.len());
        for member in self.members.values() {
            out.extend_from_slice(&member.id.to_le_bytes());
            out.push(member.flags());
            put_string(out, &member.name);
            for urls in [&member.peer_urls, &member.client_urls] {
                put_u32(out, urls.len());
                for url in urls {
                    put_string(out, url);
                }
            }
        }
        put_u32(out, self.removed.len());
        for id in &self.removed {
            out.extend_from_slice(&id.to_le_bytes());
        }
        if !self.alarms.is_empty() {
            put_u32(out, self.alarms.len());
            for alarm in &self.alarms {
                alarm.encode(out);
            }
        }
    }

    /// Reads one encoding, which is the last thing in its bytes: before members
    /// could be removed it ended with the members.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count(21, "member count")?;
        let mut membership = Self::default();
        for _ in 0..count {
            let id = reader.u64("member id")?;
            let flags = reader.u8("member flags")?;
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
                is_learner: flags & 1 != 0,
                is_promotable: flags & 2 != 0,
            });
        }
        if reader.remaining() > 0 {
            let count = reader.count(8, "removed count")?;
            membership.removed = (0..count)
                .map(|_| reader.u64("removed member"))
                .collect::<Result<_, _>>()?;
        }
        if reader.remaining() > 0 {
            let count = reader.count(Alarm::BYTES, "alarm count")?;
            membership.alarms = (0..count)
                .map(|_| Alarm::decode(reader))
                .collect::<Result<_, _>>()?;
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
            is_promotable: true,
        });
        membership.insert(Member {
            id: 1,
            name: "a".into(),
            peer_urls: vec!["http://h:1".into(), "http://i:1".into()],
            client_urls: vec!["http://h:9".into()],
            ..Member::default()
        });
        membership.removed = vec![9, 8];
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
        let without_removed = bytes.len() - 4 - 16;
        for cut in (0..bytes.len()).filter(|cut| *cut != without_removed) {
            assert!(Membership::decode(&mut Reader::new(&bytes[..cut])).is_err());
        }
        let old = Membership::decode(&mut Reader::new(&bytes[..without_removed])).unwrap();
        assert!(old.removed.is_empty() && old.members == example().members);
    }

    #[test]
    fn changes_are_made_or_refused_as_etcd_does() {
        let member = |id, url: &str, is_learner| Member {
            id,
            peer_urls: vec![url.to_owned()],
            is_learner,
            ..Member::default()
        };
        let update = |id, url: &str| Change::Update {
            id,
            peer_urls: vec![url.to_owned()],
        };
        let mut members = example();
        for (change, refusal) in [
            (
                Change::Add(member(9, "http://n:1", false)),
                ApiError::MemberNotFound,
            ),
            (
                Change::Add(member(2, "http://n:1", false)),
                ApiError::MemberExists,
            ),
            (
                Change::Add(member(3, "http://i:1", true)),
                ApiError::PeerUrlExists,
            ),
            (Change::Remove(3), ApiError::MemberNotFound),
            (Change::Remove(8), ApiError::MemberNotFound),
            (Change::Remove(1), ApiError::NotEnoughStarted),
            (update(3, "http://n:1"), ApiError::MemberNotFound),
            (update(2, "http://h:1"), ApiError::PeerUrlExists),
            (Change::Promote(1), ApiError::MemberNotLearner),
            (Change::Promote(3), ApiError::MemberNotFound),
        ] {
            assert_eq!(members.change(&change), Err(refusal), "{change:?}");
            assert_eq!(members, example(), "{change:?}");
        }
        members
            .change(&Change::Add(member(3, "http://n:1", true)))
            .unwrap();
        members.change(&Change::Promote(3)).unwrap();
        members.change(&update(1, "http://i:1")).unwrap();
        assert_eq!(members.voters().map(|m| m.id).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(members.get(1).unwrap().peer_urls, ["http://i:1"]);
        assert!(!members.get(3).unwrap().is_started());
        members.change(&Change::Remove(1)).unwrap();
        assert!(members.is_removed(1) && members.get(1).is_none());
        assert_eq!(
            members.change(&Change::Remove(3)),
            Err(ApiError::NotEnoughStarted)
        );
    }

    #[test]
    fn a_damaged_member_is_replaced_in_one_step() {
        let by = |id, name: &str, url: &str| Change::Replace {
            id: 1,
            by: Member {
                id,
                name: name.into(),
                peer_urls: [url, "http://i:1"].map(str::to_owned).to_vec(),
                ..Member::default()
            },
        };
        let mut members = example();
        let alone = by(7, "a", "http://h:1");
        assert_eq!(members.change(&alone), Err(ApiError::NotEnoughStarted));
        members.change(&Change::Promote(2)).unwrap();
        let before = members.clone();
        for (change, refusal) in [
            (by(7, "b", "http://h:1"), ApiError::MemberBadUrls),
            (by(7, "a", "http://h:2"), ApiError::MemberBadUrls),
            (by(2, "a", "http://h:1"), ApiError::MemberExists),
            (by(9, "a", "http://h:1"), ApiError::MemberExists),
        ] {
            assert_eq!(members.change(&change), Err(refusal), "{change:?}");
            assert_eq!(members, before);
        }
        members.change(&alone).unwrap();
        assert!(members.is_removed(1) && members.get(1).is_none());
        let new = members.get(7).unwrap();
        assert!(new.is_learner && new.is_promotable && new.client_urls.is_empty());
        assert_eq!(members.voters().map(|m| m.id).collect::<Vec<_>>(), [2]);
        // Once more it finds nobody to replace.
        assert_eq!(members.change(&alone), Err(ApiError::MemberNotFound));
    }

    #[test]
    fn alarms_are_raised_listed_and_ended() {
        let mut members = example();
        let request = |action, member_id, kind| AlarmRequest {
            action,
            member_id,
            kind,
        };
        let (corrupt, full) = (AlarmKind::Corrupt, AlarmKind::NoSpace);
        for (id, kind) in [(1, corrupt), (2, corrupt), (2, full), (0, corrupt)] {
            let raised = members.alarm(&request(AlarmAction::Activate, id, Some(kind)));
            assert_eq!(raised.unwrap().len(), 1);
        }
        let unknown = request(AlarmAction::Activate, 9, Some(corrupt));
        assert_eq!(members.alarm(&unknown), Err(ApiError::MemberNotFound));
        let listed = |members: &mut Membership, id, kind| {
            members
                .alarm(&request(AlarmAction::Get, id, kind))
                .unwrap()
                .len()
        };
        assert_eq!(listed(&mut members, 0, None), 4);
        assert_eq!(listed(&mut members, 2, None), 2);
        assert_eq!(listed(&mut members, 0, Some(corrupt)), 3);
        assert!(members.is_corrupt(1) && !members.is_corrupt(9));
        let mut bytes = Vec::new();
        members.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(Membership::decode(&mut reader).unwrap(), members);
        reader.finish().unwrap();
        // They go with their member.
        members.change(&Change::Remove(2)).unwrap();
        assert_eq!(listed(&mut members, 0, None), 2);
        members
            .alarm(&request(AlarmAction::Deactivate, 0, None))
            .unwrap();
        assert_eq!(listed(&mut members, 0, None), 0);
        assert!(!members.is_on(corrupt));
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
