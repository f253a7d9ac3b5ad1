//! Errors of the revisioned store.

use thiserror::Error;
use varve_types::ApiError;

use crate::backend::{BackendError, TreeId};

/// What operations of the revisioned store return.
pub type Result<T> = std::result::Result<T, MvccError>;

/// Why the store could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MvccError {
    /// The request is at fault; the store goes on.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The engine below failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// An entry is not what this store writes.
    #[error(
        "tree {}, key \"{}\": {what}; the store is damaged, restore this member from a snapshot",
        tree.0,
        key.escape_ascii()
    )]
    Damaged {
        /// The tree that holds it.
        tree: TreeId,
        /// Its key in that tree.
        key: Vec<u8>,
        /// What is wrong.
        what: &'static str,
    },
    /// The store was left half loaded.
    #[error(
        "the store holds part of a snapshot whose loading did not finish; remove it and load again"
    )]
    HalfLoaded,
    /// A name in META that is the store's own.
    #[error("the name \"{}\" is the store's own; use another prefix", .0.escape_ascii())]
    ReservedName(Vec<u8>),
    /// A transaction with writes where only reads can be done.
    #[error("a transaction with writes was given to a reader; propose it instead")]
    WriteInReadTxn,
    /// A snapshot could not be loaded.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// The integrity check found something.
    #[error("integrity check: {0}")]
    Check(String),
}

impl MvccError {
    pub(super) fn damaged(tree: TreeId, key: &[u8], what: &'static str) -> Self {
        Self::Damaged {
            tree,
            key: key.to_vec(),
            what,
        }
    }

    /// The error to answer a client with, where the request is at fault.
    pub fn api(&self) -> Option<ApiError> {
        match self {
            Self::Api(error) => Some(*error),
            _ => None,
        }
    }
}
