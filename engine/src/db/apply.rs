//! The applying thread: takes what the log has made durable, applies it in the
//! order of the log, and answers those who wait. When idle it tidies up.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::error::{DbError, Result};
use super::gate::Gate;
use super::machine::{Logged, Machine};
use super::pending::Waiter;
use crate::wal::Completion;

/// Batches that are published together.
const MAX_BATCHES: usize = 4096;
/// Bytes of them, past which no more are added.
const MAX_BYTES: usize = 4 << 20;
/// Rounds between two steps of tidying while there is no idle moment.
const ROUNDS_PER_TIDY: u32 = 8;
/// How often an idle store looks whether there is something to tidy.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often during a vacuum.
const VACUUM_INTERVAL: Duration = Duration::from_millis(20);

/// Runs until the log's thread has ended, or an error.
pub(super) fn run<M: Machine>(
    mut machine: M,
    completions: &Receiver<Completion>,
    gate: &Gate<M::Output>,
) {
    let mut round = Round::default();
    let run = AssertUnwindSafe(|| apply_all(&mut machine, &mut round, completions, gate));
    let why = match std::panic::catch_unwind(run) {
        Ok(Ok(())) if gate.is_closed() => return,
        Ok(Ok(())) => "the log's thread has ended".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a bug in the store; its message is on the error output".to_owned(),
    };
    gate.stop(&why);
    gate.take_waiting(usize::MAX, &mut round.waiters);
    for waiter in round.waiters {
        waiter.answer(Err(DbError::Stopped(why.clone())));
    }
}

fn apply_all<M: Machine>(
    machine: &mut M,
    round: &mut Round<M::Output>,
    completions: &Receiver<Completion>,
    gate: &Gate<M::Output>,
) -> Result<()> {
    let mut rounds = 0u32;
    while let Some(first) = next(machine, completions)? {
        round.take(first, completions);
        gate.take_waiting(round.completions.len(), &mut round.waiters);
        round.apply(machine, gate)?;
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(ROUNDS_PER_TIDY) {
            machine.tidy(false)?;
        }
    }
    Ok(())
}

/// Waits for a batch, and tidies up meanwhile.
fn next<M: Machine>(
    machine: &mut M,
    completions: &Receiver<Completion>,
) -> Result<Option<Completion>> {
    let mut idle = false;
    loop {
        match completions.try_recv() {
            Ok(completion) => return Ok(Some(completion)),
            Err(TryRecvError::Disconnected) => return Ok(None),
            Err(TryRecvError::Empty) => {}
        }
        if machine.tidy(idle)? {
            continue;
        }
        // A vacuum goes on after the checkpoint that it waits for.
        let wait = match machine.backend().vacuums() {
            true => VACUUM_INTERVAL,
            false => IDLE_INTERVAL,
        };
        match completions.recv_timeout(wait) {
            Ok(completion) => return Ok(Some(completion)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => idle = true,
        }
    }
}

/// What is applied and published together. The memory is used again.
struct Round<T> {
    completions: Vec<Completion>,
    waiters: Vec<Waiter<T>>,
    outputs: Vec<T>,
}

impl<T> Default for Round<T> {
    fn default() -> Self {
        Self {
            completions: Vec::new(),
            waiters: Vec::new(),
            outputs: Vec::new(),
        }
    }
}

impl<T: Send + 'static> Round<T> {
    /// `first`, and what else is durable.
    fn take(&mut self, first: Completion, completions: &Receiver<Completion>) {
        let mut bytes = first.group.bytes();
        self.completions.push(first);
        while bytes < MAX_BYTES && self.completions.len() < MAX_BATCHES {
            let Ok(next) = completions.try_recv() else {
                break;
            };
            bytes += next.group.bytes();
            self.completions.push(next);
        }
    }

    fn apply<M: Machine<Output = T>>(&mut self, machine: &mut M, gate: &Gate<T>) -> Result<()> {
        let batches = self.completions.iter().zip(&self.waiters);
        let batches = batches.map_while(|(completion, waiter)| {
            let committed = completion.result.as_ref().ok()?;
            let (offset, _, payload) = completion.group.iter().next()?;
            Some(Logged {
                lsn: committed.first_lsn + offset,
                payload,
                replies: waiter.replies,
            })
        });
        let batches: Vec<_> = batches.collect();
        let count = batches.len();
        if count > 0 {
            machine.apply(&batches, &mut self.outputs)?;
        }
        let bytes = self.waiters.iter().map(|waiter| waiter.bytes).sum();
        let mut waiters = self.waiters.drain(..);
        for output in self.outputs.drain(..) {
            if let Some(waiter) = waiters.next() {
                waiter.answer(Ok(output));
            }
        }
        // From the first error on, all are errors.
        let mut failed = None;
        for (waiter, completion) in waiters.zip(self.completions.drain(count..)) {
            let error = match completion.result {
                Err(error) => DbError::from(error),
                Ok(_) => DbError::Stopped("the log gave an empty group back".to_owned()),
            };
            failed.get_or_insert_with(|| error.to_string());
            waiter.answer(Err(error));
        }
        if let Some(why) = failed {
            gate.stop(&why);
        }
        let groups = self
            .completions
            .drain(..)
            .map(|completion| completion.group);
        gate.applied(bytes, groups);
        Ok(())
    }
}
