//! `--initial-cluster`: the members of a static bootstrap.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::identity;
use crate::membership::{Member, Membership};

/// Why an initial cluster is refused. Texts are etcd's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InitialClusterError {
    /// A member without URL.
    #[error("no valid URLs given")]
    NoUrls,
    /// A URL without host and port.
    #[error("URL address does not have the form \"host:port\": {0}")]
    NotHostPort(String),
    /// A URL with a path.
    #[error("URL must not contain a path: {0}")]
    Path(String),
    /// A URL of another scheme.
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    /// The list is empty.
    #[error("initial cluster unset and no discovery URL found")]
    Empty,
    /// The list does not name this member.
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NoLocalName(String),
    /// A URL belongs to two members.
    #[error("initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    /// The list has a URL for this member that it does not advertise.
    #[error("--initial-cluster has {0} but missing from --initial-advertise-peer-urls={1}")]
    NotAdvertised(String, String),
    /// This member advertises a URL that the list does not have.
    #[error("--initial-advertise-peer-urls has {0} but missing from --initial-cluster={1}")]
    NotListed(String, String),
    /// Two members hash to one id.
    #[error("member exists with identical ID {0:x}")]
    SameId(u64),
    /// The cluster to join has another number of members.
    #[error("member count is unequal")]
    UnequalCount,
    /// The cluster to join has a member that the list does not have.
    #[error("PeerURLs: no match found for existing member ({0:x}, {1})")]
    NoMatch(u64, String),
}

/// Parses and checks a comma-separated list of URLs of peers; sorted.
pub fn parse_urls(list: &str) -> Result<Vec<String>, InitialClusterError> {
    let mut urls = list
        .split(',')
        .map(str::trim)
        .map(|url| check_url(url).map(|()| url.to_owned()))
        .collect::<Result<Vec<_>, _>>()?;
    urls.sort_unstable();
    Ok(urls)
}

fn check_url(url: &str) -> Result<(), InitialClusterError> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(InitialClusterError::Scheme(url.to_owned()));
    };
    match scheme {
        "unix" | "unixs" => return Ok(()),
        "http" | "https" => {}
        _ => return Err(InitialClusterError::Scheme(url.to_owned())),
    }
    let (host_port, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let well_formed = host_port.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        (bracketed || !host.contains(':')) && port.bytes().all(|b| b.is_ascii_digit())
    });
    if !well_formed {
        return Err(InitialClusterError::NotHostPort(url.to_owned()));
    }
    if !path.is_empty() {
        return Err(InitialClusterError::Path(url.to_owned()));
    }
    Ok(())
}

/// The members that a cluster is first formed of: name to sorted peer URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialCluster {
    members: BTreeMap<String, Vec<String>>,
}

impl InitialCluster {
    /// Parses `name1=url1,name2=url2`; a name that comes twice has several URLs.
    pub fn parse(list: &str) -> Result<Self, InitialClusterError> {
        let mut members = BTreeMap::<String, Vec<String>>::new();
        for pair in list.split(',').filter(|pair| !pair.is_empty()) {
            let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
            let url = url.trim();
            check_url(url)?;
            members
                .entry(name.trim().to_owned())
                .or_default()
                .push(url.to_owned());
        }
        for urls in members.values_mut() {
            urls.sort_unstable();
        }
        Ok(Self { members })
    }

    /// A cluster of one member with one URL, which is not checked.
    pub fn single(name: &str, peer_url: String) -> Self {
        Self {
            members: BTreeMap::from([(name.to_owned(), vec![peer_url])]),
        }
    }

    /// Checks that the list names `local_name` with exactly the URLs that it
    /// advertises, and gives no URL twice.
    pub fn verify(
        &self,
        local_name: &str,
        advertised_peer_urls: &[String],
    ) -> Result<(), InitialClusterError> {
        if self.members.is_empty() {
            return Err(InitialClusterError::Empty);
        }
        let listed = self
            .members
            .get(local_name)
            .ok_or_else(|| InitialClusterError::NoLocalName(local_name.to_owned()))?;
        let mut advertised = advertised_peer_urls.to_vec();
        advertised.sort_unstable();
        let missing = |from: &[String], of: &[String]| -> Vec<String> {
            of.iter()
                .filter(|url| !from.contains(url))
                .cloned()
                .collect()
        };
        let named = |urls: &[String]| -> String {
            let pairs: Vec<String> = urls.iter().map(|u| format!("{local_name}={u}")).collect();
            pairs.join(",")
        };
        let not_advertised = missing(&advertised, listed);
        if !not_advertised.is_empty() {
            return Err(InitialClusterError::NotAdvertised(
                named(&not_advertised),
                advertised.join(","),
            ));
        }
        let not_listed = missing(listed, &advertised);
        if !not_listed.is_empty() {
            return Err(InitialClusterError::NotListed(
                not_listed.join(","),
                named(&advertised),
            ));
        }
        let mut seen = BTreeSet::new();
        if !self.members.values().flatten().all(|url| seen.insert(url)) {
            return Err(InitialClusterError::DuplicateUrl(self.to_string()));
        }
        Ok(())
    }

    /// The membership that a new cluster starts with: the same on every member.
    pub fn membership(&self, token: &str) -> Result<Membership, InitialClusterError> {
        let mut membership = Membership::default();
        for (name, urls) in &self.members {
            let id = identity::member_id(urls, token);
            let member = Member {
                id,
                name: name.clone(),
                peer_urls: urls.clone(),
                ..Member::default()
            };
            if id == 0 || membership.insert(member).is_some() {
                return Err(InitialClusterError::SameId(id));
            }
        }
        if membership.members().next().is_none() {
            return Err(InitialClusterError::Empty);
        }
        Ok(membership)
    }

    /// Checks the list against the members of a cluster that runs already.
    pub fn matches(&self, existing: &Membership) -> Result<(), InitialClusterError> {
        if existing.members().count() != self.members.len() {
            return Err(InitialClusterError::UnequalCount);
        }
        for member in existing.members() {
            let mut urls = member.peer_urls.clone();
            urls.sort_unstable();
            if !self.members.values().any(|listed| *listed == urls) {
                return Err(InitialClusterError::NoMatch(member.id, urls.join(",")));
            }
        }
        Ok(())
    }

    /// Names and sorted peer URLs.
    pub fn members(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.members
            .iter()
            .map(|(name, urls)| (name.as_str(), urls.as_slice()))
    }
}

impl std::fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for (name, urls) in &self.members {
            for url in urls {
                write!(f, "{separator}{name}={url}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| (*u).to_owned()).collect()
    }

    #[test]
    fn a_name_that_comes_twice_has_several_urls() {
        let cluster = InitialCluster::parse("a=http://h:2,b=http://i:1,a=http://h:1").unwrap();
        let members: Vec<_> = cluster.members().collect();
        assert_eq!(members[0].1, ["http://h:1", "http://h:2"]);
        assert_eq!(members[1], ("b", &urls(&["http://i:1"])[..]));
        cluster
            .verify("a", &urls(&["http://h:2", "http://h:1"]))
            .unwrap();
        assert_eq!(
            cluster.to_string(),
            "a=http://h:1,a=http://h:2,b=http://i:1"
        );
    }

    #[test]
    fn refusals_have_etcds_texts() {
        let cluster = InitialCluster::parse("my-etcd-1=http://localhost:2380").unwrap();
        let text = |result: Result<(), InitialClusterError>| result.unwrap_err().to_string();
        assert_eq!(
            text(cluster.verify("myetcd1", &urls(&["http://localhost:2380"]))),
            "couldn't find local name \"myetcd1\" in the initial cluster configuration"
        );
        assert_eq!(
            text(cluster.verify("my-etcd-1", &urls(&["http://other:2380"]))),
            "--initial-cluster has my-etcd-1=http://localhost:2380 but missing from \
             --initial-advertise-peer-urls=http://other:2380"
        );
        assert_eq!(
            text(cluster.verify(
                "my-etcd-1",
                &urls(&["http://localhost:2380", "http://other:2380"])
            )),
            "--initial-advertise-peer-urls has http://other:2380 but missing from \
             --initial-cluster=my-etcd-1=http://localhost:2380,my-etcd-1=http://other:2380"
        );
        let twice = InitialCluster::parse("a=http://h:1,b=http://h:1").unwrap();
        assert_eq!(
            text(twice.verify("a", &urls(&["http://h:1"]))),
            "initial cluster a=http://h:1,b=http://h:1 has duplicate url"
        );
        let empty = InitialCluster::parse("").unwrap();
        assert_eq!(
            text(empty.verify("a", &[])),
            "initial cluster unset and no discovery URL found"
        );
        assert_eq!(empty.membership("t"), Err(InitialClusterError::Empty));
    }

    #[test]
    fn malformed_urls_are_named() {
        let text = |list: &str| InitialCluster::parse(list).unwrap_err().to_string();
        assert_eq!(
            text("a=http://host"),
            "URL address does not have the form \"host:port\": http://host"
        );
        assert_eq!(
            text("a=http://host:1/x"),
            "URL must not contain a path: http://host:1/x"
        );
        assert_eq!(
            text("a=ftp://host:1"),
            "URL scheme must be http, https, unix, or unixs: ftp://host:1"
        );
        assert!(InitialCluster::parse("a").is_err());
        assert!(InitialCluster::parse("a=http://[::1]:2380").is_ok());
        assert!(InitialCluster::parse("a=http://::1:2380").is_err());
    }

    #[test]
    fn an_existing_cluster_must_match() {
        let two = InitialCluster::parse("a=http://h:1,b=http://h:2").unwrap();
        let existing = two.membership("t").unwrap();
        two.matches(&existing).unwrap();
        let one = InitialCluster::parse("a=http://h:1").unwrap();
        assert_eq!(
            one.matches(&existing).unwrap_err().to_string(),
            "member count is unequal"
        );
        let other = InitialCluster::parse("a=http://h:1,b=http://h:3").unwrap();
        assert!(
            other
                .matches(&existing)
                .unwrap_err()
                .to_string()
                .starts_with("PeerURLs: no match found for existing member (")
        );
    }
}
