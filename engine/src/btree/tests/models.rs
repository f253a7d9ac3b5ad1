//! Readers, the writer and checkpoints, in every schedule that loom can make of
//! them: the slots of `readers`, the waiting of freed pages in `limbo` and `space`,
//! and who looks at what first. What a page holds is a loom cell, so that whoever
//! reads one while it is written again is found out, whatever values come of it.
//!
//! `.ci/run` runs them. `LOOM_MAX_PREEMPTIONS` sets how many switches a schedule
//! may have where no thread has to wait: 5 takes minutes, 6 most of an hour. The deliberate bugs prove that the models find such.
#![allow(unsafe_code)] // what guards the modelled pages is what is to be proven

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use loom::model::Builder;
use loom::sync::{Mutex, MutexGuard};
use loom::thread;

use super::super::bitmap::CHUNK_WORDS;
use super::super::limbo::Horizon;
use super::super::meta::META_PAGES;
use super::super::readers::{Pin, Publisher, Readers};
use super::super::space::{Extent, Freed, Leftovers, Space};
use super::super::state::State;
use crate::sync::{AtomicU64, UnsafeCell};

/// Pages of the modelled file beside the meta pages: so few that they are soon
/// used again.
const PAGES: u64 = 4;

/// What is left of [`super::super::store::Shared`] if pages hold a number, the one
/// tree is one page, and a sync is a look at that page.
struct Store {
    readers: Arc<Readers>,
    writer: Mutex<Publisher>,
    space: Mutex<Space>,
    durable: AtomicU64,
    /// The page of the durable state, which a power loss would leave.
    durable_page: Mutex<u64>,
    pages: Vec<UnsafeCell<u64>>,
}

// SAFETY: whoever reaches a page that another thread writes fails the model.
unsafe impl Sync for Store {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics holding it")
}

/// A state whose parts must agree.
fn state(number: u64, page: u64) -> State {
    let mut state = State {
        number,
        ..State::default()
    };
    state.applied.index = number;
    for root in &mut state.roots {
        root.page = page;
        root.sums.bytes = number;
    }
    state
}

impl Store {
    /// A store in state 1, which is durable.
    fn new() -> Self {
        let first = META_PAGES;
        let mut live = [0; CHUNK_WORDS];
        live[0] = 1 << first;
        let end = first + PAGES;
        let space = Space::new(end, first, vec![Arc::new(live)], |page| page == first);
        let publisher = Publisher::new(state(1, first));
        let pages = (0..end).map(|page| UnsafeCell::new(u64::from(page == first)));
        Self {
            readers: Arc::clone(publisher.readers()),
            writer: Mutex::new(publisher),
            space: Mutex::new(space),
            durable: AtomicU64::new(1),
            durable_page: Mutex::new(first),
            pages: pages.collect(),
        }
    }

    /// As a batch of `batch.rs` that changes the one page.
    fn write(&self) {
        let mut publisher = lock(&self.writer);
        let old = publisher.newest();
        self.recycle(&publisher);
        let number = old.number + 1;
        // The real file would grow instead.
        let Some(taken) = lock(&self.space).take_below(1, u64::MAX) else {
            return;
        };
        // SAFETY: loom checks it.
        self.pages[taken.page as usize].with_mut(|page| unsafe { *page = number });
        let freed = Freed {
            extent: Extent::one(old.roots[0].page),
            birth: old.number,
        };
        let leftovers = Leftovers {
            freed: vec![freed],
            unused: Vec::new(),
        };
        let mut space = lock(&self.space);
        assert!(publisher.publish(state(number, taken.page)));
        space.publish(number, leftovers);
    }

    /// As `Shared::recycle`.
    fn recycle(&self, publisher: &Publisher) {
        let horizon = Horizon::look(publisher, &self.durable);
        lock(&self.space).recycle(&horizon);
    }

    /// As `checkpoint.rs`.
    fn checkpoint(&self) {
        let pin = {
            let _space = lock(&self.space);
            self.readers.pin()
        };
        self.verify(&pin);
        *lock(&self.durable_page) = pin.state().roots[0].page;
        self.durable.store(pin.state().number, SeqCst);
        drop(pin);
        if let Ok(publisher) = self.writer.try_lock() {
            self.recycle(&publisher);
        }
    }

    fn verify(&self, pin: &Pin) {
        let found = *pin.state();
        assert_eq!(found, state(found.number, found.roots[0].page), "torn");
        assert_eq!(
            self.content(found.roots[0].page),
            found.number,
            "reused page"
        );
    }

    fn content(&self, page: u64) -> u64 {
        // SAFETY: loom checks it.
        self.pages[page as usize].with(|page| unsafe { *page })
    }

    /// When all threads have ended: the newest state and the durable one are whole,
    /// and no page is lost.
    fn verify_end(&self) {
        let publisher = lock(&self.writer);
        let newest = publisher.newest();
        assert_eq!(self.content(newest.roots[0].page), newest.number);
        let durable = self.durable.load(SeqCst);
        let durable_page = *lock(&self.durable_page);
        assert_eq!(self.content(durable_page), durable, "not what is durable");
        assert_eq!((self.readers.count(), self.readers.oldest_age()), (0, 0));
        self.recycle(&publisher);
        let used = 1 + u64::from(durable_page != newest.roots[0].page);
        assert_eq!(lock(&self.space).free_pages(), PAGES - used);
    }
}

/// Runs `threads` beside each other in every schedule with so many switches.
fn explore(preemptions: usize, threads: &[fn(&Store)]) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = 10_000;
    let threads = threads.to_vec();
    let schedules = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&schedules);
    builder.check(move || {
        counted.fetch_add(1, SeqCst);
        let store = Arc::new(Store::new());
        let spawn = |run: &fn(&Store)| {
            let (store, run) = (Arc::clone(&store), *run);
            thread::spawn(move || run(&store))
        };
        let running: Vec<_> = threads.iter().map(spawn).collect();
        for thread in running {
            thread.join().expect("the thread ends");
        }
        store.verify_end();
    });
    println!("{} schedules", schedules.load(SeqCst));
}

fn write_twice(store: &Store) {
    store.write();
    store.write();
}

fn write_thrice(store: &Store) {
    write_twice(store);
    store.write();
}

fn read(store: &Store) {
    let pin = store.readers.pin();
    store.verify(&pin);
    thread::yield_now();
    store.verify(&pin);
}

/// Later reads see no older state, and the first one is held meanwhile.
fn read_two(store: &Store) {
    let first = store.readers.pin();
    let second = store.readers.pin();
    assert!(second.state().number >= first.state().number);
    store.verify(&second);
    drop(second);
    store.verify(&first);
}

fn checkpoint(store: &Store) {
    store.checkpoint();
}

/// What a reader holds is among what the writer knows to be held, and counts.
fn hold_and_look(store: &Store) {
    let pin = store.readers.pin();
    assert!(store.readers.count() > 0);
    let newest = {
        let publisher = lock(&store.writer);
        assert!(publisher.held().contains(&pin.state().number));
        publisher.newest().number
    };
    assert!(store.readers.oldest_age() >= newest - pin.state().number);
}

mod models {
    use super::*;

    #[test]
    fn readers_beside_the_writer() {
        explore(6, &[write_thrice, read]);
        explore(3, &[write_twice, read, read]);
    }

    #[test]
    fn a_reader_of_two_states() {
        explore(6, &[write_thrice, read_two]);
    }

    #[test]
    fn what_is_held_and_how_old_it_is() {
        explore(6, &[write_twice, hold_and_look]);
    }

    #[test]
    fn checkpoints_beside_the_writer() {
        explore(6, &[write_thrice, checkpoint]);
        explore(3, &[write_twice, checkpoint, read]);
    }
}

/// The models fail with a bug in what they model.
#[cfg(feature = "mutations")]
mod bugs {
    use super::*;
    use crate::mutations::{Mutation, switch_on};

    fn finds(mutation: Mutation, threads: &[fn(&Store)]) {
        switch_on(Some(mutation));
        let run = std::panic::AssertUnwindSafe(|| explore(3, threads));
        let outcome = std::panic::catch_unwind(run);
        switch_on(None);
        assert!(outcome.is_err(), "{mutation:?} is not found");
    }

    #[test]
    fn a_missing_second_look_is_found() {
        finds(Mutation::PinWithoutSecondLook, &[write_thrice, read]);
    }

    #[test]
    fn a_weak_ordering_is_found() {
        finds(Mutation::NoTotalOrder, &[write_thrice, read]);
    }

    #[test]
    fn the_wrong_order_of_looks_is_found() {
        finds(Mutation::DurableBeforePins, &[write_thrice, checkpoint]);
    }
}
