//! What every engine must do: a suite that runs on any of them.
//!
//! Operations run on the engine and on a model, a sorted map per tree; every
//! answer is compared. Snapshots are kept and compared again later. The run
//! ends in the engine's own integrity check. Hidden from the documentation, but
//! public: the crates of further engines run it too.

use std::sync::Arc;

use super::{Backend, Direction};

mod cases;
mod generate;
mod model;
mod session;

pub use cases::run_cases;
pub use generate::{KeyShape, Random, operations};
pub use model::Model;
pub use session::{Session, compare_all};

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Sets a key.
    Put {
        /// The tree.
        tree: u8,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// Reads a key and then sets it, as the layer above mostly does.
    GetPut {
        /// The tree.
        tree: u8,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// Sets many keys, perhaps some of them more than once.
    PutAll {
        /// The tree.
        tree: u8,
        /// Keys and values.
        entries: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// Sets a key, and keeps the value that it had under another one.
    PutAndKeep {
        /// The tree.
        tree: u8,
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
        /// The tree of the other key,
        keep_tree: u8,
        /// that key,
        keep_key: Vec<u8>,
        /// and what stands before the value there.
        head: Vec<u8>,
    },
    /// Removes a key.
    Delete {
        /// The tree.
        tree: u8,
        /// The key.
        key: Vec<u8>,
    },
    /// Removes a range.
    DeleteRange {
        /// The tree.
        tree: u8,
        /// The bounds.
        range: Range,
    },
    /// Starts a vacuum and does a part of it.
    Vacuum,
    /// Reads a key, in the batch and in the newest snapshot.
    Get {
        /// The tree.
        tree: u8,
        /// The key.
        key: Vec<u8>,
    },
    /// Reads a range.
    Scan {
        /// The tree.
        tree: u8,
        /// The bounds.
        range: Range,
        /// The order.
        direction: Direction,
        /// Breaks off after that many entries.
        limit: usize,
    },
    /// Sums over a range.
    Sums {
        /// The tree.
        tree: u8,
        /// The bounds.
        range: Range,
    },
    /// Publishes the open batch; the next operation starts another.
    Publish,
    /// Drops the open batch.
    Abort,
    /// Makes a checkpoint, beside the open batch.
    Checkpoint,
    /// Keeps a snapshot of what is published.
    Keep,
    /// Compares a kept snapshot with the model of its time and lets it go.
    Release {
        /// Which one, of those that are kept.
        which: usize,
    },
    /// Closes the store and opens it again. An open batch is dropped.
    Reopen,
    /// Runs the integrity check.
    Check,
}

/// Bounds of a range: a key, and whether it is inside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// Where it starts; `None` for the first key.
    pub start: Option<(Vec<u8>, bool)>,
    /// Where it ends; `None` for after the last key.
    pub end: Option<(Vec<u8>, bool)>,
}

/// Opens the store under test again and again: what was checkpointed is there
/// for an engine that keeps anything.
pub type Opener<'o> = dyn FnMut() -> super::Result<Arc<dyn Backend>> + 'o;

/// What is known of the engine under test.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// Whether a checkpointed state is there after the store is opened again:
    /// that, or the last published one.
    pub durable: bool,
    /// The longest key that it takes.
    pub max_key_bytes: usize,
}
