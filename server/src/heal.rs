//! A damaged member's way back into its cluster; see `varve_raft`'s `heal` for the files.
//!
//! It asks the members that it knows of, again and again, to have it replaced: whoever
//! runs passes that on to the leader, which decides when the damaged member is not heard
//! of any more and those that are left are a quorum. Meanwhile it says what it waits for.
//! It is safe to ask at any time and more than once: the fresh id is put in the damaged
//! one's place at most once, and before that there is nothing to vote with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use varve_engine::backend::BackendError;
use varve_raft::{Damaged, Healing, Membership, RaftError};

use crate::ask::{self, Answer, NotReplaced, ReplaceRequest, Told};
use crate::config::{Config, Url};
use crate::node::{NodeError, Ports};
use crate::waiting::{Notice, WaitingRoom};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// What is waited for is logged when it changes, and this often.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// What to do where those that are left are no quorum, however whole they are: of two.
const BY_AN_OPERATOR: &str = ", and without this member there never are so many. If the other one \
is whole, it has all that was acknowledged: stop it and start it once with --force-new-cluster, \
and it goes on alone; then add this member again with `varvectl member add`. Else restore a \
snapshot into new data directories with `varvectl snapshot restore`";

/// Peer URLs of the other members that the flags name.
fn others(config: &Config) -> Vec<String> {
    let own: Vec<_> = config.advertise_peer_urls.iter().map(Url::as_str).collect();
    let listed = config.initial_cluster.members();
    listed
        .filter(|(name, _)| *name != config.name)
        .flat_map(|(_, urls)| urls.iter().cloned())
        .filter(|url| !own.contains(&url.as_str()))
        .collect()
}

/// Whether what a start met is damage: then, other than later, a log that contradicts
/// itself or the store shows that something of it is gone, and a store that looks like
/// another engine's is one of which the beginning is, if that engine was not used here.
pub(crate) fn is_damage_at_start(
    config: &Config,
    engine_before: Option<&str>,
    error: &RaftError,
) -> bool {
    match error {
        RaftError::Inconsistent(_) => true,
        RaftError::Engine(BackendError::Foreign { .. }) => {
            engine_before == Some(config.engine.name())
        }
        error => error.is_damage(),
    }
}

/// Notes durably that the member is damaged, if it is to heal.
pub(crate) fn begin(
    config: &Config,
    raft: &varve_raft::Config,
    damaged: Option<Damaged>,
    found: &str,
) -> Result<(), NodeError> {
    // What follows is for who does it by hand.
    let found = found.split(". Nothing was changed").next().unwrap_or(found);
    let refused = |why: &str| NodeError::Damaged {
        found: found.to_owned(),
        why: why.to_owned(),
    };
    if !config.auto_heal {
        return Err(refused(
            "Nothing was changed. It does not heal by itself (--auto-heal=false): start it \
             without that, or replace it: `varvectl member remove` its id, `varvectl member add`, \
             and start it on an empty data directory with --initial-cluster-state existing",
        ));
    }
    let Some(damaged) = damaged else {
        return Err(refused(
            "Whose data directory it is cannot be read any more. Move everything out of it, and \
             start the member again, to be replaced as a whole",
        ));
    };
    let healing = Healing::begin(raft, damaged, found, others(config))?;
    if healing.peer_urls.is_empty() {
        healing.call_off(raft)?;
        return Err(refused(
            "Nothing was changed. There is no other member from which it could be healed: restore \
             a snapshot into another data directory with `varvectl snapshot restore`",
        ));
    }
    tracing::error!(
        "member {:x} is damaged: {found}. It heals: it comes back as {:x}, a learner without a \
         vote until it has caught up",
        healing.damaged_id,
        healing.fresh_id
    );
    Ok(())
}

/// Sets the damaged files aside and waits until the cluster has put the fresh member in
/// the damaged one's place. Meanwhile the ports tell so.
pub(crate) async fn rejoin(
    config: &Config,
    raft: &varve_raft::Config,
    healing: &Healing,
    ports: &Ports,
) -> Result<(), NodeError> {
    if healing.is_finished(raft)? {
        return Ok(healing.finish(raft, &Membership::default())?);
    }
    let aside = healing.set_aside(raft)?;
    tracing::warn!(
        "member {:x} heals as {:x}; the damaged files are in {}",
        healing.damaged_id,
        healing.fresh_id,
        aside.display()
    );
    let notice = Notice::heals(&config.name, healing);
    let room = WaitingRoom::open(&ports.clients, &ports.members, &notice);
    let members = replaced(config, healing, &notice).await;
    drop(room);
    let members = members.map_err(NodeError::Join)?;
    healing.finish(raft, &members)?;
    tracing::warn!(
        "member {:x} is replaced by {:x}, which catches up now",
        healing.damaged_id,
        healing.fresh_id
    );
    Ok(())
}

/// Waits until the cluster has put the fresh member in the damaged one's place; the
/// members then. An error says why that will not be.
async fn replaced(
    config: &Config,
    healing: &Healing,
    notice: &Arc<Notice>,
) -> Result<Membership, String> {
    let mut peer_urls: Vec<_> = config
        .advertise_peer_urls
        .iter()
        .map(|url| url.as_str().to_owned())
        .collect();
    peer_urls.sort_unstable();
    let request = ReplaceRequest {
        cluster_id: format!("{:x}", healing.cluster_id),
        damaged_id: format!("{:x}", healing.damaged_id),
        fresh_id: format!("{:x}", healing.fresh_id),
        name: config.name.clone(),
        peer_urls: peer_urls.clone(),
    };
    let mut urls: BTreeSet<String> = healing.peer_urls.iter().cloned().collect();
    urls.extend(others(config));
    let mut logged: Option<Instant> = None;
    let mut last = String::new();
    for turn in 0.. {
        let around = Around::look(&urls, healing).await;
        for told in &around.told {
            let others = told.members.members();
            let others = others.filter(|member| member.peer_urls != peer_urls);
            urls.extend(others.flat_map(|member| member.peer_urls.iter().cloned()));
        }
        let mut waits_for = around.waits_for(healing, turn);
        // Who says what differs from turn to turn.
        let is_new = std::mem::replace(&mut last, waits_for.clone()) != waits_for;
        if let Some(told) = around.one(turn) {
            match ask::replace(&told.url, &request).await {
                Ok(told) if told.members.get(healing.fresh_id).is_some() => {
                    return Ok(told.members);
                }
                Ok(told) => waits_for = format!("{} has not heard of it yet", told.url),
                Err(NotReplaced::Gone(why)) => {
                    return Err(format!(
                        "member {:x} was damaged ({}), and {why}: it is not put in its place \
                         again. Add it with `varvectl member add`, move everything but what was \
                         set aside out of the data directory, and start it with \
                         --initial-cluster-state existing",
                        healing.damaged_id, healing.reason
                    ));
                }
                Err(NotReplaced::Refused(why)) => {
                    waits_for = format!("it is refused by {}: {why}", told.url);
                }
                Err(NotReplaced::Later(why)) => {
                    waits_for += &format!("; {} says: {why}", told.url);
                }
            }
        }
        notice.wait_for(waits_for);
        if is_new || logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            tracing::warn!("{}", notice.reason());
            logged = Some(Instant::now());
        }
        sleep(PAUSE).await;
    }
    unreachable!("it is asked for ever")
}

/// What is around a member that heals.
struct Around {
    /// Members of its cluster that run.
    told: Vec<Told>,
    /// URLs of those that are damaged themselves, and of those that do not answer.
    damaged: Vec<String>,
    silent: Vec<String>,
    /// URL and id of another cluster.
    foreign: Vec<(String, u64)>,
}

impl Around {
    async fn look(urls: &BTreeSet<String>, healing: &Healing) -> Self {
        let asked: Vec<_> = urls
            .iter()
            .cloned()
            .map(|url| tokio::spawn(async move { (ask::members(&url).await, url) }))
            .collect();
        let mut around = Self {
            told: Vec::new(),
            damaged: Vec::new(),
            silent: Vec::new(),
            foreign: Vec::new(),
        };
        for task in asked {
            match task.await {
                Ok((Ok(Answer::Runs(told)), _)) if told.cluster_id == healing.cluster_id => {
                    around.told.push(told);
                }
                Ok((Ok(Answer::Runs(told)), url)) => around.foreign.push((url, told.cluster_id)),
                Ok((Ok(Answer::Heals(_)), url)) => around.damaged.push(url),
                Ok((Ok(Answer::IsNew) | Err(_), url)) => around.silent.push(url),
                Err(error) => tracing::warn!("could not ask a member: {error}"),
            }
        }
        around
    }

    /// Whom to ask in this turn: each in its turn, as one may know no leader.
    fn one(&self, turn: usize) -> Option<&Told> {
        self.told.get(turn.checked_rem(self.told.len())?)
    }

    /// What the replacement waits for, as far as one can see from here.
    fn waits_for(&self, healing: &Healing, turn: usize) -> String {
        let mut text = match self.one(turn) {
            None => "it waits for another member of the cluster to answer".to_owned(),
            Some(told) => {
                let voters: Vec<_> = told.members.voters().collect();
                let quorum = voters.len() / 2 + 1;
                let is_up = |urls: &[String]| {
                    let mut up = self.told.iter();
                    up.any(|told| urls.contains(&told.url))
                };
                let up = voters.iter().filter(|voter| is_up(&voter.peer_urls));
                let up = up.filter(|voter| voter.id != healing.damaged_id).count();
                let by_whom = match voters.len() <= quorum {
                    true => BY_AN_OPERATOR,
                    false => "",
                };
                format!(
                    "it waits to be replaced: {quorum} of {} voters are needed for that, {up} \
                     answer{by_whom}",
                    voters.len()
                )
            }
        };
        for (what, urls) in [
            ("damaged as well", &self.damaged),
            ("no answer from", &self.silent),
        ] {
            if !urls.is_empty() {
                text += &format!("; {what}: {}", urls.join(", "));
            }
        }
        for (url, cluster) in &self.foreign {
            text += &format!("; {url} is of another cluster, {cluster:x}");
        }
        text
    }
}
