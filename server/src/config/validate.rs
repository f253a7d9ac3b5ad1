//! etcd's checks of settings against each other, with its texts.

use std::net::SocketAddr;

use super::{ClusterMap, ClusterState, Config, ConfigError, Scheme, Url, join};

/// Longest election timeout.
const MAX_ELECTION_MS: u64 = 50_000;

/// Checks that need nothing but the settings.
pub(super) fn settings(config: &Config, given: &[&str]) -> Result<(), ConfigError> {
    check(config, given).map_err(ConfigError::Invalid)
}

fn check(config: &Config, given: &[&str]) -> Result<(), String> {
    for url in config
        .listen_peer_urls
        .iter()
        .chain(&config.listen_client_urls)
    {
        url.bind_address()?;
        if url.scheme() == Scheme::Https {
            return Err(format!(
                "{url}: TLS is not supported by this version; listen on http and keep the port \
                 inside a trusted network"
            ));
        }
    }
    for (flag, urls) in [
        ("--initial-advertise-peer-urls", &config.advertise_peer_urls),
        ("--advertise-client-urls", &config.advertise_client_urls),
    ] {
        if let Some(url) = urls.iter().find(|url| url.host().is_empty()) {
            return Err(format!(
                "{flag} {:?} must be \"host:port\" (unexpected empty host ({url}))",
                join(urls)
            ));
        }
    }
    let (heartbeat, election) = (config.heartbeat_ms, config.election_ms);
    if heartbeat == 0 {
        return Err("--heartbeat-interval must be >0 (set to 0ms)".to_owned());
    }
    if election == 0 {
        return Err("--election-timeout must be >0 (set to 0ms)".to_owned());
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as \
             --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > MAX_ELECTION_MS {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than \
             {MAX_ELECTION_MS}ms"
        ));
    }
    if given.contains(&"listen-client-urls") && !given.contains(&"advertise-client-urls") {
        return Err(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly"
                .to_owned(),
        );
    }
    if config.name.is_empty() {
        return Err("--name must not be empty".to_owned());
    }
    Ok(())
}

/// Checks of the initial cluster, for a data directory that is still empty.
pub fn bootstrap(config: &Config) -> Result<(), ConfigError> {
    check_bootstrap(config).map_err(ConfigError::Invalid)
}

fn check_bootstrap(config: &Config) -> Result<(), String> {
    let cluster = &config.initial_cluster;
    if cluster.members().is_empty() {
        return Err("initial cluster unset and no discovery endpoints found".to_owned());
    }
    let Some(mine) = cluster.urls_of(&config.name) else {
        return Err(format!(
            "couldn't find local name {:?} in the initial cluster configuration",
            config.name
        ));
    };
    if config.initial_cluster_state == ClusterState::New {
        advertised_matches(config, mine)?;
    }
    if cluster.has_duplicate_url() {
        return Err(format!("initial cluster {cluster} has duplicate url"));
    }
    Ok(())
}

/// The member's URLs in the initial cluster must be those that it advertises,
/// by name or by what the names stand for.
fn advertised_matches(config: &Config, mine: &[Url]) -> Result<(), String> {
    let advertised = &config.advertise_peer_urls;
    if mine == advertised.as_slice() {
        return Ok(());
    }
    let resolved = |urls: &[Url]| -> Option<Vec<Vec<SocketAddr>>> {
        let mut all: Vec<_> = urls.iter().map(Url::resolve).collect();
        all.sort();
        all.iter()
            .all(|addresses| !addresses.is_empty())
            .then_some(all)
    };
    if let (Some(a), Some(b)) = (resolved(mine), resolved(advertised))
        && a == b
    {
        return Ok(());
    }
    let missing = |from: &[Url], of: &[Url]| -> Vec<Url> {
        from.iter()
            .filter(|url| !of.contains(url))
            .cloned()
            .collect()
    };
    let unadvertised = missing(mine, advertised);
    if !unadvertised.is_empty() {
        return Err(format!(
            "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
            ClusterMap::single(&config.name, &unadvertised),
            join(advertised)
        ));
    }
    Err(format!(
        "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
        join(&missing(advertised, mine)),
        ClusterMap::single(&config.name, mine)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Invocation, load};
    use super::*;

    fn config(line: &str) -> Result<Config, String> {
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        match load(&arguments, std::iter::empty()).map_err(|error| error.to_string())? {
            Invocation::Run(config) => Ok(*config),
            Invocation::Print(text) => Err(text),
        }
    }

    #[test]
    fn texts_of_etcd() {
        for (line, text) in [
            (
                "--election-timeout 100",
                "--election-timeout[100ms] should be at least as 5 times as \
                 --heartbeat-interval[100ms]",
            ),
            (
                "--election-timeout 60000",
                "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
            ),
            (
                "--heartbeat-interval 0",
                "--heartbeat-interval must be >0 (set to 0ms)",
            ),
            (
                "--election-timeout 0",
                "--election-timeout must be >0 (set to 0ms)",
            ),
            (
                "--listen-client-urls http://127.0.0.1:1",
                "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            ),
            (
                "--listen-peer-urls http://foo.bar:1",
                "expected IP in URL for binding (http://foo.bar:1)",
            ),
            (
                "--advertise-client-urls http://:1",
                "--advertise-client-urls \"http://:1\" must be \"host:port\" (unexpected empty \
                 host (http://:1))",
            ),
        ] {
            assert_eq!(config(line).unwrap_err(), text, "{line}");
        }
        assert!(
            config("--listen-peer-urls https://127.0.0.1:1")
                .unwrap_err()
                .contains("TLS")
        );
    }

    #[test]
    fn initial_cluster() {
        for (line, text) in [
            (
                "--name x --initial-cluster y=http://127.0.0.1:1",
                "couldn't find local name \"x\" in the initial cluster configuration",
            ),
            (
                "--initial-cluster default=http://1.2.3.4:1",
                "--initial-cluster has default=http://1.2.3.4:1 but missing from \
                 --initial-advertise-peer-urls=http://localhost:2380",
            ),
            (
                "--initial-cluster default=http://h:1 \
                 --initial-advertise-peer-urls http://h:1,http://h:2",
                "--initial-advertise-peer-urls has http://h:2 but missing from \
                 --initial-cluster=default=http://h:1",
            ),
            (
                "--initial-cluster default=http://localhost:2380,b=http://localhost:2380",
                "initial cluster b=http://localhost:2380,default=http://localhost:2380 has \
                 duplicate url",
            ),
        ] {
            let config = config(line).unwrap();
            assert_eq!(bootstrap(&config).unwrap_err().to_string(), text);
        }
        bootstrap(&config("").unwrap()).unwrap();
        bootstrap(&config("--name n1").unwrap()).unwrap();
    }
}
