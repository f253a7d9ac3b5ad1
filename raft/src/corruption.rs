//! Comparing the members' states while they run.
//!
//! Each store has a running hash of its live state ([`View::hash`]). Now and then the
//! leader tells the others its own, with the entry and the revision that it is of;
//! each answers with what it has there. Where they differ the leader says so, and
//! raises the alarm CORRUPT: for those that differ from a majority of the voters, or
//! for nobody by name (member 0) where there is no such majority. It costs a message
//! to each member and one look into its log of changes; nothing is scanned.
//!
//! While the alarm is on nothing is written ([`crate::apply`]), and the member that it
//! names serves nothing and does not lead.
//!
//! [`View::hash`]: varve_engine::mvcc::View::hash

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use varve_types::{
    AlarmAction, AlarmKind, AlarmRequest, ApiError, Command, DecodeError, Reader, push_command,
};

use crate::io::ApplyJob;
use crate::replica::Replica;
use crate::sink::{Completion, Proposal, ReplySink};
use crate::wire;

/// Rounds whose answers may still come.
const MAX_ROUNDS: usize = 16;

/// Rounds that a difference without a majority has to last before the alarm is raised
/// for nobody by name: members that are slow or away may yet decide it.
const UNNAMED_ROUNDS: u32 = 10;

/// Election timeouts after which an alarm that was proposed is proposed again.
const RAISE_AGAIN: u64 = 5;

/// A state: its revision and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) revision: i64,
    pub(crate) hash: u128,
}

/// The state after an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mark {
    pub(crate) index: u64,
    pub(crate) state: State,
}

impl Mark {
    fn encode(&self, kind: u8) -> Bytes {
        let mut out = vec![kind];
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.state.revision.to_le_bytes());
        out.extend_from_slice(&self.state.hash.to_le_bytes());
        Bytes::from(out)
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.u8("message kind")?;
        let index = reader.u64("index")?;
        let revision = reader.i64("revision")?;
        let (low, high) = (reader.u64("hash")?, reader.u64("hash")?);
        reader.finish()?;
        let hash = u128::from(high) << 64 | u128::from(low);
        Ok(Self {
            index,
            state: State { revision, hash },
        })
    }
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Round {
    mark: Mark,
    answers: BTreeMap<u64, State>,
}

/// What a round says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody who answered differs.
    Same,
    /// These differ from a majority of the voters.
    Differ(Vec<u64>),
    /// Some differ, and no state has a majority; whether all voters have answered.
    Unclear { is_final: bool },
}

/// What the leader knows of comparisons.
pub(crate) struct Corruption {
    /// 0: none are made.
    interval_ticks: u64,
    /// The newest state of this member.
    newest: Mark,
    rounds: VecDeque<Round>,
    /// Rounds in a row that ended without a majority.
    unclear_rounds: u32,
    /// When the alarm was proposed last for each member.
    raised: BTreeMap<u64, u64>,
    /// Rounds begun, and answers that differed.
    pub(crate) checks: u64,
    pub(crate) mismatches: u64,
}

impl Corruption {
    /// Compares every so many ticks; never, if 0.
    pub(crate) fn new(interval_ticks: u64) -> Self {
        Self {
            interval_ticks,
            newest: Mark::default(),
            rounds: VecDeque::new(),
            unclear_rounds: 0,
            raised: BTreeMap::new(),
            checks: 0,
            mismatches: 0,
        }
    }

    /// Notes the state that this member came to.
    pub(crate) fn applied(&mut self, mark: Mark) {
        self.newest = mark;
    }

    /// Begins a round, which ends the one before it. That one, if it was the last of
    /// so many without a majority that there will hardly be one.
    fn begin_round(&mut self, round: Round, voters: &[u64]) -> Option<Round> {
        // What a round says is known when it ends: who answers first may differ in
        // each of them from who makes the majority.
        let ended = self.rounds.back().filter(|ended| ended.answers.len() > 1);
        let undecided = match ended.map(|ended| judge(&ended.answers, voters)) {
            Some(Verdict::Unclear { .. }) => {
                self.unclear_rounds += 1;
                let ended = self.rounds.back().cloned();
                ended.filter(|_| self.unclear_rounds >= UNNAMED_ROUNDS)
            }
            Some(Verdict::Same | Verdict::Differ(_)) => {
                self.unclear_rounds = 0;
                None
            }
            None => None, // nobody has answered: nothing is known
        };
        self.checks += 1;
        self.rounds.push_back(round);
        if self.rounds.len() > MAX_ROUNDS {
            self.rounds.pop_front();
        }
        undecided
    }
}

/// What `states` say, of which `own` is one; all voters are named, others may have answered.
fn judge(states: &BTreeMap<u64, State>, voters: &[u64]) -> Verdict {
    let mut found = states.values();
    let first = found.next();
    if found.all(|state| Some(state) == first) {
        return Verdict::Same;
    }
    let of_voters = || voters.iter().filter_map(|id| states.get(id));
    let majority = of_voters().find(|state| {
        let count = of_voters().filter(|other| other == state).count();
        count > voters.len() / 2
    });
    match majority {
        Some(state) => {
            let others = states.iter().filter(|(_, other)| *other != state);
            Verdict::Differ(others.map(|(id, _)| *id).collect())
        }
        None => Verdict::Unclear {
            is_final: of_voters().count() == voters.len(),
        },
    }
}

/// Nobody waits for the answer.
struct Silent;

impl ReplySink for Silent {
    fn complete(self: Box<Self>, _completion: Completion) {}

    fn refuse(self: Box<Self>, error: ApiError) {
        tracing::warn!("the alarm CORRUPT was not raised: {error}");
    }
}

impl Replica {
    /// What is to be done about comparisons once a tick.
    pub(crate) fn tick_corruption(&mut self) {
        if !self.is_leader() {
            self.corruption.rounds.clear();
            self.corruption.unclear_rounds = 0;
            return;
        }
        if self.is_corrupt() && self.tick.is_multiple_of(self.settings.election_ticks) {
            self.hand_over();
        }
        let interval = self.corruption.interval_ticks;
        if interval == 0 || !self.tick.is_multiple_of(interval) || self.corruption.newest.index == 0
        {
            return;
        }
        let others: Vec<u64> = self.membership.members().map(|member| member.id).collect();
        let own_id = self.settings.member_id;
        if others.len() < 2 {
            return;
        }
        let mark = self.corruption.newest;
        for id in others.into_iter().filter(|id| *id != own_id) {
            self.answers.push((id, mark.encode(wire::STATE)));
        }
        let round = Round {
            mark,
            answers: BTreeMap::from([(own_id, mark.state)]),
        };
        let voters = self.voter_ids();
        if let Some(undecided) = self.corruption.begin_round(round, &voters) {
            self.raise(0, undecided.mark, &undecided.answers);
        }
    }

    fn voter_ids(&self) -> Vec<u64> {
        self.membership.voters().map(|voter| voter.id).collect()
    }

    /// Whether the alarm CORRUPT names this member.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.membership.is_corrupt(self.settings.member_id)
    }

    /// The leader says what it has: compared by the applier once it is as far.
    pub(crate) fn state_told(&mut self, from: u64, bytes: &[u8]) {
        match Mark::decode(bytes) {
            Ok(mark) if from == self.raw.raft.leader_id => {
                self.in_flight.push_job(ApplyJob::Compare { from, mark });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("message of member {from:x} refused: {error}"),
        }
    }

    /// The applier has compared: the leader is told what is here.
    pub(crate) fn compared(&mut self, to: u64, mark: Mark) {
        self.answers.push((to, mark.encode(wire::STATE_ANSWER)));
    }

    /// Another member answers this leader.
    pub(crate) fn state_answered(&mut self, from: u64, bytes: &[u8]) {
        let answer = match Mark::decode(bytes) {
            Ok(answer) => answer,
            Err(error) => return tracing::warn!("message of member {from:x} refused: {error}"),
        };
        if !self.is_leader() || self.membership.get(from).is_none() {
            return;
        }
        let rounds = &mut self.corruption.rounds;
        let Some(round) = rounds
            .iter_mut()
            .find(|round| round.mark.index == answer.index)
        else {
            return;
        };
        round.answers.insert(from, answer.state);
        let (mark, states) = (round.mark, round.answers.clone());
        let verdict = judge(&states, &self.voter_ids());
        if verdict != Verdict::Same {
            self.corruption.mismatches += 1;
        }
        match verdict {
            Verdict::Differ(members) => {
                self.corruption.unclear_rounds = 0;
                for id in members {
                    self.raise(id, mark, &states);
                }
            }
            Verdict::Unclear { is_final: true } => self.raise(0, mark, &states),
            // More answers may come.
            Verdict::Same | Verdict::Unclear { is_final: false } => {}
        }
    }

    /// Raises the alarm CORRUPT for a member, unless it is on or on its way.
    fn raise(&mut self, member_id: u64, mark: Mark, states: &BTreeMap<u64, State>) {
        let kind = AlarmKind::Corrupt;
        let pause = RAISE_AGAIN * self.settings.election_ticks;
        let raised = self.corruption.raised.get(&member_id);
        let is_on_its_way = raised.is_some_and(|tick| self.tick < tick + pause);
        if is_on_its_way || self.membership.has_alarm(member_id, kind) {
            return;
        }
        self.corruption.raised.insert(member_id, self.tick);
        let list: Vec<_> = states
            .iter()
            .map(|(id, state)| {
                format!("{id:x}: {:032x} at revision {}", state.hash, state.revision)
            })
            .collect();
        tracing::error!(
            "data corruption: the members' states differ after entry {}, alarm CORRUPT for member \
             {member_id:x}; {}",
            mark.index,
            list.join(", ")
        );
        let command = Command::Alarm(AlarmRequest {
            action: AlarmAction::Activate,
            member_id,
            kind: Some(kind),
        });
        let (mut body, mut commands) = (Vec::new(), Vec::new());
        command.encode_body(&mut body);
        push_command(&mut commands, command.opcode(), &body);
        let proposal = Proposal {
            commands: Bytes::from(commands),
            count: 1,
            reply_bytes: 0,
            sink: Box::new(Silent),
        };
        self.proposals.push(proposal, self.tick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(list: &[(u64, u128)]) -> BTreeMap<u64, State> {
        let state = |hash| State { revision: 5, hash };
        list.iter().map(|(id, hash)| (*id, state(*hash))).collect()
    }

    #[test]
    fn who_differs_from_the_majority_is_named() {
        let voters = [1, 2, 3];
        let judge = |list: &[(u64, u128)]| judge(&states(list), &voters);
        assert_eq!(judge(&[(1, 7), (2, 7), (3, 7)]), Verdict::Same);
        assert_eq!(judge(&[(1, 7)]), Verdict::Same);
        assert_eq!(
            judge(&[(1, 7), (2, 8)]),
            Verdict::Unclear { is_final: false }
        );
        assert_eq!(judge(&[(1, 7), (2, 8), (3, 8)]), Verdict::Differ(vec![1]));
        assert_eq!(
            judge(&[(1, 7), (2, 8), (3, 9)]),
            Verdict::Unclear { is_final: true }
        );
        // A learner does not count, but is named.
        assert_eq!(judge(&[(1, 7), (2, 7), (4, 9)]), Verdict::Differ(vec![4]));
        assert_eq!(
            judge(&[(1, 7), (4, 9)]),
            Verdict::Unclear { is_final: false }
        );
    }

    /// So many rounds, in each of which these answer in this order; how many rounds end
    /// with the alarm for nobody by name.
    fn unnamed(rounds: u64, voters: &[u64], answers: &[(u64, u128)]) -> usize {
        let mut corruption = Corruption::new(1);
        let round = |index, answers: &[(u64, u128)]| Round {
            mark: Mark {
                index,
                ..Mark::default()
            },
            answers: states(answers),
        };
        let ended = (1..=rounds).filter(|index| {
            let begun = round(*index, &answers[..1]);
            let ended = corruption.begin_round(begun, voters);
            corruption.rounds.back_mut().unwrap().answers = states(answers);
            ended.is_some()
        });
        ended.count()
    }

    #[test]
    fn a_round_is_judged_by_all_its_answers() {
        let rounds = u64::from(UNNAMED_ROUNDS);
        // Always in a majority in the end, whoever answers first.
        let named = [(1, 7), (2, 8), (3, 7)];
        assert_eq!(unnamed(5 * rounds, &[1, 2, 3], &named), 0);
        // Two against two, the fifth is away: somebody agrees, and there is no majority.
        let (voters, split) = ([1, 2, 3, 4, 5], [(1, 7), (2, 7), (3, 8), (4, 8)]);
        assert_eq!(unnamed(rounds, &voters, &split), 0);
        assert_eq!(unnamed(rounds + 1, &voters, &split), 1);
        assert_eq!(
            unnamed(5 * rounds, &[1, 2, 3], &[(1, 7)]),
            0,
            "all are away"
        );
    }

    #[test]
    fn marks_come_back() {
        let mark = Mark {
            index: 3,
            state: State {
                revision: 4,
                hash: 5 << 64 | 6,
            },
        };
        let bytes = mark.encode(wire::STATE);
        assert_eq!(Mark::decode(&bytes), Ok(mark));
        for cut in 0..bytes.len() {
            assert!(Mark::decode(&bytes[..cut]).is_err());
        }
    }
}
