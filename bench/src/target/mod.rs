//! The systems that can be measured, each driven over its own protocol by the
//! same slots, the same ledger and the same clock.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod etcd_messages;
mod varve;

use std::cell::RefCell;

use tokio::net::TcpStream;
use varve_types::KeyValue;

use crate::cli::TargetKind;
use crate::error::{BenchError, Result};
use crate::load::pace::Pace;
use crate::load::slots::{Slot, Worker};

#[cfg(not(feature = "etcd"))]
const NO_ETCD: &str = "this varve-bench was built without the feature `etcd`";

/// A connection that drives slots.
pub(crate) enum Link {
    /// Varve's binary protocol.
    Varve(varve::Link),
    /// gRPC. Boxed: it is many times larger.
    #[cfg(feature = "etcd")]
    Etcd(Box<etcd::Link>),
}

impl Link {
    /// Connects.
    pub(crate) async fn connect(
        target: TargetKind,
        endpoint: &str,
    ) -> std::result::Result<Self, String> {
        match target {
            TargetKind::Varve => varve::Link::connect(endpoint).await.map(Self::Varve),
            #[cfg(feature = "etcd")]
            TargetKind::Etcd => etcd::Link::connect(endpoint)
                .await
                .map(|link| Self::Etcd(Box::new(link))),
            #[cfg(not(feature = "etcd"))]
            TargetKind::Etcd => Err(NO_ETCD.into()),
        }
    }

    /// Keeps every slot busy, as far as `pace` lets it, until there is nothing more to
    /// issue and all is answered. An error means that the connection is of no more use.
    pub(crate) async fn drive(
        &mut self,
        slots: &mut [Slot],
        pace: &mut Pace,
        worker: &RefCell<Worker>,
    ) -> std::result::Result<(), String> {
        match self {
            Self::Varve(link) => link.drive(slots, pace, worker).await,
            #[cfg(feature = "etcd")]
            Self::Etcd(link) => link.drive(slots, pace, worker).await,
        }
    }
}

/// Part of a range.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Keys and values in order.
    pub(crate) kvs: Vec<KeyValue>,
    /// Whether the limit cut something off.
    pub(crate) more: bool,
    /// The store's revision.
    pub(crate) revision: i64,
}

/// A connection for the few requests around a measurement.
pub(crate) struct Admin {
    endpoint: String,
    link: Link,
}

impl Admin {
    /// Connects.
    pub(crate) async fn connect(target: TargetKind, endpoint: &str) -> Result<Self> {
        let link = Link::connect(target, endpoint)
            .await
            .map_err(|what| BenchError::target(endpoint, what))?;
        Ok(Self {
            endpoint: endpoint.to_owned(),
            link,
        })
    }

    /// A linearizable read of `[from, end)`, at most `limit` keys.
    pub(crate) async fn range(&mut self, from: &[u8], end: &[u8], limit: i64) -> Result<Page> {
        let answer = match &mut self.link {
            Link::Varve(link) => link.range(from, end, limit).await,
            #[cfg(feature = "etcd")]
            Link::Etcd(link) => link.range(from, end, limit).await,
        };
        answer.map_err(|what| BenchError::target(&self.endpoint, what))
    }

    /// Whether this member leads.
    pub(crate) async fn leads(&mut self) -> Result<bool> {
        let answer = match &mut self.link {
            Link::Varve(link) => link.leads().await,
            #[cfg(feature = "etcd")]
            Link::Etcd(link) => link.leads().await,
        };
        answer.map_err(|what| BenchError::target(&self.endpoint, what))
    }

    /// Compacts up to `revision`.
    pub(crate) async fn compact(&mut self, revision: i64) -> Result<()> {
        let answer = match &mut self.link {
            Link::Varve(link) => link.compact(revision).await,
            #[cfg(feature = "etcd")]
            Link::Etcd(link) => link.compact(revision).await,
        };
        answer.map_err(|what| BenchError::target(&self.endpoint, what))
    }

    /// Does what the target needs to get over a burst of writes; no key is touched.
    pub(crate) async fn settle(&mut self) -> Result<()> {
        match &mut self.link {
            Link::Varve(_) => Ok(()),
            #[cfg(feature = "etcd")]
            Link::Etcd(link) => link
                .settle()
                .await
                .map_err(|what| BenchError::target(&self.endpoint, what)),
        }
    }
}

/// `host:port` of an endpoint that may be written as a URL.
pub(crate) fn authority(endpoint: &str) -> &str {
    let rest = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// A TCP connection without Nagle's delay.
pub(crate) async fn dial(endpoint: &str) -> std::result::Result<TcpStream, String> {
    let stream = TcpStream::connect(authority(endpoint))
        .await
        .map_err(|error| format!("connect: {error}"))?;
    stream
        .set_nodelay(true)
        .map_err(|error| format!("set nodelay: {error}"))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::authority;

    #[test]
    fn endpoints_may_be_urls() {
        for endpoint in [
            "127.0.0.1:2379",
            "http://127.0.0.1:2379",
            "http://127.0.0.1:2379/",
        ] {
            assert_eq!(authority(endpoint), "127.0.0.1:2379");
        }
    }
}
