//! A small deterministic simulation of a cluster, for the replica's tests.
//!
//! Members run the real replica, applier and start-up code over simulated disks;
//! a seed decides everything that happens: which message arrives, is lost or
//! waits, which log write completes, who ticks, who loses power with what of the
//! unsynced. Checked all along:
//! - no acknowledged write is lost, and a linearizable read shows all that was
//!   acknowledged before it came in;
//! - one leader per term;
//! - equal hashes at equal applied indexes;
//! - nothing is applied that the member's log does not hold durably.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use varve_engine::disk::sim::Rng;
use varve_engine::mvcc::View;
use varve_types::{ApiError, Command, PutRequest};

use crate::entry::push_command;
use crate::initial_cluster::InitialCluster;
use crate::io::Input;
use crate::sink::{Completion, Proposal, ReadSink, ReplySink};

pub(crate) mod member;
mod membership;
#[path = "../../tests/common/stores.rs"]
#[allow(unreachable_pub)]
mod stores;
mod tests;

use member::{Member, Stream};

/// What clients know: shared with the sinks.
#[derive(Default)]
struct Ledger {
    /// Keys of acknowledged writes.
    acknowledged: BTreeSet<u64>,
    refused: BTreeMap<String, u64>,
    reads_served: u64,
    /// Outcomes of changes of the membership, by text.
    changes: BTreeMap<String, u64>,
    /// Reads that missed an acknowledged write.
    stale: Vec<String>,
}

type SharedLedger = Arc<Mutex<Ledger>>;

struct Write {
    key: u64,
    ledger: SharedLedger,
}

impl ReplySink for Write {
    fn complete(self: Box<Self>, completion: Completion) {
        assert_eq!(completion.replies.len(), 1);
        assert!(completion.replies[0].result.is_ok());
        self.ledger.lock().unwrap().acknowledged.insert(self.key);
    }
    fn refuse(self: Box<Self>, error: ApiError) {
        *self
            .ledger
            .lock()
            .unwrap()
            .refused
            .entry(error.to_string())
            .or_default() += 1;
    }
}

struct ReadCheck {
    /// The newest writes acknowledged when the read came in.
    expected: Vec<u64>,
    ledger: SharedLedger,
}

impl ReadSink for ReadCheck {
    fn ready(self: Box<Self>, view: Arc<View>, _term: u64) {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.reads_served += 1;
        for key in self.expected {
            if view.get(&key.to_be_bytes(), |_| ()).unwrap().is_none() {
                let applied = view.applied().index;
                ledger
                    .stale
                    .push(format!("write {key} is not in the view of {applied}"));
            }
        }
    }
    fn refuse(self: Box<Self>, error: ApiError) {
        *self
            .ledger
            .lock()
            .unwrap()
            .refused
            .entry(error.to_string())
            .or_default() += 1;
    }
}

/// How rough the run is, in percent or parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    pub(super) members: usize,
    pub(super) loss_percent: u64,
    /// One crash or cut in this many steps.
    pub(super) trouble_every: u64,
    pub(super) catchup_entries: u64,
    /// One change of the membership in this many steps; 0 is none.
    pub(super) change_every: u64,
    /// Whether changes that endanger the quorum are refused.
    pub(super) strict: bool,
}

/// A cluster in a simulation.
pub(super) struct Simulation {
    rng: Rng,
    seed: u64,
    weather: Weather,
    initial: InitialCluster,
    members: BTreeMap<u64, Member>,
    /// Members that have been removed and know it.
    gone: BTreeSet<u64>,
    next_member: i64,
    pub(super) joined: u64,
    /// In order for each pair (from, to).
    links: BTreeMap<(u64, u64), VecDeque<Bytes>>,
    streams: Vec<Stream>,
    cut: BTreeSet<u64>,
    ledger: SharedLedger,
    next_key: u64,
    leaders: BTreeMap<u64, u64>,
    hashes: BTreeMap<u64, u128>,
    pub(super) crashes: u64,
}

impl Simulation {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        let list: Vec<String> = (0..weather.members)
            .map(|i| format!("n{i}=http://10.0.0.{i}:2380"))
            .collect();
        let initial = InitialCluster::parse(&list.join(",")).unwrap();
        let mut members = BTreeMap::new();
        for member in initial.membership("sim").unwrap().members() {
            let boot = seed ^ member.id;
            let mut booted = Member::new(&initial, member, weather.catchup_entries, boot, None);
            booted.strict(weather.strict);
            members.insert(member.id, booted);
        }
        Self {
            rng: Rng::new(seed),
            seed,
            weather,
            initial,
            members,
            gone: BTreeSet::new(),
            next_member: 1,
            joined: 0,
            links: BTreeMap::new(),
            streams: Vec::new(),
            cut: BTreeSet::new(),
            ledger: SharedLedger::default(),
            next_key: 0,
            leaders: BTreeMap::new(),
            hashes: BTreeMap::new(),
            crashes: 0,
        }
    }

    fn pick(&mut self) -> u64 {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        ids[self.rng.below(ids.len() as u64) as usize]
    }

    /// One thing happens.
    pub(super) fn step(&mut self) {
        let id = self.pick();
        if self.weather.trouble_every > 0 && self.rng.below(self.weather.trouble_every) == 0 {
            self.trouble(id);
        }
        if self.weather.change_every > 0 && self.rng.below(self.weather.change_every) == 0 {
            self.change_something();
            self.start_missing();
        }
        if !self.members.contains_key(&id) {
            return; // trouble found out that it had been removed
        }
        match self.rng.below(100) {
            0..=14 => self.input(id, Input::Tick),
            15..=24 => self.write(id),
            25..=31 => self.read(id),
            32..=64 => self.deliver(id),
            65..=81 => self.members.get_mut(&id).unwrap().complete_write(),
            82..=96 => self.apply(id),
            97 => self.members.get_mut(&id).unwrap().checkpoint(),
            _ => self.stream(),
        }
        self.collect(id);
    }

    fn input(&mut self, id: u64, input: Input) {
        self.members.get_mut(&id).unwrap().step(input);
    }

    fn write(&mut self, id: u64) {
        let key = self.next_key;
        self.next_key += 1;
        let mut body = Vec::new();
        let put = Command::Put(PutRequest {
            key: &key.to_be_bytes(),
            value: b"value",
            ..PutRequest::default()
        });
        put.encode_body(&mut body);
        let mut commands = Vec::new();
        push_command(&mut commands, put.opcode(), &body);
        let sink = Box::new(Write {
            key,
            ledger: self.ledger.clone(),
        });
        self.input(
            id,
            Input::Propose(Proposal {
                commands: commands.into(),
                count: 1,
                reply_bytes: 0,
                sink,
            }),
        );
    }

    fn read(&mut self, id: u64) {
        let expected = {
            let ledger = self.ledger.lock().unwrap();
            ledger.acknowledged.iter().rev().take(10).copied().collect()
        };
        let sink = Box::new(ReadCheck {
            expected,
            ledger: self.ledger.clone(),
        });
        self.input(id, Input::Read(sink));
    }

    fn deliver(&mut self, to: u64) {
        let links: Vec<(u64, u64)> = self
            .links
            .iter()
            .filter(|((_, other), queue)| *other == to && !queue.is_empty())
            .map(|(link, _)| *link)
            .collect();
        if links.is_empty() {
            return;
        }
        let link = links[self.rng.below(links.len() as u64) as usize];
        let is_cut = self.cut.contains(&link.0) || self.cut.contains(&to);
        for _ in 0..=self.rng.below(20) {
            let Some(bytes) = self.links.get_mut(&link).and_then(VecDeque::pop_front) else {
                return;
            };
            if !is_cut && !self.rng.chance(self.weather.loss_percent) {
                if self.members[&to].replica.membership.is_removed(link.0) {
                    self.input(link.0, Input::Removed);
                    return self.collect(link.0);
                }
                self.input(
                    to,
                    Input::Peer {
                        from: link.0,
                        bytes,
                    },
                );
            }
        }
    }

    fn apply(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        if let Some((index, hash)) = member.apply() {
            let known = *self.hashes.entry(index).or_insert(hash);
            assert_eq!(
                known, hash,
                "seed {}: states differ at index {index}",
                self.seed
            );
        }
    }

    fn stream(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let position = self.rng.below(self.streams.len() as u64) as usize;
        let stream = &mut self.streams[position];
        let (from, to) = (stream.from, stream.to);
        let broken = self.cut.contains(&from)
            || self.cut.contains(&to)
            || self.rng.chance(self.weather.loss_percent);
        let done = if broken {
            Some(false)
        } else {
            stream.advance(&self.members[&to])
        };
        if let Some(delivered) = done {
            let mut stream = self.streams.remove(position);
            self.stream_ended(&stream, delivered);
            if let (true, Some(loaded)) = (delivered, stream.loaded.take()) {
                self.input(to, Input::SnapshotLoaded(Box::new(loaded)));
                self.collect(to);
            }
        }
    }

    fn stream_ended(&mut self, stream: &Stream, delivered: bool) {
        let (from, to) = (stream.from, stream.to);
        if self.members[&from].lives == stream.from_life {
            self.input(from, Input::SnapshotSent { to, delivered });
            self.collect(from);
        }
    }

    /// Takes what a member wants done, and checks what it says of itself.
    fn collect(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let output = member.poll();
        for (to, messages) in output.messages {
            if !self.gone.contains(&to) {
                self.links.entry((id, to)).or_default().extend(messages);
            }
        }
        let mut refused = Vec::new();
        for (to, message) in output.snapshots {
            match self.members.contains_key(&to) {
                true => self.streams.push(self.members[&id].stream(to, message)),
                false => refused.push(to),
            }
        }
        for to in refused {
            let delivered = false;
            self.input(id, Input::SnapshotSent { to, delivered });
        }
        let member = &self.members[&id];
        let status = member.replica.status();
        if status.is_leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(
                leader, id,
                "seed {}: two leaders in term {}",
                self.seed, status.term
            );
        }
        let ledger = self.ledger.lock().unwrap();
        assert!(
            ledger.stale.is_empty(),
            "seed {}: {:?}",
            self.seed,
            ledger.stale
        );
        drop(ledger);
        self.end_removed(id);
    }

    fn trouble(&mut self, id: u64) {
        match self.rng.below(4) {
            0 => {
                self.cut.insert(id);
            }
            1 => self.cut.clear(),
            _ => self.crash(id),
        }
    }

    /// A member loses power and starts again.
    pub(super) fn crash(&mut self, id: u64) {
        self.crashes += 1;
        let seed = self.rng.next_u64() >> self.rng.below(64);
        let (broken, whole) = std::mem::take(&mut self.streams)
            .into_iter()
            .partition::<Vec<_>, _>(|stream| stream.to == id || stream.from == id);
        self.streams = whole;
        for stream in broken.iter().filter(|stream| stream.to == id) {
            self.stream_ended(stream, false);
        }
        drop(broken);
        for (link, queue) in &mut self.links {
            if link.0 == id || link.1 == id {
                queue.clear();
            }
        }
        if self.members.get_mut(&id).unwrap().crash(seed) {
            self.members
                .get_mut(&id)
                .unwrap()
                .strict(self.weather.strict);
            self.collect(id);
        } else {
            self.end(id);
        }
    }

    pub(super) fn crash_all(&mut self) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            self.crash(id);
        }
    }

    /// Good weather until all members agree; then everything acknowledged must
    /// be at each of them.
    pub(super) fn settle(&mut self) {
        self.cut.clear();
        self.weather.trouble_every = 0;
        self.weather.loss_percent = 0;
        for step in 0..500_000 {
            if step % 1000 == 0 {
                self.start_missing();
            }
            match self.rng.below(100) {
                0..=9 => {
                    let id = self.pick();
                    self.input(id, Input::Tick);
                    self.collect(id);
                }
                10..=44 => {
                    let id = self.pick();
                    self.deliver(id);
                    self.collect(id);
                }
                45..=69 => {
                    let id = self.pick();
                    self.members.get_mut(&id).unwrap().complete_write();
                    self.collect(id);
                }
                70..=94 => {
                    let id = self.pick();
                    self.apply(id);
                    self.collect(id);
                }
                _ => self.stream(),
            }
            if self.agrees() {
                return self.check_end();
            }
        }
        let states: Vec<_> = self.members.values().map(|m| m.replica.status()).collect();
        panic!("seed {}: no agreement: {states:#?}", self.seed);
    }

    fn agrees(&self) -> bool {
        let current = self.current();
        if current.len() != self.newest().members().count() {
            return false;
        }
        let mut statuses = current.values().map(|member| member.replica.status());
        let Some(first) = statuses.next() else {
            return true;
        };
        first.leader != 0
            && first.applied_index == first.last_index
            && first.pending_proposals == 0
            && statuses.all(|status| {
                (status.leader, status.term) == (first.leader, first.term)
                    && status.last_index == first.last_index
                    && status.applied_index == first.applied_index
                    && status.pending_proposals == 0
            })
    }

    fn check_end(&self) {
        let ledger = self.ledger.lock().unwrap();
        let mut hashes = BTreeSet::new();
        for (id, member) in self.current() {
            let view = member.view();
            hashes.insert(view.hash());
            view.check().unwrap();
            for key in &ledger.acknowledged {
                let found = view.get(&key.to_be_bytes(), |_| ()).unwrap();
                assert!(
                    found.is_some(),
                    "seed {}: write {key} is lost at {id:x}",
                    self.seed
                );
            }
        }
        assert_eq!(hashes.len(), 1, "seed {}", self.seed);
    }

    /// Acknowledged writes, served reads, snapshots taken in.
    pub(super) fn figures(&self) -> (usize, u64, u64) {
        let ledger = self.ledger.lock().unwrap();
        let installed = self.members.values().map(|member| member.installed).sum();
        (ledger.acknowledged.len(), ledger.reads_served, installed)
    }

    /// How often a change had this outcome.
    pub(super) fn changes(&self, outcome: &str) -> u64 {
        let ledger = self.ledger.lock().unwrap();
        ledger.changes.get(outcome).copied().unwrap_or(0)
    }

    /// Hash of the agreed state and the term: the same again for the same seed.
    pub(super) fn fingerprint(&self) -> Vec<(u64, u64, u128)> {
        let of = |member: &Member| {
            let status = member.replica.status();
            (status.term, status.applied_index, member.view().hash())
        };
        self.members.values().map(of).collect()
    }
}
