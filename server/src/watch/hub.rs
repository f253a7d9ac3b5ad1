//! Tells watchers that something happened to their keys.
//!
//! A watcher is a cursor: the next revision it has not sent. It is *idle* while
//! the hub vouches that nothing below the hub's position is left for it, and
//! *ready* from the first matching event on until its connection has caught up
//! with the hub again. So an event costs a look-up and one mark for each watcher
//! that it makes ready; nothing is queued per watcher.
//!
//! Invariants:
//! - every event below `position` has been held against the index;
//! - for an idle watcher no matching event lies in `[next, position)`;
//! - a ready watcher's connection knows of it.
//!
//! The apply thread only leaves the batch in `incoming`; a task of the runtime
//! does the matching. Where it can't keep up, or a batch was too large to keep,
//! events are dropped and every idle watcher reads from the store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use slab::Slab;
use tokio::sync::Notify;
use varve_engine::mvcc::{EventBatch, LiveEvents, View};
use varve_raft::Watchers;

use super::interest::{Interest, OwnedRange};
use super::ring::{Recent, Ring};
use crate::connection::Inbox;

/// Bytes of events that may wait to be matched.
const MAX_INCOMING_BYTES: usize = 32 << 20;
/// Most batches that one look at the ring gives.
const BATCHES_AT_ONCE: usize = 64;

/// What the apply thread left.
#[derive(Debug)]
enum Incoming {
    Batch(Arc<EventBatch>, usize),
    /// Revisions whose events are only in the store, by their last.
    Lost(i64),
}

#[derive(Debug, Default)]
struct Queue {
    items: Vec<Incoming>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Ready,
}

struct Watcher {
    range: OwnedRange,
    next: i64,
    state: State,
    inbox: Arc<Inbox>,
    /// The watch's number in its connection.
    watch: u64,
}

#[derive(Default)]
struct Table {
    ring: Ring,
    position: i64,
    watchers: Slab<Watcher>,
    interest: Interest,
}

/// Where a ready watcher reads its events.
pub(crate) enum Source {
    /// From these batches; afterwards everything below the revision is done.
    Recent(Vec<Arc<Recent>>, i64),
    /// From the store.
    Store,
}

/// The hub of a node.
#[derive(Default)]
pub struct Hub {
    queue: Mutex<Queue>,
    wake: Notify,
    table: Mutex<Table>,
    count: AtomicUsize,
}

impl Hub {
    /// Matches what comes in, for as long as the node runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            self.process();
        }
    }

    /// The side that the apply thread has.
    pub fn feed(self: &Arc<Self>) -> Box<dyn Watchers> {
        Box::new(Feed(Arc::clone(self)))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// How many of them have something to send, or read what is past.
    pub fn behind(&self) -> usize {
        let table = self.table();
        let ready = |(_, watcher): &(usize, &Watcher)| watcher.state == State::Ready;
        table.watchers.iter().filter(ready).count()
    }

    /// Adds a watcher whose next revision is `next`. It starts ready: its
    /// connection catches up and calls [`Hub::settle`].
    pub(crate) fn add(
        &self,
        range: OwnedRange,
        next: i64,
        inbox: &Arc<Inbox>,
        watch: u64,
    ) -> usize {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table();
        let table = &mut *table;
        let entry = table.watchers.vacant_entry();
        let key = entry.key();
        // A connection's watches are bounded, and so are connections.
        table.interest.insert(key as u32, &range);
        entry.insert(Watcher {
            range,
            next,
            state: State::Ready,
            inbox: Arc::clone(inbox),
            watch,
        });
        key
    }

    /// Removes a watcher.
    pub(crate) fn remove(&self, key: usize) {
        let mut table = self.table();
        if let Some(watcher) = table.watchers.try_remove(key) {
            table.interest.remove(key as u32, &watcher.range);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Where the events of a watcher are that has sent everything below `next`,
    /// and from which revision on there can be any.
    pub(crate) fn source(&self, key: usize, next: i64) -> (i64, Source) {
        let table = self.table();
        let next = match table.watchers.get(key) {
            Some(watcher) => watcher.next.max(next),
            None => next,
        };
        if next >= table.position {
            // Either there is nothing, or the store is ahead of the hub.
            return (next, Source::Store);
        }
        let source = match table.ring.since(next, BATCHES_AT_ONCE) {
            Some((batches, true)) => Source::Recent(batches, table.position),
            Some((batches, false)) => {
                let done = batches.last().map_or(next, |last| last.last_revision() + 1);
                Source::Recent(batches, done)
            }
            None => Source::Store,
        };
        (next, source)
    }

    /// Says that everything below `next` has been sent; whether the watcher is
    /// idle now. If not, there may be more, and its connection goes on.
    pub(crate) fn settle(&self, key: usize, next: i64) -> bool {
        let mut table = self.table();
        let position = table.position;
        match table.watchers.get_mut(key) {
            Some(watcher) => {
                watcher.next = next;
                if next >= position {
                    watcher.state = State::Idle;
                }
                watcher.state == State::Idle
            }
            None => true,
        }
    }

    /// The revision below which an idle watcher has sent
    /// everything; `None` if it is not idle.
    pub(crate) fn done_below(&self, key: usize) -> Option<i64> {
        let table = self.table();
        let watcher = table.watchers.get(key)?;
        (watcher.state == State::Idle).then(|| watcher.next.max(table.position))
    }

    fn process(&self) {
        let items = {
            let mut queue = self.queue.lock().unwrap_or_else(|e| e.into_inner());
            queue.bytes = 0;
            std::mem::take(&mut queue.items)
        };
        let mut woken = Woken::default();
        {
            let mut table = self.table();
            for item in items {
                match item {
                    Incoming::Batch(batch, bytes) => table.take_batch(batch, bytes, &mut woken),
                    Incoming::Lost(last) => table.skip_to(last, &mut woken),
                }
            }
        }
        woken.wake();
    }
}

impl Table {
    fn take_batch(&mut self, batch: Arc<EventBatch>, bytes: usize, woken: &mut Woken) {
        if batch.first_revision() > self.position {
            // Nothing vouches for what lies between: after a start, or after a gap.
            self.skip_to(batch.first_revision() - 1, woken);
        }
        let Self {
            watchers, interest, ..
        } = self;
        for event in batch.iter() {
            interest.matches(event.kv.key, &mut |key| {
                if let Some(watcher) = watchers.get_mut(key as usize)
                    && watcher.state == State::Idle
                    && watcher.next <= event.kv.mod_revision
                {
                    watcher.next = event.kv.mod_revision;
                    watcher.state = State::Ready;
                    woken.add(watcher);
                }
            });
        }
        self.position = self.position.max(batch.last_revision() + 1);
        self.ring.push(batch, bytes);
    }

    /// Events up to `last` are only in the store.
    fn skip_to(&mut self, last: i64, woken: &mut Woken) {
        if last < self.position {
            return;
        }
        self.ring.clear();
        let before = std::mem::replace(&mut self.position, last + 1);
        for (_, watcher) in &mut self.watchers {
            if watcher.state == State::Idle && watcher.next <= last {
                watcher.next = watcher.next.max(before);
                watcher.state = State::Ready;
                woken.add(watcher);
            }
        }
    }
}

/// Connections to wake, with their watches.
#[derive(Default)]
struct Woken {
    by_connection: HashMap<*const Inbox, (Arc<Inbox>, Vec<u64>)>,
}

impl Woken {
    fn add(&mut self, watcher: &Watcher) {
        self.by_connection
            .entry(Arc::as_ptr(&watcher.inbox))
            .or_insert_with(|| (Arc::clone(&watcher.inbox), Vec::new()))
            .1
            .push(watcher.watch);
    }

    fn wake(self) {
        for (inbox, watches) in self.by_connection.into_values() {
            inbox.wake_watches(&watches);
        }
    }
}

/// What the apply thread holds.
struct Feed(Arc<Hub>);

impl Watchers for Feed {
    fn wanted(&self) -> bool {
        self.0.watchers() > 0
    }

    fn notify(&mut self, events: LiveEvents, _view: Arc<View>) {
        let watched = self.0.watchers() > 0;
        let item = match events {
            LiveEvents::None => return,
            LiveEvents::ReadFromStore { last, .. } => Incoming::Lost(last),
            LiveEvents::Batch(batch) if watched => {
                let bytes = batch.bytes();
                Incoming::Batch(batch, bytes)
            }
            LiveEvents::Batch(batch) => Incoming::Lost(batch.last_revision()),
        };
        let mut queue = self.0.queue.lock().unwrap_or_else(|e| e.into_inner());
        queue.push(item);
        drop(queue);
        if watched {
            self.0.wake.notify_one();
        }
    }
}

impl Queue {
    fn push(&mut self, item: Incoming) {
        match item {
            Incoming::Batch(batch, bytes) if self.bytes + bytes <= MAX_INCOMING_BYTES => {
                self.bytes += bytes;
                self.items.push(Incoming::Batch(batch, bytes));
            }
            Incoming::Batch(batch, _) => self.lose(batch.last_revision()),
            Incoming::Lost(last) => self.lose(last),
        }
    }

    /// What is lost takes everything before it along: the ring must have no gap.
    fn lose(&mut self, last: i64) {
        self.items.clear();
        self.items.push(Incoming::Lost(last));
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestStore;
    use super::*;

    struct Test {
        store: TestStore,
        hub: Arc<Hub>,
        feed: Box<dyn Watchers>,
        inbox: Arc<Inbox>,
    }

    impl Test {
        fn new() -> Self {
            let hub = Arc::new(Hub::default());
            Self {
                store: TestStore::new(),
                feed: hub.feed(),
                hub,
                inbox: Arc::default(),
            }
        }

        fn put(&mut self, keys: &[&str]) {
            let batch = self.store.put_all(keys);
            self.feed
                .notify(LiveEvents::Batch(batch), self.store.view());
        }

        fn add(&mut self, key: &str, next: i64, watch: u64) -> usize {
            let range = OwnedRange::new(key.as_bytes(), b"");
            self.hub.add(range, next, &self.inbox, watch)
        }

        fn woken(&self) -> Vec<u64> {
            self.hub.process();
            let mut mail = crate::connection::Mail::default();
            self.inbox.take(&mut mail);
            mail.watches.sort_unstable();
            mail.watches
        }
    }

    #[test]
    fn only_watchers_of_the_key_wake_and_only_once() {
        let mut test = Test::new();
        let a = test.add("a", 2, 1);
        let b = test.add("b", 2, 2);
        assert!(test.hub.settle(a, 2) && test.hub.settle(b, 2));
        test.put(&["a"]);
        assert_eq!(test.woken(), [1]);
        test.put(&["a", "c"]);
        assert_eq!(test.woken(), [0; 0], "it is awake already");
        assert_eq!(test.hub.behind(), 1);
        // The first one reads from where it was woken; the other one need not look back.
        assert!(matches!(test.hub.source(a, 2), (2, Source::Recent(found, 5)) if found.len() == 2));
        assert_eq!(test.hub.done_below(a), None);
        assert_eq!(test.hub.done_below(b), Some(5));
        assert!(
            !test.hub.settle(a, 4),
            "revision 4 is still to be looked at"
        );
        assert!(test.hub.settle(a, 5));
        test.put(&["b"]);
        assert_eq!(test.woken(), [2]);
        assert!(matches!(test.hub.source(b, 2), (5, Source::Recent(found, 6)) if found.len() == 1));
    }

    #[test]
    fn a_start_in_the_future_sleeps_until_then() {
        let mut test = Test::new();
        let watcher = test.add("a", 4, 1);
        assert!(test.hub.settle(watcher, 4));
        test.put(&["a", "a"]);
        assert_eq!(test.woken(), [0; 0]);
        test.put(&["a"]);
        assert_eq!(test.woken(), [1]);
        assert!(matches!(
            test.hub.source(watcher, 4),
            (4, Source::Recent(..))
        ));
    }

    #[test]
    fn lost_events_are_read_from_the_store() {
        let mut test = Test::new();
        let (a, b) = (test.add("a", 2, 1), test.add("b", 9, 2));
        assert!(test.hub.settle(a, 2) && test.hub.settle(b, 9));
        test.put(&["x"]);
        assert_eq!(test.woken(), [0; 0]);
        let view = test.store.view();
        test.feed
            .notify(LiveEvents::ReadFromStore { first: 3, last: 7 }, view);
        assert_eq!(test.woken(), [1], "the other one starts later");
        // Nothing before revision 3 can be for it.
        assert!(matches!(test.hub.source(a, 2), (3, Source::Store)));
        assert!(test.hub.settle(a, 8));
    }

    #[test]
    fn the_queue_is_bounded_and_leaves_no_gap() {
        let mut test = Test::new();
        let watcher = test.add("a", 2, 1);
        assert!(test.hub.settle(watcher, 2));
        let batch = test.store.put_all(&["b"]);
        let mut queue = test.hub.queue.lock().unwrap();
        queue.push(Incoming::Batch(Arc::clone(&batch), MAX_INCOMING_BYTES));
        queue.push(Incoming::Batch(batch, 1));
        assert!(matches!(queue.items[..], [Incoming::Lost(2)]));
        drop(queue);
        assert_eq!(test.woken(), [1]);
        assert!(matches!(
            test.hub.source(watcher, 2),
            (2, Source::Store) | (3, _)
        ));
    }

    #[test]
    fn removed_watchers_are_forgotten() {
        let mut test = Test::new();
        let watcher = test.add("a", 2, 1);
        test.hub.settle(watcher, 2);
        test.put(&["a"]);
        test.hub.remove(watcher);
        test.hub.remove(watcher);
        assert_eq!((test.hub.watchers(), test.woken().len()), (0, 0));
        test.put(&["a"]);
        let late = test.add("a", 2, 3);
        assert_eq!(test.woken(), [0; 0]);
        // Without watchers nothing is kept, and it reads from the store.
        assert!(matches!(test.hub.source(late, 2), (2, Source::Store)));
    }
}
