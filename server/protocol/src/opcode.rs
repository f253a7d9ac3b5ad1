//! What a frame is about.
//!
//! Numbers are never reused. A reply carries the opcode of its request. Numbers
//! below 16 are those of `varve_types::opcode`, shared with the Raft log.

pub use varve_types::opcode::{ALARM, COMPACTION, DELETE_RANGE, PUT, RANGE, TXN};

/// Not a request: an error that concerns the whole connection.
pub const CONNECTION: u8 = 0;
/// Who is there, and which versions it speaks.
pub const HELLO: u8 = 16;
/// Is anyone there.
pub const PING: u8 = 17;
/// The state of the member that answers.
pub const STATUS: u8 = 18;
/// The hash of the store at a revision.
pub const HASH_KV: u8 = 19;
/// The members of the cluster.
pub const MEMBER_LIST: u8 = 20;
/// Keys and bytes by path component, as the member that answers has them.
pub const SPACE: u8 = 21;
/// Opens a watch; its events come as replies to it.
pub const WATCH: u8 = 32;
/// Ends a watch.
pub const WATCH_CANCEL: u8 = 33;
/// Asks how far watches have come.
pub const WATCH_PROGRESS: u8 = 34;
/// Lets a watch send more.
pub const WATCH_CREDIT: u8 = 35;

/// Adds a member.
pub const MEMBER_ADD: u8 = 64;
/// Removes a member.
pub const MEMBER_REMOVE: u8 = 65;
/// Gives a member other peer URLs.
pub const MEMBER_UPDATE: u8 = 66;
/// Gives a learner its vote.
pub const MEMBER_PROMOTE: u8 = 67;
/// Makes another member the leader.
pub const MOVE_LEADER: u8 = 68;

/// Gives the free space of the member that answers back to the file system.
pub const DEFRAGMENT: u8 = 70;
/// Asks for a snapshot of the member that answers; its chunks come as replies to it.
pub const SNAPSHOT: u8 = 71;
/// Lets a snapshot send more.
pub const SNAPSHOT_CREDIT: u8 = 72;

// 48-63 leases, 69 and 73-79 maintenance, 80-95 users and roles, 96-111 locks and elections: kept free.

/// First number of the peer port.
pub const PEER_FIRST: u8 = 128;
/// First frame in both directions between members.
pub const PEER_HELLO: u8 = 128;
/// Raft messages.
pub const PEER_MESSAGES: u8 = 129;
/// Start of a snapshot.
pub const SNAPSHOT_BEGIN: u8 = 130;
/// A piece of a snapshot.
pub const SNAPSHOT_CHUNK: u8 = 131;
/// End of a snapshot.
pub const SNAPSHOT_END: u8 = 132;
/// How much of a snapshot has arrived.
pub const SNAPSHOT_ACK: u8 = 133;
/// The last frame before a member closes a peer connection, with its reason.
pub const PEER_REFUSED: u8 = 134;
