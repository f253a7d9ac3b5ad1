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
mod pace;
mod snapshot_in;
mod snapshot_out;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use varve_protocol::peer::Refusal;
use varve_raft::{Membership, NodeHandle, SnapshotStream, Transport};

use crate::metrics::Metrics;
use crate::rate_limit::LogLimit;
use handshake::PeerError;
use link::Link;
use pace::Pace;

pub use accept::PeerPort;

/// How long a connection attempt, a handshake or a write may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Members that may introduce themselves before the membership has them.
const MAX_NEWCOMERS: usize = 64;
/// One line about each kind of trouble in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// What the parts of the transport share.
pub(crate) struct Shared {
    runtime: Handle,
    metrics: Arc<Metrics>,
    /// Set once the replica runs; before that nothing is sent.
    node: OnceLock<NodeHandle>,
    log_limit: LogLimit,
    /// All snapshots that leave keep to it.
    snapshot_pace: Pace,
    /// URLs of members that connected and that the membership does not have yet.
    newcomers: Mutex<HashMap<u64, Vec<String>>>,
    /// Counts changes of the membership.
    changes: watch::Sender<u64>,
}

impl Shared {
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
        let members = self.node.get().map(NodeHandle::members);
        let known = members.and_then(|members| Some(members.get(member)?.peer_urls.clone()));
        known
            .or_else(|| self.newcomers().get(&member).cloned())
            .unwrap_or_default()
    }

    /// This member's own peer URLs.
    fn own_urls(&self) -> Vec<String> {
        self.urls_of(self.member_id())
    }

    fn newcomers(&self) -> MutexGuard<'_, HashMap<u64, Vec<String>>> {
        self.newcomers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Notes that another member refused this one; as removed, if that is why.
    fn refused_by(&self, error: &PeerError) {
        if let PeerError::RefusedByPeer(Refusal::Removed { member }) = error
            && *member == self.member_id()
            && let Some(node) = self.node.get()
        {
            node.told_removed();
        }
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
    /// A transport whose tasks run on `runtime`. Snapshots leave at no more than so
    /// many bytes a second, all together; 0 is no limit.
    pub fn new(runtime: Handle, metrics: Arc<Metrics>, snapshot_bytes_per_second: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                runtime,
                metrics,
                node: OnceLock::new(),
                log_limit: LogLimit::new(LOG_INTERVAL),
                snapshot_pace: Pace::new(snapshot_bytes_per_second),
                newcomers: Mutex::default(),
                changes: watch::Sender::new(0),
            }),
        }
    }

    /// The side that the replica holds.
    pub fn transport(&self) -> Box<dyn Transport> {
        Box::new(Outgoing {
            shared: Arc::clone(&self.shared),
            links: HashMap::new(),
            urls: HashMap::new(),
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
    /// Where the members were at the last change.
    urls: HashMap<u64, Vec<String>>,
}

impl Transport for Outgoing {
    fn send(&mut self, to: u64, messages: Vec<Bytes>) {
        self.links
            .entry(to)
            .or_insert_with(|| Link::start(&self.shared, to))
            .push(messages, &self.shared.metrics);
    }

    fn members_changed(&mut self, members: &Membership) {
        self.links.retain(|id, link| {
            let is_removed = members.is_removed(*id);
            if is_removed {
                link.close();
            }
            !is_removed
        });
        let urls: HashMap<_, _> = members
            .members()
            .map(|member| (member.id, member.peer_urls.clone()))
            .collect();
        for (id, former) in &self.urls {
            let has_moved = urls.get(id).is_some_and(|urls| urls != former);
            if let (true, Some(link)) = (has_moved, self.links.get(id)) {
                link.reconnect();
            }
        }
        self.urls = urls;
        self.shared
            .newcomers()
            .retain(|id, _| members.get(*id).is_none() && !members.is_removed(*id));
        self.shared.changes.send_modify(|count| *count += 1);
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
