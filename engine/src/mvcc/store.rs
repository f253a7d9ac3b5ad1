//! The store and its single writer.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use varve_types::{
    AlarmResponse, ApiError, Command, DeleteRangeResponse, KeyValue, PutResponse, TxnResponse,
};

use super::check::MvccReport;
use super::compaction;
use super::error::{MvccError, Result};
use super::keys::{MEMBER, RESERVED, numbered};
use super::live::{Collector, LiveEvents};
use super::options::{BatchOptions, CompactBudget};
use super::reply::{PreviousValues, ReplyBudget};
use super::state::State;
use super::txn;
use super::validate::check_shape;
use super::view::View;
use super::write::{Scratch, Writer};
use super::{LATEST, META};
use crate::backend::{Applied, Backend, Lookahead, Upkeep};

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
    /// To a request about alarms, which the layer above keeps.
    Alarm(AlarmResponse),
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
pub struct Reader {
    newest: Arc<ArcSwap<View>>,
}

impl Reader {
    /// The newest published state.
    pub fn view(&self) -> Arc<View> {
        self.newest.load_full()
    }
}

/// The revisioned store. It has one writer: this handle.
pub struct Store {
    backend: Arc<dyn Backend>,
    state: State,
    newest: Arc<ArcSwap<View>>,
    scratch: Scratch,
    /// What was added to the history since the last [`Store::tidy`].
    added: CompactBudget,
}

impl Store {
    /// Opens the store in `backend`; an empty backend is a new store at revision 1.
    /// It takes the same time whatever the store holds.
    pub fn open(backend: Arc<dyn Backend>) -> Result<Self> {
        let snapshot = backend.snapshot()?;
        let state = State::load(&*snapshot)?;
        let view = View::new(snapshot, state);
        Ok(Self {
            backend,
            state,
            newest: Arc::new(ArcSwap::from_pointee(view)),
            scratch: Scratch::default(),
            added: CompactBudget::NONE,
        })
    }

    /// The engine below, for checkpoints and sizes.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// A handle for readers.
    pub fn reader(&self) -> Reader {
        Reader {
            newest: Arc::clone(&self.newest),
        }
    }

    /// The newest published state.
    pub fn view(&self) -> Arc<View> {
        self.newest.load_full()
    }

    /// Whether [`WriteTxn::compact_step`] has something to do.
    pub fn compaction_pending(&self) -> bool {
        self.state.compaction_pending()
    }

    /// Does a little of what goes on beside the commands, as a batch of its own:
    /// removes compacted history, or else gives space back; whether there may be
    /// more. Called every few batches it removes more than they add, so that
    /// history is bounded under load. `idle` says that no command came for a
    /// while.
    pub fn tidy(&mut self, upkeep: &mut Upkeep, now: Instant, idle: bool) -> Result<bool> {
        let budget = std::mem::replace(&mut self.added, CompactBudget::NONE).to_outpace();
        let is_compacting = self.compaction_pending();
        if !is_compacting && !upkeep.is_vacuum_on(&*self.backend, now, idle) {
            return Ok(false);
        }
        let as_of = self.view().applied();
        let mut txn = self.begin(BatchOptions::default())?;
        let more = if is_compacting {
            txn.compact_step(budget)?;
            true // a vacuum may follow
        } else {
            txn.vacuum_step()?
        };
        txn.publish(as_of)?;
        Ok(more)
    }

    /// Starts a batch of commands. Dropping it unpublished undoes it.
    pub fn begin(&mut self, options: BatchOptions) -> Result<WriteTxn<'_>> {
        let writer = Writer {
            batch: self.backend.begin()?,
            state: self.state,
            scratch: &mut self.scratch,
            collector: options
                .collect_events
                .then(|| Collector::new(options.max_event_bytes)),
            changes: 0,
            added: CompactBudget::NONE,
        };
        Ok(WriteTxn {
            writer,
            published: &mut self.state,
            backend: &*self.backend,
            newest: &self.newest,
            added: &mut self.added,
            max_reply_bytes: options.max_reply_bytes,
            reply_bytes: 0,
        })
    }

    /// Goes over everything: the engine's own check and [`View::check`].
    pub fn check(&self) -> Result<MvccReport> {
        self.backend.check()?;
        self.view().check()
    }
}

/// A batch of commands that becomes visible as a whole.
///
/// After an `Err` of any method the batch must be dropped: it may be half done.
pub struct WriteTxn<'s> {
    writer: Writer<'s>,
    published: &'s mut State,
    backend: &'s dyn Backend,
    newest: &'s ArcSwap<View>,
    added: &'s mut CompactBudget,
    max_reply_bytes: usize,
    reply_bytes: usize,
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
        self.writer.state.revision
    }

    /// Leaves revisions out: the next change is so much later. Only for a store that
    /// nobody uses yet, and with a compaction at a revision behind the gap, as LOG may
    /// have none above the compacted one.
    pub fn skip_revisions(&mut self, count: i64) -> Result<()> {
        let state = &mut self.writer.state;
        // What follows needs some too.
        let limit = i64::MAX / 2;
        match state.revision.checked_add(count) {
            Some(revision) if count >= 0 && revision <= limit => state.revision = revision,
            _ => return Err(ApiError::FutureRevision.into()),
        }
        Ok(())
    }

    /// To be called before each command that `ahead` goes over.
    pub fn look_ahead<'a>(
        &mut self,
        ahead: &mut Lookahead<'a, impl Iterator<Item = (u8, &'a [u8])>>,
    ) {
        // A put moves what it replaces as it is, and looks at it for events only.
        let collector = self.writer.collector.as_ref();
        let whole = collector.is_some_and(Collector::is_open);
        ahead.step(&mut *self.writer.batch, LATEST, whole);
    }

    /// Bytes of keys and values in all answers so far.
    pub fn reply_bytes(&self) -> usize {
        self.reply_bytes
    }

    /// Applies a command and makes its answer.
    ///
    /// The same commands in the same order give the same state, hashes and
    /// revisions on every engine. `Err` is a fault of the store, never of the command.
    pub fn apply(&mut self, command: &Command<'_>) -> Result<Reply> {
        self.apply_within(command, ReplyBudget::new(true, self.max_reply_bytes))
    }

    /// As [`WriteTxn::apply`] but without making the answer, for members
    /// that have no client waiting for it.
    pub fn apply_silent(&mut self, command: &Command<'_>) -> Result<()> {
        self.apply_within(command, ReplyBudget::new(false, 0))
            .map(|_| ())
    }

    fn apply_within(&mut self, command: &Command<'_>, mut budget: ReplyBudget) -> Result<Reply> {
        let outcome = check_shape(command)
            .map_err(MvccError::from)
            .and_then(|()| self.perform(command, &mut budget));
        self.reply_bytes += budget.used;
        let result = match outcome {
            Ok(response) => Ok(response),
            Err(MvccError::Api(error)) => Err(error),
            Err(error) => return Err(error),
        };
        Ok(Reply {
            revision: self.writer.end_command(),
            result,
        })
    }

    /// An API error is returned only before the first change.
    fn perform(
        &mut self,
        command: &Command<'_>,
        budget: &mut ReplyBudget,
    ) -> Result<CommandResponse> {
        let writer = &mut self.writer;
        Ok(match command {
            Command::Put(put) => {
                txn::check_put(&*writer.batch, put)?;
                let prev_kv: Option<KeyValue> = writer.put(put, budget)?;
                CommandResponse::Put(PutResponse { prev_kv })
            }
            Command::DeleteRange(delete) => {
                let mut previous = PreviousValues::default();
                previous.delete(delete);
                previous.check(&*writer.batch)?;
                let response = writer.delete_range(delete.range(), delete.prev_kv, budget)?;
                CommandResponse::DeleteRange(response)
            }
            Command::Txn(request) => CommandResponse::Txn(txn::apply(writer, request, budget)?),
            Command::Compaction(request) => {
                compaction::compact(&mut writer.state, request.revision)?;
                CommandResponse::Compaction
            }
            Command::MemberAttributes(member) => {
                let mut body = Vec::new();
                command.encode_body(&mut body);
                let name = numbered(MEMBER, member.member_id);
                writer.batch.put(META, &name, &body)?;
                CommandResponse::MemberAttributes
            }
            // Whoever knows members keeps them.
            Command::Alarm(_) => return Err(ApiError::NotCapable.into()),
        })
    }

    /// Stores a small thing of another layer with the batch. Names that start
    /// with `mvcc/` are the store's own; `member/` and `lease/` have entries of
    /// commands, by id.
    pub fn put_meta(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        check_name(name)?;
        Ok(self.writer.batch.put(META, name, value)?)
    }

    /// Removes what [`WriteTxn::put_meta`] stored; whether it was there.
    pub fn delete_meta(&mut self, name: &[u8]) -> Result<bool> {
        check_name(name)?;
        Ok(self.writer.batch.delete(META, name)?)
    }

    /// What is stored under `name`, changes of this batch included.
    pub fn meta(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self.writer.batch.get(META, name)?;
        Ok(found.map(|bytes| bytes.into_owned()))
    }

    /// Removes some compacted history; whether there is more.
    pub fn compact_step(&mut self, budget: CompactBudget) -> Result<bool> {
        compaction::step(&mut *self.writer.batch, &mut self.writer.state, budget)
    }

    /// Gives some spare space back to the file system if the engine is at that;
    /// whether there is more to do. See [`Backend::start_vacuum`].
    pub fn vacuum_step(&mut self) -> Result<bool> {
        Ok(self.writer.batch.vacuum_step()?)
    }

    /// Makes the batch visible, as the state up to the log entry `applied`.
    pub fn publish(self, applied: Applied) -> Result<Published> {
        let Writer {
            mut batch,
            state,
            collector,
            added,
            ..
        } = self.writer;
        state.store(self.published, &mut *batch)?;
        batch.publish(applied)?;
        *self.published = state;
        self.added.entries += added.entries;
        self.added.bytes += added.bytes;
        let view = Arc::new(View::new(self.backend.snapshot()?, state));
        self.newest.store(Arc::clone(&view));
        Ok(Published {
            view,
            events: collector.map_or(LiveEvents::None, Collector::finish),
        })
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.starts_with(RESERVED) {
        return Err(MvccError::ReservedName(name.to_vec()));
    }
    Ok(())
}
