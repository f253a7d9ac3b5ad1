//! Finding out, before a data directory is made, what the members named in
//! `--initial-cluster` say of the cluster: to join it with `--initial-cluster-state
//! existing`, and with `new` not to form a second one beside it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use varve_raft::{Damaged, InitialCluster, Joining, Member};

use crate::ask::{self, Answer, Standing, Told};
use crate::config::{ClusterState, Config};
use crate::node::Ports;
use crate::waiting::{Notice, WaitingRoom};

/// How long members may disagree with the flags: one that was asked may not have
/// heard yet of the change that another one has just confirmed.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);
/// How long a new member waits for others before it says so, and again.
const LOG_AFTER: Duration = Duration::from_secs(5);

/// What a member without a data directory is to do.
#[derive(Debug)]
pub enum Place {
    /// Form a cluster with the others.
    Form,
    /// Join one in which it has a place.
    Join(Joining),
    /// Its data directory is gone: what it had acknowledged is not here.
    Lost(Lost),
}

/// A member that has run, with a data directory that is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    /// The member, as the cluster knows it.
    pub damaged: Damaged,
    /// The same for people.
    pub reason: String,
}

/// What is to be done; an error says why the node must not start.
pub(crate) async fn look_around(config: &Config, ports: &Ports) -> Result<Place, String> {
    let cluster = &config.initial_cluster;
    let advertised: Vec<_> = config
        .advertise_peer_urls
        .iter()
        .map(|url| url.as_str().to_owned())
        .collect();
    let verify = cluster.verify(&config.name, &advertised);
    match config.initial_cluster_state {
        // The replica verifies what it starts with.
        ClusterState::New if verify.is_err() => Ok(Place::Form),
        ClusterState::New => form(config, ports).await,
        ClusterState::Existing => {
            verify.map_err(|error| error.to_string())?;
            join(config).await
        }
    }
}

/// Waits until it is sure that this member has never run before: one that has lost its
/// data directory would give votes that it must not give, and by that lose what it had
/// acknowledged. It is, once another one that has seen all that was committed says so; or
/// once a quorum has nothing but the bootstrap, as when a cluster is formed.
async fn form(config: &Config, ports: &Ports) -> Result<Place, String> {
    let token = &config.initial_cluster_token;
    let formed = config.initial_cluster.membership(token);
    let formed = formed.map_err(|error| error.to_string())?;
    let cluster_id = formed.cluster_id();
    let own = formed.members().find(|member| member.name == config.name);
    let (Some(own), count) = (own, formed.members().count()) else {
        return Ok(Place::Form); // the replica says what is wrong
    };
    if count == 1 {
        return Ok(Place::Form);
    }
    let notice = Notice::is_new(&config.name, cluster_id, own.id);
    let _room = WaitingRoom::open(&ports.clients, &ports.members, &notice);
    let others: Vec<_> = formed.members().filter(|one| one.id != own.id).collect();
    let mut unused = BTreeSet::new();
    let mut said: Option<Instant> = Some(Instant::now());
    loop {
        let mut answers = Vec::new();
        for other in &others {
            let (id, urls) = (other.id, other.peer_urls.clone());
            answers.push(tokio::spawn(async move { (id, ask_one(&urls).await) }));
        }
        let mut silent = Vec::new();
        for answer in answers {
            let Ok((id, answer)) = answer.await else {
                continue;
            };
            match answer {
                Some(Answer::Runs(told)) => {
                    if let Some(place) = place_in(own, cluster_id, &told)? {
                        return Ok(place);
                    }
                    match told.standing {
                        Standing::Confirmed => return Ok(Place::Form),
                        Standing::Bare => drop(unused.insert(id)),
                        Standing::Unconfirmed => silent.push(id),
                    }
                }
                Some(Answer::IsNew) => drop(unused.insert(id)),
                Some(Answer::Heals(_)) | None => silent.push(id),
            }
        }
        if unused.len() >= count / 2 {
            return Ok(Place::Form);
        }
        silent.retain(|id| !unused.contains(id));
        let silent = others.iter().filter(|other| silent.contains(&other.id));
        let silent: Vec<_> = silent.map(|other| other.peer_urls.join(", ")).collect();
        notice.wait_for(format!(
            "it waits for a quorum of new members, or for one member with a leader, so as not to \
             vote if it has lost its data directory; neither is at {}",
            silent.join(", ")
        ));
        if said.is_none_or(|at| at.elapsed() >= LOG_AFTER) {
            tracing::warn!("{}", notice.reason());
            said = Some(Instant::now());
        }
        sleep(PAUSE).await;
    }
}

/// What a member that runs says of this one's place, if it says something.
fn place_in(own: &Member, cluster_id: u64, told: &Told) -> Result<Option<Place>, String> {
    let Told {
        url,
        cluster_id: found,
        members,
        ..
    } = told;
    if *found != cluster_id {
        return Err(format!(
            "cluster ID mismatch: the flags describe cluster {cluster_id:x}, but the member at \
             {url} belongs to cluster {found:x}; to join that one, add this member with \
             `varvectl member add` and start it with --initial-cluster-state existing"
        ));
    }
    // One that came in the place of a damaged one has another id than the flags say.
    let mut here = members.members();
    let here = here.find(|member| member.id == own.id || member.peer_urls == own.peer_urls);
    match here {
        Some(member) if member.id != own.id || is_bootstrapped(member) => {
            let lost = bootstrapped(member.id, cluster_id);
            Ok(Some(Place::Lost(lost)))
        }
        Some(_) => Ok(None),
        None => Err(format!(
            "member {:x} of cluster {cluster_id:x} is no member any more: it was removed; add it \
             with `varvectl member add`, and start it with --initial-cluster-state existing",
            own.id
        )),
    }
}

/// What the first URL answers at which something does.
async fn ask_one(urls: &[String]) -> Option<Answer> {
    for url in urls {
        match ask::confirmed_members(url).await {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::debug!("could not get cluster response from {url}: {error}"),
        }
    }
    None
}

/// A member that has told its client URLs has run, with a data directory.
fn is_bootstrapped(member: &Member) -> bool {
    !member.client_urls.is_empty()
}

fn bootstrapped(id: u64, cluster_id: u64) -> Lost {
    let reason = format!(
        "member {id:x} of cluster {cluster_id:x} has already been bootstrapped, but its data-dir is \
         empty: what it had acknowledged is not here; use the former --data-dir, or replace it: \
         `varvectl member remove {id:x}`, `varvectl member add`, and start it with \
         --initial-cluster-state existing"
    );
    let damaged = Damaged {
        cluster_id,
        member_id: id,
    };
    Lost { damaged, reason }
}

async fn join(config: &Config) -> Result<Place, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = ask_all(config).await;
        let Some(first) = told.first() else {
            return Err(
                "cannot fetch cluster info from peer urls: could not retrieve cluster \
                        information from the given URLs"
                    .to_owned(),
            );
        };
        let fits = |told: &&Told| config.initial_cluster.matches(&told.members).is_ok();
        match told.iter().find(fits) {
            Some(told) => return place(config, told),
            None if Instant::now() < deadline => sleep(PAUSE).await,
            None => return Err(misfit(&config.initial_cluster, first)),
        }
    }
}

/// This member's place in the cluster: that of its peer URLs.
fn place(config: &Config, told: &Told) -> Result<Place, String> {
    let listed = config.initial_cluster.members();
    let own_urls = listed
        .filter(|(name, _)| *name == config.name)
        .map(|(_, urls)| urls)
        .next();
    let is_own = |member: &&Member| Some(&member.peer_urls[..]) == own_urls;
    let Some(own) = told.members.members().find(is_own) else {
        // `matches` has found each list of URLs somewhere.
        return Err(misfit(&config.initial_cluster, told));
    };
    if is_bootstrapped(own) {
        return Ok(Place::Lost(bootstrapped(own.id, told.cluster_id)));
    }
    Ok(Place::Join(Joining {
        cluster_id: told.cluster_id,
        member_id: own.id,
        members: told.members.clone(),
    }))
}

/// etcd's words.
fn misfit(listed: &InitialCluster, told: &Told) -> String {
    let members: Vec<_> = told
        .members
        .members()
        .map(|member| {
            format!(
                "&{{ID:{:x} RaftAttributes:{{PeerURLs:[{}] IsLearner:{}}} Attributes:{{Name:{} \
                 ClientURLs:[{}]}}}}",
                member.id,
                member.peer_urls.join(" "),
                member.is_learner,
                member.name,
                member.client_urls.join(" ")
            )
        })
        .collect();
    let why = listed.matches(&told.members).err();
    format!(
        "error validating peerURLs {{ClusterID:{:x} Members:[{}] RemovedMemberIDs:[]}}: {}",
        told.cluster_id,
        members.join(" "),
        why.map_or_else(String::new, |why| why.to_string())
    )
}

/// Asks every other member of the list, all at once; those that answer, in the
/// order of the list.
async fn ask_all(config: &Config) -> Vec<Told> {
    let others = config.initial_cluster.members();
    let urls = others
        .filter(|(name, _)| *name != config.name)
        .flat_map(|(_, urls)| urls.iter().cloned());
    let asked: Vec<_> = urls
        .map(|url| tokio::spawn(async move { (ask::members(&url).await, url) }))
        .collect();
    let mut told = Vec::new();
    for task in asked {
        match task.await {
            Ok((Ok(Answer::Runs(answer)), _)) => told.push(answer),
            Ok((Ok(Answer::Heals(_) | Answer::IsNew), _)) => {}
            Ok((Err(error), url)) => {
                tracing::debug!("could not get cluster response from {url}: {error}");
            }
            Err(error) => tracing::warn!("could not ask a member: {error}"),
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::tests::told;

    #[test]
    fn misfits_are_told_in_etcds_words() {
        let listed = InitialCluster::parse("a=http://h:1,a=http://h:2").unwrap();
        let text = misfit(&listed, &told());
        assert_eq!(
            text,
            "error validating peerURLs {ClusterID:cdf818194e3a8c32 Members:[&{ID:7 \
             RaftAttributes:{PeerURLs:[http://h:1 http://h:2] IsLearner:false} Attributes:{Name:a \
             ClientURLs:[http://h:3]}} &{ID:ffffffffffffffff \
             RaftAttributes:{PeerURLs:[http://i:1] IsLearner:true} Attributes:{Name: \
             ClientURLs:[]}}] RemovedMemberIDs:[]}: member count is unequal"
        );
        let listed = InitialCluster::parse("a=http://h:1,a=http://h:2,b=http://j:1").unwrap();
        assert!(misfit(&listed, &told()).ends_with(
            ": PeerURLs: no match found for existing member (ffffffffffffffff, http://i:1)"
        ));
    }
}
