//! Nodes in one process, with a network of function calls.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use varve_engine::disk::{Disk, SimDisk};
use varve_engine::mvcc::{Reply, View};
use varve_raft::{
    Completion, Config, InitialCluster, Membership, Node, NodeHandle, Proposal, ReadSink,
    ReplySink, SnapshotOutcome, SnapshotStream, Transport, push_command,
};
use varve_types::{ApiError, Command, CompactionRequest, KeyRange, PutRequest};

use stores::TestStores;

mod stores;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Carries messages by calling the other node.
#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<NetworkState>>);

#[derive(Default)]
struct NetworkState {
    nodes: HashMap<u64, NodeHandle>,
    cut: HashSet<u64>,
}

impl Network {
    pub fn cut(&self, id: u64) {
        self.0.lock().unwrap().cut.insert(id);
    }
    pub fn heal(&self, id: u64) {
        self.0.lock().unwrap().cut.remove(&id);
    }
    fn reach(&self, from: u64, to: u64) -> Option<NodeHandle> {
        let state = self.0.lock().unwrap();
        let is_cut = state.cut.contains(&from) || state.cut.contains(&to);
        state.nodes.get(&to).filter(|_| !is_cut).cloned()
    }
}

struct Link {
    from: u64,
    network: Network,
}

impl Transport for Link {
    fn send(&mut self, to: u64, messages: Vec<Bytes>) {
        if let Some(node) = self.network.reach(self.from, to) {
            for message in messages {
                node.peer_messages(self.from, [message]);
            }
        }
    }
    fn members_changed(&mut self, _members: &Membership) {}

    fn send_snapshot(&mut self, to: u64, mut stream: Box<dyn SnapshotStream>) {
        let Some(node) = self.network.reach(self.from, to) else {
            return stream.finished(SnapshotOutcome::Broken);
        };
        let from = self.from;
        std::thread::spawn(move || {
            let Ok(mut receiver) = node.snapshot_receiver(from, &stream.announcement()) else {
                return stream.finished(SnapshotOutcome::Refused);
            };
            stream.go_on_from(&receiver.position()).unwrap();
            while let Some(chunk) = stream.next_chunk().unwrap() {
                if receiver.chunk(&chunk).is_err() {
                    return stream.finished(SnapshotOutcome::Refused);
                }
            }
            stream.finished(match receiver.finish() {
                Ok(()) => SnapshotOutcome::Delivered,
                Err(_) => SnapshotOutcome::Refused,
            });
        });
    }
}

/// Some members, each with a disk of its own.
pub struct Cluster {
    pub network: Network,
    pub members: BTreeMap<String, Member>,
    initial: InitialCluster,
}

pub struct Member {
    pub node: Option<Node>,
    pub disk: SimDisk,
    pub stores: TestStores,
    pub config: Config,
}

impl Cluster {
    pub fn start(size: usize, adjust: impl Fn(&mut Config)) -> Self {
        let url = |i: usize| format!("http://10.0.0.{}:2380", i + 1);
        let list: Vec<String> = (0..size).map(|i| format!("n{i}={}", url(i))).collect();
        let initial = InitialCluster::parse(&list.join(",")).unwrap();
        let mut cluster = Self {
            network: Network::default(),
            members: BTreeMap::new(),
            initial,
        };
        for i in 0..size {
            let (disk, stores) = (SimDisk::new(), TestStores::default());
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            let mut config = Config::new("/data", shared.clone(), stores.opener(shared));
            config.name = format!("n{i}");
            config.advertise_peer_urls = vec![url(i)];
            config.initial_cluster = cluster.initial.clone();
            config.heartbeat_interval = Duration::from_millis(20);
            config.election_timeout = Duration::from_millis(200);
            config.wal_segment_bytes = 1 << 20;
            adjust(&mut config);
            let name = config.name.clone();
            cluster.members.insert(
                name.clone(),
                Member {
                    node: None,
                    disk,
                    stores,
                    config,
                },
            );
            cluster.boot(&name);
        }
        cluster
    }

    pub fn boot(&mut self, name: &str) {
        let config = self.members[name].config.clone();
        let id = self.id(name);
        let link = Box::new(Link {
            from: id,
            network: self.network.clone(),
        });
        let node = Node::start(config, link, Box::new(())).unwrap();
        self.network
            .0
            .lock()
            .unwrap()
            .nodes
            .insert(id, node.handle().clone());
        self.members.get_mut(name).unwrap().node = Some(node);
    }

    fn id(&self, name: &str) -> u64 {
        let membership = self.initial.membership("etcd-cluster").unwrap();
        membership.members().find(|m| m.name == name).unwrap().id
    }

    /// Stops a member without a checkpoint, as far as its disk is concerned, by a
    /// power loss.
    pub fn crash(&mut self, name: &str, seed: u64) {
        let id = self.id(name);
        self.network.0.lock().unwrap().nodes.remove(&id);
        let member = self.members.get_mut(name).unwrap();
        let disk = member.disk.crash_now(seed);
        let stores = member.stores.after_power_loss();
        drop(member.node.take());
        member.stores = stores;
        member.disk = disk.clone();
        let shared: Arc<dyn Disk> = Arc::new(disk);
        member.config.open_store = member.stores.opener(shared.clone());
        member.config.disk = shared;
    }

    pub fn handle(&self, name: &str) -> NodeHandle {
        self.members[name].node.as_ref().unwrap().handle().clone()
    }

    pub fn leader(&self) -> String {
        wait("a leader", || {
            self.members.iter().find_map(|(name, member)| {
                let status = member.node.as_ref()?.handle().status();
                (status.leader == status.member_id).then(|| name.clone())
            })
        })
    }

    /// Waits until all running members have applied as much as the furthest, and
    /// compares their hashes.
    pub fn settle(&self) {
        let running = || self.members.values().filter_map(|m| m.node.as_ref());
        wait("equal applied indexes", || {
            let mut indexes = running().map(|node| node.handle().view().applied().index);
            let first = indexes.next()?;
            indexes.all(|index| index == first).then_some(())
        });
        let hashes: HashSet<u128> = running().map(|node| node.handle().view().hash()).collect();
        assert_eq!(hashes.len(), 1);
    }
}

pub fn wait<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Reply1(Sender<Result<Completion, ApiError>>);

impl ReplySink for Reply1 {
    fn complete(self: Box<Self>, completion: Completion) {
        let _ = self.0.send(Ok(completion));
    }
    fn refuse(self: Box<Self>, error: ApiError) {
        let _ = self.0.send(Err(error));
    }
}

struct Read1(Sender<Result<Arc<View>, ApiError>>);

impl ReadSink for Read1 {
    fn ready(self: Box<Self>, view: Arc<View>, _term: u64) {
        let _ = self.0.send(Ok(view));
    }
    fn refuse(self: Box<Self>, error: ApiError) {
        let _ = self.0.send(Err(error));
    }
}

/// Proposes commands and returns where the answer will come.
pub fn propose(
    node: &NodeHandle,
    commands: &[Command<'_>],
) -> Receiver<Result<Completion, ApiError>> {
    let mut bytes = Vec::new();
    for command in commands {
        let mut body = Vec::new();
        command.encode_body(&mut body);
        push_command(&mut bytes, command.opcode(), &body);
    }
    let (sender, receiver) = channel();
    let count = commands.len() as u32;
    node.propose(Proposal {
        commands: bytes.into(),
        count,
        reply_bytes: 0,
        sink: Box::new(Reply1(sender)),
    });
    receiver
}

pub fn command<'a>(key: &'a [u8], value: &'a [u8]) -> Command<'a> {
    Command::Put(PutRequest {
        key,
        value,
        ..PutRequest::default()
    })
}

/// Puts and waits for the answer.
pub fn put(node: &NodeHandle, key: &[u8], value: &[u8]) -> Result<Reply, ApiError> {
    let answer = propose(node, &[command(key, value)])
        .recv_timeout(PATIENCE)
        .unwrap();
    answer.map(|mut completion| completion.replies.remove(0))
}

/// Puts until it works.
pub fn put_for_sure(node: &NodeHandle, key: &[u8], value: &[u8]) -> Reply {
    wait("a put", || put(node, key, value).ok())
}

pub fn compact(node: &NodeHandle, revision: i64) {
    let request = CompactionRequest {
        revision,
        physical: false,
    };
    let answer = propose(node, &[Command::Compaction(request)]);
    answer.recv_timeout(PATIENCE).unwrap().unwrap();
}

/// A view for a linearizable read.
pub fn read(node: &NodeHandle) -> Result<Arc<View>, ApiError> {
    let (sender, receiver) = channel();
    node.read(Box::new(Read1(sender)));
    receiver.recv_timeout(PATIENCE).unwrap()
}

pub fn value(view: &View, key: &[u8]) -> Option<Vec<u8>> {
    view.get(key, |kv| kv.value.to_vec()).unwrap()
}

pub fn keys(view: &View) -> i64 {
    view.count(KeyRange::new(b"\0", b"\0"), 0).unwrap()
}
