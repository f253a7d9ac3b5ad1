//! What goes wrong, and how it comes right again.

use std::path::{Path, PathBuf};

use varve_engine::disk::sim::FaultOn;
use varve_engine::disk::{Disk, OpenMode};

use super::agenda::{Micros, SECOND};
use super::host::{self, Condition, fault, libc_eio};
use super::network::Link;
use super::plan::Profile;
use super::world::{Event, World};
use crate::io::Input;

/// ENOSPC is for a disk's capacity; this much is left.
const SPACE_LEFT_BYTES: u64 = 8 << 10;

/// What ends a fault.
#[derive(Debug)]
pub(super) enum Repair {
    Mend(Vec<Link>),
    Speed(Link),
    Disk(u64),
    DiskSpeed(u64),
}

impl World {
    /// Something goes wrong.
    pub(super) fn fault(&mut self) {
        if self.is_healing {
            return;
        }
        let delay = self.around(self.plan.fault_us);
        self.agenda.after(delay, Event::Fault);
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        let Some(id) = self.pick(&ids) else {
            return;
        };
        // Whoever leads is worth more trouble.
        let leader = self.leader().filter(|_| self.rng.chance(30));
        let id = leader.unwrap_or(id);
        match self.plan.profile {
            Profile::Fair => {}
            Profile::SlowDisks => self.slow_disk_for_a_sync(id),
            Profile::StuckDisks => self.stick_one_disk(leader.or(self.leader()).unwrap_or(id)),
            Profile::Network => self.network_fault(id),
            Profile::Disks | Profile::Single => self.disk_fault(id),
            Profile::BitRot if self.rng.chance(25) => self.rot(id),
            _ => match self.rng.chance(50) {
                true => self.network_fault(id),
                false => self.disk_fault(id),
            },
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |id: &u64| {
            let node = self.hosts[id].node.as_ref();
            node.is_some_and(|node| node.replica.is_leader())
        };
        self.hosts.keys().copied().find(leads)
    }

    fn network_fault(&mut self, id: u64) {
        let others: Vec<u64> = self.hosts.keys().copied().filter(|o| *o != id).collect();
        let long = self.around(2 * SECOND);
        match self.rng.below(9) {
            0 => {
                self.count_fault("member cut off");
                let links = others.iter().flat_map(|other| [(id, *other), (*other, id)]);
                self.cut(links.collect(), long);
            }
            1 => {
                self.count_fault("partition");
                let mut links = Vec::new();
                let sides: Vec<(u64, bool)> = self
                    .hosts
                    .keys()
                    .copied()
                    .collect::<Vec<_>>()
                    .into_iter()
                    .map(|id| (id, self.rng.chance(50)))
                    .collect();
                for (a, side) in &sides {
                    links.extend(
                        sides
                            .iter()
                            .filter(|(_, other)| other != side)
                            .map(|(b, _)| (*a, *b)),
                    );
                }
                self.cut(links, long);
            }
            2 => {
                self.count_fault("member only hears");
                self.cut(others.iter().map(|other| (id, *other)).collect(), long);
            }
            3 => {
                self.count_fault("member only speaks");
                self.cut(others.iter().map(|other| (*other, id)).collect(), long);
            }
            4 => {
                self.count_fault("one-way link cut");
                if let Some(other) = self.pick(&others) {
                    self.cut(vec![(id, other)], long);
                }
            }
            5 => {
                self.count_fault("slow link");
                if let Some(other) = self.pick(&others) {
                    let factor = 10 + self.rng.below(200);
                    self.network.slow((id, other), factor);
                    self.agenda
                        .after(long, Event::Repair(Repair::Speed((id, other))));
                }
            }
            6 => {
                self.count_fault("connections broken");
                for other in others {
                    self.network.break_connection((id, other));
                    self.network.break_connection((other, id));
                }
            }
            7 => self.pause(id),
            _ => {
                self.count_fault("clock drift");
                let tick_us = host::drifted(&self.plan, &mut self.rng);
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.tick_us = tick_us;
                }
            }
        }
    }

    fn cut(&mut self, links: Vec<Link>, long: Micros) {
        self.network.cut(&links);
        self.agenda.after(long, Event::Repair(Repair::Mend(links)));
    }

    fn pause(&mut self, id: u64) {
        self.count_fault("member paused");
        let until = self.agenda.now() + self.around(2 * SECOND);
        if let Some(host) = self.hosts.get_mut(&id) {
            host.paused_until = host.paused_until.max(until);
        }
    }

    fn disk_fault(&mut self, id: u64) {
        match self.rng.below(12) {
            0..=3 => {
                self.count_fault("power loss");
                self.lose_power(id);
            }
            4 => {
                self.count_fault("power loss of all");
                for id in self.running() {
                    self.lose_power(id);
                }
            }
            5 => {
                self.count_fault("kill");
                self.kill(id);
            }
            6 => self.slow_disk(id),
            7 => {
                self.count_fault("disk stuck");
                let until = self.agenda.now() + self.around(3 * SECOND);
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.disk_stuck_until = until;
                }
            }
            8 => self.disk_error(id),
            9 => {
                self.count_fault("disk full");
                self.with_faulty_disk(id, |host| {
                    let used = host.disk.used_bytes();
                    host.disk.set_capacity(Some(used + SPACE_LEFT_BYTES));
                });
            }
            10 => {
                self.count_fault("leadership handed over");
                self.input(id, Input::HandOver);
            }
            _ => self.pause(id),
        }
    }

    fn slow_disk(&mut self, id: u64) {
        self.count_fault("slow disk");
        let factor = 10 + self.rng.below(100);
        let long = self.around(3 * SECOND);
        if let Some(host) = self.hosts.get_mut(&id) {
            host.disk_factor = factor;
            let repair = Event::Repair(Repair::DiskSpeed(id));
            self.agenda.after(long, repair);
        }
    }

    fn disk_error(&mut self, id: u64) {
        let on = [FaultOn::Sync, FaultOn::Write, FaultOn::SyncDir][self.rng.below(3) as usize];
        let path = ["wal", "store-", ""][self.rng.below(3) as usize];
        let after = self.rng.below(10);
        self.count_fault("disk error");
        self.with_faulty_disk(id, |host| {
            host.disk.inject(fault(on, after, path, libc_eio()));
            host.note_sync_failure(on, path);
        });
    }

    fn with_faulty_disk(&mut self, id: u64, act: impl FnOnce(&mut host::Host)) {
        let long = self.around(2 * SECOND);
        if let Some(host) = self.hosts.get_mut(&id) {
            (host.is_faulty, host.is_excused) = (true, true);
            act(host);
            self.agenda.after(long, Event::Repair(Repair::Disk(id)));
        }
    }

    /// Bits change on the disk of a member that is down, once in a run: one damaged
    /// member is what the others must make up for. What it was writing is not
    /// touched, as nothing can tell that from a torn write.
    fn rot(&mut self, id: u64) {
        let others_whole = self.current().is_some_and(|current| current.len() >= 3);
        let is_first = !self.faults.contains_key("bit rot");
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let Some(node) = host.node.as_mut().filter(|node| !node.is_syncing()) else {
            return;
        };
        if !others_whole || !is_first || host.is_excused {
            return;
        }
        node.mark();
        let disk = host.disk.clone();
        self.count_fault("bit rot");
        self.kill(id);
        let mut files = Vec::new();
        for dir in ["/data", "/data/wal"] {
            let dir = Path::new(dir);
            for name in disk.list(dir).unwrap_or_default() {
                let path: PathBuf = dir.join(name);
                let file = disk.open(&path, OpenMode::Existing);
                if let Ok(length) = file.and_then(|file| file.len())
                    && length > 0
                {
                    files.push((path, length));
                }
            }
        }
        for _ in 0..=self.rng.below(4) {
            let position = self.rng.below(files.len().max(1) as u64) as usize;
            let Some((path, length)) = files.get(position) else {
                continue;
            };
            // Most of a file is empty: the beginning is worth more.
            let within = match self.rng.chance(50) {
                true => *length,
                false => (*length).min(32 << 10),
            };
            let offset = self.rng.below(within);
            let xor = 1 + self.rng.below(255) as u8;
            self.trace(|_| format!("rot of {} at {offset}", path.display()));
            if disk.corrupt(path, offset, xor).is_ok()
                && let Some(host) = self.hosts.get_mut(&id)
            {
                host.is_rotten = true;
            }
        }
    }

    /// A member loses power, and starts again some time later.
    pub(super) fn lose_power(&mut self, id: u64) {
        self.break_streams(id);
        if let Some(host) = self.hosts.get_mut(&id)
            && !matches!(host.condition, Condition::Damaged(_))
        {
            host.lose_power(&mut self.rng);
            self.restart_later(id);
        }
    }

    fn kill(&mut self, id: u64) {
        self.break_streams(id);
        if let Some(host) = self.hosts.get_mut(&id)
            && host.node.is_some()
        {
            host.kill();
            self.restart_later(id);
        }
    }

    fn restart_later(&mut self, id: u64) {
        self.forget_requests(id);
        let long = [50_000, SECOND, 8 * SECOND][self.rng.below(3) as usize];
        let delay = self.around(long);
        let life = self.hosts[&id].lives;
        self.agenda.after(delay, Event::Start(id, life));
    }

    pub(super) fn repair(&mut self, repair: Repair) {
        match repair {
            Repair::Mend(links) => self.network.mend(&links),
            Repair::Speed(link) => self.network.slow(link, 1),
            Repair::Disk(id) => self.repair_disk(id),
            Repair::DiskSpeed(id) => {
                if let Some(host) = self.hosts.get_mut(&id) {
                    host.disk_factor = 1;
                }
            }
        }
    }

    fn repair_disk(&mut self, id: u64) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.disk.clear_faults();
            host.disk.set_capacity(None);
            host.is_faulty = false;
        }
    }

    /// No more faults: all partitions end, all disks work, all members start.
    pub(super) fn heal(&mut self) {
        self.is_healing = true;
        self.network.heal();
        self.plan.loss_permille = 0;
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        for id in ids {
            if let Some(host) = self.hosts.get_mut(&id) {
                host.disk.clear_faults();
                host.disk.set_capacity(None);
                host.disk_factor = 1;
                host.disk_stuck_until = 0;
                host.paused_until = 0;
                host.is_faulty = false;
                // A turn that was put off to the end of a pause is due now.
                if let Some(node) = &mut host.node {
                    node.is_woken = false;
                }
            }
            self.start(id);
            self.wake(id);
        }
    }
}
