//! The events of one batch, for live watchers.
//!
//! A batch's events are collected while it is applied, in one buffer. Past a
//! limit they are dropped: watchers then replay them from the store, as those
//! do that were behind anyway.

use std::sync::Arc;

use varve_types::{EventKind, EventRef, KeyValueRef};

use super::history::key_value;
use super::keys::Revision;
use super::record::{ChangeKind, Record};
use crate::mutations::{Mutation, is_on};

/// The events of one batch, ordered by (main, sub), in one allocation.
#[derive(Debug, Default)]
pub struct EventBatch {
    bytes: Vec<u8>,
    events: Vec<Entry>,
}

/// An event whose key, value and previous value lie one after another in the buffer.
#[derive(Debug, Clone, Copy)]
struct Entry {
    kind: EventKind,
    start: usize,
    key_end: usize,
    value_end: usize,
    prev_end: usize,
    marks: Marks,
    prev: Option<Marks>,
}

#[derive(Debug, Clone, Copy)]
struct Marks {
    create: i64,
    modified: i64,
    version: i64,
    lease: i64,
}

impl Marks {
    fn new(kv: &KeyValueRef<'_>) -> Self {
        Self {
            create: kv.create_revision,
            modified: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }

    fn with<'a>(&self, key: &'a [u8], value: &'a [u8]) -> KeyValueRef<'a> {
        KeyValueRef {
            key,
            create_revision: self.create,
            mod_revision: self.modified,
            version: self.version,
            value,
            lease: self.lease,
        }
    }
}

impl EventBatch {
    /// Main revision of the first event; 0 if there is none.
    pub fn first_revision(&self) -> i64 {
        self.events.first().map_or(0, |event| event.marks.modified)
    }

    /// Main revision of the last event; 0 if there is none.
    pub fn last_revision(&self) -> i64 {
        self.events.last().map_or(0, |event| event.marks.modified)
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events in order. `prev_kv` is filled where the key existed.
    pub fn iter(&self) -> impl Iterator<Item = EventRef<'_>> {
        self.events.iter().map(|event| self.event(event))
    }

    /// The event at `index`.
    pub fn get(&self, index: usize) -> Option<EventRef<'_>> {
        self.events.get(index).map(|event| self.event(event))
    }

    /// Bytes of memory that the events take.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.events.len() * size_of::<Entry>()
    }

    fn event(&self, event: &Entry) -> EventRef<'_> {
        let key = &self.bytes[event.start..event.key_end];
        let value = &self.bytes[event.key_end..event.value_end];
        let prev = &self.bytes[event.value_end..event.prev_end];
        EventRef {
            kind: event.kind,
            kv: event.marks.with(key, value),
            prev_kv: event.prev.map(|marks| marks.with(key, prev)),
        }
    }

    fn push(&mut self, event: &EventRef<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(event.kv.key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(event.kv.value);
        let value_end = self.bytes.len();
        if let Some(prev) = &event.prev_kv {
            self.bytes.extend_from_slice(prev.value);
        }
        self.events.push(Entry {
            kind: event.kind,
            start,
            key_end,
            value_end,
            prev_end: self.bytes.len(),
            marks: Marks::new(&event.kv),
            prev: event.prev_kv.as_ref().map(Marks::new),
        });
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

/// The event of a change; a deletion has only key and mod revision.
pub(super) fn event_of<'a>(
    kind: ChangeKind,
    key: &'a [u8],
    modified: Revision,
    new: Option<&Record<'a>>,
    replaced: Option<&Record<'a>>,
) -> EventRef<'a> {
    let gone = KeyValueRef {
        key,
        mod_revision: modified.main,
        ..KeyValueRef::default()
    };
    EventRef {
        kind: match kind {
            ChangeKind::Put => EventKind::Put,
            ChangeKind::Delete => EventKind::Delete,
        },
        kv: new.map_or(gone, |record| key_value(key, record)),
        prev_kv: replaced
            .filter(|record| record.live)
            .map(|record| key_value(key, record)),
    }
}

/// Collects a batch's events up to a limit.
#[derive(Debug)]
pub(super) struct Collector {
    max_bytes: usize,
    batch: EventBatch,
    /// First and last revision of events that were dropped.
    over: Option<(i64, i64)>,
}

impl Collector {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            batch: EventBatch::default(),
            over: None,
        }
    }

    /// Whether it keeps the next event. If not, only its revision matters.
    pub(super) fn is_open(&self) -> bool {
        self.max_bytes > 0 && self.over.is_none()
    }

    pub(super) fn push(&mut self, event: &EventRef<'_>) {
        let revision = event.kv.mod_revision;
        if !self.is_open() {
            let (_, last) = self.over.get_or_insert((revision, revision));
            *last = revision;
            return;
        }
        self.batch.push(event);
        if self.batch.bytes() > self.max_bytes {
            self.over = Some((self.batch.first_revision(), revision));
            self.batch = EventBatch::default();
        }
    }

    pub(super) fn finish(mut self) -> LiveEvents {
        if is_on(Mutation::LostWatchEvent) && self.batch.len() > 1 {
            self.batch.events.pop();
        }
        match self.over {
            Some((first, last)) => LiveEvents::ReadFromStore { first, last },
            None if self.batch.is_empty() => LiveEvents::None,
            None => LiveEvents::Batch(Arc::new(self.batch)),
        }
    }
}
