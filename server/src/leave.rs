//! A member that serves and has found damage leaves, to be healed, only if the others can go
//! on without it; and of several that find some at the same time, one leaves after the other.
//!
//! Who wants to leave asks the other voters, each of which promises to stay for a while. It
//! leaves with promises of a quorum. Who asks promises nothing meanwhile, and who has
//! promised does not ask: so those on whom one relies that leaves are not leaving. Two that
//! ask at the same time refuse each other; each tries again after a pause of its own.
//!
//! A damaged member that stays does not lead if a whole one can: members that heal are sent
//! the leader's store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use varve_raft::{ChangeSink, Membership, NodeHandle};
use varve_types::ApiError;

use crate::ask::{self, Answer, Standing, Told};

/// Least pause before a member looks whether it may go, and most of what is added to it at
/// random.
const PAUSE: Duration = Duration::from_millis(500);
/// How long who has promised stays: by then the other one serves no more, or has given up.
const PROMISE: Duration = Duration::from_secs(20);
/// After this time what was promised is not relied on any more.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether this member leaves, and whether it has promised to stay.
#[derive(Debug, Default)]
pub struct Leave {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// It asks the others, or has left.
    is_leaving: bool,
    /// To whom it has promised to stay, and when.
    promised: Option<(u64, Instant)>,
}

impl Leave {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises member `id` to stay while that one leaves, unless this one leaves itself.
    pub fn promise(&self, id: u64, now: Instant) -> bool {
        let mut state = self.lock();
        if !state.is_leaving {
            state.promised = Some((id, now));
        }
        !state.is_leaving
    }

    /// From here on it promises nothing. An error names the member to whom it has promised.
    fn begin(&self, now: Instant) -> Result<(), u64> {
        let mut state = self.lock();
        match state.promised {
            Some((id, at)) if now.saturating_duration_since(at) < PROMISE => Err(id),
            _ => {
                state.is_leaving = true;
                Ok(())
            }
        }
    }

    fn give_up(&self) {
        self.lock().is_leaving = false;
    }

    /// Whether the others go on without this member, which still serves: a quorum of the
    /// voters has a leader without it, and stays. An error says what it waits for; then it
    /// does not lead either, if a whole member can.
    pub(crate) async fn ask(&self, handle: &NodeHandle) -> Result<(), String> {
        sleep(PAUSE + random_part(PAUSE)).await;
        let started = Instant::now();
        if let Err(id) = self.begin(started) {
            // That one heals, perhaps from what this one leads with.
            hand_over(handle).await;
            return Err(format!("member {id:x} leaves first"));
        }
        let outcome = match timeout(ASK_TIMEOUT, ask_others(handle)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("the others take too long to answer".to_owned()),
        };
        if outcome.is_err() {
            self.give_up();
        }
        outcome
    }
}

async fn ask_others(handle: &NodeHandle) -> Result<(), String> {
    let quorum = handle.members().voters().count() / 2 + 1;
    let other_count = others(handle).len();
    let heard = hear_others(handle, other_count >= quorum).await;
    let confirmed = |told: &&(u64, Told)| told.1.standing == Standing::Confirmed;
    let stay = heard.iter().filter(confirmed).count();
    if stay >= quorum {
        return Ok(());
    }
    let_a_whole_one_lead(handle, &heard);
    Err(match other_count < quorum {
        true => format!(
            "the other voters ({other_count}) never are a quorum without it ({quorum}); add \
             members with `varvectl member add`"
        ),
        false => format!(
            "{quorum} of the other voters are needed to go on without it, {stay} are there and \
             not about to leave themselves"
        ),
    })
}

/// Has a member without damage lead instead of this one: what is damaged here may be what a
/// member that heals has to be sent.
pub(crate) async fn lead_no_more(handle: &NodeHandle) {
    sleep(PAUSE + random_part(PAUSE)).await;
    hand_over(handle).await;
}

async fn hand_over(handle: &NodeHandle) {
    if handle.status().leader == handle.member_id() {
        let heard = timeout(ASK_TIMEOUT, hear_others(handle, false)).await;
        let_a_whole_one_lead(handle, &heard.unwrap_or_default());
    }
}

fn let_a_whole_one_lead(handle: &NodeHandle, heard: &[(u64, Told)]) {
    let is_fit = |told: &&(u64, Told)| told.1.standing == Standing::Confirmed && !told.1.is_damaged;
    if handle.status().leader == handle.member_id()
        && let Some((id, _)) = heard.iter().find(is_fit)
    {
        tracing::warn!("this member is damaged: member {id:x} is to lead");
        handle.move_leader(*id, Box::new(Moved));
    }
}

/// It is asked again if it was not done.
struct Moved;

impl ChangeSink for Moved {
    fn done(self: Box<Self>, outcome: Result<Arc<Membership>, ApiError>) {
        if let Err(error) = outcome {
            tracing::warn!("leadership stays here: {error}");
        }
    }
}

/// Ids and peer URLs of the other voters.
fn others(handle: &NodeHandle) -> Vec<(u64, Vec<String>)> {
    let (members, own_id) = (handle.members(), handle.member_id());
    let others = members.voters().filter(|voter| voter.id != own_id);
    others
        .map(|voter| (voter.id, voter.peer_urls.clone()))
        .collect()
}

/// What the other voters say, those that answer. Each promises to stay, if this one is
/// about to leave.
async fn hear_others(handle: &NodeHandle, leaves: bool) -> Vec<(u64, Told)> {
    let own_id = handle.member_id();
    let mut asked = Vec::new();
    for (id, urls) in others(handle) {
        asked.push(tokio::spawn(async move {
            for url in urls {
                let answer = match leaves {
                    true => ask::promise_to_stay(&url, own_id).await,
                    false => ask::confirmed_members(&url).await,
                };
                if let Ok(Answer::Runs(told)) = answer {
                    return Some((id, told));
                }
            }
            None
        }));
    }
    let mut heard = Vec::new();
    for answer in asked {
        heard.extend(answer.await.ok().flatten());
    }
    heard
}

/// A random part of `pause`, from the keys that std draws for its hash maps.
fn random_part(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    pause.mul_f64((RandomState::new().hash_one(0) % 1000) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_relies_on_another_one_is_not_left_by_it() {
        let (a, b, now) = (Leave::default(), Leave::default(), Instant::now());
        // Both ask at once: neither gets a promise.
        assert_eq!((a.begin(now), b.begin(now)), (Ok(()), Ok(())));
        assert!(!b.promise(1, now) && !a.promise(2, now));
        a.give_up();
        b.give_up();
        // One asks first: the other one stays until that is over.
        assert_eq!(a.begin(now), Ok(()));
        assert!(b.promise(1, now));
        assert_eq!(b.begin(now), Err(1));
        assert_eq!(b.begin(now + PROMISE / 2), Err(1));
        // Who has left promises nothing any more.
        assert!(!a.promise(2, now + PROMISE));
        assert_eq!(b.begin(now + PROMISE), Ok(()));
    }

    #[test]
    fn a_promise_outlasts_the_asking() {
        assert!(PROMISE >= 2 * ASK_TIMEOUT);
    }
}
