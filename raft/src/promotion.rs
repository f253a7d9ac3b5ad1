//! Learners that get their vote by themselves.
//!
//! A leader watches how far each of them has caught up, in rounds (Raft thesis,
//! 4.2.1): a round brings the learner to where the leader's log ended when the round
//! began. One that took less than an election timeout shows that the learner keeps up:
//! once it votes, the cluster would not wait longer for it than for an election. After
//! two such rounds in a row, and with no more than [`MAX_PROMOTION_LAG`] entries
//! missing, the leader proposes the promotion, which is judged as if a client had
//! asked for it.
//!
//! [`MAX_PROMOTION_LAG`]: crate::changes::MAX_PROMOTION_LAG
//!
//! [`Replica::judge_replacement`] is about how the learners come that take the place of
//! a damaged member; see [`crate::heal`].

use std::collections::BTreeMap;

use varve_types::ApiError;

use crate::change::Change;
use crate::membership::Membership;
use crate::replica::Replica;

/// Rounds in a row that were short enough.
const ROUNDS: u32 = 2;

/// How a learner catches up.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Where the leader's log ended when the round began.
    goal: u64,
    /// The tick at which it began.
    since: u64,
    /// Rounds in a row that were short enough.
    rounds: u32,
}

/// What a leader notes of the learners.
#[derive(Debug, Default)]
pub(crate) struct Promotions {
    learners: BTreeMap<u64, Progress>,
}

impl Promotions {
    /// Notes how much of the log the learner has; whether it has caught up.
    fn note(&mut self, id: u64, (matched, last): (u64, u64), tick: u64, election: u64) -> bool {
        let progress = self.learners.entry(id).or_insert(Progress {
            goal: last,
            since: tick,
            rounds: 0,
        });
        if matched >= progress.goal && tick > progress.since {
            let is_short = tick - progress.since < election;
            *progress = Progress {
                goal: last,
                since: tick,
                rounds: if is_short { progress.rounds + 1 } else { 0 },
            };
        }
        progress.rounds >= ROUNDS
    }
}

impl Replica {
    /// Gives learners that have caught up their vote; once a tick.
    pub(crate) fn promote_learners(&mut self) {
        if !self.is_leader() {
            self.changes.promotions.learners.clear();
            return;
        }
        let waiting = self.membership.members();
        let waiting = waiting.filter(|member| member.is_learner && member.is_promotable);
        let waiting: Vec<u64> = waiting.map(|member| member.id).collect();
        let learners = &mut self.changes.promotions.learners;
        learners.retain(|id, _| waiting.contains(id));
        for id in waiting {
            let raft = &self.raw.raft;
            let matched = raft.prs().get(id).map_or(0, |progress| progress.matched);
            if matched == 0 {
                continue;
            }
            let last = raft.raft_log.last_index();
            let (tick, election) = (self.tick, self.settings.election_ticks);
            let promotions = &mut self.changes.promotions;
            let has_caught_up = promotions.note(id, (matched, last), tick, election);
            let change = Change::Promote(id);
            if has_caught_up
                && !self.has_queued_changes()
                && self.may_decide()
                && self.judge(&change).is_ok()
            {
                tracing::info!("learner {id:x} has caught up: it gets its vote");
                self.queue_own_change(change);
            }
        }
    }

    /// Whether a damaged member may be replaced: it must not be there, and those that
    /// are left must be able to go on without it.
    pub(crate) fn judge_replacement(&self, id: u64, after: &Membership) -> Result<(), ApiError> {
        let connected = after.voters().filter(|voter| self.is_connected(voter.id));
        let is_quorum = connected.count() > after.voters().count() / 2;
        match !self.is_connected(id) && is_quorum {
            true => Ok(()),
            false => Err(ApiError::Unhealthy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_short_rounds_in_a_row() {
        let mut promotions = Promotions::default();
        let mut note = |matched, last, tick| promotions.note(1, (matched, last), tick, 100);
        // The first round brings 1000 entries and takes as long as an election.
        assert!(!note(10, 1000, 0));
        assert!(!note(999, 2000, 99));
        assert!(!note(1000, 2000, 100));
        // The next one is short, the one after it not, and only then two are.
        assert!(!note(2000, 2500, 199));
        assert!(!note(2500, 2600, 299));
        assert!(!note(2600, 2700, 310));
        assert!(note(2700, 2800, 320));
    }
}
