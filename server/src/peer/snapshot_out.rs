//! Sending a snapshot: a connection of its own, a window of parts that the
//! receiver has not yet taken in, and a limit on the rate, so that neither the
//! receiver's disk nor the network is flooded while the cluster serves. The receiver
//! says first where it wants to go on.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until, timeout};
use varve_protocol::peer::{
    self, Channel, PeerFrame, SnapshotAck, SnapshotBegin, SnapshotChunk, SnapshotEnd,
};
use varve_raft::{SnapshotAnnouncement, SnapshotOutcome, SnapshotStream};

use super::Shared;
use super::handshake::{FrameReader, PeerError, connect};
use crate::metrics::add;

/// Parts on their way that the receiver has not yet taken in.
const WINDOW: u64 = 16;
/// Parts read ahead from the store.
const READ_AHEAD: usize = 2;
/// Pause before a failure is reported.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the receiver may take for one part.
const PART_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the receiver may take to install the whole.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Sends the snapshot and reports how that went.
pub(super) async fn send(shared: &Shared, to: u64, mut stream: Box<dyn SnapshotStream>) {
    let mut sender = match Sender::begin(shared, to, &mut *stream).await {
        Ok(sender) => sender,
        Err(error) => return stream.finished(failed(to, &error).await),
    };
    let (parts_in, parts_out) = mpsc::channel(READ_AHEAD);
    let (report, reported) = oneshot::channel();
    // The store is read on a thread that may block.
    tokio::task::spawn_blocking(move || pull(stream, parts_in, reported));
    let outcome = match sender.transfer(parts_out).await {
        Ok(()) => {
            tracing::info!(
                "snapshot sent to member {to:x}: {} bytes in {} chunks in {:?}",
                sender.bytes,
                sender.sent - sender.first,
                sender.started.elapsed()
            );
            SnapshotOutcome::Delivered
        }
        Err(error) => failed(to, &error).await,
    };
    // The puller waits for it; it is gone only if the process ends.
    let _ = report.send(outcome);
}

/// What a failure comes to, after a pause: Raft tries again as soon as it hears of it.
async fn failed(to: u64, error: &PeerError) -> SnapshotOutcome {
    tracing::warn!("snapshot to member {to:x} failed: {error}");
    sleep(RETRY_PAUSE).await;
    match error {
        PeerError::SnapshotRefused(_) => SnapshotOutcome::Refused,
        _ => SnapshotOutcome::Broken,
    }
}

/// Reads the chunks; after the last one comes a `None`, without which reading failed.
fn pull(
    mut stream: Box<dyn SnapshotStream>,
    parts: mpsc::Sender<Option<Bytes>>,
    reported: oneshot::Receiver<SnapshotOutcome>,
) {
    loop {
        let part = match stream.next_chunk() {
            Ok(part) => part,
            Err(error) => {
                tracing::error!("a snapshot for another member: {error}");
                break;
            }
        };
        let is_last = part.is_none();
        if parts.blocking_send(part).is_err() || is_last {
            break;
        }
    }
    drop(parts);
    stream.finished(reported.blocking_recv().unwrap_or(SnapshotOutcome::Broken));
}

struct Sender<'s> {
    shared: &'s Shared,
    reader: FrameReader<tokio::net::tcp::OwnedReadHalf>,
    write: tokio::net::tcp::OwnedWriteHalf,
    id: u64,
    /// The first part that is sent; the next one; up to which they were taken in.
    first: u64,
    sent: u64,
    taken: u64,
    bytes: u64,
    started: Instant,
    out: Vec<u8>,
}

impl<'s> Sender<'s> {
    /// Connects, and asks the receiver where to go on.
    async fn begin(
        shared: &'s Shared,
        to: u64,
        stream: &mut dyn SnapshotStream,
    ) -> Result<Self, PeerError> {
        let connection = connect(shared, to, Channel::Snapshot).await?;
        let announcement = stream.announcement();
        let mut sender = Self::new(shared, connection, announcement.id);
        let ack = sender.announce(&announcement).await?;
        let next = stream
            .go_on_from(&ack.position)
            .map_err(|error| PeerError::SnapshotRefused(error.to_string()))?;
        if next > 0 {
            tracing::info!(
                "member {to:x} has {next} chunks of the snapshot of index {} already",
                announcement.index
            );
        }
        (sender.first, sender.sent, sender.taken) = (next, next, next);
        Ok(sender)
    }

    fn new(shared: &'s Shared, stream: TcpStream, id: u64) -> Self {
        let (read, write) = stream.into_split();
        Self {
            shared,
            reader: FrameReader::new(read),
            write,
            id,
            first: 0,
            sent: 0,
            taken: 0,
            bytes: 0,
            started: Instant::now(),
            out: Vec::new(),
        }
    }

    async fn flush(&mut self) -> Result<(), PeerError> {
        timeout(PART_TIMEOUT, self.write.write_all(&self.out))
            .await
            .map_err(|_| PeerError::Timeout)??;
        add(&self.shared.metrics.peer_sent_bytes, self.out.len() as u64);
        self.out.clear();
        Ok(())
    }

    async fn announce(
        &mut self,
        announcement: &SnapshotAnnouncement,
    ) -> Result<SnapshotAck, PeerError> {
        peer::encode_snapshot_begin(
            &mut self.out,
            &SnapshotBegin {
                id: announcement.id,
                index: announcement.index,
                term: announcement.term,
                estimated_bytes: 0,
                message: &announcement.message,
            },
        );
        self.flush().await?;
        self.ack(PART_TIMEOUT).await
    }

    async fn transfer(
        &mut self,
        mut parts: mpsc::Receiver<Option<Bytes>>,
    ) -> Result<(), PeerError> {
        loop {
            let part = parts.recv().await;
            match part.ok_or_else(|| PeerError::Other("the store could not be read".to_owned()))? {
                Some(part) => self.part(&part).await?,
                None => return self.end().await,
            }
        }
    }

    async fn part(&mut self, data: &[u8]) -> Result<(), PeerError> {
        while self.sent - self.taken >= WINDOW {
            self.taken = self.ack(PART_TIMEOUT).await?.next;
        }
        if let Some(due) = self.shared.snapshot_pace.take(data.len()) {
            sleep_until(due.into()).await;
        }
        peer::encode_snapshot_chunk(
            &mut self.out,
            &SnapshotChunk {
                id: self.id,
                sequence: self.sent,
                data,
            },
        );
        self.sent += 1;
        self.bytes += data.len() as u64;
        add(&self.shared.metrics.snapshot_sent_bytes, data.len() as u64);
        self.flush().await
    }

    async fn end(&mut self) -> Result<(), PeerError> {
        peer::encode_snapshot_end(
            &mut self.out,
            &SnapshotEnd {
                id: self.id,
                chunks: self.sent,
                bytes: self.bytes,
                hash: 0,
            },
        );
        self.flush().await?;
        while !self.ack(INSTALL_TIMEOUT).await?.installed {}
        Ok(())
    }

    /// The receiver's next word; a failure is an error.
    async fn ack(&mut self, patience: Duration) -> Result<SnapshotAck, PeerError> {
        let frame = timeout(patience, self.reader.next())
            .await
            .map_err(|_| PeerError::Timeout)??
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        match PeerFrame::decode(frame.header.opcode, &frame.body)? {
            PeerFrame::SnapshotAck(ack) if ack.failure.is_empty() => Ok(ack),
            PeerFrame::SnapshotAck(ack) if ack.later => Err(PeerError::Other(ack.failure)),
            PeerFrame::SnapshotAck(ack) => Err(PeerError::SnapshotRefused(ack.failure)),
            PeerFrame::Refused(refusal) => Err(PeerError::RefusedByPeer(refusal)),
            _ => Err(PeerError::Unexpected(frame.header.opcode)),
        }
    }
}
