//! A disk that hangs: it fails nothing and completes nothing.
//!
//! Ticks, heartbeats and ReadIndex do not wait for the disk, so a leader whose disk
//! hangs would go on to lead, and no write would come through: followers hear from
//! it and have no reason to elect another. So each member watches its own log. If
//! writes are out and none has completed for the limit (two election timeouts, 2 s at
//! least), then until one completes
//! 1. a leader hands leadership over, and steps down if half an election timeout later
//!    nobody has taken it;
//! 2. whoever waits here is answered: what was not sent to a leader certainly is not
//!    done, of the rest nobody knows. New requests are refused, so that clients go to
//!    a member that works;
//! 3. the member does not stand for election.
//!
//! A member that votes alone only says so: there is nobody to go to, and what it
//! knows to be committed nobody can change behind its back.

use raft::INVALID_ID;
use varve_engine::mutations::{Mutation, is_on};
use varve_types::ApiError;

use crate::replica::Replica;

/// What a member knows of its disk.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    /// Ticks without a completion after which the disk counts as stuck.
    limit_ticks: u64,
    /// The last tick at which nothing was out, or at which a write completed.
    since: u64,
    /// Whether it counts as stuck.
    pub(crate) is_stuck: bool,
    /// How often it did.
    pub(crate) stalls: u64,
}

impl DiskWatch {
    pub(crate) fn new(limit_ticks: u64) -> Self {
        Self {
            limit_ticks,
            since: 0,
            is_stuck: false,
            stalls: 0,
        }
    }

    /// Ticks for which the disk has completed nothing although it was asked to.
    pub(crate) fn waited(&self, now: u64) -> u64 {
        now - self.since
    }

    /// A log write completed, or there is none.
    pub(crate) fn works(&mut self, now: u64) {
        self.since = now;
        self.is_stuck = false;
    }
}

impl Replica {
    /// Whether this member can do nothing for clients, and others could.
    pub(crate) fn is_out_of_action(&self) -> bool {
        self.disk.is_stuck && !self.is_alone()
    }

    /// Looks at the disk, once a tick.
    pub(crate) fn watch_disk(&mut self) {
        if self.in_flight.writes_out() == 0 || is_on(Mutation::StuckDiskUnnoticed) {
            return self.disk.works(self.tick);
        }
        let waited = self.disk.waited(self.tick);
        let Some(over) = waited.checked_sub(self.disk.limit_ticks) else {
            return;
        };
        if !std::mem::replace(&mut self.disk.is_stuck, true) {
            self.disk.stalls += 1;
            if !self.is_alone() {
                self.proposals.give_up();
                self.reads.refuse_all(ApiError::NoLeader);
            }
        }
        if !self.is_leader() || self.is_alone() {
            return;
        }
        if over >= self.settings.election_ticks.div_ceil(2) {
            // Term and vote stay as they are: nothing has to be written for this.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, INVALID_ID);
        } else if self.raw.raft.lead_transferee.is_none() {
            self.hand_over();
        }
    }
}
