//! Taking a snapshot in: parts go to a thread that may block on the disk, and
//! each is acknowledged once it is taken in, which is the sender's window.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use varve_protocol::peer::{self, PeerFrame, SnapshotAck};
use varve_raft::{RaftError, SnapshotReceiver};

use super::Shared;
use super::handshake::{FrameReader, PeerError};
use crate::metrics::add;

/// Parts received that wait for the disk.
const BUFFERED: usize = 4;
/// How long the sender may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// What the thread that loads says.
enum Loaded {
    /// So many parts are taken in.
    Parts(u64),
    /// The snapshot is installed, or why it is not.
    End(Result<(), RaftError>),
}

/// Receives one snapshot from a member.
pub(super) async fn receive(
    shared: &Shared,
    from: u64,
    stream: TcpStream,
) -> Result<(), PeerError> {
    let Some(node) = shared.node.get() else {
        return Ok(());
    };
    tracing::info!("receiving a snapshot from member {from:x}");
    let receiver = node.snapshot_receiver(from);
    let (parts_in, parts_out) = mpsc::channel(BUFFERED);
    // Not bounded: the loader must not wait for this task while it waits for the loader. There
    // is one word for each part.
    let (loaded_in, mut loaded) = mpsc::unbounded_channel();
    tokio::task::spawn_blocking(move || load(receiver, parts_out, &loaded_in));

    let (read, mut write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    // Dropped after the last part, which is how the loader knows that it was the last.
    let mut parts_in = Some(parts_in);
    let mut ack = SnapshotAck::default();
    let mut expected = 0;
    let mut out = Vec::new();
    loop {
        tokio::select! {
            frame = timeout(SILENCE, reader.next()), if parts_in.is_some() => {
                let frame = frame.map_err(|_| PeerError::Timeout)??;
                let Some(frame) = frame else {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                };
                add(&shared.metrics.peer_received_bytes, frame.body.len() as u64);
                match PeerFrame::decode(frame.header.opcode, &frame.body)? {
                    PeerFrame::SnapshotBegin(begin) => {
                        ack.id = begin.id;
                        peer::encode_snapshot_ack(&mut out, &ack);
                    }
                    PeerFrame::SnapshotChunk(chunk) if chunk.sequence == expected => {
                        expected += 1;
                        if let Some(parts) = &parts_in {
                            let part = Part::Data(frame.body.slice_ref(chunk.data));
                            // The loader ends early only with an error, which it reports.
                            let _ = parts.send(part).await;
                        }
                    }
                    PeerFrame::SnapshotEnd(end) if end.chunks == expected => {
                        if let Some(parts) = parts_in.take() {
                            let _ = parts.send(Part::End).await;
                        }
                    }
                    _ => return Err(PeerError::Unexpected(frame.header.opcode)),
                }
            }
            word = loaded.recv() => match word {
                Some(Loaded::Parts(parts)) => {
                    ack.next = parts;
                    peer::encode_snapshot_ack(&mut out, &ack);
                }
                Some(Loaded::End(result)) => {
                    match &result {
                        Ok(()) => {
                            ack.installed = true;
                            tracing::info!("snapshot from member {from:x} is installed");
                        }
                        Err(error) => {
                            ack.failure = error.to_string();
                            tracing::warn!("snapshot from member {from:x} failed: {error}");
                        }
                    }
                    peer::encode_snapshot_ack(&mut out, &ack);
                    write.write_all(&out).await?;
                    return Ok(());
                }
                None => return Ok(()),
            },
        }
        if !out.is_empty() {
            timeout(SILENCE, write.write_all(&out))
                .await
                .map_err(|_| PeerError::Timeout)??;
            out.clear();
        }
    }
}

/// What goes to the thread that loads.
enum Part {
    Data(Bytes),
    /// All parts were sent; without it the transfer broke, and nothing is installed.
    End,
}

fn load(
    mut receiver: SnapshotReceiver,
    mut parts: mpsc::Receiver<Part>,
    loaded: &mpsc::UnboundedSender<Loaded>,
) {
    let mut taken = 0;
    let result = loop {
        match parts.blocking_recv() {
            Some(Part::Data(bytes)) => match receiver.chunk(&bytes) {
                Ok(()) => {
                    taken += 1;
                    if loaded.send(Loaded::Parts(taken)).is_err() {
                        return;
                    }
                }
                Err(error) => break Err(error),
            },
            Some(Part::End) => break receiver.finish(),
            None => return,
        }
    };
    // Nobody listens if the connection broke meanwhile.
    let _ = loaded.send(Loaded::End(result));
}
