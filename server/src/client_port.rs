//! The client port: one listener per URL; the first byte of a connection tells
//! the binary protocol from HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::connection::Connection;
use crate::http;
use crate::metrics::{Metrics, add, get};
use crate::rate_limit::LogLimit;
use crate::service::Service;

/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// One line about each kind of trouble in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// Idle time after which the kernel asks whether a client is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// It asks again this often, and takes the client for gone after so many times.
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMES: u32 = 6;

/// Accepts clients.
pub struct ClientPort {
    service: Arc<Service>,
    max_connections: u64,
    log_limit: Arc<LogLimit>,
}

impl ClientPort {
    /// The client port of the node.
    pub fn new(service: Arc<Service>, max_connections: u32) -> Arc<Self> {
        Arc::new(Self {
            service,
            max_connections: max_connections.into(),
            log_limit: Arc::new(LogLimit::new(LOG_INTERVAL)),
        })
    }

    /// Accepts for as long as the node runs.
    pub async fn run(self: Arc<Self>, listener: Arc<TcpListener>) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.take(stream, from),
                Err(error) => {
                    if self.log_limit.pass().is_some() {
                        tracing::warn!("cannot accept a client connection: {error}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, from: SocketAddr) {
        let metrics = &self.service.metrics;
        if get(&metrics.connections) >= self.max_connections {
            add(&metrics.connections_refused, 1);
            if let Some(suppressed) = self.log_limit.pass() {
                tracing::warn!(
                    suppressed,
                    "connection of {from} closed: {} connections are open (--max-connections)",
                    self.max_connections
                );
            }
            return;
        }
        let slot = Slot::take(Arc::clone(metrics));
        let port = Arc::clone(self);
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = port.serve(stream).await {
                tracing::debug!("connection of {from}: {error}");
            }
        });
    }

    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE_AGAIN)
            .with_retries(KEEPALIVE_TIMES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(());
        }
        // Methods are in capitals. Anything else is a frame, or is told that it is none.
        if first[0].is_ascii_uppercase() {
            http::serve(Arc::clone(&self.service), stream, http::Port::Client).await;
        } else {
            let limit = Arc::clone(&self.log_limit);
            Connection::new(Arc::clone(&self.service), stream, limit)
                .run()
                .await;
        }
        Ok(())
    }
}

/// A connection that is counted.
struct Slot(Arc<Metrics>);

impl Slot {
    fn take(metrics: Arc<Metrics>) -> Self {
        add(&metrics.connections, 1);
        Self(metrics)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
