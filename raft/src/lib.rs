//! One Varve replica: raft-rs driven over the engine's WAL.
//!
//! [`Node`] runs a member of the cluster: it owns the threads, the log and the
//! store. Connections talk to it through [`NodeHandle`]; it talks to other
//! members through a [`Transport`] that the server gives it. It opens no
//! sockets, and no type of raft-rs leaves it.

mod apply;
mod applying;
mod change;
mod changes;
mod config;
mod corruption;
mod defragment;
mod disk_watch;
mod driver;
mod entry;
mod error;
mod force_new_cluster;
mod handle;
mod heal;
pub mod identity;
mod incoming;
mod initial_cluster;
pub mod inspect;
mod io;
mod loading;
mod log;
mod logging;
mod member_file;
mod membership;
mod meta;
mod metrics;
mod node;
mod promotion;
mod proposals;
mod read_index;
mod ready;
mod receiver;
mod record;
mod removal;
mod replay;
mod replica;
mod restore;
mod shared;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod sink;
mod snapshot;
mod start;
mod status;
mod stores;
#[cfg(any(test, feature = "simulation"))]
#[path = "../tests/common/stores.rs"]
#[allow(unreachable_pub)]
mod test_stores;
#[cfg(test)]
mod tests;
mod transfers;
mod transport;
mod turn;
mod whole_file;
mod wire;

pub use change::Change;
pub use config::{Config, Joining};
pub use entry::push_command;
pub use error::{RaftError, is_damaged_store};
pub use handle::NodeHandle;
pub use heal::{Damaged, Healing, engine_of, healed_from, set_aside};
pub use initial_cluster::{InitialCluster, InitialClusterError, parse_urls};
pub use member_file::MEMBER_FILE;
pub use membership::{Member, Membership};
pub use metrics::{BUCKET_BOUNDS_US, Histogram, Metrics};
pub use node::{Node, Watchers};
pub use proposals::MAX_PROPOSAL_BYTES;
pub use receiver::SnapshotReceiver;
pub use restore::{Restored, restore};
pub use sink::{
    ChangeSink, Completion, DefragmentSink, Proposal, ReadSink, RemovalSink, ReplySink,
};
pub use start::REMOVED_HINT;
pub use status::Status;
pub use stores::StoreOpener;
pub use transport::{
    NoTransport, SnapshotAnnouncement, SnapshotOutcome, SnapshotStream, Transport,
};
