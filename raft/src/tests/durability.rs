//! What may leave a replica before what is durable.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfChangeType, Entry, Message, MessageType};
use varve_engine::mvcc::View;
use varve_types::ApiError;

use super::member::Member;
use crate::change::{Change, Tagged};
use crate::changes::AppliedChange;
use crate::entry::{self, push_command};
use crate::initial_cluster::InitialCluster;
use crate::io::{ApplyJob, Input, Output};
use crate::membership;
use crate::sink::{Completion, Proposal, ReadSink, ReplySink};
use crate::wire;

/// One member of three, and the ids of the two others, who are played by the test.
fn member_of_three() -> (Member, u64, [u64; 2]) {
    let list = "a=http://10.0.0.1:1,b=http://10.0.0.2:1,c=http://10.0.0.3:1";
    let initial = InitialCluster::parse(list).unwrap();
    let membership = initial.membership("sim").unwrap();
    let mut members = membership.members();
    let own = members.next().unwrap();
    let others = [members.next().unwrap().id, members.next().unwrap().id];
    (Member::new(&initial, own, 1000, 1, None), own.id, others)
}

fn types(output: &Output) -> Vec<MessageType> {
    let messages = output.messages.iter().flat_map(|(_, messages)| messages);
    messages
        .map(|bytes| wire::decode(bytes).unwrap().get_msg_type())
        .collect()
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message {
        from,
        to,
        term,
        ..Message::default()
    };
    message.set_msg_type(kind);
    message
}

fn deliver(member: &mut Member, message: &Message) -> Output {
    member.step(Input::Peer {
        from: message.from,
        bytes: wire::encode(message),
    });
    member.poll()
}

fn append(from: u64, to: u64, term: u64) -> Message {
    let mut append = message(MessageType::MsgAppend, from, to, term);
    (append.index, append.log_term, append.commit) = (1, 1, 1);
    let entry = Entry {
        index: 2,
        term,
        ..Entry::default()
    };
    append.set_entries(vec![entry].into());
    append
}

/// Makes the member leader of term 2, as far as asking for votes goes.
fn candidate(member: &mut Member, own: u64, others: [u64; 2]) -> Output {
    let mut output = Output::default();
    while !types(&output).contains(&MessageType::MsgRequestPreVote) {
        member.step(Input::Tick);
        output = member.poll();
    }
    deliver(
        member,
        &message(MessageType::MsgRequestPreVoteResponse, others[0], own, 2),
    )
}

fn leader(member: &mut Member, own: u64, others: [u64; 2]) -> Output {
    candidate(member, own, others);
    member.complete_write();
    member.poll();
    let vote = message(MessageType::MsgRequestVoteResponse, others[0], own, 2);
    let output = deliver(member, &vote);
    assert!(member.replica.status().is_leader);
    output
}

#[test]
fn votes_are_asked_for_after_the_own_vote_is_durable() {
    let (mut member, own, others) = member_of_three();
    let output = candidate(&mut member, own, others);
    assert_eq!(types(&output), []);
    member.complete_write();
    assert_eq!(types(&member.poll()), [MessageType::MsgRequestVote; 2]);
}

#[test]
fn a_vote_is_given_after_it_is_durable_and_survives() {
    let (mut member, own, others) = member_of_three();
    let mut request = message(MessageType::MsgRequestVote, others[0], own, 5);
    (request.index, request.log_term) = (1, 1);
    assert_eq!(types(&deliver(&mut member, &request)), []);
    // A crash now forgets the vote, so nobody must have heard of it.
    member.complete_write();
    assert_eq!(types(&member.poll()), [MessageType::MsgRequestVoteResponse]);
    member.crash(0);
    let mut rival = message(MessageType::MsgRequestVote, others[1], own, 5);
    (rival.index, rival.log_term) = (1, 1);
    let output = deliver(&mut member, &rival);
    let bytes = &output.messages[0].1[0];
    assert!(wire::decode(bytes).unwrap().reject, "one vote in term 5");
}

#[test]
fn entries_are_acknowledged_after_they_are_durable_but_heartbeats_do_not_wait() {
    let (mut member, own, others) = member_of_three();
    deliver(
        &mut member,
        &message(MessageType::MsgHeartbeat, others[0], own, 2),
    );
    member.complete_write(); // term 2
    member.poll();
    assert_eq!(types(&deliver(&mut member, &append(others[0], own, 2))), []);
    let heartbeat = message(MessageType::MsgHeartbeat, others[0], own, 2);
    assert_eq!(
        types(&deliver(&mut member, &heartbeat)),
        [MessageType::MsgHeartbeatResponse]
    );
    member.complete_write();
    assert_eq!(types(&member.poll()), [MessageType::MsgAppendResponse]);
}

#[test]
fn a_heartbeat_of_a_new_term_waits_until_that_is_durable() {
    let (mut member, own, others) = member_of_three();
    let heartbeat = message(MessageType::MsgHeartbeat, others[0], own, 2);
    assert_eq!(types(&deliver(&mut member, &heartbeat)), []);
    member.complete_write();
    assert_eq!(types(&member.poll()), [MessageType::MsgHeartbeatResponse]);
}

#[test]
fn a_leader_sends_beside_its_own_write_and_applies_after_it() {
    let (mut member, own, others) = member_of_three();
    let output = leader(&mut member, own, others);
    assert_eq!(
        types(&output),
        [MessageType::MsgAppend; 2],
        "before the own write completed"
    );
    // Both others have everything: committed, but not durable here.
    for other in others {
        let mut ack = message(MessageType::MsgAppendResponse, other, own, 2);
        ack.index = member.replica.status().last_index;
        deliver(&mut member, &ack);
    }
    let status = member.replica.status();
    assert_eq!(status.commit_index, status.last_index);
    assert!(
        member.jobs().is_empty(),
        "applied before it is durable in the own log"
    );
    member.complete_write();
    member.poll();
    member.complete_write();
    member.poll();
    let handed: Vec<u64> = member
        .jobs()
        .iter()
        .flat_map(|job| match job {
            ApplyJob::Entries(entries) => entries.iter().map(|entry| entry.index).collect(),
            ApplyJob::Install(_) | ApplyJob::Compare { .. } => vec![],
        })
        .collect();
    assert_eq!(handed.last(), Some(&status.last_index));
}

/// Nobody may learn that a removal is committed before that is durable: a member of two
/// that learned it would stop for good, and the other one forget it in a power loss.
#[test]
fn a_removal_is_told_and_applied_after_its_commit_is_durable() {
    let (mut member, own, others) = member_of_three();
    leader(&mut member, own, others);
    let acknowledge = |member: &mut Member| {
        let mut messages = Vec::new();
        for other in others {
            let mut ack = message(MessageType::MsgAppendResponse, other, own, 2);
            ack.index = member.replica.status().last_index;
            messages.extend(deliver(member, &ack).messages);
        }
        messages
    };
    let newest = |messages: &[(u64, Vec<Bytes>)]| {
        let messages = messages.iter().flat_map(|(_, messages)| messages);
        let commits = messages.map(|bytes| wire::decode(bytes).unwrap().commit);
        commits.max()
    };
    let applied = |member: &Member| match member.jobs().back() {
        Some(ApplyJob::Entries(entries)) => entries.last().unwrap().index,
        _ => 0,
    };
    member.complete_write();
    acknowledge(&mut member);
    for _ in 0..4 {
        member.step(Input::Tick);
        member.poll();
    }
    let change = Tagged {
        origin: others[1],
        number: 1,
        change: Change::Remove(others[1]),
    };
    member.step(Input::Peer {
        from: others[1],
        bytes: change.encode(wire::CHANGE).into(),
    });
    let output = member.poll();
    assert_eq!(types(&output), [MessageType::MsgAppend; 2]);
    assert_eq!(newest(&output.messages), Some(2));
    while member.replica.in_flight.writes_out() > 0 {
        member.complete_write();
    }
    // All have it. Only this leader knows, and it does not know it for good.
    let mut messages = acknowledge(&mut member);
    let status = member.replica.status();
    assert_eq!((status.commit_index, status.last_index), (3, 3));
    for _ in 0..2 {
        member.step(Input::Tick);
        messages.extend(member.poll().messages);
    }
    assert_eq!(newest(&messages), Some(2), "told before it is durable");
    assert_eq!(applied(&member), 2, "applied before it is durable");
    assert_eq!(member.replica.durable_state.commit, 2);
    member.complete_write();
    let output = member.poll();
    assert_eq!(types(&output), [MessageType::MsgAppend; 2]);
    assert_eq!(newest(&output.messages), Some(3));
    assert_eq!(applied(&member), 3);
    member.crash(0);
    assert_eq!(member.replica.status().commit_index, 3);
}

/// A sink that tells how it was refused.
struct Refusal(std::sync::mpsc::Sender<ApiError>);

impl ReplySink for Refusal {
    fn complete(self: Box<Self>, _completion: Completion) {
        unreachable!("nothing is committed here")
    }
    fn refuse(self: Box<Self>, error: ApiError) {
        self.0.send(error).unwrap();
    }
}

impl ReadSink for Refusal {
    fn ready(self: Box<Self>, _view: Arc<View>, _term: u64) {
        unreachable!("no majority answers here")
    }
    fn refuse(self: Box<Self>, error: ApiError) {
        self.0.send(error).unwrap();
    }
}

fn proposal(sink: Refusal) -> Input {
    let mut commands = Vec::new();
    push_command(&mut commands, 1, b"x");
    Input::Propose(Proposal {
        commands: commands.into(),
        count: 1,
        reply_bytes: 0,
        sink: Box::new(sink),
    })
}

#[test]
fn a_leader_whose_disk_hangs_goes_and_comes_back_with_the_disk() {
    let (mut member, own, others) = member_of_three();
    leader(&mut member, own, others);
    member.complete_write();
    member.poll();
    let (sender, refused) = std::sync::mpsc::channel();
    // Three entries: two are written, the third waits here.
    for _ in 0..3 {
        member.step(proposal(Refusal(sender.clone())));
        member.poll();
    }
    member.step(Input::Read(Box::new(Refusal(sender.clone()))));
    member.poll();
    // Heartbeats go out and are answered, whatever the disk does.
    let mut asked_to_lead = None;
    for tick in 1..=50 {
        member.step(Input::Tick);
        let mut output = member.poll();
        for other in others {
            let beat = message(MessageType::MsgHeartbeatResponse, other, own, 2);
            let more = deliver(&mut member, &beat);
            output.messages.extend(more.messages);
        }
        let sent = types(&output);
        assert!(
            tick % 2 == 1
                || !member.replica.is_leader()
                || sent.contains(&MessageType::MsgHeartbeat)
        );
        if asked_to_lead.is_none() && member.replica.raw.raft.lead_transferee.is_some() {
            asked_to_lead = Some(tick);
        }
        assert_eq!(member.replica.is_leader(), tick < 50, "after {tick} ticks");
    }
    assert_eq!(asked_to_lead, Some(40));
    let told: Vec<ApiError> = refused.try_iter().collect();
    let (maybe, not) = (ApiError::TimeoutLeaderFailure, ApiError::NoLeader);
    assert_eq!(told, [maybe, maybe, not, not]);
    // Until the disk works, new ones are refused and there is no standing for election.
    member.step(proposal(Refusal(sender.clone())));
    member.step(Input::Read(Box::new(Refusal(sender.clone()))));
    assert_eq!(refused.try_iter().collect::<Vec<_>>(), [not, not]);
    for _ in 0..100 {
        member.step(Input::Tick);
        assert_eq!(types(&member.poll()), []);
    }
    assert!(member.replica.status().is_disk_stuck);
    member.complete_write();
    member.poll();
    let status = member.replica.status();
    assert!(
        !status.is_disk_stuck && status.disk_stalls == 1,
        "{status:?}"
    );
    member.step(proposal(Refusal(sender)));
    assert_eq!(refused.try_iter().count(), 0, "it takes requests again");
    member.complete_write();
    let mut output = Output::default();
    for _ in 0..60 {
        member.step(Input::Tick);
        output = member.poll();
        if types(&output).contains(&MessageType::MsgRequestPreVote) {
            break;
        }
    }
    assert_eq!(types(&output), [MessageType::MsgRequestPreVote; 2]);
}

/// Members that joined after what this one has applied lead it all the same.
#[test]
fn a_leader_that_is_not_known_yet_is_followed() {
    let (mut member, own, _) = member_of_three();
    deliver(
        &mut member,
        &message(MessageType::MsgHeartbeat, 99, own, 100),
    );
    member.poll();
    let status = member.replica.status();
    assert_eq!((status.leader, status.term), (99, 100));
}

#[test]
fn an_append_says_what_its_entries_follow() {
    let (mut member, own, others) = member_of_three();
    leader(&mut member, own, others);
    let mut good = append(own, others[0], 2);
    (good.index, good.log_term) = (1, 1);
    let mut mixed = good.clone();
    (mixed.index, mixed.log_term) = (2, 2); // of one that had no entries
    let mut before_all = good.clone();
    before_all.entries[0].index = 9;
    let mut messages = vec![good.clone(), mixed, before_all];
    member.replica.mend_appends(&mut messages);
    assert_eq!(messages, [good.clone(), good]);
}

/// Who led before gets proposals of those that do not know that yet.
#[test]
fn a_proposal_is_passed_on_in_the_own_name() {
    let (mut member, own, others) = member_of_three();
    leader(&mut member, own, others);
    let heartbeat = message(MessageType::MsgHeartbeat, others[0], own, 5);
    let mut proposal = message(MessageType::MsgPropose, others[1], own, 0);
    let mut commands = Vec::new();
    push_command(&mut commands, 1, b"x");
    let proposals = std::iter::once((&commands[..], 1));
    let data = entry::encode(others[1], 1, proposals, commands.len());
    let entry = Entry {
        data: data.clone(),
        ..Entry::default()
    };
    proposal.set_entries(vec![entry].into());
    // Before it is known who leads, in the same turn, and after it.
    let mut request = message(MessageType::MsgRequestVote, others[0], own, 5);
    request.context = raft::CAMPAIGN_TRANSFER.into();
    for received in [&request, &proposal, &heartbeat, &proposal] {
        member.step(Input::Peer {
            from: received.from,
            bytes: wire::encode(received),
        });
    }
    let output = member.poll();
    let sent = output.messages.iter().flat_map(|(to, all)| {
        let all = all.iter().map(|bytes| wire::decode(bytes).unwrap());
        all.map(|message| (*to, message))
    });
    let is_proposal = |(_, m): &(u64, Message)| m.get_msg_type() == MessageType::MsgPropose;
    let sent: Vec<_> = sent.filter(is_proposal).collect();
    assert_eq!(sent.len(), 2);
    for (to, sent) in sent {
        assert_eq!((to, sent.from), (others[0], own));
        assert_eq!(sent.entries[0].data, data);
    }
    let mut read = message(MessageType::MsgReadIndex, others[1], own, 0);
    read.set_entries(vec![Entry::default()].into());
    assert_eq!(types(&deliver(&mut member, &read)), []);
}

/// Entries that were on their way to the applier when a snapshot came.
#[test]
fn changes_that_a_snapshot_holds_already_are_not_made_again() {
    let (mut member, _, others) = member_of_three();
    let voters = |member: &Member| member.replica.raw.raft.prs().conf().to_conf_state().voters;
    let change = |index| AppliedChange {
        index,
        origin: 1,
        number: index,
        conf: [Some((ConfChangeType::RemoveNode, others[0])), None],
    };
    member.replica.changes.conf_index = 50;
    member.replica.note_changes(None, &[change(50)]);
    assert_eq!(voters(&member).len(), 3);
    member.replica.note_changes(None, &[change(51)]);
    assert_eq!(voters(&member).len(), 2);
}

#[test]
fn hostile_messages_change_nothing() {
    let (mut member, own, others) = member_of_three();
    deliver(&mut member, &append(others[0], own, 2));
    member.complete_write();
    member.poll();
    let before = member.replica.status();
    let mut masked = append(others[0], own, 100);
    masked.from = others[1];
    member.step(Input::Peer {
        from: others[0],
        bytes: wire::encode(&masked),
    });
    let mut lost = message(MessageType::MsgHeartbeat, others[0], own, 2);
    lost.commit = 1000;
    deliver(&mut member, &lost);
    let mut conflicting = append(others[0], own, 2);
    (conflicting.index, conflicting.log_term) = (0, 0);
    conflicting.mut_entries()[0].index = 1;
    deliver(&mut member, &conflicting);
    for garbage in [&b""[..], b"garbage", &[1; 200]] {
        member.step(Input::Peer {
            from: others[0],
            bytes: Bytes::from_static(garbage),
        });
    }
    member.poll();
    assert_eq!(member.replica.status(), before);
}

/// A damaged member is replaced only once it is not there any more, and only if those
/// that are left are a quorum.
#[test]
fn a_member_that_is_heard_of_is_not_replaced() {
    let (mut member, own, others) = member_of_three();
    leader(&mut member, own, others);
    let [damaged, other] = others;
    let urls = member.replica.membership.get(damaged).unwrap();
    let change = Change::Replace {
        id: damaged,
        by: membership::Member {
            id: 77,
            ..urls.clone()
        },
    };
    let hear = |member: &mut Member, from: u64| {
        let beat = message(MessageType::MsgHeartbeatResponse, from, own, 2);
        deliver(member, &beat);
    };
    let judge = |member: &Member| member.replica.judge(&change);
    hear(&mut member, damaged);
    hear(&mut member, other);
    assert_eq!(judge(&member), Err(ApiError::Unhealthy));
    member.step(Input::Unreachable(damaged));
    assert_eq!(judge(&member), Ok(()));
    member.step(Input::Unreachable(other));
    assert_eq!(judge(&member), Err(ApiError::Unhealthy));
    hear(&mut member, other);
    assert_eq!(judge(&member), Ok(()));
    // Nor does a leader take itself for somebody who is gone.
    let own = Change::Replace {
        id: own,
        by: membership::Member {
            id: 77,
            ..member.replica.membership.get(own).unwrap().clone()
        },
    };
    assert_eq!(member.replica.judge(&own), Err(ApiError::Unhealthy));
}
