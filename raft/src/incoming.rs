//! Messages of other members: what is let through to raft-rs, and what is not.
//!
//! A sender need not be known: it may have joined after what this member has
//! applied, and lead by now. One that was removed is not listened to.

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

use crate::change::Tagged;
use crate::replica::{MAX_HELD, Replica};
use crate::wire;

impl Replica {
    /// Takes the bytes that member `from` sent.
    pub(crate) fn peer_message(&mut self, from: u64, bytes: &Bytes) {
        if self.membership.is_removed(from) || (self.changes.is_removed && !self.is_leader()) {
            return;
        }
        self.changes.heard(from, self.tick);
        match bytes.first() {
            Some(&wire::CHANGE) => return self.change_message(from, bytes),
            Some(&wire::REFUSAL) => {
                if let Ok((number, error)) = wire::decode_refusal(bytes) {
                    self.change_refused(number, error);
                }
                return;
            }
            Some(&wire::STATE) => return self.state_told(from, bytes),
            Some(&wire::STATE_ANSWER) => return self.state_answered(from, bytes),
            _ => {}
        }
        let mut message = match wire::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!("message of member {from:x} refused: {error}");
                return;
            }
        };
        if let Err(reason) = self.check(from, &message) {
            tracing::warn!("message of member {from:x} refused: {reason}");
            return;
        }
        match message.get_msg_type() {
            // See `tick`.
            MessageType::MsgTimeoutNow if self.is_recording_snapshot => {}
            // Sent to who led before: who waits for a read asks again.
            MessageType::MsgReadIndex if !self.is_leader() => {}
            kind @ (MessageType::MsgReadIndex | MessageType::MsgPropose) => {
                if kind == MessageType::MsgPropose {
                    // It may go on to the next leader, and nobody may speak for another one.
                    message.from = self.settings.member_id;
                }
                // raft-rs would drop it, and its client would wait for a timeout.
                if !self.can_lead(&message) {
                    if self.held.len() < MAX_HELD {
                        self.held.push(message);
                    }
                    return;
                }
                self.ignore(|raw| raw.step(message));
            }
            _ => self.ignore(|raw| raw.step(message)),
        }
    }

    fn change_message(&mut self, from: u64, bytes: &Bytes) {
        match Tagged::decode(wire::CHANGE, bytes) {
            Ok(tagged) if self.membership.get(tagged.origin).is_some() => {
                let mut answers = std::mem::take(&mut self.answers);
                self.change_asked(tagged, &mut answers);
                self.answers = answers;
            }
            Ok(tagged) => tracing::warn!("{:x} is no member: refused", tagged.origin),
            Err(error) => tracing::warn!("message of member {from:x} refused: {error}"),
        }
    }

    /// Whether this leader can do now what a message of another member asks, or this
    /// follower can pass it on.
    pub(crate) fn can_lead(&self, message: &Message) -> bool {
        let raft = &self.raw.raft;
        match (message.get_msg_type(), self.is_leader()) {
            (MessageType::MsgPropose, true) => raft.lead_transferee.is_none(),
            (MessageType::MsgPropose, false) => raft.leader_id != 0,
            (_, is_leader) => is_leader && raft.commit_to_current_term(),
        }
    }

    fn check(&self, from: u64, message: &Message) -> Result<(), &'static str> {
        let log = &self.raw.raft.raft_log;
        let is_forwarded = message.get_msg_type() == MessageType::MsgTransferLeader;
        if message.from != from && !is_forwarded {
            return Err("it speaks for another member");
        }
        wire::check(message, self.settings.member_id, log.last_index())?;
        match message.get_msg_type() {
            MessageType::MsgAppend if message.term >= self.raw.raft.term => {
                let conflict = message
                    .entries
                    .iter()
                    .take_while(|entry| entry.index <= log.committed)
                    .any(|entry| {
                        entry.index >= log.first_index() && !log.match_term(entry.index, entry.term)
                    });
                if conflict {
                    return Err("entries that conflict with committed ones");
                }
            }
            MessageType::MsgAppendResponse
                if !message.reject && message.index > log.last_index() =>
            {
                return Err("it acknowledges entries that do not exist");
            }
            _ => {}
        }
        Ok(())
    }
}
