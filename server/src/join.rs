//! Finding out, before a data directory is made, what the members named in
//! `--initial-cluster` say of the cluster: to join it with `--initial-cluster-state
//! existing`, and with `new` not to form a second one beside it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use varve_raft::{InitialCluster, Joining, Member, Membership};

use crate::config::{ClusterState, Config, Url};

/// How long one member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// No list of members is longer.
const MAX_BYTES: u64 = 1 << 20;
/// How long members may disagree with the flags: one that was asked may not have
/// heard yet of the change that another one has just confirmed.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

/// What a member says of its cluster.
#[derive(Debug, Clone)]
struct Told {
    url: String,
    cluster_id: u64,
    members: Membership,
}

/// The cluster to join, if one is to be joined; an error says why the node must not start.
pub async fn look_around(config: &Config) -> Result<Option<Joining>, String> {
    let cluster = &config.initial_cluster;
    let advertised: Vec<_> = config
        .advertise_peer_urls
        .iter()
        .map(|url| url.as_str().to_owned())
        .collect();
    let verify = cluster.verify(&config.name, &advertised);
    match config.initial_cluster_state {
        // The replica verifies what it starts with.
        ClusterState::New if verify.is_err() => Ok(None),
        ClusterState::New => may_form(config, &ask_all(config).await).map(|()| None),
        ClusterState::Existing => {
            verify.map_err(|error| error.to_string())?;
            join(config).await.map(Some)
        }
    }
}

/// Refuses to form a cluster that runs already, or another one than the others have.
fn may_form(config: &Config, told: &[Told]) -> Result<(), String> {
    let token = &config.initial_cluster_token;
    let formed = config.initial_cluster.membership(token);
    let formed = formed.map_err(|error| error.to_string())?;
    let cluster_id = formed.cluster_id();
    let own = formed.members().find(|member| member.name == config.name);
    for Told {
        url,
        cluster_id: found,
        members,
    } in told
    {
        if *found != cluster_id {
            return Err(format!(
                "cluster ID mismatch: the flags describe cluster {cluster_id:x}, but the member at \
                 {url} belongs to cluster {found:x}; to join that one, add this member with \
                 `varvectl member add` and start it with --initial-cluster-state existing"
            ));
        }
        let Some(own) = own else { continue };
        if members.get(own.id).is_some_and(is_bootstrapped) {
            return Err(bootstrapped(own.id, cluster_id));
        }
    }
    Ok(())
}

/// A member that has told its client URLs has run, with a data directory.
fn is_bootstrapped(member: &Member) -> bool {
    !member.client_urls.is_empty()
}

fn bootstrapped(id: u64, cluster_id: u64) -> String {
    format!(
        "member {id:x} of cluster {cluster_id:x} has already been bootstrapped, but its data-dir is \
         empty: what it had acknowledged is not here; use the former --data-dir, or replace it: \
         `varvectl member remove {id:x}`, `varvectl member add`, and start it with \
         --initial-cluster-state existing"
    )
}

async fn join(config: &Config) -> Result<Joining, String> {
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
fn place(config: &Config, told: &Told) -> Result<Joining, String> {
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
        return Err(bootstrapped(own.id, told.cluster_id));
    }
    Ok(Joining {
        cluster_id: told.cluster_id,
        member_id: own.id,
        members: told.members.clone(),
    })
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
        .map(|url| tokio::spawn(async move { (ask(&url).await, url) }))
        .collect();
    let mut told = Vec::new();
    for task in asked {
        match task.await {
            Ok((Ok(answer), _)) => told.push(answer),
            Ok((Err(error), url)) => {
                tracing::debug!("could not get cluster response from {url}: {error}");
            }
            Err(error) => tracing::warn!("could not ask a member: {error}"),
        }
    }
    told
}

async fn ask(url: &str) -> Result<Told, String> {
    let answer = timeout(TIMEOUT, fetch(url)).await;
    let answer = answer.map_err(|_| format!("no answer within {TIMEOUT:?}"))??;
    let (cluster_id, members) = parse(&answer).ok_or("no list of members")?;
    Ok(Told {
        url: url.to_owned(),
        cluster_id,
        members,
    })
}

async fn fetch(url: &str) -> Result<String, String> {
    let authority = Url::parse(url)?.authority();
    let exchange = async {
        let mut stream = TcpStream::connect(&authority).await?;
        // 1.0, so that the answer comes in one piece and ends with the connection.
        let request =
            format!("GET /members HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = exchange.await.map_err(|error| error.to_string())?;
    String::from_utf8(answer).map_err(|error| error.to_string())
}

/// Cluster id and members out of an answer to `GET /members`.
fn parse(answer: &str) -> Option<(u64, Membership)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    if lines.next()?.split(' ').nth(1)? != "200" {
        return None;
    }
    let id = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-etcd-cluster-id")
            .then(|| value.trim())
    })?;
    let list: Vec<MemberJson> = serde_json::from_str(body).ok()?;
    let mut members = Membership::default();
    for mut member in list {
        member.peer_urls.sort_unstable();
        members.insert(Member {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_urls,
            client_urls: member.client_urls,
            is_learner: member.is_learner,
        });
    }
    Some((u64::from_str_radix(id, 16).ok()?, members))
}

#[derive(serde::Deserialize)]
#[serde(default)]
#[derive(Default)]
struct MemberJson {
    id: u64,
    name: String,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs")]
    client_urls: Vec<String>,
    #[serde(rename = "isLearner")]
    is_learner: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: cdf818194e3a8c32\r\n\r\n[{\"id\":7,\
        \"peerURLs\":[\"http://h:2\",\"http://h:1\"],\"name\":\"a\",\"clientURLs\":[\"http://h:3\"]},\
        {\"id\":18446744073709551615,\"peerURLs\":[\"http://i:1\"],\"isLearner\":true}]\n";

    fn told() -> Told {
        let (cluster_id, members) = parse(ANSWER).unwrap();
        let url = "http://h:1".to_owned();
        Told {
            url,
            cluster_id,
            members,
        }
    }

    #[test]
    fn lists_are_read() {
        let Told {
            cluster_id,
            members,
            ..
        } = told();
        assert_eq!(cluster_id, 0xcdf8_1819_4e3a_8c32);
        assert_eq!(
            members.get(7).unwrap().peer_urls,
            ["http://h:1", "http://h:2"]
        );
        let learner = members.get(u64::MAX).unwrap();
        assert!(learner.is_learner && !is_bootstrapped(learner));
        for bad in ["", "HTTP/1.1 404 x\r\n\r\n[]", "HTTP/1.1 200 OK\r\n\r\n[]"] {
            assert!(parse(bad).is_none());
        }
    }

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
