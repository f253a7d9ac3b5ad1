//! Settings of a client, and the addresses it takes.

use std::time::Duration;

use varve_protocol::DEFAULT_REPLY_LIMIT;

use crate::ClientError;

/// Settings of a [`crate::Client`]. The defaults are those of etcdctl.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// How long to wait for a connection to one endpoint.
    pub dial_timeout: Duration,
    /// How long a call may take in all, retries included.
    pub command_timeout: Duration,
    /// Ask a silent server for a sign of life after this long.
    pub keepalive_time: Duration,
    /// Leave a server that stays silent for this long after being asked.
    pub keepalive_timeout: Duration,
    /// Longest request to send, in bytes.
    pub max_request_bytes: usize,
    /// Longest frame to accept, in bytes.
    pub max_reply_frame_bytes: usize,
    /// Bytes of events that a watch may have under way to a consumer that does not take them.
    pub watch_window_bytes: u32,
    /// What the client calls itself in the node's log.
    pub name: String,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(2),
            command_timeout: Duration::from_secs(5),
            keepalive_time: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(6),
            max_request_bytes: 512 * 1024 * 1024,
            max_reply_frame_bytes: DEFAULT_REPLY_LIMIT,
            watch_window_bytes: 4 * 1024 * 1024,
            name: concat!("varve-client/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Where a node listens for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    text: String,
    address: String,
}

impl Endpoint {
    /// Reads `host:port`, with or without `http://` before it and a slash behind it. IPv6
    /// addresses stand in brackets.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let text = text.trim();
        let invalid = || ClientError::InvalidEndpoint(text.to_owned());
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.strip_suffix('/').unwrap_or(address);
        let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
        let host_fits = match host.strip_prefix('[') {
            Some(rest) => rest.ends_with(']') && rest.len() > 1,
            None => !host.is_empty() && !host.contains([':', '/', '@', ' ']),
        };
        if !host_fits || port.parse::<u16>().is_err() {
            return Err(invalid());
        }
        Ok(Self {
            text: text.to_owned(),
            address: address.to_owned(),
        })
    }

    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, address) in [
            ("127.0.0.1:2379", "127.0.0.1:2379"),
            ("http://node1:2379", "node1:2379"),
            ("http://node1:2379/", "node1:2379"),
            (" [::1]:2379 ", "[::1]:2379"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().address(), address);
        }
        for text in [
            "",
            "node1",
            ":2379",
            "node1:port",
            "https://node1:2379",
            "a:b:1",
            "node1:70000",
            "[:1",
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(error.to_string().contains("host:port"), "{text}: {error}");
        }
    }
}
