//! Messages between replicas as bytes. The first byte tells their kind: Raft's own,
//! a change of the membership or the refusal of one, a state to compare or the answer
//! to it. Raft's own:
//!
//! `[u8 version = 1][u8 type][u8 flags][u8 0]`, nine `u64` and one `i64` (to,
//! from, term, log term, index, commit, commit term, reject hint, request
//! snapshot, priority), context, entries (`[u32 count]`, then for each
//! `[u8 type][u64 term][u64 index]` and data), and with flag 2 a snapshot's
//! metadata. Byte strings carry a `u32` length; integers are little-endian.
//!
//! raft-rs could encode them as protobuf, but that decoder recurses without a
//! bound on hostile input (RUSTSEC-2024-0437), and the peer port is open to
//! anyone. Data of entries is a slice of the received bytes, not a copy.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use varve_types::{ApiError, DecodeError, Reader};

const VERSION: u8 = 1;
/// First byte of a change of the membership that is passed on to the leader; the
/// rest is as in the log (see [`crate::change`]).
pub(crate) const CHANGE: u8 = 2;
/// First byte of the leader's refusal: `[u64 number][u16 error]` follow.
pub(crate) const REFUSAL: u8 = 3;
/// First byte of the leader's state, to be compared, and of the answer to it (see
/// [`crate::corruption`]): `[u64 index][i64 revision][u128 hash]` follow.
pub(crate) const STATE: u8 = 4;
pub(crate) const STATE_ANSWER: u8 = 5;
const FLAG_REJECT: u8 = 1;
const FLAG_SNAPSHOT: u8 = 2;
const FIXED_BYTES: usize = 4 + 10 * 8 + 4 + 4;
const ENTRY_BYTES: usize = 1 + 8 + 8 + 4;

/// Encodes a message.
pub(crate) fn encode(message: &Message) -> Bytes {
    let entries: usize = message
        .entries
        .iter()
        .map(|e| ENTRY_BYTES + e.data.len())
        .sum();
    let mut out = Vec::with_capacity(FIXED_BYTES + message.context.len() + entries);
    let has_snapshot = !message.get_snapshot().is_empty();
    out.push(VERSION);
    out.push(message.get_msg_type() as u8);
    out.push(
        if message.reject { FLAG_REJECT } else { 0 } | if has_snapshot { FLAG_SNAPSHOT } else { 0 },
    );
    out.push(0);
    for field in [
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.request_snapshot,
    ] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&message.priority.to_le_bytes());
    put_bytes(&mut out, &message.context);
    put_count(&mut out, message.entries.len());
    for entry in message.entries.iter() {
        out.push(entry.get_entry_type() as u8);
        out.extend_from_slice(&entry.term.to_le_bytes());
        out.extend_from_slice(&entry.index.to_le_bytes());
        put_bytes(&mut out, &entry.data);
    }
    if has_snapshot {
        put_snapshot(&mut out, message.get_snapshot());
    }
    Bytes::from(out)
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let metadata = snapshot.get_metadata();
    let conf = metadata.get_conf_state();
    out.extend_from_slice(&metadata.index.to_le_bytes());
    out.extend_from_slice(&metadata.term.to_le_bytes());
    out.push(u8::from(conf.auto_leave));
    for ids in [
        &conf.voters,
        &conf.learners,
        &conf.voters_outgoing,
        &conf.learners_next,
    ] {
        put_count(out, ids.len());
        for id in ids.iter() {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    put_bytes(out, &snapshot.data);
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // Messages are bounded to a few MiB.
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Decodes a message; the data of its entries shares the memory of `input`.
pub(crate) fn decode(input: &Bytes) -> Result<Message, DecodeError> {
    let mut reader = Reader::new(input);
    if reader.u8("message version")? != VERSION {
        return Err(Reader::new(input).error("message version"));
    }
    let mut message = Message::default();
    message.set_msg_type(message_type(&mut reader)?);
    let flags = reader.u8("flags")?;
    reader.u8("padding")?;
    message.to = reader.u64("to")?;
    message.from = reader.u64("from")?;
    message.term = reader.u64("term")?;
    message.log_term = reader.u64("log term")?;
    message.index = reader.u64("index")?;
    message.commit = reader.u64("commit")?;
    message.commit_term = reader.u64("commit term")?;
    message.reject_hint = reader.u64("reject hint")?;
    message.request_snapshot = reader.u64("request snapshot")?;
    message.priority = reader.i64("priority")?;
    message.reject = flags & FLAG_REJECT != 0;
    message.context = input.slice_ref(reader.bytes("context")?);
    let count = reader.count(ENTRY_BYTES, "entry count")?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let mut entry = Entry::default();
        entry.set_entry_type(match reader.u8("entry type")? {
            0 => EntryType::EntryNormal,
            1 => EntryType::EntryConfChange,
            2 => EntryType::EntryConfChangeV2,
            _ => return Err(reader.error("entry type")),
        });
        entry.term = reader.u64("entry term")?;
        entry.index = reader.u64("entry index")?;
        entry.data = input.slice_ref(reader.bytes("entry data")?);
        entries.push(entry);
    }
    message.set_entries(entries.into());
    if flags & FLAG_SNAPSHOT != 0 {
        message.set_snapshot(snapshot(input, &mut reader)?);
    }
    reader.finish()?;
    Ok(message)
}

fn message_type(reader: &mut Reader<'_>) -> Result<MessageType, DecodeError> {
    use MessageType as T;
    let known = [
        T::MsgPropose,
        T::MsgAppend,
        T::MsgAppendResponse,
        T::MsgRequestVote,
        T::MsgRequestVoteResponse,
        T::MsgSnapshot,
        T::MsgHeartbeat,
        T::MsgHeartbeatResponse,
        T::MsgTransferLeader,
        T::MsgTimeoutNow,
        T::MsgReadIndex,
        T::MsgReadIndexResp,
        T::MsgRequestPreVote,
        T::MsgRequestPreVoteResponse,
    ];
    let number = reader.u8("message type")?;
    known
        .into_iter()
        .find(|known| *known as u8 == number)
        .ok_or_else(|| reader.error("message type"))
}

fn snapshot(input: &Bytes, reader: &mut Reader<'_>) -> Result<Snapshot, DecodeError> {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = reader.u64("snapshot index")?;
    metadata.term = reader.u64("snapshot term")?;
    let mut conf = ConfState {
        auto_leave: reader.u8("auto leave")? != 0,
        ..Default::default()
    };
    for ids in [
        &mut conf.voters,
        &mut conf.learners,
        &mut conf.voters_outgoing,
        &mut conf.learners_next,
    ] {
        for _ in 0..reader.count(8, "member count")? {
            ids.push(reader.u64("member")?);
        }
    }
    metadata.set_conf_state(conf);
    snapshot.data = input.slice_ref(reader.bytes("snapshot data")?);
    Ok(snapshot)
}

/// Encodes a leader's refusal of the change with this number of another member.
pub(crate) fn encode_refusal(number: u64, error: ApiError) -> Bytes {
    let mut out = vec![REFUSAL];
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&error.number().to_le_bytes());
    Bytes::from(out)
}

/// Reads a leader's refusal. An error that this version does not know becomes
/// [`ApiError::NotCapable`].
pub(crate) fn decode_refusal(bytes: &[u8]) -> Result<(u64, ApiError), DecodeError> {
    let mut reader = Reader::new(bytes);
    reader.u8("message version")?;
    let number = reader.u64("change number")?;
    let error = u16::from_le_bytes([reader.u8("error")?, reader.u8("error")?]);
    reader.finish()?;
    Ok((
        number,
        ApiError::from_number(error).unwrap_or(ApiError::NotCapable),
    ))
}

/// Checks what raft-rs takes for granted and would panic on. `last_index` is
/// that of this member's log.
pub(crate) fn check(message: &Message, own_id: u64, last_index: u64) -> Result<(), &'static str> {
    if message.to != own_id {
        return Err("it is for another member");
    }
    match message.get_msg_type() {
        MessageType::MsgPropose => {
            if message.entries.is_empty() {
                return Err("a proposal without entries");
            }
            for entry in message.entries.iter() {
                if entry.get_entry_type() != EntryType::EntryNormal {
                    return Err("a forwarded proposal to change the membership");
                }
                if crate::entry::validate(&entry.data).is_err() {
                    return Err("a malformed proposal");
                }
            }
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if message.entries.len() != 1 => {
            return Err("a read index without context");
        }
        MessageType::MsgAppend => {
            let follow = (message.index + 1..).zip(message.entries.iter());
            let mut term = message.log_term;
            for (index, entry) in follow {
                if entry.index != index || entry.term < term || entry.term > message.term {
                    return Err("entries that do not follow each other");
                }
                term = entry.term;
            }
        }
        MessageType::MsgHeartbeat if message.commit > last_index => {
            // The leader saw this member acknowledge up to `commit`.
            return Err(
                "the leader knows entries as acknowledged that this member's log does not \
                     hold: the log has lost synced data; replace this member",
            );
        }
        MessageType::MsgSnapshot => {
            return Err("a snapshot outside of a snapshot stream");
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.to = 1;
        message.from = 2;
        message.term = 3;
        message.log_term = 3;
        message.index = 5;
        message.commit = 6;
        message.commit_term = 7;
        message.reject = true;
        message.reject_hint = 8;
        message.request_snapshot = 9;
        message.priority = -1;
        message.context = Bytes::from_static(b"context");
        let data = Bytes::from_static(b"data");
        let entry = Entry {
            index: 6,
            term: 3,
            data,
            ..Entry::default()
        };
        message.set_entries(vec![entry].into());
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = 4;
        snapshot.mut_metadata().term = 2;
        snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2];
        snapshot.mut_metadata().mut_conf_state().learners = vec![3];
        snapshot.data = Bytes::from_static(b"id");
        message.set_snapshot(snapshot);
        message
    }

    #[test]
    fn messages_come_back() {
        let bytes = encode(&example());
        assert_eq!(decode(&bytes).unwrap(), example());
        let plain = Message::default();
        assert_eq!(plain.get_msg_type(), MessageType::MsgHup);
        assert!(decode(&encode(&plain)).is_err(), "a local message");
    }

    #[test]
    fn refusals_come_back() {
        let bytes = encode_refusal(7, ApiError::Unhealthy);
        assert_eq!(decode_refusal(&bytes).unwrap(), (7, ApiError::Unhealthy));
        for cut in 0..bytes.len() {
            assert!(decode_refusal(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn cut_messages_are_refused() {
        let bytes = encode(&example());
        for cut in 0..bytes.len() {
            assert!(decode(&bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_raft_rs_would_panic_on_is_refused() {
        let mut message = example();
        assert_eq!(check(&message, 1, 0), Ok(()));
        assert!(check(&message, 2, 0).is_err());
        message.mut_entries()[0].index = 7;
        assert!(check(&message, 1, 0).is_err());
        let mut heartbeat = Message {
            to: 1,
            commit: 5,
            ..Message::default()
        };
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        assert!(
            check(&heartbeat, 1, 4)
                .unwrap_err()
                .contains("lost synced data")
        );
        assert_eq!(check(&heartbeat, 1, 5), Ok(()));
        let mut propose = Message {
            to: 1,
            ..Message::default()
        };
        propose.set_msg_type(MessageType::MsgPropose);
        assert!(check(&propose, 1, 4).is_err());
    }
}
