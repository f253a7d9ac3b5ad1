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
    /// What is wrong, if something is: no leader, a latched disk error.
    pub errors: Vec<String>,
}
