//! Going on alone: `--force-new-cluster`, after the quorum is lost for good.
//!
//! What this member's log holds counts as committed: whoever led may have
//! acknowledged it, with this member as one of the majority. (etcd lets go of what
//! the log does not yet say to be committed.) Behind it come entries that take all
//! other members out, as if they had been removed one by one; then the log is like
//! any other, and the start goes on with it. So the state, its revision, the cluster's
//! id and this member's stay, and the former members are refused as removed.

use raft::eraftpb::{Entry, EntryType, HardState};
use varve_engine::wal::{Group, Wal, WalReader};

use crate::change::{Change, FORMAT, Tagged};
use crate::error::RaftError;
use crate::log;
use crate::membership::Membership;
use crate::record;
use crate::replay::Replayed;

/// Appends what makes `member_id` the only member to a log that was replayed over a
/// store that applies up to `applied`, with `members`. Whether anything was to be done:
/// then the log has to be opened anew.
pub(crate) fn append(
    wal: &mut Wal,
    replayed: &Replayed,
    member_id: u64,
    applied: u64,
    members: &Membership,
) -> Result<bool, RaftError> {
    let mut members = members.clone();
    let last = replayed.log.last();
    for change in logged(replayed, &wal.reader(), applied)? {
        // One that was refused when it was applied elsewhere is refused here too.
        let _ = members.change(&change);
    }
    let changes = changes(&mut members, member_id)?;
    if changes.is_empty() {
        tracing::info!("member {member_id:x} is alone already");
        return Ok(false);
    }
    let term = replayed.hard_state.term.max(replayed.marker.term);
    let mut group = Group::new();
    let mut index = last;
    for (number, change) in changes.iter().enumerate() {
        index += 1;
        let entry = entry(index, term, member_id, number as u64, change);
        record::push_entry(&mut group, &entry)?;
    }
    let state = HardState {
        term,
        commit: index,
        ..replayed.hard_state.clone()
    };
    record::push_hard_state(&mut group, &state)?;
    wal.commit(&mut group)?;
    tracing::warn!(
        "forcing a new cluster: member {member_id:x} goes on alone from entry {last}, of which {} \
         were known as committed; {changes:?}",
        replayed.hard_state.commit
    );
    Ok(true)
}

/// The changes of the membership in the log that are not in the store yet.
fn logged(replayed: &Replayed, reader: &WalReader, applied: u64) -> Result<Vec<Change>, RaftError> {
    let log = &replayed.log;
    let mut changes = Vec::new();
    for index in applied.max(replayed.marker.index) + 1..=log.last() {
        let Some(slot) = log.slot(index) else {
            continue;
        };
        let entry = log::read_entry(reader, slot.lsn, index)?;
        let in_conf_change = entry.get_entry_type() != EntryType::EntryNormal;
        if (in_conf_change || entry.data.first() == Some(&FORMAT))
            && let Ok(tagged) = Tagged::of_entry(&entry.data, in_conf_change)
        {
            changes.push(tagged.change);
        }
    }
    Ok(changes)
}

/// What leaves only `member_id`, made to `members`.
fn changes(members: &mut Membership, member_id: u64) -> Result<Vec<Change>, RaftError> {
    let Some(own) = members.get(member_id) else {
        return Err(RaftError::Inconsistent(format!(
            "member {member_id:x} was removed from its cluster: it cannot go on alone; take \
             another member, or restore a snapshot"
        )));
    };
    let mut changes = Vec::new();
    if own.is_learner {
        changes.push(Change::Promote(member_id));
    }
    let others = members.members().filter(|member| member.id != member_id);
    changes.extend(others.map(|member| Change::Remove(member.id)));
    for change in &changes {
        members
            .change(change)
            .map_err(|error| RaftError::Inconsistent(format!("{change:?}: {error}")))?;
    }
    Ok(changes)
}

fn entry(index: u64, term: u64, origin: u64, number: u64, change: &Change) -> Entry {
    let tagged = Tagged {
        origin,
        number,
        change: change.clone(),
    };
    let data = tagged.encode_conf_change();
    let mut entry = Entry {
        index,
        term,
        data: data.into(),
        ..Entry::default()
    };
    entry.set_entry_type(EntryType::EntryConfChange);
    entry
}
