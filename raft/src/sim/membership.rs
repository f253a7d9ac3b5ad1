//! The simulated operator: changes of the membership while everything else goes on.
//!
//! Members that were added start at some time later; removed ones end when they find
//! out, be it by the log, by a peer, or at a restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use varve_types::ApiError;

use super::member::Member;
use super::{SharedLedger, Simulation};
use crate::change::Change;
use crate::config::Joining;
use crate::identity;
use crate::io::Input;
use crate::membership::{self, Membership};
use crate::sink::ChangeSink;

/// Most members that the operator makes the cluster have.
const MAX_MEMBERS: usize = 6;

struct Outcome {
    ledger: SharedLedger,
    change: Option<Change>,
}

impl ChangeSink for Outcome {
    fn done(self: Box<Self>, outcome: Result<Arc<Membership>, ApiError>) {
        let mut ledger = self.ledger.lock().unwrap();
        let text = match (&outcome, &self.change) {
            (Err(error), _) => error.to_string(),
            (Ok(members), Some(change)) => {
                let is_there = members.get(change.member_id()).is_some();
                assert_eq!(is_there, !matches!(change, Change::Remove(_)), "{change:?}");
                "changed".to_owned()
            }
            (Ok(_), None) => "moved".to_owned(),
        };
        *ledger.changes.entry(text).or_default() += 1;
    }
}

impl Simulation {
    /// The members as the one knows them that has applied most.
    pub(super) fn newest(&self) -> Arc<Membership> {
        let newest = self.members.values().max_by_key(|m| m.replica.applied);
        newest.unwrap().replica.membership.clone()
    }

    /// Those of the newest membership that run.
    pub(super) fn current(&self) -> BTreeMap<u64, &Member> {
        let newest = self.newest();
        let known = |id: &u64| newest.get(*id).is_some();
        let members = self.members.iter().filter(|(id, _)| known(id));
        members.map(|(id, member)| (*id, member)).collect()
    }

    /// The operator asks some member for some change, wise or not.
    pub(super) fn change_something(&mut self) {
        let newest = self.newest();
        let ids: Vec<u64> = newest.members().map(|member| member.id).collect();
        let at = self.pick();
        let some = ids[self.rng.below(ids.len() as u64) as usize];
        let (ledger, number) = (self.ledger.clone(), self.next_member);
        let url = format!("http://10.0.1.{number}:2380");
        let change = match self.rng.below(10) {
            0..=4 if ids.len() < MAX_MEMBERS => {
                self.next_member += 1;
                let peer_urls = vec![url];
                Change::Add(membership::Member {
                    id: identity::added_member_id(&peer_urls, number),
                    peer_urls,
                    is_learner: self.rng.chance(50),
                    ..membership::Member::default()
                })
            }
            0..=5 => Change::Remove(some),
            6 => Change::Update {
                id: some,
                peer_urls: vec![url],
            },
            7 | 8 => {
                let mut learners = newest.members().filter(|member| member.is_learner);
                Change::Promote(learners.next().map_or(some, |learner| learner.id))
            }
            _ => {
                let change = None;
                let input = Input::MoveLeader(some, Box::new(Outcome { ledger, change }));
                return self.input(at, input);
            }
        };
        let sink = Box::new(Outcome {
            ledger,
            change: Some(change.clone()),
        });
        self.input(at, Input::Change(change, sink));
    }

    /// Starts a member that was added and has never run.
    pub(super) fn start_missing(&mut self) {
        let newest = self.newest();
        let missing = |member: &&membership::Member| {
            !self.members.contains_key(&member.id) && !self.gone.contains(&member.id)
        };
        let Some(added) = newest.members().find(missing).cloned() else {
            return;
        };
        let join = Joining {
            cluster_id: self.initial.membership("sim").unwrap().cluster_id(),
            member_id: added.id,
            members: (*newest).clone(),
        };
        let boot = self.seed ^ added.id;
        let catchup = self.weather.catchup_entries;
        let mut member = Member::new(&self.initial, &added, catchup, boot, Some(join));
        member.strict(self.weather.strict);
        self.joined += 1;
        self.members.insert(added.id, member);
    }

    /// A member that has been removed and leads no more ends; one that speaks to a
    /// member that knows of its removal is told.
    pub(super) fn end_removed(&mut self, id: u64) {
        let status = self.members[&id].replica.status();
        if status.is_removed && !status.is_leader {
            self.end(id);
        }
    }

    /// How many members have been removed and know it.
    pub(super) fn removed(&self) -> usize {
        self.gone.len()
    }

    pub(super) fn end(&mut self, id: u64) {
        self.members.remove(&id);
        self.gone.insert(id);
        self.links.retain(|link, _| link.0 != id && link.1 != id);
        let (broken, whole) = std::mem::take(&mut self.streams)
            .into_iter()
            .partition::<Vec<_>, _>(|stream| stream.to == id || stream.from == id);
        self.streams = whole;
        for stream in broken.iter().filter(|stream| stream.to == id) {
            self.stream_ended(stream, false);
        }
    }
}
