//! The simulated operator: changes of the membership, wise or not, while everything
//! else goes on. Members that were added start some time later; those that were
//! removed end when they find out, be it by the log, by a peer, or at a restart.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use varve_types::ApiError;

use super::agenda::SECOND;
use super::clients;
use super::host::{Condition, Host};
use super::world::{Event, World};
use crate::change::Change;
use crate::config::Joining;
use crate::identity;
use crate::io::Input;
use crate::membership::{self, Membership};
use crate::sink::ChangeSink;

/// Most members that the operator makes the cluster have.
const MAX_MEMBERS: usize = 6;

/// How often changes had which outcome, and what was wrong with them.
pub(super) type Outcomes = Arc<Mutex<BTreeMap<String, u64>>>;

/// What an answer begins with that must not be.
pub(super) const WRONG: &str = "wrong: ";

struct Outcome {
    outcomes: Outcomes,
    change: Option<Change>,
}

impl ChangeSink for Outcome {
    fn done(self: Box<Self>, outcome: Result<Arc<Membership>, ApiError>) {
        let text = match (&outcome, &self.change) {
            (Err(error), _) => format!("change refused: {error}"),
            (Ok(members), Some(change)) => {
                let id = change.member_id();
                let fine = match change {
                    Change::Remove(_) | Change::Replace { .. } => members.get(id).is_none(),
                    // Another change of the same batch may have removed it.
                    _ => members.get(id).is_some() || members.is_removed(id),
                };
                match fine {
                    true => "members changed".to_owned(),
                    false => format!("{WRONG}after {change:?} there are {members:?}"),
                }
            }
            (Ok(_), None) => "leadership moved".to_owned(),
        };
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        *outcomes.entry(text).or_default() += 1;
    }
}

impl World {
    /// The operator asks some member for some change.
    pub(super) fn operate(&mut self) {
        self.start_missing();
        let delay = match self.is_healing {
            true => SECOND,
            false => self.around(self.plan.change_us.max(1)),
        };
        if self.plan.change_us > 0 {
            self.agenda.after(delay, Event::Operator);
        }
        if self.is_healing {
            return;
        }
        let running = self.running();
        let (Some(newest), Some(at)) = (self.newest(), self.pick(&running)) else {
            return;
        };
        let ids: Vec<u64> = newest.members().map(|member| member.id).collect();
        let Some(some) = self.pick(&ids) else {
            return;
        };
        let change = match self.rng.below(10) {
            0..=4 if ids.len() < MAX_MEMBERS => {
                let is_learner = self.rng.chance(50);
                Change::Add(self.new_member(is_learner))
            }
            0..=5 => Change::Remove(some),
            6 => {
                let member = self.new_member(false);
                Change::Update {
                    id: some,
                    peer_urls: member.peer_urls,
                }
            }
            7 | 8 => {
                let mut learners = newest.members().filter(|member| member.is_learner);
                Change::Promote(learners.next().map_or(some, |learner| learner.id))
            }
            _ => {
                let sink = Box::new(Outcome {
                    outcomes: self.outcomes.clone(),
                    change: None,
                });
                return self.input(at, Input::MoveLeader(some, sink));
            }
        };
        self.ask(at, change);
    }

    fn ask(&mut self, at: u64, change: Change) {
        self.trace(|_| format!("{at:x} is asked for {change:?}"));
        let sink = Box::new(Outcome {
            outcomes: self.outcomes.clone(),
            change: Some(change.clone()),
        });
        self.input(at, Input::Change(change, sink));
    }

    /// A member tells its name until it is known, as the server has it do.
    pub(super) fn publish_member(&mut self, id: u64) {
        let Some(node) = self.hosts.get(&id).and_then(|host| host.node.as_ref()) else {
            return;
        };
        if node.members().get(id).is_some_and(|own| !own.is_started()) {
            let attributes = varve_types::MemberAttributes {
                member_id: id,
                name: format!("j{id:x}"),
                client_urls: vec![format!("http://10.0.2.{}:2379", id % 256)],
            };
            self.input(id, clients::publication(attributes));
        }
    }

    fn new_member(&mut self, is_learner: bool) -> membership::Member {
        let number = self.next_member;
        self.next_member += 1;
        let peer_urls = vec![format!("http://10.0.1.{number}:2380")];
        membership::Member {
            id: identity::added_member_id(&peer_urls, number),
            peer_urls,
            is_learner,
            is_promotable: is_learner && number % 2 == 0,
            ..membership::Member::default()
        }
    }

    /// Starts members that were added and have never run.
    pub(super) fn start_missing(&mut self) {
        let Some(newest) = self.newest() else {
            return;
        };
        let missing: Vec<membership::Member> = newest
            .members()
            .filter(|member| !self.hosts.contains_key(&member.id))
            .filter(|member| !self.gone.contains(&member.id))
            .cloned()
            .collect();
        for added in missing {
            let bootstrap = self.initial.membership("sim");
            let bootstrap = bootstrap.unwrap_or_else(|error| self.violation(&error.to_string()));
            let join = Joining {
                cluster_id: bootstrap.cluster_id(),
                member_id: added.id,
                members: (*newest).clone(),
            };
            let (plan, seed) = (&self.plan, self.seed);
            let host = Host::new(&self.initial, &added, plan, seed, Some(join));
            self.hosts.insert(added.id, host);
            self.count_fault("member joined");
            self.start(added.id);
        }
    }

    /// A member whose files are damaged asks to be replaced, until it is: a learner
    /// with a fresh id takes its place, and gets its vote by itself.
    pub(super) fn replace(&mut self, id: u64) {
        let running = self.running();
        let (Some(newest), Some(at)) = (self.newest(), self.pick(&running)) else {
            return self.agenda.after(SECOND, Event::Replace(id));
        };
        if let Some(damaged) = newest.get(id) {
            self.agenda.after(SECOND, Event::Replace(id));
            let by = membership::Member {
                // The same, however often it asks.
                id: identity::added_member_id(&damaged.peer_urls, id as i64),
                ..damaged.clone()
            };
            return self.ask(at, Change::Replace { id, by });
        }
        self.hosts.remove(&id);
        self.gone.insert(id);
        self.count_fault("damaged member replaced");
        // The new one is started by whoever looks for missing ones.
        self.agenda.after(SECOND, Event::Operator);
    }

    /// Whether all members of the newest membership run, and nobody is to be replaced.
    pub(super) fn current(&self) -> Option<Vec<u64>> {
        let newest = self.newest()?;
        let runs = |id: &u64| self.hosts.get(id).is_some_and(|host| host.node.is_some());
        let ids: Vec<u64> = newest.members().map(|member| member.id).collect();
        let is_damaged = |host: &Host| matches!(host.condition, Condition::Damaged(_));
        let none_damaged = !self.hosts.values().any(is_damaged);
        (none_damaged && ids.iter().all(runs)).then_some(ids)
    }

    /// A change whose outcome must not be.
    pub(super) fn wrong_change(&self) -> Option<String> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes
            .keys()
            .find(|text| text.starts_with(WRONG))
            .cloned()
    }
}
