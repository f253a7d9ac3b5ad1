//! Messages and snapshots between members, over TCP.
//!
//! Each member opens one connection to every other for its messages, and one
//! for each snapshot that it sends; it accepts the same from them. So nothing
//! small waits behind a snapshot, and messages of one direction have one order.
//!
//! Invariants:
//! - messages to a member arrive in the order they were sent, or not at all: what
//!   a broken connection still held is dropped, and a connection that was
//!   replaced hands nothing over any more;
//! - what waits to be sent is bounded in bytes; past it messages are dropped and
//!   the member is reported unreachable, as Raft sends again.

mod accept;
mod handshake;
mod link;
mod snapshot_in;
mod snapshot_out;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use varve_raft::{NodeHandle, SnapshotStream, Transport};

use crate::metrics::Metrics;
use crate::rate_limit::LogLimit;
use link::Link;

pub use accept::PeerPort;

/// How long a connection attempt, a handshake or a write may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// One line about each kind of trouble in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// What the parts of the transport share.
pub(crate) struct Shared {
    runtime: Handle,
    metrics: Arc<Metrics>,
    /// Set once the replica runs; before that nothing is sent.
    node: OnceLock<NodeHandle>,
    log_limit: LogLimit,
    snapshots: AtomicU64,
}

impl Shared {
    fn next_snapshot(&self) -> u64 {
        self.snapshots.fetch_add(1, Ordering::Relaxed)
    }

    /// This cluster; 0 until the replica runs.
    fn cluster_id(&self) -> u64 {
        self.node.get().map_or(0, NodeHandle::cluster_id)
    }

    /// This member; 0 until the replica runs.
    fn member_id(&self) -> u64 {
        self.node.get().map_or(0, NodeHandle::member_id)
    }

    /// Where a member is reached, by the newest membership.
    fn urls_of(&self, member: u64) -> Vec<String> {
        self.node
            .get()
            .and_then(|node| node.members().get(member).map(|m| m.peer_urls.clone()))
            .unwrap_or_default()
    }

    fn unreachable(&self, member: u64) {
        if let Some(node) = self.node.get() {
            node.peer_unreachable(member);
        }
    }
}

/// The transport as the server holds it, before and beside the replica.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

impl Peers {
    /// A transport whose tasks run on `runtime`.
    pub fn new(runtime: Handle, metrics: Arc<Metrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                runtime,
                metrics,
                node: OnceLock::new(),
                log_limit: LogLimit::new(LOG_INTERVAL),
                snapshots: AtomicU64::new(1),
            }),
        }
    }

    /// The side that the replica holds.
    pub fn transport(&self) -> Box<dyn Transport> {
        Box::new(Outgoing {
            shared: Arc::clone(&self.shared),
            links: HashMap::new(),
        })
    }

    /// Tells the transport where to report to.
    pub fn set_node(&self, node: NodeHandle) {
        // The first one stays: a node has one transport for its life.
        let _ = self.shared.node.set(node);
    }
}

/// What the replica sends through.
struct Outgoing {
    shared: Arc<Shared>,
    links: HashMap<u64, Arc<Link>>,
}

impl Transport for Outgoing {
    fn send(&mut self, to: u64, messages: Vec<Bytes>) {
        self.links
            .entry(to)
            .or_insert_with(|| Link::start(&self.shared, to))
            .push(messages, &self.shared.metrics);
    }

    fn send_snapshot(&mut self, to: u64, stream: Box<dyn SnapshotStream>) {
        let shared = Arc::clone(&self.shared);
        self.shared
            .runtime
            .spawn(async move { snapshot_out::send(&shared, to, stream).await });
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        for link in self.links.values() {
            link.close();
        }
    }
}
