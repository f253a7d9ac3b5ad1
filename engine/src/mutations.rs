//! Deliberate bugs, to prove that the simulation's checkers and the models find
//! such bugs.
//!
//! Without the feature `mutations` none of them is in the program: [`is_on`] is a
//! constant. With it, one can be switched on for the calling thread.

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
}

#[cfg(feature = "mutations")]
thread_local! {
    static ON: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Switches one on for this thread, or all off.
#[cfg(feature = "mutations")]
pub fn switch_on(mutation: Option<Mutation>) {
    ON.set(mutation);
}

/// Whether it is switched on.
#[cfg(feature = "mutations")]
pub fn is_on(mutation: Mutation) -> bool {
    ON.get() == Some(mutation)
}

/// Whether it is switched on: never, in this build.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is_on(_mutation: Mutation) -> bool {
    false
}
