//! The open batch: reads its own changes, and ends published or undone.
//!
//! Everything that it changes are pages of its own and its copy of the state,
//! so undoing it is to give the pages back. An operation that fails half-way
//! leaves the batch's trees in pieces; it can only be dropped then.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::MutexGuard;

use super::bulk;
use super::leaf::{LongValue, OVERFLOW_REF_BYTES, Value};
use super::page::{MAX_INLINE_ENTRY_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use super::pages::Pages;
use super::path::Place;
use super::prefetch;
use super::put_all;
use super::read;
use super::readers::Publisher;
use super::snapshot::root_of;
use super::state::State;
use super::store::Shared;
use super::sums;
use super::write::{Writer, check_length};
use crate::backend::{
    Applied, BackendError, Batch, Bounds, Direction, Entry, Keep, MAX_TREES, Peek, PeekVisitor,
    Read, Result, Sums, TreeId, Visitor, put_with_copy,
};

/// The open batch of a store.
#[derive(Debug)]
pub(super) struct WriteBatch<'b> {
    shared: &'b Shared,
    publisher: MutexGuard<'b, Publisher>,
    state: State,
    pages: Pages<'b>,
    /// Where the batch was last in each tree.
    places: [RefCell<Place>; MAX_TREES],
    /// Why nothing but dropping it is left.
    broken: Option<String>,
}

impl<'b> WriteBatch<'b> {
    pub(super) fn begin(shared: &'b Shared) -> Result<Self> {
        let publisher = shared.writer();
        shared.check_latch()?;
        let state = publisher.newest();
        shared.recycle(&publisher);
        Ok(Self {
            shared,
            publisher,
            state,
            pages: Pages::new(shared, state.number + 1),
            places: Default::default(),
            broken: None,
        })
    }

    fn check_broken(&self) -> Result<()> {
        match &self.broken {
            Some(message) => Err(BackendError::BrokenBatch(message.clone())),
            None => Ok(()),
        }
    }

    /// Runs an operation on one tree.
    fn write<T>(
        &mut self,
        tree: TreeId,
        operation: impl FnOnce(&mut Writer<'_, 'b>) -> Result<T>,
    ) -> Result<T> {
        self.check_broken()?;
        let index = usize::from(tree.0);
        root_of(&self.state.roots, tree)?;
        let done = operation(&mut Writer {
            pages: &mut self.pages,
            root: &mut self.state.roots[index],
            place: self.places[index].get_mut(),
            is_last: true,
        });
        done.map_err(|error| self.note(error))
    }

    /// Where the value of `key` is.
    fn find(&self, tree: TreeId, key: &[u8]) -> Result<Option<Value<'_>>> {
        self.check_broken()?;
        let root = root_of(&self.state.roots, tree)?;
        if root.page == 0 {
            return Ok(None);
        }
        // Remembers the place: what is read is often written next.
        let mut place = self.places[usize::from(tree.0)].borrow_mut();
        let view = self.pages.view();
        place.go(view, root.page, key)?;
        if !place.found {
            return Ok(None);
        }
        let leaf = place.path.leaf();
        Ok(Some(view.page(leaf.page)?.value(leaf.index)))
    }

    /// Whether [`Batch::put_and_keep`] can leave the old value's run where it is: it has
    /// one, with nothing before it, and what refers to it fits a leaf.
    fn can_keep_run(&self, tree: TreeId, key: &[u8], keep: &Keep<'_>) -> Result<bool> {
        let Some(Value::Long(long)) = self.find(tree, key)? else {
            return Ok(false);
        };
        let entry = keep.key.len() + OVERFLOW_REF_BYTES + keep.head.len() + long.beginning.len();
        let value = keep.head.len() + long.len();
        Ok(long.before().is_empty()
            && entry <= MAX_INLINE_ENTRY_BYTES
            && keep.key.len() <= MAX_KEY_BYTES
            && value <= MAX_VALUE_BYTES)
    }

    fn note(&mut self, error: BackendError) -> BackendError {
        // These are found before anything is changed.
        let harmless = matches!(
            error,
            BackendError::KeyTooLong { .. } | BackendError::ValueTooLong { .. }
        );
        if harmless {
            return error;
        }
        self.broken = Some(error.to_string());
        self.shared.latch_unless_full(error)
    }
}

impl Read for WriteBatch<'_> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        let value = self.find(tree, key)?;
        let whole = |value| read::whole(self.pages.view(), &value);
        value.map(whole).transpose()
    }

    fn peek(&self, tree: TreeId, key: &[u8]) -> Result<Option<Peek<'_>>> {
        Ok(self.find(tree, key)?.as_ref().map(read::peek))
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        self.check_broken()?;
        let root = root_of(&self.state.roots, tree)?;
        read::scan(self.pages.view(), root, bounds, direction, visit)
    }

    fn peek_scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut PeekVisitor<'_>,
    ) -> Result<()> {
        self.check_broken()?;
        let root = root_of(&self.state.roots, tree)?;
        read::peek_scan(self.pages.view(), root, bounds, direction, visit)
    }

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        self.check_broken()?;
        sums::within(self.pages.view(), root_of(&self.state.roots, tree)?, bounds)
    }
}

impl Batch for WriteBatch<'_> {
    fn prefetch(&self, tree: TreeId, keys: &[&[u8]]) {
        if let Ok(root) = root_of(&self.state.roots, tree) {
            prefetch::leaves(self.pages.view(), root, keys);
        }
    }

    fn read_ahead(&mut self, tree: TreeId, keys: &[&[u8]], whole: bool) {
        if let Ok(root) = root_of(&self.state.roots, tree)
            && prefetch::read_ahead(&self.pages, root, keys, whole)
        {
            self.pages.set_cold();
        }
    }

    fn put(&mut self, tree: TreeId, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(tree, |writer| writer.put(key, value))
    }

    fn put_and_keep(
        &mut self,
        tree: TreeId,
        key: &[u8],
        value: &[u8],
        keep: Keep<'_>,
    ) -> Result<()> {
        check_length(key, value)?;
        if !self.can_keep_run(tree, key, &keep)? {
            return put_with_copy(self, tree, key, value, keep);
        }
        root_of(&self.state.roots, keep.tree)?;
        let former = self.write(tree, |writer| writer.put_beside(key, value))?;
        let former = LongValue::decode(&former);
        self.write(keep.tree, |writer| {
            writer.put_behind(keep.key, keep.head, &former)
        })
    }

    fn put_all(&mut self, tree: TreeId, entries: &[Entry<'_>]) -> Result<()> {
        self.write(tree, |writer| put_all::put_all(writer, entries))
    }

    fn append(&mut self, tree: TreeId, entries: &[Entry<'_>]) -> Result<()> {
        self.write(tree, |writer| bulk::append(writer, entries))
    }

    fn delete(&mut self, tree: TreeId, key: &[u8]) -> Result<bool> {
        self.write(tree, |writer| writer.delete(key))
    }

    fn delete_range(&mut self, tree: TreeId, bounds: Bounds<'_>) -> Result<u64> {
        self.write(tree, |writer| writer.delete_range(bounds))
    }

    fn vacuum_step(&mut self) -> Result<bool> {
        self.check_broken()?;
        let Some(mut pass) = self.shared.space().vacuum_pass() else {
            return Ok(false);
        };
        for place in &mut self.places {
            place.get_mut().valid = false;
        }
        let more = pass.step(&mut self.pages, &mut self.state.roots);
        let more = more.map_err(|error| self.note(error))?;
        self.shared.space().set_vacuum_pass(more.then_some(pass));
        Ok(more)
    }

    fn publish(mut self: Box<Self>, applied: Applied) -> Result<()> {
        self.check_broken()?;
        self.shared.check_latch()?;
        self.state.number = self.pages.birth();
        self.state.applied = applied;
        // A checkpoint takes state and space under the same lock, so that it
        // never sees the one without the other.
        let mut space = self.shared.space();
        if !self.publisher.publish(self.state) {
            return Err(BackendError::Other {
                engine: super::NAME,
                message: "too many snapshots are held: let some go".to_owned(),
            });
        }
        space.publish(self.state.number, self.pages.take_leftovers());
        Ok(())
    }
}

impl Drop for WriteBatch<'_> {
    fn drop(&mut self) {
        // After a publish nothing is left to undo.
        self.shared.space().abort();
    }
}
