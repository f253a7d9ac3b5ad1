//! A published state as a reader has it.

use std::borrow::Cow;
use std::sync::Arc;

use super::pager::View;
use super::read;
use super::readers::Pin;
use super::state::Root;
use super::store::Shared;
use super::sums;
use crate::backend::{
    Applied, BackendError, Bounds, Direction, Peek, PeekVisitor, Read, Result, Snapshot, Sums,
    TreeId, Visitor,
};

/// Holds a state: its pages stay as they are until this is dropped.
#[derive(Debug)]
pub(super) struct BtreeSnapshot {
    shared: Arc<Shared>,
    pin: Pin,
}

impl BtreeSnapshot {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            pin: shared.readers().pin(),
        }
    }

    fn tree(&self, tree: TreeId) -> Result<(View<'_>, &Root)> {
        let view = self.shared.pager().pinned(&self.pin);
        Ok((view, root_of(&self.pin.state().roots, tree)?))
    }
}

pub(super) fn root_of(roots: &[Root], tree: TreeId) -> Result<&Root> {
    let root = roots.get(usize::from(tree.0));
    root.ok_or(BackendError::UnknownTree { tree: tree.0 })
}

impl Read for BtreeSnapshot {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        let (view, root) = self.tree(tree)?;
        let value = read::find(view, root, key)?;
        value.map(|value| read::whole(view, &value)).transpose()
    }

    fn peek(&self, tree: TreeId, key: &[u8]) -> Result<Option<Peek<'_>>> {
        let (view, root) = self.tree(tree)?;
        Ok(read::find(view, root, key)?.as_ref().map(read::peek))
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        let (view, root) = self.tree(tree)?;
        read::scan(view, root, bounds, direction, visit)
    }

    fn peek_scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut PeekVisitor<'_>,
    ) -> Result<()> {
        let (view, root) = self.tree(tree)?;
        read::peek_scan(view, root, bounds, direction, visit)
    }

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        let (view, root) = self.tree(tree)?;
        sums::within(view, root, bounds)
    }
}

impl Snapshot for BtreeSnapshot {
    fn applied(&self) -> Applied {
        self.pin.state().applied
    }
}
