//! The peer port: members that connect to this one.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use varve_protocol::MAGIC;
use varve_protocol::peer::{self, Channel, PeerFrame, Refusal};
use varve_raft::NodeHandle;

use super::handshake::{FrameReader, PeerError, prepare, refusal_of, welcome};
use super::{Peers, Shared, TIMEOUT, snapshot_in};
use crate::http;
use crate::metrics::add;
use crate::service::Service;

/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections to the peer port at once: far more than members have.
const MAX_CONNECTIONS: usize = 1024;

/// Accepts members.
pub struct PeerPort {
    shared: Arc<Shared>,
    service: Arc<Service>,
    /// The newest message connection of each member: only it may hand messages over, and
    /// the one before it ends when it comes.
    newest: Mutex<HashMap<u64, watch::Sender<u64>>>,
    connections: AtomicU64,
    /// Bounds the connections that are open at once.
    slots: Arc<Semaphore>,
}

impl PeerPort {
    /// The peer port of the node.
    pub fn new(peers: &Peers, service: Arc<Service>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(&peers.shared),
            service,
            newest: Mutex::default(),
            connections: AtomicU64::new(1),
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        })
    }

    /// Accepts for as long as the node runs.
    pub async fn run(self: Arc<Self>, listener: Arc<TcpListener>) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let port = Arc::clone(&self);
                    let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                        add(&self.shared.metrics.peer_refused, 1);
                        if self.shared.log_limit.pass().is_some() {
                            tracing::warn!(
                                "peer connection from {from} closed: {MAX_CONNECTIONS} are open"
                            );
                        }
                        continue;
                    };
                    tokio::spawn(async move {
                        let _slot = slot;
                        if let Err(error) = port.serve(stream).await {
                            port.note(&from.to_string(), &error);
                        }
                    });
                }
                Err(error) => {
                    if self.shared.log_limit.pass().is_some() {
                        tracing::warn!("cannot accept a connection on the peer port: {error}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn note(&self, from: &str, error: &PeerError) {
        match error {
            PeerError::Replaced => tracing::debug!("peer connection from {from}: {error}"),
            PeerError::Refused(refusal) => {
                add(&self.shared.metrics.peer_refused, 1);
                if self.shared.log_limit.pass().is_some() {
                    tracing::warn!("peer connection from {from} refused: request {refusal}");
                }
            }
            error => {
                if self.shared.log_limit.pass().is_some() {
                    tracing::warn!("peer connection from {from}: {error}");
                }
            }
        }
    }

    async fn serve(&self, mut stream: TcpStream) -> Result<(), PeerError> {
        prepare(&stream)?;
        let mut first = [0];
        let peeked = timeout(TIMEOUT, stream.peek(&mut first)).await;
        if peeked.map_err(|_| PeerError::Timeout)?? == 0 {
            return Ok(());
        }
        if first[0] != MAGIC[0] && first[0].is_ascii_uppercase() {
            http::serve(Arc::clone(&self.service), stream, http::Port::Peer).await;
            return Ok(());
        }
        let hello = match welcome(&self.shared, &mut stream).await {
            Ok(hello) => hello,
            Err(error) => {
                refuse(&mut stream, &error).await;
                return Err(error);
            }
        };
        let from = hello.from;
        match hello.channel {
            Channel::Messages => {
                tracing::info!(
                    "member {from:x} (version {}) connected",
                    hello.server_version
                );
                self.take_messages(from, stream).await
            }
            Channel::Snapshot => snapshot_in::receive(&self.shared, from, stream).await,
        }
    }

    async fn take_messages(&self, from: u64, stream: TcpStream) -> Result<(), PeerError> {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut newest = {
            let mut all = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            // Only members and few newcomers get here, so that the map is bounded.
            let newest = all.entry(from).or_insert_with(|| watch::Sender::new(0));
            newest.send_modify(|newest| *newest = number.max(*newest));
            newest.subscribe()
        };
        let Some(node) = self.shared.node.get() else {
            return Ok(());
        };
        let (read, mut write) = stream.into_split();
        let mut reader = FrameReader::new(read);
        let mut changes = self.shared.changes.subscribe();
        loop {
            let replaced = async { newest.wait_for(|newest| *newest > number).await.is_ok() };
            let frame = tokio::select! {
                frame = reader.next() => frame?,
                // The other end of this one may be gone without a word.
                _ = replaced => return Err(PeerError::Replaced),
                () = removal(from, node, &mut changes) => {
                    self.newest.lock().unwrap_or_else(PoisonError::into_inner).remove(&from);
                    let refusal = Refusal::Removed { member: from };
                    let mut out = Vec::new();
                    peer::encode_refusal(&mut out, &refusal);
                    timeout(TIMEOUT, write.write_all(&out))
                        .await
                        .map_err(|_| PeerError::Timeout)??;
                    return Err(PeerError::Refused(refusal));
                }
            };
            let Some(frame) = frame else {
                return Ok(());
            };
            add(
                &self.shared.metrics.peer_received_bytes,
                frame.body.len() as u64,
            );
            let PeerFrame::Messages(messages) =
                PeerFrame::decode(frame.header.opcode, &frame.body)?
            else {
                return Err(PeerError::Unexpected(frame.header.opcode));
            };
            // Held while handing over: a newer connection's first message waits for it.
            let newest = newest.borrow();
            if *newest > number {
                return Err(PeerError::Replaced);
            }
            node.peer_messages(from, messages.map(|message| share(&frame.body, message)));
        }
    }
}

/// Waits until a member is removed.
async fn removal(from: u64, node: &NodeHandle, changes: &mut watch::Receiver<u64>) {
    while !node.members().is_removed(from) {
        if changes.changed().await.is_err() {
            // The node is on its way down.
            return std::future::pending().await;
        }
    }
}

/// The part of `whole` that `part` borrows, without a copy.
fn share(whole: &Bytes, part: &[u8]) -> Bytes {
    whole.slice_ref(part)
}

/// Says why before the connection is closed. Whoever is there may not listen.
async fn refuse(stream: &mut TcpStream, error: &PeerError) {
    if let PeerError::Io(error) = error
        && error.kind() == io::ErrorKind::UnexpectedEof
    {
        return;
    }
    let mut out = Vec::new();
    peer::encode_refusal(&mut out, &refusal_of(error));
    let _ = timeout(TIMEOUT, async {
        stream.write_all(&out).await?;
        stream.shutdown().await?;
        // Closing with unread input would reset the connection and take the frame away.
        let mut rest = [0; 4096];
        let mut thrown = 0;
        while thrown < 1 << 20 {
            match tokio::io::AsyncReadExt::read(stream, &mut rest).await? {
                0 => break,
                count => thrown += count,
            }
        }
        Ok::<_, io::Error>(())
    })
    .await;
}
