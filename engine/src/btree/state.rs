//! What a published state consists of.

use crate::backend::{Applied, MAX_TREES, Sums};

/// The root of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Root {
    /// Page of the root; 0 while the tree is empty.
    pub(super) page: u64,
    /// Sums over the whole tree.
    pub(super) sums: Sums,
}

/// A state of the whole store: everything else hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct State {
    /// Counts published batches.
    pub(super) number: u64,
    /// The log entry up to which it applies.
    pub(super) applied: Applied,
    /// The trees.
    pub(super) roots: [Root; MAX_TREES],
}
