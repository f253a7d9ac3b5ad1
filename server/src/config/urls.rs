//! URLs in etcd's form: `scheme://host:port`, nothing after it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a URL speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS.
    Https,
}

/// One URL of a listener or of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    text: String,
    scheme: Scheme,
    host: String,
    port: u16,
}

impl Url {
    /// Reads one URL; the errors are those of etcd.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => {
                return Err(format!(
                    "URL scheme must be http, https, unix, or unixs: {text}"
                ));
            }
        };
        let authority = match rest.find(['/', '?', '#']) {
            Some(_) => return Err(format!("URL must not contain a path: {text}")),
            None => rest,
        };
        let malformed = || format!("URL address does not have the form \"host:port\": {text}");
        let (host, port) = authority.rsplit_once(':').ok_or_else(malformed)?;
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']').ok_or_else(malformed)?,
            None if host.contains(':') => return Err(malformed()),
            None => host,
        };
        if host.contains(['@', '[', ']', ' ']) {
            return Err(malformed());
        }
        let port = port.parse().map_err(|_| malformed())?;
        Ok(Self {
            text: text.to_owned(),
            scheme,
            host: host.to_owned(),
            port,
        })
    }

    /// Reads a comma-separated list, sorted as etcd sorts it.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut urls = text
            .split(',')
            .map(Self::parse)
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        Ok(urls)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it speaks.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `host:port` as a resolver takes it.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The address to listen on: an IP, or `localhost` for 127.0.0.1.
    pub fn bind_address(&self) -> Result<SocketAddr, String> {
        let ip = if self.host == "localhost" {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.host
                .parse()
                .map_err(|_| format!("expected IP in URL for binding ({self})"))?
        };
        Ok(SocketAddr::new(ip, self.port))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Texts joined by commas, for messages.
pub fn join(urls: &[Url]) -> String {
    urls.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url = Url::parse(" http://localhost:2379 ").unwrap();
        assert_eq!(url.as_str(), "http://localhost:2379");
        assert_eq!(url.bind_address().unwrap().to_string(), "127.0.0.1:2379");
        let url = Url::parse("https://[::1]:1").unwrap();
        assert_eq!((url.host(), url.authority().as_str()), ("::1", "[::1]:1"));
        assert_eq!(url.scheme(), Scheme::Https);
        assert_eq!(
            Url::parse("http://a.example:80").unwrap().bind_address(),
            Err("expected IP in URL for binding (http://a.example:80)".to_owned())
        );
    }

    #[test]
    fn malformed_urls() {
        for text in ["", "127.0.0.1:1", "ftp://h:1", "unixx://h:1"] {
            let error = Url::parse(text).unwrap_err();
            assert!(error.starts_with("URL scheme must be"), "{error}");
        }
        for text in [
            "http://h",
            "http://h:",
            "http://h:70000",
            "http://::1:1",
            "http://[::1:1",
        ] {
            let error = Url::parse(text).unwrap_err();
            assert!(error.starts_with("URL address does not"), "{error}");
        }
        assert!(
            Url::parse("http://h:1/p")
                .unwrap_err()
                .starts_with("URL must not contain")
        );
    }
}
