//! The store and its single writer.

use std::sync::Arc;

use varve_types::{ApiError, Command, DeleteRangeResponse, PutResponse, TxnResponse};

use super::error::Result;
use super::live::LiveEvents;
use super::options::{BatchOptions, CompactBudget};
use super::view::View;
use crate::backend::{Applied, Backend, CheckReport};

/// Answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandResponse {
    /// To a put.
    Put(PutResponse),
    /// To a deletion.
    DeleteRange(DeleteRangeResponse),
    /// To a transaction.
    Txn(TxnResponse),
    /// To a compaction.
    Compaction,
    /// To a member's publishing of itself.
    MemberAttributes,
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The store's revision after the command.
    pub revision: i64,
    /// Its answer, or why it was refused. A refused command changed nothing.
    pub result: std::result::Result<CommandResponse, ApiError>,
}

/// A cheap handle that gives the newest published state without a lock.
#[derive(Clone)]
pub struct Reader {}

impl Reader {
    /// The newest published state.
    pub fn view(&self) -> Arc<View> {
        unimplemented!()
    }
}

/// The revisioned store. It has one writer: this handle.
pub struct Store {}

impl Store {
    /// Opens the store in `backend`; an empty backend is a new store at revision 1.
    pub fn open(_backend: Arc<dyn Backend>) -> Result<Self> {
        unimplemented!()
    }

    /// The engine below, for checkpoints and sizes.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        unimplemented!()
    }

    /// A handle for readers.
    pub fn reader(&self) -> Reader {
        unimplemented!()
    }

    /// The newest published state.
    pub fn view(&self) -> Arc<View> {
        unimplemented!()
    }

    /// Whether [`WriteTxn::compact_step`] has something to do.
    pub fn compaction_pending(&self) -> bool {
        unimplemented!()
    }

    /// Starts a batch of commands. Dropping it unpublished undoes it.
    pub fn begin(&mut self, _options: BatchOptions) -> Result<WriteTxn<'_>> {
        unimplemented!()
    }

    /// Goes over everything: the engine's own check and the store's invariants.
    pub fn check(&self) -> Result<CheckReport> {
        unimplemented!()
    }
}

/// A batch of commands that becomes visible as a whole.
///
/// After an `Err` of any method the batch must be dropped: it may be half done.
pub struct WriteTxn<'s> {
    _store: &'s mut Store,
}

/// What a published batch is for readers and watchers.
pub struct Published {
    /// The state after the batch.
    pub view: Arc<View>,
    /// Its events.
    pub events: LiveEvents,
}

impl WriteTxn<'_> {
    /// The revision so far.
    pub fn revision(&self) -> i64 {
        unimplemented!()
    }

    /// Applies a command and makes its answer.
    ///
    /// The same commands in the same order give the same state, hashes and
    /// revisions on every engine. `Err` is a fault of the store, never of the command.
    pub fn apply(&mut self, _command: &Command<'_>) -> Result<Reply> {
        unimplemented!()
    }

    /// As [`WriteTxn::apply`] but without making the answer, for members
    /// that have no client waiting for it.
    pub fn apply_silent(&mut self, _command: &Command<'_>) -> Result<()> {
        unimplemented!()
    }

    /// Stores a small thing of another layer with the batch. Names that start
    /// with `mvcc/` are the store's own.
    pub fn put_meta(&mut self, _name: &[u8], _value: &[u8]) -> Result<()> {
        unimplemented!()
    }

    /// Removes what [`WriteTxn::put_meta`] stored; whether it was there.
    pub fn delete_meta(&mut self, _name: &[u8]) -> Result<bool> {
        unimplemented!()
    }

    /// What is stored under `name`, changes of this batch included.
    pub fn meta(&self, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        unimplemented!()
    }

    /// Removes some compacted history; whether there is more.
    pub fn compact_step(&mut self, _budget: CompactBudget) -> Result<bool> {
        unimplemented!()
    }

    /// Makes the batch visible, as the state up to the log entry `applied`.
    pub fn publish(self, _applied: Applied) -> Result<Published> {
        unimplemented!()
    }
}
