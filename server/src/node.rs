//! A node, assembled: data directory, replica, ports, and their end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use varve_engine::mvcc::Limits;
use varve_raft::{
    Completion, Healing, InitialCluster, Node, NodeHandle, Proposal, RaftError, ReplySink,
};
use varve_types::{ApiError, Command, MemberAttributes};

use crate::client_port::ClientPort;
use crate::config::{ClusterState, Config, Url, join};
use crate::data_dir::{DataDir, DataDirError};
use crate::heal;
use crate::join::{self, Place};
use crate::leave::{self, Leave};
use crate::metrics::Metrics;
use crate::peer::{PeerPort, Peers};
use crate::rate_limit::LogLimit;
use crate::service::{RequestLimits, Service};
use crate::storage::Storage;
use crate::watch::Hub;

/// How long answers that are ready may take to leave before the process ends.
const FLUSH_TIME: Duration = Duration::from_millis(100);
/// How long requests that are on their way may take to come in and be turned away.
const TURN_AWAY_TIME: Duration = Duration::from_millis(50);
/// How long a removed member still answers, as in etcd.
const REMOVED_TIME: Duration = Duration::from_secs(1);
/// Pause between attempts to publish this member's name and URLs.
const PUBLISH_PAUSE: Duration = Duration::from_millis(100);
/// One line about failed health checks in this time.
const HEALTH_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is checked whether the replica still runs.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Why a node could not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The data directory can't be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A port can't be listened on.
    #[error("cannot listen for {whom} on {url}: {source}")]
    Listen {
        /// Clients or members.
        whom: &'static str,
        /// The URL.
        url: String,
        /// The system's error.
        source: io::Error,
    },
    /// A listen URL is no address.
    #[error("{0}")]
    Url(String),
    /// The replica did not start, or failed.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The cluster in which this member was to start does not want it.
    #[error("{0}")]
    Join(String),
    /// This member is damaged, and does not heal by itself.
    #[error("this member is damaged: {found}. {why}")]
    Damaged {
        /// What was found: segment, offset, page.
        found: String,
        /// Why it does not heal, and what to do.
        why: String,
    },
    /// Something of the process.
    #[error("{action}: {source}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// A node that serves.
pub struct RunningNode {
    node: Node,
    service: Arc<Service>,
    tasks: JoinSet<()>,
    /// Held until the end, with its lock.
    _data_dir: DataDir,
}

impl RunningNode {
    /// Opens everything and starts to serve; before that, a damaged member is healed as
    /// far as it takes the cluster for that. Must run on a runtime, on a thread that may block.
    pub async fn start(config: &Config) -> Result<Self, NodeError> {
        Self::start_on(config, |config| Storage::open(config.disk)).await
    }

    /// The same, on another disk.
    pub async fn start_on(
        config: &Config,
        storage: impl FnOnce(&Config) -> Storage,
    ) -> Result<Self, NodeError> {
        Self::start_after(config, storage, None).await
    }

    /// The same after it ran, and something of it was found damaged: what.
    pub async fn start_damaged(config: &Config, found: String) -> Result<Self, NodeError> {
        let storage = |config: &Config| Storage::open(config.disk);
        Self::start_after(config, storage, Some(found)).await
    }

    async fn start_after(
        config: &Config,
        storage: impl FnOnce(&Config) -> Storage,
        mut found: Option<String>,
    ) -> Result<Self, NodeError> {
        let data_dir = DataDir::open(&config.data_dir)?;
        let storage = storage(config);
        let ports = Ports {
            clients: listen("clients", &config.listen_client_urls).await?,
            members: listen("members", &config.listen_peer_urls).await?,
        };
        let started = Instant::now();
        loop {
            let mut raft = raft_config(config, &data_dir, &storage);
            if let Some(found) = found.take() {
                let mut damaged = Healing::damaged_member(&raft);
                if damaged.is_none() && config.auto_heal {
                    // The others know whose place it is.
                    let place = join::look_around(config, &ports).await;
                    if let Place::Lost(lost) = place.map_err(NodeError::Join)? {
                        damaged = Some(lost.damaged);
                    }
                }
                heal::begin(config, &raft, damaged, &found)?;
            }
            if Healing::under_way(&raft)?.is_none() && !data_dir.has_member() {
                match join::look_around(config, &ports)
                    .await
                    .map_err(NodeError::Join)?
                {
                    Place::Form => {}
                    Place::Join(joining) => raft.join = Some(joining),
                    Place::Lost(lost) => {
                        heal::begin(config, &raft, Some(lost.damaged), &lost.reason)?;
                    }
                }
            }
            if let Some(healing) = Healing::under_way(&raft)? {
                heal::rejoin(config, &raft, &healing, &ports).await?;
                raft = raft_config(config, &data_dir, &storage);
            }
            let engine = varve_raft::engine_of(&raft);
            match Self::open(config, raft, &storage, &ports).await {
                Err(NodeError::Raft(error))
                    if heal::is_damage_at_start(config, engine.as_deref(), &error) =>
                {
                    found = Some(error.to_string());
                }
                Err(error) => return Err(error),
                Ok((node, service, tasks)) => {
                    let mut running = Self {
                        node,
                        service,
                        tasks,
                        _data_dir: data_dir,
                    };
                    running.watch_healing(started);
                    if config.auto_heal {
                        running.watch_corruption();
                    }
                    return Ok(running);
                }
            }
        }
    }

    /// Says when a member that takes the place of a damaged one has its vote.
    fn watch_healing(&mut self, started: Instant) {
        let service = Arc::clone(&self.service);
        let Some(damaged) = service.healed_from else {
            return;
        };
        self.tasks.spawn(async move {
            while service.healing().is_some() {
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
            tracing::info!(
                "healed: member {:x} votes in the place of the damaged {damaged:x}, {:.1?} after \
                 this start",
                service.member_id,
                started.elapsed()
            );
        });
    }

    /// Has a member heal whose state differs from a majority's. Otherwise it stays as it
    /// is, with the alarm, and serves nothing.
    fn watch_corruption(&mut self) {
        let node = self.node.handle().clone();
        self.tasks.spawn(async move {
            while !node.is_corrupt() {
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
            node.report_damage(
                "its state differs from that of a majority of the members (alarm CORRUPT)"
                    .to_owned(),
            );
        });
    }

    async fn open(
        config: &Config,
        raft: varve_raft::Config,
        storage: &Storage,
        ports: &Ports,
    ) -> Result<(Node, Arc<Service>, JoinSet<()>), NodeError> {
        let metrics = Arc::new(Metrics::default());
        let hub = Arc::new(Hub::default());
        let peers = Peers::new(
            Handle::current(),
            Arc::clone(&metrics),
            config.snapshot_rate_limit_mib << 20,
        );
        let healed_from = varve_raft::healed_from(&raft);
        let damaged_sets = varve_raft::set_aside(&raft)?;
        if !damaged_sets.is_empty() {
            tracing::warn!(
                "{} has {} sets of damaged files ({}); remove them when nobody wants to look at \
                 them any more",
                raft.data_dir.display(),
                damaged_sets.len(),
                damaged_sets.join(", ")
            );
        }
        let (transport, watchers) = (peers.transport(), hub.feed());
        let node = tokio::task::spawn_blocking(move || Node::start(raft, transport, watchers))
            .await
            .map_err(|error| RaftError::Stopped(error.to_string()))??;
        let handle = node.handle().clone();
        peers.set_node(handle.clone());

        let service = Arc::new(Service {
            cluster_id: handle.cluster_id(),
            member_id: handle.member_id(),
            hub: Arc::clone(&hub),
            metrics,
            limits: RequestLimits {
                request_bytes: config.max_request_bytes as usize,
                store: Limits {
                    max_txn_ops: config.max_txn_ops as usize,
                },
                progress_interval: config.watch_progress_interval,
            },
            name: config.name.clone(),
            engine: config.engine.name(),
            health_log: LogLimit::new(HEALTH_LOG_INTERVAL),
            disk: storage.disk.name(),
            disk_fallback: storage.fallback.is_some(),
            draining: AtomicBool::new(false),
            leave: Leave::default(),
            healed_from,
            damaged_sets: damaged_sets.len(),
            node: handle,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(hub.run());
        let client_port = ClientPort::new(Arc::clone(&service), config.max_connections);
        for listener in &ports.clients {
            tasks.spawn(Arc::clone(&client_port).run(Arc::clone(listener)));
        }
        let peer_port = PeerPort::new(&peers, Arc::clone(&service));
        for listener in &ports.members {
            tasks.spawn(Arc::clone(&peer_port).run(Arc::clone(listener)));
        }
        Ok((node, service, tasks))
    }

    /// What can be asked of it.
    pub fn handle(&self) -> &NodeHandle {
        self.node.handle()
    }

    /// What its ports share.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Makes this member's name and client URLs known to the cluster, and so
    /// waits until there is a leader and a write works.
    pub async fn publish(handle: NodeHandle, name: String, client_urls: Vec<Url>) {
        let attributes = MemberAttributes {
            member_id: handle.member_id(),
            name,
            client_urls: client_urls
                .iter()
                .map(|url| url.as_str().to_owned())
                .collect(),
        };
        let known = |handle: &NodeHandle| {
            handle
                .members()
                .get(attributes.member_id)
                .is_some_and(|member| {
                    member.name == attributes.name && member.client_urls == attributes.client_urls
                })
        };
        let command = Command::MemberAttributes(attributes.clone());
        let mut body = Vec::new();
        command.encode_body(&mut body);
        let mut commands = Vec::new();
        commands.extend_from_slice(&(body.len() as u32 + 1).to_le_bytes());
        commands.push(command.opcode());
        commands.extend_from_slice(&body);
        let commands = Bytes::from(commands);
        // A member that published the same before its restart still has to find a leader.
        while !known(&handle) || handle.status().leader == 0 {
            if handle.status().leader != 0 {
                let (sender, done) = oneshot::channel();
                handle.propose(Proposal {
                    commands: commands.clone(),
                    count: 1,
                    reply_bytes: 0,
                    sink: Box::new(Published(sender)),
                });
                match done.await {
                    Ok(Ok(())) => return,
                    Ok(Err(ApiError::Stopped)) | Err(_) => return,
                    Ok(Err(error)) => tracing::debug!("cannot publish this member yet: {error}"),
                }
            }
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
    }

    /// Waits until the replica fails by itself.
    pub async fn failed(handle: NodeHandle) -> String {
        loop {
            if let Some(reason) = handle.failure() {
                return reason;
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    /// Waits until something of this member is found damaged, by whoever reads it or by
    /// the scrub, and the others can go on without it; what. Until then, and if it does
    /// not heal by itself, it serves what is whole.
    pub async fn damaged(service: Arc<Service>, config: &Config) -> String {
        let handle = &service.node;
        let mut last = String::new();
        loop {
            match handle.found_damage() {
                Some(found) if config.auto_heal => {
                    let Err(waits_for) = service.leave.ask(handle).await else {
                        return found;
                    };
                    if waits_for != last {
                        tracing::warn!("damage was found, and this member stays: {waits_for}");
                        last = waits_for;
                    }
                }
                Some(_) => leave::lead_no_more(handle).await,
                None => {}
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    /// Waits until this member has been removed from the cluster, and a little longer:
    /// whoever asked for it may wait for the answer.
    pub async fn removed(handle: NodeHandle) {
        while !handle.is_removed() {
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
        tokio::time::sleep(REMOVED_TIME).await;
    }

    /// Hands leadership over, sends new requests to other members, answers those that
    /// are here, and stops the replica.
    pub async fn stop(mut self) -> Result<(), NodeError> {
        let (node, service) = (self.node, Arc::clone(&self.service));
        let ending = tokio::task::spawn_blocking(move || {
            node.hand_over();
            service.drain();
            std::thread::sleep(TURN_AWAY_TIME);
            node.drain();
            // Answers that are ready leave while others are still turned away.
            std::thread::sleep(FLUSH_TIME);
            node.shutdown()
        });
        let stopped = ending
            .await
            .map_err(|error| RaftError::Stopped(error.to_string()))?;
        self.tasks.shutdown().await;
        Ok(stopped?)
    }
}

/// Tells when the publication is applied.
struct Published(oneshot::Sender<Result<(), ApiError>>);

impl ReplySink for Published {
    fn complete(self: Box<Self>, _completion: Completion) {
        // The node may be on its way down, with nobody waiting.
        let _ = self.0.send(Ok(()));
    }

    fn refuse(self: Box<Self>, error: ApiError) {
        let _ = self.0.send(Err(error));
    }
}

/// The ports, open for as long as the process lives.
pub(crate) struct Ports {
    pub(crate) clients: Vec<Arc<TcpListener>>,
    pub(crate) members: Vec<Arc<TcpListener>>,
}

async fn listen(whom: &'static str, urls: &[Url]) -> Result<Vec<Arc<TcpListener>>, NodeError> {
    let mut listeners = Vec::new();
    for url in urls {
        let address = url.bind_address().map_err(NodeError::Url)?;
        let failed = |source| NodeError::Listen {
            whom,
            url: url.to_string(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound: SocketAddr = listener.local_addr().map_err(failed)?;
        tracing::info!("listening for {whom} on {bound}");
        listeners.push(Arc::new(listener));
    }
    Ok(listeners)
}

fn raft_config(config: &Config, data_dir: &DataDir, storage: &Storage) -> varve_raft::Config {
    let texts = |urls: &[Url]| urls.iter().map(|url| url.as_str().to_owned()).collect();
    // Where the operator names no cluster, the directory says whose it is.
    // Whoever joined one has its id from there, not from the flags.
    let joined = config.initial_cluster_state == ClusterState::Existing;
    let named = !data_dir.has_member() || ((config.cluster_given || config.token_given) && !joined);
    let initial_cluster = if named {
        config.initial_cluster.clone()
    } else {
        InitialCluster::single("", join(&config.advertise_peer_urls))
    };
    varve_raft::Config {
        name: config.name.clone(),
        wal_dir: config.wal_dir.clone(),
        advertise_peer_urls: texts(&config.advertise_peer_urls),
        initial_cluster,
        strict_reconfig_check: config.strict_reconfig_check,
        max_learners: config.max_learners.into(),
        initial_cluster_token: config.initial_cluster_token.clone(),
        heartbeat_interval: Duration::from_millis(config.heartbeat_ms),
        election_timeout: Duration::from_millis(config.election_ms),
        snapshot_catchup_entries: config.snapshot_catchup_entries,
        snapshot_count: config.snapshot_count,
        scrub_interval: config.scrub_interval,
        corrupt_check_time: config.corrupt_check_time,
        force_new_cluster: config.force_new_cluster,
        initial_corrupt_check: config.initial_corrupt_check,
        ..varve_raft::Config::new(
            data_dir.path(),
            Arc::clone(&storage.disk),
            storage.opener(config.engine, config.value_compression),
        )
    }
}
