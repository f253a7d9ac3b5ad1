//! What must hold after every step: the properties of Raft (Ongaro and Ousterhout
//! 2014, figure 3), and equal states at equal indexes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use varve_engine::wal::Group;

use super::node::Node;
use crate::io::{ApplyJob, EntryData, Output, ToApply};
use crate::record::{self, Record};

/// What is known of an entry by its index and term: its bytes, and the term before it.
type Entries = BTreeMap<(u64, u64), (u64, Option<u64>)>;

#[derive(Default)]
pub(super) struct Invariants {
    leaders: BTreeMap<u64, u64>,
    entries: Entries,
    /// Terms of the entries that some member knows as committed, and the term in which
    /// the first one knew.
    committed: BTreeMap<u64, (u64, u64)>,
    /// How far each life of each member was looked at.
    seen_commit: BTreeMap<(u64, u64), u64>,
    states: BTreeMap<u64, (i64, u128)>,
}

pub(super) fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Invariants {
    /// How many terms had a leader.
    pub(super) fn terms_led(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// After a turn of a member's replica, with what it wants done.
    pub(super) fn after_turn(&mut self, node: &Node, output: &Output) -> Result<(), String> {
        self.commit(node)?;
        self.leader(node)?;
        for job in &output.apply {
            if let ApplyJob::Entries(entries) = job {
                self.handed_out(node, entries)?;
            }
        }
        Ok(())
    }

    /// Log matching: entries of the same index and term are the same, and so are
    /// those before them. Of an entry that its only holder lost before it was durable
    /// nobody knows, so this looks at what became durable, and at what was sent.
    pub(super) fn durable(&mut self, node: &Node, group: &Group) -> Result<(), String> {
        let log = node.replica.raw.store();
        for (_, kind, payload) in group.iter() {
            let payload = Bytes::copy_from_slice(payload);
            let Ok(Record::Entry(entry)) = record::decode(0, kind, payload) else {
                continue;
            };
            let is_still_there = log.term_at(entry.index) == Some(entry.term);
            let before = log.term_at(entry.index - 1).filter(|_| is_still_there);
            self.entry(node.id, "writes", &entry, before)?;
        }
        Ok(())
    }

    /// See [`Invariants::durable`].
    pub(super) fn sent(&mut self, id: u64, message: &Message) -> Result<(), String> {
        if message.get_msg_type() != MessageType::MsgAppend {
            return Ok(());
        }
        let mut before = message.log_term;
        for entry in message.get_entries() {
            self.entry(id, "sends", entry, Some(before))?;
            before = entry.term;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        id: u64,
        what: &str,
        entry: &Entry,
        before: Option<u64>,
    ) -> Result<(), String> {
        let hash = hash_of(&entry.data);
        let key = (entry.index, entry.term);
        let known = self.entries.entry(key).or_insert((hash, before));
        known.1 = known.1.or(before);
        match known.0 != hash || (before.is_some() && known.1 != before) {
            false => Ok(()),
            true => Err(format!(
                "member {id:x} {what} another entry {} of term {} than is known: {:?} \
                 after term {before:?}, not after {:?}",
                entry.index, entry.term, entry.data, known.1
            )),
        }
    }

    /// State machine safety: what is committed stays.
    fn commit(&mut self, node: &Node) -> Result<(), String> {
        let log = node.replica.raw.store();
        let commit = node.replica.raw.raft.raft_log.committed;
        let seen = self.seen_commit.entry((node.id, node.life)).or_default();
        let from = (*seen + 1).max(log.first());
        for index in from..=commit {
            let Some(term) = log.term_at(index) else {
                continue; // not in the log yet, or not any more
            };
            let now = node.replica.raw.raft.term;
            let (known, _) = *self.committed.entry(index).or_insert((term, now));
            if known != term {
                return Err(format!(
                    "entry {index} was committed with term {known}, but member {:x} has it as \
                     committed with term {term}",
                    node.id
                ));
            }
        }
        *seen = commit.max(*seen);
        Ok(())
    }

    /// Election safety and leader completeness.
    fn leader(&mut self, node: &Node) -> Result<(), String> {
        let status = node.replica.status();
        if !status.is_leader {
            return Ok(());
        }
        match self.leaders.get(&status.term) {
            Some(leader) if *leader == node.id => return Ok(()),
            Some(leader) => {
                return Err(format!(
                    "term {} has two leaders, {leader:x} and {:x}",
                    status.term, node.id
                ));
            }
            None => self.leaders.insert(status.term, node.id),
        };
        let log = node.replica.raw.store();
        for (index, (term, known_in)) in self.committed.range(log.first()..) {
            // Votes may come so late that others were at work in a later term meanwhile.
            if *known_in < status.term && log.term_at(*index) != Some(*term) {
                return Err(format!(
                    "member {:x} leads term {} without the committed entry {index} of term {term}",
                    node.id, status.term
                ));
            }
        }
        Ok(())
    }

    /// Only what is committed, and durable here, is applied.
    fn handed_out(&self, node: &Node, entries: &[ToApply]) -> Result<(), String> {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            let fail = |what: String| {
                let id = node.id;
                Err(format!(
                    "member {id:x} is to apply entry {index} of term {term}, {what}"
                ))
            };
            let committed = self.committed.get(&index).map(|(term, _)| *term);
            if committed != Some(term) {
                return fail(format!("committed is {committed:?}"));
            }
            let slot = node.replica.raw.store().slot(index);
            if slot.is_none_or(|slot| slot.lsn == 0) {
                return fail("which its log does not hold durably".to_owned());
            }
            if let (EntryData::Here(data), Some((hash, _))) =
                (&entry.data, self.entries.get(&(index, term)))
                && hash_of(data) != *hash
            {
                return fail("with other bytes".to_owned());
            }
        }
        Ok(())
    }

    /// Equal states at equal indexes.
    pub(super) fn after_apply(&mut self, node: &Node) -> Result<(), String> {
        let view = node.view();
        let index = view.applied().index;
        let state = (view.revision(), view.hash());
        let known = *self.states.entry(index).or_insert(state);
        match known == state {
            true => Ok(()),
            false => Err(format!(
                "member {:x} has state {state:x?} at index {index}, another one had {known:x?}",
                node.id
            )),
        }
    }
}
