//! Members start, fail and end.

use super::agenda::SECOND;
use super::history::Outcome;
use super::host::Condition;
use super::world::{Event, World};
use crate::error::RaftError;

impl World {
    /// Starts a member from what its disk holds.
    pub(super) fn start(&mut self, id: u64) {
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.node.is_none()) else {
            return;
        };
        if let Condition::Damaged(_) = host.condition {
            return;
        }
        match host.start(&self.plan) {
            Ok(()) => {
                let (life, tick_us) = (host.lives, host.tick_us);
                let first = self.rng.below(tick_us) + 1;
                self.agenda.after(first, Event::Tick(id, life));
                let delay = self.around(self.plan.checkpoint_us);
                self.agenda.after(delay, Event::Checkpoint(id, life));
                let delay = self.around(200_000);
                self.agenda.after(delay, Event::Maintain(id, life));
                self.trace(|world| {
                    let status = world.hosts[&id].node.as_ref().map(|n| n.replica.status());
                    format!("{id:x} starts: {status:?}")
                });
                self.check_applied(id);
                self.wake(id);
            }
            Err(RaftError::Removed { .. }) => self.end(id),
            Err(error) => self.failed(id, &error),
        }
    }

    /// A member ended with an error: was there a reason for it?
    pub(super) fn failed(&mut self, id: u64, error: &RaftError) {
        self.trace(|_| format!("{id:x} fails: {error}"));
        self.break_streams(id);
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if let Some(node) = &mut host.node {
            node.replica.stop();
        }
        host.kill();
        let life = host.lives;
        if host.is_rotten {
            // The node would not take it for damage, and not heal.
            let is_known = error.is_damage() || matches!(error, RaftError::Inconsistent(_));
            let is_passed_over = !is_known && !host.is_excused;
            host.condition = Condition::Damaged(error.to_string());
            self.count_fault("member refused damaged files");
            self.agenda.after(2 * SECOND, Event::Replace(id));
            if is_passed_over {
                self.violation(&format!(
                    "damage of member {id:x} is not known as such: {error}"
                ));
            }
        } else if host.is_excused {
            self.count_fault("member stopped on disk error");
            self.agenda.after(SECOND, Event::Start(id, life));
        } else {
            self.violation(&format!("member {id:x} fails without a fault: {error}"));
        }
        self.forget_requests(id);
    }

    /// A member's process ends.
    pub(super) fn forget_requests(&mut self, id: u64) {
        for client in 0..self.clients.len() {
            if let Some((operation, member)) = self.clients[client].waits_for
                && member == id
            {
                let delay = self.around(self.plan.latency_us);
                let outcome = Box::new(Outcome::Unknown);
                self.agenda
                    .after(delay, Event::Response(operation, outcome));
            }
        }
    }

    /// A member that has been removed and leads no more ends.
    pub(super) fn end_if_removed(&mut self, id: u64) {
        let status = self
            .hosts
            .get(&id)
            .and_then(|host| host.node.as_ref())
            .map(|node| node.replica.status());
        if status.is_some_and(|status| status.is_removed && !status.is_leader) {
            self.end(id);
        }
    }

    pub(super) fn end(&mut self, id: u64) {
        self.trace(|_| format!("{id:x} ends: it was removed"));
        self.break_streams(id);
        self.hosts.remove(&id);
        self.gone.insert(id);
        self.forget_requests(id);
        // Whoever told it must know it for good.
        let running = self.running();
        if !self.is_healing
            && self.rng.chance(25)
            && let Some(other) = self.pick(&running)
        {
            self.count_fault("power loss after a removal");
            self.lose_power(other);
        }
    }
}
