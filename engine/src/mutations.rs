//! Deliberate bugs, to prove that the simulation's checkers and the models find
//! such bugs.
//!
//! Without the feature `mutations` none of them is in the program: [`is_on`] is a
//! constant. With it, one can be switched on for the calling thread, or for the process.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The log says that a group is durable without a sync.
    AckBeforeSync,
    /// The hard state is written without the vote.
    VoteNotPersisted,
    /// A restart forgets the term: it goes on with that of the last entry.
    TermForgotten,
    /// A follower acknowledges entries before they are durable.
    EarlyAppendResponse,
    /// A leader answers linearizable reads without asking the others.
    StaleRead,
    /// The last of several events in a batch never reaches watchers.
    LostWatchEvent,
    /// A restart drops the last entry of the log.
    TruncatedLog,
    /// A batch is stored with the applied index before it.
    AppliedNotStored,
    /// A store loaded from a snapshot lacks a key.
    SnapshotMissesKey,
    /// A batch of several entries leaves its last one out.
    EntrySkipped,
    /// A member does not notice that its disk hangs.
    StuckDiskUnnoticed,
    /// A leader tells that a change of the membership is committed before it has that
    /// durably.
    UnsettledCommit,
    /// A reader does not look again whether the slot that it pinned is current.
    PinWithoutSecondLook,
    /// What is sequentially consistent is only acquire and release.
    NoTotalOrder,
    /// Freed pages are examined with the durable state looked at before the pins.
    DurableBeforePins,
    /// On real files, what is not written by a group commit is never synced.
    FilesNotSynced,
    /// On real files, directories are never synced.
    NamesNotSynced,
}

impl Mutation {
    /// Those that the simulation finds, with the names that command lines use. The
    /// others are found by the models in `btree/tests/models.rs`.
    pub const ALL: [(&'static str, Self); 12] = [
        ("ack-before-sync", Self::AckBeforeSync),
        ("vote-not-persisted", Self::VoteNotPersisted),
        ("term-forgotten", Self::TermForgotten),
        ("early-append-response", Self::EarlyAppendResponse),
        ("stale-read", Self::StaleRead),
        ("lost-watch-event", Self::LostWatchEvent),
        ("truncated-log", Self::TruncatedLog),
        ("applied-not-stored", Self::AppliedNotStored),
        ("snapshot-misses-key", Self::SnapshotMissesKey),
        ("entry-skipped", Self::EntrySkipped),
        ("stuck-disk-unnoticed", Self::StuckDiskUnnoticed),
        ("unsettled-commit", Self::UnsettledCommit),
    ];

    /// Those that a node on real files has to be shown with: `varve-bench torture` finds
    /// them by loss of power.
    pub const ON_REAL_FILES: [(&'static str, Self); 3] = [
        ("ack-before-sync", Self::AckBeforeSync),
        ("files-not-synced", Self::FilesNotSynced),
        ("names-not-synced", Self::NamesNotSynced),
    ];
}

#[cfg(feature = "mutations")]
thread_local! {
    static ON: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

#[cfg(feature = "mutations")]
static ON_EVERYWHERE: std::sync::OnceLock<Mutation> = std::sync::OnceLock::new();

/// Switches one on for all threads of this process, for good; no second one.
#[cfg(feature = "mutations")]
pub fn switch_on_everywhere(mutation: Mutation) {
    // A second one is not wanted, so what it says of the first does not matter.
    let _ = ON_EVERYWHERE.set(mutation);
}

/// Switches one on for this thread, or all off.
#[cfg(feature = "mutations")]
pub fn switch_on(mutation: Option<Mutation>) {
    ON.set(mutation);
}

/// Whether it is switched on.
#[cfg(feature = "mutations")]
pub fn is_on(mutation: Mutation) -> bool {
    ON.get() == Some(mutation) || ON_EVERYWHERE.get() == Some(&mutation)
}

/// Whether it is switched on: never, in this build.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is_on(_mutation: Mutation) -> bool {
    false
}
