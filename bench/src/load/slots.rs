//! Clients as slots, and what one generator thread keeps of them.
//!
//! A client has exactly one operation outstanding, so it is one [`Slot`] of its
//! connection: no task, channel or allocation per operation. A connection asks
//! [`Worker::issue`] what a free slot does next, and hands the answer to
//! [`Worker::complete`], which times it, checks it and notes it in the ledger.

use std::time::Instant;

use super::counts::Counts;
use super::ledger::Ledger;
use super::value::{self, KEY_SIZE, Rng};

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpKind {
    /// Write.
    Put,
    /// Read; `serializable` asks the member alone.
    Get {
        /// Without asking the leader.
        serializable: bool,
    },
}

/// One client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    kind: OpKind,
    key: u32,
    sequence: u64,
    /// The newest revision of the key that was known committed when a read was issued.
    floor: i64,
    issued_at: Instant,
    busy: bool,
}

impl Slot {
    /// A client that has not asked for anything.
    pub(crate) fn idle() -> Self {
        Self {
            kind: OpKind::Put,
            key: 0,
            sequence: 0,
            floor: 0,
            issued_at: Instant::now(),
            busy: false,
        }
    }

    /// What it last asked for.
    #[cfg(feature = "etcd")]
    pub(crate) fn kind(&self) -> OpKind {
        self.kind
    }

    /// Whether its answer is still to come.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }
}

/// The next operation of a slot, to be put on the wire.
#[derive(Debug)]
pub(crate) struct Op<'a> {
    /// What to do.
    pub(crate) kind: OpKind,
    /// With which key.
    pub(crate) key: &'a [u8],
    /// What to write; empty for a read.
    pub(crate) value: &'a [u8],
}

/// An answer, as far as the generator cares.
#[derive(Debug)]
pub(crate) enum Reply<'a> {
    /// The put was acknowledged at this revision.
    Put {
        /// Of the store, after the put.
        revision: i64,
    },
    /// The key was found.
    Found {
        /// Revision of its last change.
        mod_revision: i64,
        /// Its value.
        value: &'a [u8],
    },
    /// There is no such key.
    Absent,
    /// The server refused.
    Failed(&'a str),
}

/// What the slots of a phase do.
#[derive(Debug, Clone)]
pub(crate) enum Plan {
    /// Write each of these keys once; keys whose write failed are tried again.
    Fill {
        /// The next key.
        next: u32,
        /// The first key that is not this worker's.
        end: u32,
        /// Keys to try again.
        again: Vec<u32>,
    },
    /// Keys at random until the end of the run.
    Random {
        /// Number of keys.
        keys: u32,
        /// Of 100 operations, how many read.
        read_percent: u8,
        /// Whether reads are serializable.
        serializable: bool,
    },
}

/// When a phase counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Answers before this are warm-up.
    pub(crate) measure_from: Instant,
    /// Nothing is issued from here on; later answers are not counted.
    pub(crate) stop_at: Instant,
}

/// One generator thread's state, shared by its connections.
#[derive(Debug)]
pub(crate) struct Worker {
    plan: Plan,
    rng: Rng,
    value_size: usize,
    sequence: u64,
    sequence_step: u64,
    window: Option<Window>,
    stopped: bool,
    last_success: Option<Instant>,
    outstanding: u64,
    key: [u8; KEY_SIZE],
    value: Vec<u8>,
    /// What is known of each key.
    pub(crate) ledger: Ledger,
    /// What was counted.
    pub(crate) counts: Counts,
}

/// What a worker starts from.
#[derive(Debug)]
pub(crate) struct WorkerSetup {
    /// What to do.
    pub(crate) plan: Plan,
    /// Of the keys' choice.
    pub(crate) seed: u64,
    /// Bytes of each value.
    pub(crate) value_size: usize,
    /// The first sequence number.
    pub(crate) sequence: u64,
    /// Distance of its sequence numbers, so that workers' never meet.
    pub(crate) sequence_step: u64,
    /// What is known so far.
    pub(crate) ledger: Ledger,
}

impl Worker {
    /// Not yet running: see [`Worker::open_window`].
    pub(crate) fn new(setup: WorkerSetup) -> Self {
        Self {
            plan: setup.plan,
            rng: Rng::new(setup.seed),
            value_size: setup.value_size,
            sequence: setup.sequence,
            sequence_step: setup.sequence_step,
            window: None,
            stopped: false,
            last_success: None,
            outstanding: 0,
            key: [0; KEY_SIZE],
            value: Vec::with_capacity(setup.value_size),
            ledger: setup.ledger,
            counts: Counts::new(),
        }
    }

    /// Sets the time within which answers count; a fill has none.
    pub(crate) fn open_window(&mut self, window: Window) {
        self.window = Some(window);
    }

    /// From now on nothing is issued.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether nothing is issued any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.stopped || self.window.is_some_and(|window| now >= window.stop_at)
    }

    /// A sequence number above all that were used.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// The next operation of `slot`, whose latency counts from `since`, or `None` when there
    /// is nothing more to do.
    pub(crate) fn issue(
        &mut self,
        slot: &mut Slot,
        since: Instant,
        now: Instant,
    ) -> Option<Op<'_>> {
        debug_assert!(!slot.busy, "a client has one operation outstanding");
        if self.is_over(now) {
            return None;
        }
        (slot.kind, slot.key) = match &mut self.plan {
            Plan::Fill { next, end, again } => {
                let key = again.pop().or_else(|| {
                    let key = *next;
                    (key < *end).then(|| {
                        *next += 1;
                        key
                    })
                })?;
                (OpKind::Put, key)
            }
            Plan::Random {
                keys,
                read_percent,
                serializable,
            } => {
                let key = self.rng.below(*keys);
                let read = *read_percent == 100
                    || (*read_percent > 0 && self.rng.below(100) < u32::from(*read_percent));
                let kind = if read {
                    OpKind::Get {
                        serializable: *serializable,
                    }
                } else {
                    OpKind::Put
                };
                (kind, key)
            }
        };
        slot.busy = true;
        slot.issued_at = since;
        self.outstanding += 1;
        self.key = value::key_bytes(slot.key);
        self.value.clear();
        match slot.kind {
            OpKind::Put => {
                slot.sequence = self.sequence;
                self.sequence += self.sequence_step;
                value::fill(&mut self.value, self.value_size, slot.key, slot.sequence);
                self.ledger.issued(slot.key);
            }
            OpKind::Get { .. } => slot.floor = self.ledger.known_revision(slot.key),
        }
        Some(Op {
            kind: slot.kind,
            key: &self.key,
            value: &self.value,
        })
    }

    /// Times, checks and notes the answer to what `slot` asked.
    pub(crate) fn complete(&mut self, slot: &mut Slot, reply: Reply<'_>, now: Instant) {
        debug_assert!(slot.busy, "an answer belongs to a question");
        slot.busy = false;
        self.outstanding -= 1;
        let key = slot.key;
        match (slot.kind, reply) {
            (_, Reply::Failed(message)) => {
                self.counts.error(message, 1);
                if let Plan::Fill { again, .. } = &mut self.plan {
                    again.push(key);
                }
                return;
            }
            (OpKind::Put, Reply::Put { revision }) => {
                if let Err(what) = self.ledger.acknowledged(key, revision, slot.sequence) {
                    self.counts.violation(key, format_args!("{what}"));
                }
            }
            (
                OpKind::Get { serializable },
                Reply::Found {
                    mod_revision,
                    value,
                },
            ) => self.check_read(slot, serializable, mod_revision, value),
            (OpKind::Get { serializable }, Reply::Absent) => {
                if slot.floor > 0 && !serializable {
                    let floor = slot.floor;
                    self.counts.violation(
                        key,
                        format_args!("absent, though revision {floor} of it was acknowledged"),
                    );
                }
            }
            (kind, reply) => {
                self.counts
                    .violation(key, format_args!("{kind:?} was answered with {reply:?}"));
            }
        }
        self.counts.completed += 1;
        if let Some(window) = self.window
            && now >= window.measure_from
            && now < window.stop_at
        {
            self.counts.measured += 1;
            let since = self
                .last_success
                .replace(now)
                .unwrap_or(window.measure_from);
            self.note_pause(since, now);
            let nanos = now.duration_since(slot.issued_at).as_nanos() as u64;
            self.counts.latency.saturating_record(nanos);
        }
    }

    fn note_pause(&mut self, since: Instant, now: Instant) {
        let pause = now.saturating_duration_since(since);
        self.counts.longest_pause = self.counts.longest_pause.max(pause);
    }

    fn check_read(&mut self, slot: &Slot, serializable: bool, mod_revision: i64, value: &[u8]) {
        let key = slot.key;
        let sequence = match value::check(value, self.value_size, key) {
            Ok(sequence) => sequence,
            Err(what) => {
                self.counts
                    .violation(key, format_args!("at revision {mod_revision}: {what}"));
                return;
            }
        };
        if !serializable && mod_revision < slot.floor {
            let floor = slot.floor;
            self.counts.violation(
                key,
                format_args!("stale: read revision {mod_revision} after {floor} was known"),
            );
        }
        if let Err(what) = self.ledger.observed(key, mod_revision, sequence) {
            self.counts.violation(key, format_args!("{what}"));
        }
    }

    /// The connection is gone: whether its outstanding operations were done is not known.
    pub(crate) fn lost(&mut self, slots: &mut [Slot], why: &str, now: Instant) {
        for slot in slots.iter_mut().filter(|slot| slot.busy) {
            self.complete(slot, Reply::Failed(why), now);
        }
    }

    /// Ends the count: notes a pause that lasted to the end, and what never got an answer.
    pub(crate) fn give_up(&mut self) {
        if let Some(window) = self.window
            && !self.stopped
        {
            let since = self.last_success.unwrap_or(window.measure_from);
            self.note_pause(since, window.stop_at);
        }
        if self.outstanding > 0 {
            self.counts
                .error("no answer before the end of the run", self.outstanding);
            self.outstanding = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn worker(plan: Plan) -> Worker {
        Worker::new(WorkerSetup {
            plan,
            seed: 1,
            value_size: 32,
            sequence: 100,
            sequence_step: 1,
            ledger: Ledger::new(8),
        })
    }

    #[test]
    fn fill_writes_each_key_once_and_failed_ones_again() {
        let mut worker = worker(Plan::Fill {
            next: 0,
            end: 3,
            again: Vec::new(),
        });
        let (mut slot, now) = (Slot::idle(), Instant::now());
        let mut keys = Vec::new();
        let mut revision = 1;
        while let Some(op) = worker.issue(&mut slot, now, now) {
            keys.push(value::key_number(op.key).unwrap());
            let reply = if keys.len() == 2 {
                Reply::Failed("no")
            } else {
                revision += 1;
                Reply::Put { revision }
            };
            worker.complete(&mut slot, reply, now);
        }
        assert_eq!(keys, [0, 1, 1, 2]);
        assert_eq!((worker.counts.completed, worker.counts.errors), (3, 1));
        assert_eq!(worker.counts.violations, 0);
    }

    #[test]
    fn wrong_answers_are_violations() {
        let plan = Plan::Random {
            keys: 1,
            read_percent: 100,
            serializable: false,
        };
        let mut worker = worker(plan);
        let (mut slot, now) = (Slot::idle(), Instant::now());
        worker.ledger.acknowledged(0, 10, 5).unwrap();
        let mut value = Vec::new();
        value::fill(&mut value, 32, 0, 5);
        let mut ask = |worker: &mut Worker, reply: Reply<'_>| {
            worker.issue(&mut slot, now, now).unwrap();
            worker.complete(&mut slot, reply, now);
            worker.counts.violations
        };
        let found = |mod_revision, value| Reply::Found {
            mod_revision,
            value,
        };
        assert_eq!(ask(&mut worker, found(10, &value)), 0);
        assert_eq!(ask(&mut worker, found(9, &value)), 1, "stale");
        assert_eq!(ask(&mut worker, Reply::Absent), 2, "lost");
        assert_eq!(ask(&mut worker, found(10, b"short")), 3, "damaged");
        assert_eq!(ask(&mut worker, Reply::Put { revision: 3 }), 4, "mixed up");
        let mut other = Vec::new();
        value::fill(&mut other, 32, 0, 6);
        assert_eq!(
            ask(&mut worker, found(10, &other)),
            5,
            "another write at the same revision"
        );
    }

    #[test]
    fn only_the_window_is_measured() {
        let plan = Plan::Random {
            keys: 4,
            read_percent: 0,
            serializable: false,
        };
        let mut worker = worker(plan);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        worker.open_window(Window {
            measure_from: at(10),
            stop_at: at(20),
        });
        let mut slot = Slot::idle();
        for (revision, (issued, answered)) in [(1, 5), (5, 12), (12, 19), (19, 25)]
            .into_iter()
            .enumerate()
        {
            // Each was due a millisecond before it was issued.
            let due = at(issued - 1);
            assert!(worker.issue(&mut slot, due, at(issued)).is_some());
            let revision = revision as i64 + 2;
            worker.complete(&mut slot, Reply::Put { revision }, at(answered));
        }
        assert!(worker.issue(&mut slot, at(19), at(20)).is_none());
        assert_eq!((worker.counts.measured, worker.counts.completed), (2, 4));
        let latency = [0.5, 1.0].map(|q| worker.counts.latency.value_at_quantile(q) / 100_000);
        assert_eq!(
            latency,
            [80, 80],
            "hundreds of microseconds, from when it was due"
        );
    }
}
