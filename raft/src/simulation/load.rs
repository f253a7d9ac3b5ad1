//! What the simulated clients do, and what they are answered.

use std::hash::Hasher;

use varve_engine::disk::sim::Rng;

use super::agenda::{Micros, SECOND};
use super::clients;
use super::history::{Action, Operation, Outcome};
use super::world::{Event, World};

/// After this a client thinks that its request is lost.
const PATIENCE_US: Micros = 10 * SECOND;

impl World {
    /// Answers that members gave go on their way to clients.
    pub(super) fn deliver_mail(&mut self) {
        for (operation, outcome) in clients::take_mail(&self.mailbox) {
            let delay = self.around(self.plan.latency_us);
            let outcome = Box::new(outcome);
            self.agenda
                .after(delay, Event::Response(operation, outcome));
        }
    }

    pub(super) fn client(&mut self, client: usize) {
        if self.is_closing || self.clients[client].waits_for.is_some() {
            return;
        }
        let running = self.running();
        let Some(member) = self.pick(&running) else {
            let delay = self.around(100_000);
            return self.agenda.after(delay, Event::Client(client));
        };
        let action = self.choose_action();
        let operation = self.operations.len();
        self.operations.push(Operation {
            action,
            invoked: self.steps,
            returned: None,
            outcome: Outcome::Unknown,
        });
        self.client_of.push(client);
        self.clients[client].waits_for = Some((operation, member));
        let life = self.hosts[&member].lives;
        let delay = self.around(self.plan.latency_us);
        let event = Event::Request {
            operation,
            member,
            life,
        };
        self.agenda.after(delay, event);
        self.agenda.after(PATIENCE_US, Event::GiveUp(operation));
    }

    pub(super) fn request(&mut self, number: usize, member: u64, life: u64) {
        if !self.is_alive(member, life) {
            let refused = Outcome::NotDone(varve_types::ApiError::Stopped);
            return self.response(number, refused);
        }
        let operation = &self.operations[number];
        if clients::is_serializable(&operation.action)
            && let Some(node) = &self.hosts[&member].node
        {
            let outcome = clients::read(&node.view(), &operation.action);
            return self.response(number, outcome);
        }
        let input = clients::request(number, operation, &self.mailbox);
        self.input(member, input);
    }

    pub(super) fn response(&mut self, number: usize, outcome: Outcome) {
        let client = self.client_of[number];
        let Some((_, member)) = self.clients[client]
            .waits_for
            .filter(|(waits, _)| *waits == number)
        else {
            return; // the client has given it up
        };
        if let Outcome::Failed(what) = &outcome {
            let is_excused = self.hosts.get(&member).is_none_or(|host| host.is_rotten);
            if !is_excused {
                self.violation(&format!("operation {number}: {what}"));
            }
        }
        self.trace(|_| format!("operation {number}: {outcome:?}"));
        self.digest.write(format!("{outcome:?}").as_bytes());
        self.clients[client].waits_for = None;
        let is_done = !matches!(outcome, Outcome::Unknown | Outcome::NotDone(_));
        if self.is_healing && is_done && clients::is_write(&self.operations[number].action) {
            self.clients[client].done_since_heal += 1;
        }
        self.operations[number].outcome = outcome;
        self.operations[number].returned = Some(self.steps);
        let delay = self.around(self.plan.think_us);
        self.agenda.after(delay, Event::Client(client));
    }

    pub(super) fn choose_action(&mut self) -> Action {
        let keys = self.plan.keys;
        let number = self.operations.len() as u64;
        let key = |rng: &mut Rng| format!("k{:02}", rng.below(keys)).into_bytes();
        let value = |rng: &mut Rng| {
            let mut value = number.to_be_bytes().to_vec();
            let long = if rng.below(40) == 0 { 6_000 } else { 60 };
            value.resize(8 + rng.below(long) as usize, number as u8);
            value
        };
        let last = self.ledger.last();
        let rng = &mut self.rng;
        let serializable = rng.chance(40);
        match rng.below(100) {
            0..=34 => Action::Put {
                key: key(rng),
                value: value(rng),
            },
            35..=42 => Action::Delete { key: key(rng) },
            43..=57 => {
                let first = key(rng);
                let condition = self.choose_condition(&first);
                let mut all = vec![first];
                if self.rng.chance(30) {
                    let second = key(&mut self.rng);
                    if second != all[0] {
                        all.push(second);
                    }
                }
                Action::Txn {
                    condition,
                    keys: all,
                    value: value(&mut self.rng),
                }
            }
            58..=83 => Action::Get {
                key: key(rng),
                serializable,
                revision: 0,
            },
            84..=88 => Action::Get {
                key: key(rng),
                serializable,
                revision: 1 + rng.below(last as u64 + 1) as i64,
            },
            89..=97 => Action::Range { serializable },
            _ => Action::Compact {
                revision: (last - rng.below(20) as i64).max(1),
            },
        }
    }

    pub(super) fn choose_condition(&mut self, key: &[u8]) -> super::history::Condition {
        use super::history::Condition;
        let version = self.ledger.at(key, self.ledger.last()).cloned();
        match (self.rng.below(4), version) {
            (0, _) => Condition::Exists,
            (1, _) => Condition::Absent,
            (2, Some(version)) => Condition::Value(version.value),
            (_, version) => Condition::Modified(version.map_or(0, |v| v.modified)),
        }
    }
}
