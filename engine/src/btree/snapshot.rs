//! A published state as a reader has it.

use std::borrow::Cow;
use std::sync::Arc;

use super::read;
use super::readers::Pin;
use super::state::Root;
use super::store::Shared;
use super::sums;
use crate::backend::{
    Applied, BackendError, Bounds, Direction, Read, Result, Snapshot, Sums, TreeId, Visitor,
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
}

pub(super) fn root_of(roots: &[Root], tree: TreeId) -> Result<&Root> {
    let root = roots.get(usize::from(tree.0));
    root.ok_or(BackendError::UnknownTree { tree: tree.0 })
}

impl Read for BtreeSnapshot {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        let view = self.shared.pager().pinned(&self.pin);
        let value = read::get(view, root_of(&self.pin.state().roots, tree)?, key)?;
        Ok(value.map(Cow::Borrowed))
    }

    fn scan(
        &self,
        tree: TreeId,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<()> {
        let view = self.shared.pager().pinned(&self.pin);
        let root = root_of(&self.pin.state().roots, tree)?;
        read::scan(view, root, bounds, direction, visit)
    }

    fn sums(&self, tree: TreeId, bounds: Bounds<'_>) -> Result<Sums> {
        let view = self.shared.pager().pinned(&self.pin);
        sums::within(view, root_of(&self.pin.state().roots, tree)?, bounds)
    }
}

impl Snapshot for BtreeSnapshot {
    fn applied(&self) -> Applied {
        self.pin.state().applied
    }
}
