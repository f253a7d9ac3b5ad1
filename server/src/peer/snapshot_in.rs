//! Taking a snapshot in: parts go to a thread that may block on the disk, and
//! each is acknowledged once it is taken in, which is the sender's window. What came
//! before a connection broke is kept: the sender is told where to go on.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use varve_protocol::peer::{self, PeerFrame, SnapshotAck};
use varve_raft::{NodeHandle, RaftError, SnapshotAnnouncement, SnapshotReceiver};

use super::Shared;
use super::handshake::{FrameReader, PeerError};
use crate::metrics::add;

/// Parts received that wait for the disk.
const BUFFERED: usize = 4;
/// How long the sender may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long to wait for another one that is being loaded: its connection may be
/// broken, and its end not yet noticed.
const BUSY_PATIENCE: Duration = Duration::from_secs(15);
/// Pause before it is looked again.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// What the thread that loads says.
enum Loaded {
    /// All parts before this one are taken in.
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
    let (read, mut write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    let announcement = announcement(&mut reader).await?;
    let mut ack = SnapshotAck {
        id: announcement.id,
        ..SnapshotAck::default()
    };
    let receiver = match begin(node, from, announcement).await {
        Ok(receiver) => receiver,
        Err(error) => {
            tracing::warn!("snapshot from member {from:x} refused: {error}");
            ack.later = matches!(error, RaftError::SnapshotBusy);
            ack.failure = error.to_string();
            return say(&mut write, &ack).await;
        }
    };
    let mut expected = receiver.resumed_at();
    (ack.next, ack.position) = (expected, receiver.position());
    say(&mut write, &ack).await?;
    ack.position.clear();

    let (parts_in, parts_out) = mpsc::channel(BUFFERED);
    // Not bounded: the loader must not wait for this task while it waits for the loader. There
    // is one word for each part.
    let (loaded_in, mut loaded) = mpsc::unbounded_channel();
    tokio::task::spawn_blocking(move || load(receiver, expected, parts_out, &loaded_in));
    // Dropped after the last part, which is how the loader knows that it was the last.
    let mut parts_in = Some(parts_in);
    loop {
        tokio::select! {
            frame = timeout(SILENCE, reader.next()), if parts_in.is_some() => {
                let frame = frame.map_err(|_| PeerError::Timeout)??;
                let Some(frame) = frame else {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                };
                add(&shared.metrics.peer_received_bytes, frame.body.len() as u64);
                match PeerFrame::decode(frame.header.opcode, &frame.body)? {
                    PeerFrame::SnapshotChunk(chunk) if chunk.sequence == expected => {
                        expected += 1;
                        add(&shared.metrics.snapshot_received_bytes, chunk.data.len() as u64);
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
                Some(Loaded::Parts(next)) => {
                    ack.next = next;
                    say(&mut write, &ack).await?;
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
                    return say(&mut write, &ack).await;
                }
                None => return Ok(()),
            },
        }
    }
}

async fn announcement(
    reader: &mut FrameReader<tokio::net::tcp::OwnedReadHalf>,
) -> Result<SnapshotAnnouncement, PeerError> {
    let frame = timeout(SILENCE, reader.next())
        .await
        .map_err(|_| PeerError::Timeout)??
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
    match PeerFrame::decode(frame.header.opcode, &frame.body)? {
        PeerFrame::SnapshotBegin(begin) => Ok(SnapshotAnnouncement {
            id: begin.id,
            index: begin.index,
            term: begin.term,
            message: frame.body.slice_ref(begin.message),
        }),
        _ => Err(PeerError::Unexpected(frame.header.opcode)),
    }
}

/// Starts to load, once no other one is being loaded.
async fn begin(
    node: &NodeHandle,
    from: u64,
    announcement: SnapshotAnnouncement,
) -> Result<SnapshotReceiver, RaftError> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        let (node, announced) = (node.clone(), announcement.clone());
        let started =
            tokio::task::spawn_blocking(move || node.snapshot_receiver(from, &announced)).await;
        match started.map_err(|error| RaftError::Stopped(error.to_string()))? {
            Err(RaftError::SnapshotBusy) if Instant::now() < deadline => sleep(BUSY_PAUSE).await,
            result => return result,
        }
    }
}

async fn say(write: &mut OwnedWriteHalf, ack: &SnapshotAck) -> Result<(), PeerError> {
    let mut out = Vec::new();
    peer::encode_snapshot_ack(&mut out, ack);
    timeout(SILENCE, write.write_all(&out))
        .await
        .map_err(|_| PeerError::Timeout)??;
    Ok(())
}

/// What goes to the thread that loads.
enum Part {
    Data(Bytes),
    /// All parts were sent; without it the transfer broke, and nothing is installed.
    End,
}

/// Loads the parts from number `next` on.
fn load(
    mut receiver: SnapshotReceiver,
    mut next: u64,
    mut parts: mpsc::Receiver<Part>,
    loaded: &mpsc::UnboundedSender<Loaded>,
) {
    let result = loop {
        match parts.blocking_recv() {
            Some(Part::Data(bytes)) => match receiver.chunk(&bytes) {
                Ok(()) => {
                    next += 1;
                    // Nobody listens if the connection broke; what came is loaded all the same.
                    let _ = loaded.send(Loaded::Parts(next));
                }
                Err(error) => break Err(error),
            },
            Some(Part::End) => break receiver.finish(),
            None => return,
        }
    };
    let _ = loaded.send(Loaded::End(result));
}
