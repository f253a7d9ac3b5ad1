//! Letting the log go behind checkpoints, but for what members need: those that lag
//! a little, and those that are sent a snapshot.
//!
//! While the store is on its way the cluster goes on. Were the log let go behind
//! each checkpoint as always, a member could find after a long transfer that what
//! follows is gone, and need the whole store again, for ever.

use std::collections::BTreeMap;

use crate::error::RaftError;
use crate::record::Marker;
use crate::replica::Replica;

/// Election timeouts for which the log is held after a transfer ended, and after the
/// member was last seen to get ahead.
const HOLD_ELECTION_TIMEOUTS: u64 = 120;

/// How many times the bytes that the log keeps for slow followers it keeps for those
/// that are sent a snapshot.
const TRANSFER_CATCHUPS: u64 = 16;

struct Transfer {
    /// The member has or is sent everything up to it.
    index: u64,
    /// Tick at which it ends; `None` while it is under way.
    until: Option<u64>,
}

/// The transfers of one leader.
pub(crate) struct Transfers {
    by_member: BTreeMap<u64, Transfer>,
    hold_ticks: u64,
}

impl Transfers {
    /// None; `election_ticks` is the election timeout.
    pub(crate) fn new(election_ticks: u64) -> Self {
        Self {
            by_member: BTreeMap::new(),
            hold_ticks: HOLD_ELECTION_TIMEOUTS * election_ticks,
        }
    }

    /// Member `to` is sent a store that applies up to `index` at least, or to where
    /// an earlier one did if it goes on with that.
    pub(crate) fn started(&mut self, to: u64, index: u64) {
        let transfer = self
            .by_member
            .entry(to)
            .or_insert(Transfer { index, until: None });
        transfer.index = transfer.index.min(index);
        transfer.until = None;
    }

    /// The store has arrived, or the connection broke.
    pub(crate) fn ended(&mut self, to: u64, tick: u64) {
        if let Some(transfer) = self.by_member.get_mut(&to) {
            transfer.until = Some(tick + self.hold_ticks);
        }
    }

    /// The entry after which the log is needed. `matched` tells up to which entry a
    /// member has the log; nothing of one that is no member any more.
    pub(crate) fn needed_after(
        &mut self,
        matched: impl Fn(u64) -> Option<u64>,
        tick: u64,
    ) -> Option<u64> {
        let hold_ticks = self.hold_ticks;
        self.by_member.retain(|id, transfer| {
            let Some(matched) = matched(*id) else {
                return false;
            };
            if matched > transfer.index {
                transfer.index = matched;
                transfer.until = transfer.until.map(|_| tick + hold_ticks);
            }
            transfer.until.is_none_or(|until| tick < until)
        });
        self.by_member.values().map(|transfer| transfer.index).min()
    }

    /// This member does not lead any more.
    pub(crate) fn clear(&mut self) {
        self.by_member.clear();
    }
}

impl Replica {
    /// After a checkpoint: drops entries that neither the store nor a follower
    /// that lags a little needs, and restates what must not go with them.
    pub(crate) fn compact_log(&mut self, durable: u64) -> Result<(), RaftError> {
        let durable = durable
            .min(self.applied)
            .min(self.raw.raft.raft_log.applied);
        let log = self.raw.store();
        let mut keep_from = durable.saturating_sub(self.settings.catchup_entries);
        keep_from = keep_from.max(log.index_with_bytes(durable, self.settings.catchup_bytes));
        if !self.is_leader() {
            self.transfers.clear();
        }
        let progress = self.raw.raft.prs();
        let matched = |id| progress.get(id).map(|progress| progress.matched);
        if let Some(needed) = self.transfers.needed_after(matched, self.tick)
            && needed < keep_from
        {
            let most = self.settings.catchup_bytes * TRANSFER_CATCHUPS;
            let log = self.raw.store();
            keep_from = needed.max(log.index_with_bytes(durable, most));
        }
        let log = self.raw.store();
        if keep_from < log.first() || self.is_recording_snapshot {
            return Ok(());
        }
        let Some(term) = log.term_at(keep_from) else {
            return Ok(());
        };
        let first = log.slot(keep_from + 1).map(|slot| slot.lsn);
        if first == Some(0) {
            return Ok(()); // its position is not known yet; the next checkpoint will do
        }
        self.raw.mut_store().compact(keep_from);
        let marker = Marker {
            index: keep_from,
            term,
            store: self.store,
            reset: false,
            membership: (*self.membership).clone(),
        };
        self.in_flight.restate(&marker, first, &self.written_state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_held_until_the_member_has_caught_up_or_is_gone() {
        let mut transfers = Transfers::new(10);
        let behind = |_| Some(0);
        assert_eq!(transfers.needed_after(behind, 0), None);
        transfers.started(2, 100);
        transfers.started(3, 50);
        transfers.started(3, 70);
        assert_eq!(transfers.needed_after(behind, 9_000), Some(50));
        transfers.ended(3, 9_000);
        assert_eq!(transfers.needed_after(behind, 10_199), Some(50));
        // It goes on, and is given time anew.
        let ahead = |id| Some(if id == 3 { 60 } else { 0 });
        assert_eq!(transfers.needed_after(ahead, 10_199), Some(60));
        assert_eq!(transfers.needed_after(ahead, 11_398), Some(60));
        assert_eq!(transfers.needed_after(ahead, 11_399), Some(100));
        assert_eq!(transfers.needed_after(|_| None, 11_400), None);
    }
}
