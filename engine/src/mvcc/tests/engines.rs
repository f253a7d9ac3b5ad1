//! The engines that the random tests run on.

use std::sync::Arc;

use crate::backend::Backend;
use crate::backend::memory::Memory;

/// An engine with what it keeps between two openings.
pub(super) struct Engine {
    backend: Arc<dyn Backend>,
}

impl Engine {
    /// A new, empty one of each kind.
    pub(super) fn all() -> Vec<Self> {
        let backend: Arc<dyn Backend> = Arc::new(Memory::new());
        vec![Self { backend }]
    }

    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// Closes and opens it, after a checkpoint where that is needed to keep what it has.
    pub(super) fn reopen(self) -> Self {
        self
    }
}
