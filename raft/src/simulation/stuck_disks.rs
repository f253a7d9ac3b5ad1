//! Disks that hang, and what must come of it: spikes are no reason for another leader,
//! and a leader whose disk hangs leads no longer than three election timeouts.

use super::agenda::SECOND;
use super::plan::Profile;
use super::world::World;

impl World {
    /// A spike of half a second at one member at a time.
    pub(super) fn slow_disk_for_a_sync(&mut self, id: u64) {
        let now = self.agenda.now();
        if self.hosts.values().any(|host| host.disk_stuck_until > now) {
            return;
        }
        self.count_fault("sync of 500 ms");
        if let Some(host) = self.hosts.get_mut(&id) {
            host.disk_stuck_until = now + 500_000;
        }
    }

    /// A disk hangs for longer than three election timeouts, if all others work.
    pub(super) fn stick_one_disk(&mut self, id: u64) {
        let now = self.agenda.now();
        if self
            .hosts
            .values()
            .any(|host| host.disk_stuck_until + 3 * SECOND > now)
        {
            return; // nobody has had the time to catch up
        }
        self.count_fault("disk stuck");
        let until = now + 4 * SECOND + self.around(2 * SECOND);
        if let Some(host) = self.hosts.get_mut(&id) {
            host.disk_stuck_until = until;
        }
    }

    /// After ticks of a member: whether it leads although its disk has hung for too long,
    /// and whether, where nothing else is wrong, another one leads instead.
    pub(super) fn check_disk_watch(&self, id: u64) {
        let Some(node) = self.hosts.get(&id).and_then(|host| host.node.as_ref()) else {
            return;
        };
        let election_ticks = 10 * self.plan.heartbeat_ticks;
        if node.stuck_ticks <= 3 * election_ticks || node.replica.is_alone() {
            return;
        }
        let waited = node.stuck_ticks;
        if node.replica.is_leader() {
            self.violation(&format!(
                "{id:x} leads, {waited} ticks after its disk last completed a write"
            ));
        }
        let mut others = self.hosts.values().filter_map(|host| host.node.as_ref());
        if self.plan.profile == Profile::StuckDisks && !others.any(|node| node.replica.is_leader())
        {
            self.violation(&format!(
                "nobody leads, {waited} ticks after the disk of {id:x} last completed a write"
            ));
        }
    }
}
