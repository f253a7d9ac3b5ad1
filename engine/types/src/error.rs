//! Errors that a node answers with: etcd's texts and gRPC codes.

macro_rules! api_errors {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $grpc:literal, $text:literal;)+) => {
        /// An error of the API. The text is etcd's, so that scripts that look for it keep
        /// working; source: etcd's `api/v3rpc/rpctypes/error.go`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum ApiError {
            $($(#[$doc])* #[error($text)] $name = $number,)+
        }

        impl ApiError {
            /// Every error, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The gRPC status code that etcd answers with.
            pub fn grpc_code(self) -> u8 {
                match self { $(Self::$name => $grpc,)+ }
            }

            /// The error with this number.
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

impl ApiError {
    /// Its number in the binary protocol; numbers are never reused.
    pub fn number(self) -> u16 {
        self as u16
    }
}

api_errors! {
    /// `key is not provided`.
    KeyNotProvided = 1, 3, "etcdserver: key is not provided";
    /// `key not found`.
    KeyNotFound = 2, 3, "etcdserver: key not found";
    /// `value is provided`.
    ValueProvided = 3, 3, "etcdserver: value is provided";
    /// `lease is provided`.
    LeaseProvided = 4, 3, "etcdserver: lease is provided";
    /// `too many operations in txn request`.
    TooManyOps = 5, 3, "etcdserver: too many operations in txn request";
    /// `duplicate key given in txn request`.
    DuplicateKey = 6, 3, "etcdserver: duplicate key given in txn request";
    /// `invalid sort option`.
    InvalidSortOption = 7, 3, "etcdserver: invalid sort option";
    /// `given member URLs are invalid`.
    MemberBadUrls = 8, 3, "etcdserver: given member URLs are invalid";
    /// `request is too large`.
    RequestTooLarge = 9, 3, "etcdserver: request is too large";
    /// `mvcc: required revision has been compacted`.
    Compacted = 10, 11, "etcdserver: mvcc: required revision has been compacted";
    /// `mvcc: required revision is a future revision`.
    FutureRevision = 11, 11, "etcdserver: mvcc: required revision is a future revision";
    /// `too large lease TTL`.
    LeaseTtlTooLarge = 12, 11, "etcdserver: too large lease TTL";
    /// `mvcc: database space exceeded`.
    NoSpace = 13, 8, "etcdserver: mvcc: database space exceeded";
    /// `too many requests`.
    TooManyRequests = 14, 8, "etcdserver: too many requests";
    /// `requested lease not found`.
    LeaseNotFound = 15, 5, "etcdserver: requested lease not found";
    /// `member not found`.
    MemberNotFound = 16, 5, "etcdserver: member not found";
    /// `lease already exists`.
    LeaseExists = 17, 9, "etcdserver: lease already exists";
    /// `member ID already exist`.
    MemberExists = 18, 9, "etcdserver: member ID already exist";
    /// `Peer URLs already exists`.
    PeerUrlExists = 19, 9, "etcdserver: Peer URLs already exists";
    /// `re-configuration failed due to not enough started members`.
    NotEnoughStarted = 20, 9, "etcdserver: re-configuration failed due to not enough started members";
    /// `can only promote a learner member`.
    MemberNotLearner = 21, 9, "etcdserver: can only promote a learner member";
    /// `can only promote a learner member which is in sync with leader`.
    LearnerNotReady = 22, 9, "etcdserver: can only promote a learner member which is in sync with leader";
    /// `too many learner members in cluster`.
    TooManyLearners = 23, 9, "etcdserver: too many learner members in cluster";
    /// `cluster ID mismatch`.
    ClusterIdMismatch = 24, 9, "etcdserver: cluster ID mismatch";
    /// `not leader`.
    NotLeader = 25, 9, "etcdserver: not leader";
    /// `not capable`.
    NotCapable = 26, 9, "etcdserver: not capable";
    /// `rpc not supported for learner`.
    NotSupportedForLearner = 27, 9, "etcdserver: rpc not supported for learner";
    /// `bad leader transferee`.
    BadLeaderTransferee = 28, 9, "etcdserver: bad leader transferee";
    /// `no leader`.
    NoLeader = 29, 14, "etcdserver: no leader";
    /// `leader changed`.
    LeaderChanged = 30, 14, "etcdserver: leader changed";
    /// `server stopped`.
    Stopped = 31, 14, "etcdserver: server stopped";
    /// `request timed out`.
    Timeout = 32, 14, "etcdserver: request timed out";
    /// `request timed out, possibly due to previous leader failure`.
    TimeoutLeaderFailure = 33, 14, "etcdserver: request timed out, possibly due to previous leader failure";
    /// `request timed out, possibly due to connection lost`.
    TimeoutConnectionLost = 34, 14, "etcdserver: request timed out, possibly due to connection lost";
    /// `request timed out, waiting for the applied index took too long`.
    TimeoutWaitAppliedIndex = 35, 14, "etcdserver: request timed out, waiting for the applied index took too long";
    /// `unhealthy cluster`.
    Unhealthy = 36, 14, "etcdserver: unhealthy cluster";
    /// `corrupt cluster`.
    Corrupt = 37, 15, "etcdserver: corrupt cluster";
    /// `watch canceled`.
    WatchCanceled = 38, 1, "etcdserver: watch canceled";
    /// `request canceled`.
    RequestCanceled = 39, 1, "etcdserver: request canceled";
    /// `request timed out, leader transfer took too long`.
    TimeoutLeaderTransfer = 40, 14, "etcdserver: request timed out, leader transfer took too long";
    /// `request is too large`, said of the previous values that a write asks for.
    PreviousValuesTooLarge = 41, 3, "etcdserver: request is too large: the previous values it asks for are over 64 MiB; nothing was changed, write fewer keys at a time or leave prev_kv out";
}
