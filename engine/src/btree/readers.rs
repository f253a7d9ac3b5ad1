//! Which state readers see, and which states they hold on to.
//!
//! The published states lie in slots. A reader adds itself to the pins of the
//! current slot and looks again whether that slot is still the current one; if
//! not, it lets go and tries anew. So a reader takes no lock, never waits for
//! the writer, and copies the state only once it is pinned.
//!
//! Invariants, all accesses being sequentially consistent:
//! - Only the writer changes a slot's state, and only while the slot is neither
//!   current nor pinned. A reader that pins it at that moment sees another
//!   current slot and lets go without looking at the state.
//! - A slot that is neither current nor pinned is never read again until the
//!   writer makes it current, so pages that only its state used are free.
#![allow(unsafe_code)] // a slot's state is guarded by its pins, not by the borrow checker

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};

use super::state::State;
use crate::mutations::{Mutation, is_on};
use crate::sync::{AtomicU64, AtomicUsize, UnsafeCell};

/// Slots of the first chunk; each further chunk has twice as many.
#[cfg(not(loom))]
const FIRST_CHUNK: usize = 16;
/// So few that a model uses them again, and needs a second chunk.
#[cfg(loom)]
const FIRST_CHUNK: usize = 2;
/// Chunks; enough for 2^20 states that are held at the same time.
const CHUNKS: usize = 16;

#[derive(Debug)]
struct Slot {
    pins: AtomicU64,
    /// The state's number, for those who do not pin it.
    number: AtomicU64,
    state: UnsafeCell<State>,
}

// SAFETY: `state` is read by those who pin the slot while it is current, and
// written by the one writer while it is neither: see the module's invariants.
unsafe impl Sync for Slot {}

/// The slots, as readers see them.
#[derive(Debug)]
pub(super) struct Readers {
    current: AtomicUsize,
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
}

/// The writer's end. There is one per [`Readers`].
#[derive(Debug)]
pub(super) struct Publisher {
    readers: Arc<Readers>,
}

/// A state that is held: its pages are not recycled.
#[derive(Debug)]
pub(super) struct Pin {
    readers: Arc<Readers>,
    slot: usize,
    state: State,
}

fn chunk_of(index: usize) -> (usize, usize) {
    let chunk = (index / FIRST_CHUNK + 1).ilog2() as usize;
    (chunk, index - FIRST_CHUNK * ((1 << chunk) - 1))
}

fn new_chunk(chunk: usize) -> Box<[Slot]> {
    let empty = || Slot {
        pins: AtomicU64::new(0),
        number: AtomicU64::new(0),
        state: UnsafeCell::new(State::default()),
    };
    (0..FIRST_CHUNK << chunk).map(|_| empty()).collect()
}

impl Readers {
    fn slot(&self, index: usize) -> Option<&Slot> {
        let (chunk, offset) = chunk_of(index);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.chunks
            .iter()
            .map_while(OnceLock::get)
            .flat_map(|chunk| chunk.iter())
    }

    /// Pins the newest published state.
    pub(super) fn pin(self: &Arc<Self>) -> Pin {
        loop {
            let index = self.current.load(SeqCst);
            let Some(slot) = self.slot(index) else {
                continue;
            };
            slot.pins.fetch_add(1, SeqCst);
            if self.current.load(SeqCst) == index || is_on(Mutation::PinWithoutSecondLook) {
                // SAFETY: the slot is pinned and was current after that, so the
                // writer does not touch its state before the pin goes.
                let state = slot.state.with(|state| unsafe { *state });
                return Pin {
                    readers: Arc::clone(self),
                    slot: index,
                    state,
                };
            }
            slot.pins.fetch_sub(1, SeqCst);
        }
    }

    /// How many pins there are.
    pub(super) fn count(&self) -> u64 {
        self.slots().map(|slot| slot.pins.load(SeqCst)).sum()
    }

    /// How many states the oldest one that is pinned is behind the current one. As of
    /// about now: slots change while they are gone over.
    pub(super) fn oldest_age(&self) -> u64 {
        let current = self.slot(self.current.load(SeqCst));
        let newest = current.map_or(0, |slot| slot.number.load(SeqCst));
        let pinned = self.slots().filter(|slot| slot.pins.load(SeqCst) > 0);
        let oldest = pinned.map(|slot| slot.number.load(SeqCst)).min();
        newest.saturating_sub(oldest.unwrap_or(newest))
    }
}

impl Publisher {
    pub(super) fn new(state: State) -> Self {
        let chunks = [const { OnceLock::new() }; CHUNKS];
        let first = chunks[0].get_or_init(|| new_chunk(0));
        // SAFETY: nobody else has the slots yet.
        first[0].state.with_mut(|first| unsafe { *first = state });
        first[0].number.store(state.number, SeqCst);
        Self {
            readers: Arc::new(Readers {
                current: AtomicUsize::new(0),
                chunks,
            }),
        }
    }

    pub(super) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Makes `state` what readers pin from now on; `false` if the slots are
    /// used up by states that are all held.
    pub(super) fn publish(&mut self, state: State) -> bool {
        let current = self.readers.current.load(SeqCst);
        for index in 0.. {
            let slot = match self.readers.slot(index) {
                Some(slot) => slot,
                None => {
                    let (chunk, _) = chunk_of(index);
                    let Some(cell) = self.readers.chunks.get(chunk) else {
                        return false;
                    };
                    &cell.get_or_init(|| new_chunk(chunk))[0]
                }
            };
            if index != current && slot.pins.load(SeqCst) == 0 {
                // SAFETY: neither current nor pinned; see the module's invariants.
                slot.state.with_mut(|old| unsafe { *old = state });
                slot.number.store(state.number, SeqCst);
                self.readers.current.store(index, SeqCst);
                return true;
            }
        }
        false
    }

    /// The numbers of the states that a reader holds or can come to hold,
    /// ascending.
    pub(super) fn held(&self) -> Vec<u64> {
        let current = self.readers.current.load(SeqCst);
        let held = self
            .readers
            .slots()
            .enumerate()
            .filter_map(|(index, slot)| {
                let held = index == current || slot.pins.load(SeqCst) > 0;
                // SAFETY: only the writer, which this is, ever writes the state.
                held.then(|| slot.state.with(|state| unsafe { (*state).number }))
            });
        let mut held: Vec<u64> = held.collect();
        held.sort_unstable();
        held
    }

    /// The newest published state.
    pub(super) fn newest(&self) -> State {
        let current = self.readers.current.load(SeqCst);
        let slot = self.readers.slot(current);
        // SAFETY: only the writer, which this is, ever writes the state.
        slot.map_or_else(State::default, |slot| {
            slot.state.with(|state| unsafe { *state })
        })
    }
}

impl Pin {
    pub(super) fn state(&self) -> &State {
        &self.state
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(slot) = self.readers.slot(self.slot) {
            slot.pins.fetch_sub(1, SeqCst);
        }
    }
}
