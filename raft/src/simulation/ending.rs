//! The end of a run: everything is healed, and everything is judged.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::PoisonError;

use super::agenda::{Micros, SECOND};
use super::clients;
use super::history::{self, Action, Outcome};
use super::plan::Profile;
use super::world::World;
use super::{Report, single_key};

/// Time in which clients must be answered again.
const ANSWER_WITHIN_US: Micros = 60 * SECOND;

/// Time in which all members must agree after that.
const AGREE_WITHIN_US: Micros = 120 * SECOND;

/// Steps between two looks whether members agree.
const LOOK_EVERY: u64 = 50;

impl World {
    /// Heals everything, waits until the cluster answers and agrees, and judges.
    pub(super) fn finish(&mut self) {
        if self.plan.profile == Profile::SlowDisks && self.invariants.terms_led() > 1 {
            self.violation("slow disks made another leader");
        }
        self.heal();
        let start = self.agenda.now();
        while !self.clients.iter().all(|client| client.done_since_heal > 0) {
            self.step_to_heal();
            if self.agenda.now() > start + ANSWER_WITHIN_US {
                if self.waits_at_former_members() {
                    break;
                }
                let why = match self.needs_removed_member() {
                    true => ": a quorum needs the vote of a member that was removed",
                    false => "",
                };
                let states = self.states();
                self.violation(&format!("clients are not answered again{why}: {states}"));
            }
        }
        self.is_closing = true;
        let start = self.agenda.now();
        let mut next_look = 0;
        loop {
            self.step_to_heal();
            if self.steps >= next_look {
                next_look = self.steps + LOOK_EVERY;
                if self.has_settled() {
                    break;
                }
            }
            if self.agenda.now() > start + AGREE_WITHIN_US {
                let states = self.states();
                self.violation(&format!("the members do not agree: {states}"));
            }
        }
        self.judge();
    }

    fn step_to_heal(&mut self) {
        if self.steps.is_multiple_of(500) {
            self.start_missing();
            let ids: Vec<u64> = self.hosts.keys().copied().collect();
            for id in ids {
                self.start(id);
            }
        }
        self.step();
    }

    /// Whether members agree, clients wait for nothing, and watchers have seen all.
    fn has_settled(&mut self) -> bool {
        let Some(current) = self.current() else {
            return false;
        };
        self.clients.iter().all(|client| client.waits_for.is_none())
            && self.members_agree(&current)
            && self.watchers.iter().all(|w| w.next > self.ledger.last())
    }

    /// Whether those that were not answered asked, by bad luck each time, a member that was
    /// removed: one that knows only of others that were, too, cannot learn it.
    fn waits_at_former_members(&self) -> bool {
        let Some(current) = self.current() else {
            return false;
        };
        let mut waiting = self.clients.iter().filter(|c| c.done_since_heal == 0);
        waiting.all(|client| {
            let asked = client.waits_for.map(|(_, member)| member);
            asked.is_some_and(|member| !current.contains(&member))
        })
    }

    /// Whether the others wait for a removed member's vote: it knew that its removal
    /// was committed, and whoever told it forgot in a power loss.
    fn needs_removed_member(&self) -> bool {
        let running = self.hosts.values().filter_map(|host| host.node.as_ref());
        let mut stuck = running.filter(|node| {
            let conf = node.replica.raw.raft.prs().conf().to_conf_state();
            let runs = |id: &&u64| self.hosts.get(id).is_some_and(|host| host.node.is_some());
            let up = conf.voters.iter().filter(runs).count();
            let gone = conf
                .voters
                .iter()
                .filter(|id| self.gone.contains(id))
                .count();
            2 * up <= conf.voters.len() && 2 * (up + gone) > conf.voters.len()
        });
        stuck.next().is_some()
    }

    fn states(&self) -> String {
        let mut text = String::new();
        for (id, host) in &self.hosts {
            let status = host.node.as_ref().map(|node| node.replica.status());
            text += &format!("\n{id:x} {:?}: {status:?}", host.condition);
        }
        let waiting = self
            .clients
            .iter()
            .filter(|c| c.waits_for.is_some())
            .count();
        let watchers: Vec<i64> = self.watchers.iter().map(|w| w.next).collect();
        let last = self.ledger.last();
        text + &format!("\n{waiting} clients wait; watchers at {watchers:?} of {last}")
    }

    fn judge(&mut self) {
        let last = self.ledger.last();
        let expected = self.ledger.all_at(last);
        for id in self.current().unwrap_or_default() {
            let Some(node) = self.hosts.get(&id).and_then(|host| host.node.as_ref()) else {
                continue;
            };
            let is_rotten = self.hosts[&id].is_rotten;
            if let Err(what) = node.check()
                && !is_rotten
            {
                self.violation(&format!("the store of {id:x}: {what}"));
            }
            let found = clients::read(&node.view(), &Action::Range { serializable: true });
            match found {
                Outcome::Ranged(revision, found) if revision == last && found == expected => {}
                Outcome::Failed(_) if is_rotten => {}
                other => self.violation(&format!("{id:x} holds {other:?}, not {expected:?}")),
            }
            if node.view().hash() != self.hash_of_others(id) && !is_rotten {
                self.violation(&format!("{id:x} has another hash"));
            }
            if *node.members() != *node.replica.membership {
                self.violation(&format!("{id:x} knows two memberships"));
            }
        }
        self.judge_history();
        let mut hasher = DefaultHasher::new();
        format!("{expected:?}").hash(&mut hasher);
        self.digest_more(hasher.finish());
    }

    fn judge_history(&mut self) {
        if let Some(what) = self.wrong_change() {
            self.violation(&what);
        }
        if let Err(what) = history::judge(&self.ledger, &self.operations) {
            self.violation(&what);
        }
        match single_key::judge(&self.operations) {
            Ok(0) => {}
            Ok(given_up) => *self.faults.entry("(search given up)").or_default() += given_up,
            Err(what) => self.violation(&what),
        }
    }

    fn hash_of_others(&self, id: u64) -> u128 {
        let others = self.current().unwrap_or_default();
        let other = others.iter().find(|other| **other != id).unwrap_or(&id);
        let node = self.hosts.get(other).and_then(|host| host.node.as_ref());
        node.map_or(0, |node| node.view().hash())
    }

    /// What the run came to so far.
    pub(super) fn report(&self) -> Report {
        let mut operations: BTreeMap<String, u64> = BTreeMap::new();
        let mut count = |name: String, more: u64| *operations.entry(name).or_default() += more;
        for operation in &self.operations {
            let action = match &operation.action {
                Action::Put { .. } => "put",
                Action::Delete { .. } => "delete",
                Action::Txn { .. } => "txn",
                Action::Get { serializable, .. } | Action::Range { serializable } => {
                    match serializable {
                        true => "serializable read",
                        false => "linearizable read",
                    }
                }
                Action::Compact { .. } => "compaction",
            };
            let outcome = match operation.outcome {
                Outcome::Unknown => "unknown",
                Outcome::NotDone(_) => "not done",
                Outcome::Refused(_) => "refused",
                _ => "done",
            };
            count(format!("{action} {outcome}"), 1);
        }
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        for (text, times) in outcomes.iter() {
            count(text.clone(), *times);
        }
        for watcher in &self.watchers {
            count("events watched".to_owned(), watcher.seen);
            count("watches resumed".to_owned(), watcher.resumed);
        }
        count("terms led".to_owned(), self.invariants.terms_led());
        let hosts = self.hosts.values();
        count(
            "snapshots installed".to_owned(),
            hosts.map(|h| h.installed).sum(),
        );
        count("snapshots gone on with".to_owned(), self.resumed);
        count(
            "starts".to_owned(),
            self.hosts.values().map(|h| h.lives).sum(),
        );
        let mut faults: BTreeMap<String, u64> = BTreeMap::new();
        for (name, times) in &self.faults {
            faults.insert((*name).to_owned(), *times);
        }
        faults.insert("message lost".to_owned(), self.network.lost);
        faults.insert("message sent twice".to_owned(), self.network.duplicated);
        Report {
            digest: self.digest(),
            steps: self.steps,
            simulated_us: self.agenda.now(),
            faults,
            operations,
            violation: None,
        }
    }
}
