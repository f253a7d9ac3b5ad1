//! What a node says of itself.

/// The state of a node, for `endpoint status`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Status {
    /// This member.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// The leader's member id; 0 if none is known.
    pub leader: u64,
    /// The Raft term.
    pub term: u64,
    /// Index of the last entry in the log.
    pub last_index: u64,
    /// Index up to which entries are committed; what etcd calls `raftIndex`.
    pub commit_index: u64,
    /// Index up to which entries are applied.
    pub applied_index: u64,
    /// Whether this member has no vote.
    pub is_learner: bool,
    /// Whether this member was removed from the cluster.
    pub is_removed: bool,
    /// What is wrong, if something is: no leader, a disk that is stuck, a latched disk error.
    pub errors: Vec<String>,
}

/// The replica's view of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ReplicaStatus {
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) is_leader: bool,
    pub(crate) is_learner: bool,
    pub(crate) is_removed: bool,
    /// Whether its state differs from the others'.
    pub(crate) is_corrupt: bool,
    pub(crate) state_checks: u64,
    pub(crate) state_mismatches: u64,
    pub(crate) last_index: u64,
    pub(crate) commit_index: u64,
    pub(crate) applied_index: u64,
    pub(crate) leader_changes: u64,
    pub(crate) pending_proposals: usize,
    pub(crate) pending_reads: usize,
    pub(crate) failed_proposals: u64,
    pub(crate) failed_reads: u64,
    pub(crate) read_rounds: u64,
    /// Ticks for which the log has completed nothing although it was asked to.
    pub(crate) log_waits_ticks: u64,
    pub(crate) is_disk_stuck: bool,
    pub(crate) disk_stalls: u64,
}
