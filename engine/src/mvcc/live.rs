//! The events of one batch, for live watchers.

use std::sync::Arc;

use varve_types::EventRef;

/// The events of one batch, ordered by (main, sub), in one allocation.
#[derive(Debug, Default)]
pub struct EventBatch {}

impl EventBatch {
    /// Main revision of the first event.
    pub fn first_revision(&self) -> i64 {
        unimplemented!()
    }

    /// Main revision of the last event.
    pub fn last_revision(&self) -> i64 {
        unimplemented!()
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }

    /// The events in order. `prev_kv` is filled where the key existed.
    pub fn iter(&self) -> impl Iterator<Item = EventRef<'_>> {
        std::iter::empty()
    }
}

/// What a published batch has for live watchers.
#[derive(Debug, Clone)]
pub enum LiveEvents {
    /// The batch changed no key, or events were not asked for.
    None,
    /// All events of the batch.
    Batch(Arc<EventBatch>),
    /// More than the limit: replay these revisions from the view.
    ReadFromStore {
        /// First main revision of the batch.
        first: i64,
        /// Last main revision of the batch.
        last: i64,
    },
}
