//! etcd's checks of settings against each other, with its texts.

use std::time::Duration;

use super::{Config, ConfigError, Scheme, join};

/// Longest election timeout.
const MAX_ELECTION_MS: u64 = 50_000;

/// Shortest interval between two progress notices of a watch.
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Largest `--max-request-bytes`: a request with its length and opcode is one proposal at most.
const MAX_REQUEST_BYTES: usize = varve_raft::MAX_PROPOSAL_BYTES - 64;

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
    let progress = config.watch_progress_interval;
    if progress < MIN_PROGRESS_INTERVAL {
        return Err(format!(
            "--watch-progress-notify-interval {progress:?} must be at least \
             {MIN_PROGRESS_INTERVAL:?}"
        ));
    }
    if config.max_request_bytes as usize > MAX_REQUEST_BYTES {
        return Err(format!(
            "--max-request-bytes must be at most {MAX_REQUEST_BYTES} (set to {}): a larger \
             request does not fit a record of the log",
            config.max_request_bytes
        ));
    }
    if config.name.is_empty() {
        return Err("--name must not be empty".to_owned());
    }
    Ok(())
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
                "--max-request-bytes 5000000",
                "--max-request-bytes must be at most 4190144 (set to 5000000): a larger request \
                 does not fit a record of the log",
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
}
