//! The simulated world: machines, network, clients, and one thing after another.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use varve_engine::disk::sim::Rng;

use super::agenda::{Agenda, Micros, SECOND};
use super::clients::Mailbox;
use super::faults::Repair;
use super::history::{Ledger, Operation, Outcome};
use super::host::Host;
use super::invariants::{Invariants, hash_of};
use super::network::{Letter, Network};
use super::node::{Applied, Stream};
use super::operator::Outcomes;
use super::plan::{Plan, Profile};
use super::watchers::Watcher;
use crate::initial_cluster::InitialCluster;
use crate::io::{Input, Output};
use crate::log::Fetch;

/// What happens. The second number of a pair is the life of the member that it is of.
#[derive(Debug)]
pub(super) enum Event {
    Tick(u64, u64),
    Turn(u64, u64),
    Arrival(Letter),
    SyncEnd(u64, u64),
    Apply(u64, u64),
    Fetch(u64, u64, Fetch),
    Checkpoint(u64, u64),
    Maintain(u64, u64),
    Stream(u64),
    /// A client begins its next operation.
    Client(usize),
    /// A request reaches a member.
    Request {
        operation: usize,
        member: u64,
        life: u64,
    },
    /// An answer reaches its client.
    Response(usize, Box<Outcome>),
    GiveUp(usize),
    Watch(usize),
    Fault,
    Repair(Repair),
    Start(u64, u64),
    Operator,
    Replace(u64),
}

pub(super) struct Client {
    /// The operation that it waits for, and the member that was asked.
    pub(super) waits_for: Option<(usize, u64)>,
    /// Operations done since the end of all faults.
    pub(super) done_since_heal: u64,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) agenda: Agenda<Event>,
    base: Instant,
    pub(super) initial: InitialCluster,
    pub(super) hosts: BTreeMap<u64, Host>,
    /// Members that have been removed and know it.
    pub(super) gone: BTreeSet<u64>,
    pub(super) next_member: i64,
    pub(super) network: Network,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) next_stream: u64,
    /// Snapshots that were gone on with after a break.
    pub(super) resumed: u64,
    pub(super) clients: Vec<Client>,
    pub(super) client_of: Vec<usize>,
    pub(super) operations: Vec<Operation>,
    pub(super) mailbox: Mailbox,
    pub(super) outcomes: Outcomes,
    pub(super) watchers: Vec<Watcher>,
    pub(super) ledger: Ledger,
    pub(super) invariants: Invariants,
    pub(super) faults: BTreeMap<&'static str, u64>,
    pub(super) is_healing: bool,
    /// Whether clients begin nothing new.
    pub(super) is_closing: bool,
    pub(super) steps: u64,
    pub(super) digest: DefaultHasher,
    verbose: bool,
    /// Whether only the members' own comparison looks for states that differ.
    pub(super) members_compare: bool,
}

impl World {
    pub(super) fn new(seed: u64, profile: Profile, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(profile, &mut rng);
        let list: Vec<String> = (0..plan.members)
            .map(|i| format!("n{i}=http://10.0.0.{i}:2380"))
            .collect();
        let Ok(initial) = InitialCluster::parse(&list.join(",")) else {
            unreachable!("it is written as it must be")
        };
        let mut world = Self {
            seed,
            rng,
            agenda: Agenda::new(),
            base: Instant::now(),
            initial,
            hosts: BTreeMap::new(),
            gone: BTreeSet::new(),
            next_member: 1,
            network: Network::default(),
            streams: BTreeMap::new(),
            next_stream: 0,
            resumed: 0,
            clients: Vec::new(),
            client_of: Vec::new(),
            operations: Vec::new(),
            mailbox: Mailbox::default(),
            outcomes: Outcomes::default(),
            watchers: Vec::new(),
            ledger: Ledger::default(),
            invariants: Invariants::default(),
            faults: BTreeMap::new(),
            is_healing: false,
            is_closing: false,
            steps: 0,
            digest: DefaultHasher::new(),
            verbose,
            members_compare: false,
            plan,
        };
        world.trace(|world| format!("{:?}", world.plan));
        world.begin();
        world
    }

    fn begin(&mut self) {
        let members = self.initial.membership("sim");
        let members = members.unwrap_or_else(|error| self.violation(&error.to_string()));
        for member in members.members() {
            let host = Host::new(&self.initial, member, &self.plan, self.seed, None);
            self.hosts.insert(member.id, host);
            self.start(member.id);
        }
        for client in 0..self.plan.clients {
            self.clients.push(Client {
                waits_for: None,
                done_since_heal: 0,
            });
            let delay = self.around(self.plan.think_us);
            self.agenda.after(delay, Event::Client(client));
        }
        for watcher in 0..self.plan.watchers {
            self.add_watcher(watcher);
        }
        if self.plan.fault_us > 0 {
            let quiet = match self.plan.profile {
                Profile::SlowDisks => 5 * SECOND,
                Profile::StuckDisks => 3 * SECOND,
                _ => self.around(self.plan.fault_us),
            };
            self.agenda.after(quiet, Event::Fault);
        }
        if self.plan.change_us > 0 {
            self.agenda.after(self.plan.change_us, Event::Operator);
        }
    }

    /// A time that is on average as given.
    pub(super) fn around(&mut self, mean: Micros) -> Micros {
        1 + self.rng.below(2 * mean)
    }

    /// Ends the run: something happened that must not.
    pub(super) fn violation(&self, what: &str) -> ! {
        panic!("{what}")
    }

    pub(super) fn demand(&self, outcome: Result<(), String>) {
        if let Err(what) = outcome {
            self.violation(&what);
        }
    }

    pub(super) fn trace(&self, text: impl FnOnce(&Self) -> String) {
        if self.verbose {
            let at = self.agenda.now();
            eprintln!(
                "{:4}.{:06} {:>7} {}",
                at / SECOND,
                at % SECOND,
                self.steps,
                text(self)
            );
        }
    }

    pub(super) fn count_fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    /// What the run came to so far: the same for the same seed.
    pub(super) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    pub(super) fn digest_more(&mut self, number: u64) {
        self.digest.write_u64(number);
    }

    /// One thing happens.
    pub(super) fn step(&mut self) {
        let Some(event) = self.agenda.next() else {
            self.violation("nothing is planned any more");
        };
        self.steps += 1;
        self.digest.write_u64(self.agenda.now());
        self.trace(|_| format!("{event:?}"));
        self.happen(event);
        self.deliver_mail();
    }

    pub(super) fn is_alive(&self, id: u64, life: u64) -> bool {
        self.hosts
            .get(&id)
            .is_some_and(|host| host.lives == life && host.node.is_some())
    }

    fn happen(&mut self, event: Event) {
        let now = self.agenda.now();
        match event {
            Event::Tick(id, life)
            | Event::Turn(id, life)
            | Event::SyncEnd(id, life)
            | Event::Apply(id, life)
            | Event::Fetch(id, life, _)
            | Event::Checkpoint(id, life)
            | Event::Maintain(id, life) => {
                if !self.is_alive(id, life) {
                    return;
                }
                self.digest.write_u64(id);
                let until = self.hosts[&id].paused_until;
                match event {
                    Event::Tick(..) => self.tick(id, life),
                    _ if until > now => self.agenda.at(until, event),
                    Event::Turn(..) => self.turn(id),
                    Event::SyncEnd(..) => self.sync_end(id, life),
                    Event::Apply(..) => self.apply(id, life),
                    Event::Fetch(_, _, fetch) => {
                        self.with_node(id, |node| node.fetch(fetch));
                        self.wake(id);
                    }
                    Event::Checkpoint(..) => self.checkpoint(id, life),
                    _ => self.maintain(id, life),
                }
            }
            Event::Arrival(letter) => self.arrival(letter),
            Event::Stream(number) => self.stream(number),
            Event::Client(client) => self.client(client),
            Event::Request {
                operation,
                member,
                life,
            } => self.request(operation, member, life),
            Event::Response(operation, outcome) => self.response(operation, *outcome),
            Event::GiveUp(operation) => self.response(operation, Outcome::Unknown),
            Event::Watch(watcher) => self.watch(watcher),
            Event::Fault => self.fault(),
            Event::Repair(repair) => self.repair(repair),
            Event::Start(id, life) => {
                if self.hosts.get(&id).is_some_and(|host| host.lives == life) {
                    self.start(id);
                }
            }
            Event::Operator => self.operate(),
            Event::Replace(id) => self.replace(id),
        }
    }

    fn with_node(&mut self, id: u64, act: impl FnOnce(&mut super::node::Node)) {
        if let Some(node) = self.hosts.get_mut(&id).and_then(|host| host.node.as_mut()) {
            act(node);
        }
    }

    /// Gives a member's replica something, and plans its turn.
    pub(super) fn input(&mut self, id: u64, input: Input) {
        self.with_node(id, |node| node.inbox.push_back(input));
        self.wake(id);
    }

    pub(super) fn wake(&mut self, id: u64) {
        let delay = 10 + self.rng.below(100);
        let Some(node) = self.hosts.get_mut(&id).and_then(|host| host.node.as_mut()) else {
            return;
        };
        if !std::mem::replace(&mut node.is_woken, true) {
            self.agenda.after(delay, Event::Turn(id, node.life));
        }
    }

    fn tick(&mut self, id: u64, life: u64) {
        let now = self.agenda.now();
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        self.agenda.after(host.tick_us, Event::Tick(id, life));
        if !host.is_awake(now) {
            // As the driver makes up for those of one heartbeat.
            host.missed_ticks = (host.missed_ticks + 1).min(10);
            return;
        }
        let ticks = 1 + std::mem::take(&mut host.missed_ticks);
        for _ in 0..ticks {
            self.input(id, Input::Tick);
        }
        self.with_node(id, |node| node.count_disk_ticks(ticks));
        self.check_disk_watch(id);
    }

    fn turn(&mut self, id: u64) {
        let Some(node) = self.hosts.get_mut(&id).and_then(|host| host.node.as_mut()) else {
            return;
        };
        let output = match node.turn() {
            Ok(output) => output,
            Err(error) => return self.failed(id, &error),
        };
        let checked = self.invariants.after_turn(node, &output);
        self.demand(checked);
        self.dispatch(id, output);
        self.end_if_removed(id);
    }

    /// As the driver does.
    fn dispatch(&mut self, id: u64, output: Output) {
        let now = self.agenda.now();
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let Some(node) = host.node.as_mut() else {
            return;
        };
        let life = node.life;
        node.queue_writes(output.writes);
        if let Some(lsn) = output.release {
            node.release(lsn);
        }
        if node.begin_sync() {
            let mean = self.plan.sync_us * host.disk_factor;
            let end = now + mean / 2 + self.rng.below(mean + 1);
            self.agenda
                .at(end.max(host.disk_stuck_until), Event::SyncEnd(id, life));
        }
        node.queue_jobs(output.apply);
        if !node.is_applying && node.has_jobs() {
            node.is_applying = true;
            let delay = 1 + self.rng.below(2 * self.plan.apply_us);
            self.agenda.after(delay, Event::Apply(id, life));
        }
        let term = node.replica.status().term;
        for sink in output.reads {
            sink.ready(node.view(), term);
        }
        for fetch in output.fetches {
            let delay = 1 + self.rng.below(2 * self.plan.sync_us);
            self.agenda.after(delay, Event::Fetch(id, life, fetch));
        }
        for loaded in output.discard {
            if let Err(error) = node.discard(loaded) {
                tracing::debug!("{id:x}: {error}"); // it stays until the next start
            }
        }
        for (to, messages) in output.messages {
            for bytes in messages {
                self.digest.write_u64(hash_of(&bytes));
                self.send(id, life, to, bytes);
            }
        }
        for (to, message) in output.snapshots {
            self.send_snapshot(id, to, message);
        }
    }

    fn sync_end(&mut self, id: u64, life: u64) {
        let stuck = self.hosts[&id].disk_stuck_until;
        if stuck > self.agenda.now() {
            return self.agenda.at(stuck, Event::SyncEnd(id, life));
        }
        let (mut waits, mut checked) = (false, Ok(()));
        if let Some(node) = self.hosts.get_mut(&id).and_then(|host| host.node.as_mut()) {
            waits = node.end_sync(|node, group| {
                if checked.is_ok() {
                    checked = self.invariants.durable(node, group);
                }
            });
        }
        self.demand(checked);
        let mut again = false;
        self.with_node(id, |node| again = node.begin_sync());
        if again {
            let delay = match waits {
                true => 500_000,
                false => self.around(self.plan.sync_us),
            };
            self.agenda.after(delay, Event::SyncEnd(id, life));
        }
        self.wake(id);
    }

    fn apply(&mut self, id: u64, life: u64) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let Some(node) = host.node.as_mut() else {
            return;
        };
        let term = node.replica.status().term;
        let applied = node.apply(term);
        match applied {
            Ok(applied) => host.installed += u64::from(applied == Applied::Install),
            Err(error) => return self.failed(id, &error),
        }
        node.is_applying = node.has_jobs();
        if node.is_applying {
            let delay = match applied {
                Ok(Applied::NoSpace) => 500_000,
                _ => 1 + self.rng.below(2 * self.plan.apply_us),
            };
            self.agenda.after(delay, Event::Apply(id, life));
        }
        self.tell_watchers(id);
        self.check_applied(id);
        self.wake(id);
    }

    pub(super) fn check_applied(&mut self, id: u64) {
        if let Some(node) = self.hosts.get(&id).and_then(|host| host.node.as_ref()) {
            let mut checked = match self.members_compare {
                true => Ok(()),
                false => self.invariants.after_apply(node),
            };
            if let Some(alarm) = node.members().alarms().next() {
                checked = checked.and(Err(format!(
                    "the members found that they differ: {alarm:x?}"
                )));
            }
            self.demand(checked);
        }
    }

    fn checkpoint(&mut self, id: u64, life: u64) {
        let delay = self.around(self.plan.checkpoint_us);
        self.agenda.after(delay, Event::Checkpoint(id, life));
        let mut done = Ok(());
        self.with_node(id, |node| done = node.checkpoint());
        match done {
            Ok(()) => self.wake(id),
            Err(error) => self.failed(id, &error),
        }
    }

    fn maintain(&mut self, id: u64, life: u64) {
        let now = self.base + Duration::from_micros(self.agenda.now());
        let (mut done, idle) = (Ok(false), self.rng.chance(30));
        self.with_node(id, |node| {
            done = node.maintain(now, idle);
            node.mark();
        });
        self.publish_member(id);
        match done {
            Ok(more) => {
                let delay = if more { 1_000 } else { self.around(300_000) };
                self.agenda.after(delay, Event::Maintain(id, life));
            }
            Err(error) => self.failed(id, &error),
        }
    }

    /// Members that run.
    pub(super) fn running(&self) -> Vec<u64> {
        let running = |(_, host): &(&u64, &Host)| host.node.is_some();
        self.hosts
            .iter()
            .filter(running)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn pick<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        match among.len() {
            0 => None,
            count => Some(among[self.rng.below(count as u64) as usize]),
        }
    }

    /// The engine's view of time, for those who ask for it.
    pub(super) fn members_agree(&self, current: &[u64]) -> bool {
        let mut statuses = current.iter().map(|id| {
            let node = self.hosts.get(id).and_then(|host| host.node.as_ref());
            node.map(|node| node.replica.status())
        });
        let Some(Some(first)) = statuses.next() else {
            return false;
        };
        first.leader != 0
            && first.applied_index == first.last_index
            && first.pending_proposals == 0
            && statuses.all(|status| {
                status.is_some_and(|status| {
                    (status.leader, status.term) == (first.leader, first.term)
                        && status.last_index == first.last_index
                        && status.applied_index == first.applied_index
                        && status.pending_proposals == 0
                })
            })
    }

    pub(super) fn newest(&self) -> Option<Arc<crate::membership::Membership>> {
        let nodes = self.hosts.values().filter_map(|host| host.node.as_ref());
        let newest = nodes.max_by_key(|node| node.replica.applied)?;
        Some(newest.replica.membership.clone())
    }
}
