//! Disks that hang or are slow, one at a time: whole nodes on sockets, each with a
//! runtime of its own and a disk that waits when it is told to.

mod common;
#[path = "common/gated_disk.rs"]
mod gated_disk;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE, http_get, put, wait_until};
use gated_disk::{Gate, GatedDisk};
use tokio::runtime::Runtime;
use varve::config::{self, Invocation};
use varve::node::RunningNode;
use varve::storage::Storage;
use varve_client::Client;

/// The election timeout that members have by default.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(1000);

struct Node {
    gate: Arc<Gate>,
    running: RunningNode,
    runtime: Runtime,
    client_port: u16,
}

/// Three nodes in this process. The ports and directories are a [`Cluster`]'s.
struct Nodes {
    nodes: Vec<Node>,
    clients: Runtime,
    cluster: Cluster,
}

impl Nodes {
    fn start() -> Self {
        let cluster = Cluster::prepare(3, &[]);
        let start = &|index: usize| {
            let config = match config::load(&cluster.arguments(index), std::iter::empty()) {
                Ok(Invocation::Run(config)) => config,
                _ => panic!("the arguments are those of every node"),
            };
            let gate = Arc::new(Gate::default());
            let disk = Arc::new(GatedDisk::new(gate.clone()));
            let runtime = Runtime::new().unwrap();
            let storage = Storage {
                disk,
                fallback: None,
            };
            let starting = RunningNode::start_on(&config, |_| storage);
            let running = runtime.block_on(starting).unwrap();
            Node {
                gate,
                running,
                runtime,
                client_port: cluster.members[index].client_port,
            }
        };
        // At the same time: none serves before a quorum has told it that it is new.
        let nodes = std::thread::scope(|scope| {
            let starting = [0, 1, 2].map(|index| scope.spawn(move || start(index)));
            starting.map(|node| node.join().unwrap()).into()
        });
        let nodes = Self {
            nodes,
            clients: Runtime::new().unwrap(),
            cluster,
        };
        for node in &nodes.nodes {
            wait_until("a node is ready", || node.ready().0);
        }
        nodes
    }

    fn leader(&self) -> usize {
        let leads = |node: &Node| {
            let handle = node.running.handle();
            handle.status().leader == handle.member_id()
        };
        self.nodes
            .iter()
            .position(leads)
            .expect("there is a leader")
    }

    fn client(&self, indexes: &[usize]) -> Client {
        let endpoints: Vec<_> = indexes
            .iter()
            .map(|index| self.cluster.members[*index].endpoint())
            .collect();
        common::client(&endpoints)
    }

    fn term(&self) -> u64 {
        let terms = self.nodes.iter().map(|node| node.running.handle().term());
        terms.max().unwrap()
    }

    /// Writes with some clients for a while; the latencies, sorted. None may fail.
    fn load(&self, at: &[usize], clients: usize, time: Duration) -> Vec<Duration> {
        let stop = Arc::new(AtomicBool::new(false));
        let write = |number: usize| {
            let (client, stop) = (self.client(&[at[number % at.len()]]), stop.clone());
            self.clients.spawn(async move {
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let key = format!("load/{number}/{}", latencies.len());
                    put(&client, &key, "v").await.unwrap();
                    latencies.push(begun.elapsed());
                }
                latencies
            })
        };
        let tasks: Vec<_> = (0..clients).map(write).collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(self.clients.block_on(task).unwrap());
        }
        latencies.sort_unstable();
        latencies
    }

    /// All have the same revision and hash.
    fn assert_same_state(&self) {
        wait_until("the members agree", || {
            let states = self.nodes.iter().map(|node| {
                let view = node.running.handle().view();
                (view.revision(), view.hash())
            });
            let states: Vec<_> = states.collect();
            states.iter().all(|state| *state == states[0])
        });
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in self.nodes.drain(..) {
            node.gate.open();
            let stopped = node.runtime.block_on(node.running.stop());
            node.runtime.shutdown_background();
            if !std::thread::panicking() {
                stopped.unwrap();
            }
        }
    }
}

impl Node {
    /// Whether `/readyz` says so, and what else it says.
    fn ready(&self) -> (bool, String) {
        let (status, body) = http_get(self.client_port, "/readyz?verbose");
        (status.contains(" 200 "), body)
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, page) = http_get(self.client_port, "/metrics");
        let mut lines = page.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {name}"))
            .parse()
            .unwrap()
    }
}

/// Time until a put is acknowledged at one of the clients that was begun after `since`.
async fn next_put(clients: [Client; 2], since: Instant) -> Duration {
    let (acknowledged, mut first) = tokio::sync::mpsc::channel(1);
    for client in clients.iter().cycle() {
        let (client, acknowledged) = (client.clone(), acknowledged.clone());
        tokio::spawn(async move {
            if put(&client, "after", "v").await.is_ok() {
                // Only the first counts.
                let _ = acknowledged.try_send(since.elapsed());
            }
        });
        let pause = tokio::time::timeout(Duration::from_millis(20), first.recv());
        if let Ok(Some(pause)) = pause.await {
            return pause;
        }
        assert!(since.elapsed() < PATIENCE, "writes do not go on");
    }
    unreachable!("there are clients")
}

#[test]
fn a_leader_whose_disk_hangs_makes_way_in_three_election_timeouts() {
    let nodes = Nodes::start();
    for round in 0..3 {
        let old = nodes.leader();
        let (a, b) = ((old + 1) % 3, (old + 2) % 3);
        nodes.load(&[a, b, old], 6, Duration::from_millis(300));
        let stuck = &nodes.nodes[old];
        let old_id = stuck.running.handle().member_id();

        let since = Instant::now();
        stuck.gate.shut();
        // Followers' requests make the leader write. One client asks the leader first.
        let clients = [nodes.client(&[a]), nodes.client(&[b])];
        let writing = nodes.clients.spawn(next_put(clients, since));
        let its_client = nodes.client(&[old, a, b]);
        let its_put = nodes.clients.spawn(async move {
            while put(&its_client, "its", "v").await.is_err() {
                assert!(since.elapsed() < PATIENCE, "writes do not go on");
            }
            since.elapsed()
        });
        let leaders = || [a, b].map(|index| nodes.nodes[index].running.handle().status().leader);
        while leaders().iter().any(|leader| [0, old_id].contains(leader)) {
            assert!(since.elapsed() < PATIENCE, "{:x?}", leaders());
            std::thread::sleep(Duration::from_millis(2));
        }
        let elected = since.elapsed();
        let written = nodes.clients.block_on(writing).unwrap();
        let its_put = nodes.clients.block_on(its_put).unwrap();
        println!(
            "round {round}: disk stuck; another leader after {elected:?}, next put of a follower's \
             client after {written:?}, of its own after {its_put:?}"
        );
        let written = written.max(its_put);
        assert!(elected <= 3 * ELECTION_TIMEOUT, "{elected:?}");
        assert!(written <= Duration::from_secs(5), "{written:?}");

        // It says so, at once, and sends its clients elsewhere.
        let asked = Instant::now();
        let (is_ready, checks) = stuck.ready();
        assert!(!is_ready && checks.contains("[-]disk failed"), "{checks}");
        assert!(http_get(stuck.client_port, "/livez").0.contains(" 200 "));
        assert!(http_get(stuck.client_port, "/health").0.contains(" 503 "));
        assert_eq!(stuck.metric("varve_disk_stuck"), 1.0);
        let turned_away = nodes.client(&[old, a]);
        let turned_away = put(&turned_away, "elsewhere", "v");
        nodes.clients.block_on(turned_away).unwrap();
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "{:?}",
            asked.elapsed()
        );

        stuck.gate.open();
        wait_until("the member is ready again", || stuck.ready().0);
        assert_eq!(stuck.metric("varve_disk_stuck"), 0.0);
        assert!(stuck.metric("varve_disk_stalls_total") >= 1.0);
        nodes.assert_same_state();
    }
}

/// How long disks have spikes: longer by hand, with `VARVE_TEST_SPIKE_SECONDS`.
fn spike_time() -> Duration {
    let text = std::env::var("VARVE_TEST_SPIKE_SECONDS");
    Duration::from_secs(text.map_or(20, |text| text.parse().unwrap()))
}

#[test]
fn syncs_of_half_a_second_make_no_other_leader() {
    let nodes = Nodes::start();
    let (leader, term) = (nodes.leader(), nodes.term());
    let started = Instant::now();
    let mut spikes = [0; 3];
    std::thread::scope(|scope| {
        let writers = scope.spawn(|| nodes.load(&[0, 1, 2], 9, spike_time()));
        // One after the other, with time between them to catch up.
        for index in (0..3).cycle() {
            if started.elapsed() + Duration::from_secs(1) > spike_time() {
                break;
            }
            let gate = &nodes.nodes[index].gate;
            gate.spike(Duration::from_millis(500));
            wait_until("the spike has hit", || gate.has_spiked());
            spikes[index] += 1;
            std::thread::sleep(Duration::from_millis(800));
        }
        let latencies = writers.join().unwrap();
        println!(
            "{} puts, {spikes:?} spikes, slowest put {:?}",
            latencies.len(),
            latencies.last().unwrap()
        );
    });
    assert!(spikes.iter().all(|count| *count > 0), "{spikes:?}");
    assert_eq!((nodes.leader(), nodes.term()), (leader, term));
    nodes.assert_same_state();
}

#[test]
fn a_slow_disk_of_a_follower_does_not_slow_puts() {
    let nodes = Nodes::start();
    let leader = nodes.leader();
    let (slow, fast) = ((leader + 1) % 3, (leader + 2) % 3);
    let p99 = |delay| {
        nodes.nodes[slow].gate.delay(delay);
        let latencies = nodes.load(&[leader, fast], 8, Duration::from_secs(3));
        latencies[latencies.len() * 99 / 100]
    };
    p99(Duration::ZERO); // warm
    let before = p99(Duration::ZERO);
    let meanwhile = p99(Duration::from_millis(100));
    println!("p99 of puts {before:?}; with a follower whose syncs take 100 ms {meanwhile:?}");
    // Far below the 100 ms that a put would take that waits for it; others use this machine, too.
    assert!(
        meanwhile <= (2 * before).max(Duration::from_millis(50)),
        "{meanwhile:?}"
    );
    nodes.nodes[slow].gate.delay(Duration::ZERO);
    nodes.assert_same_state();
}
