//! Sending a snapshot: a connection of its own, a window of parts that the
//! receiver has not yet taken in, and a limit on the rate, so that neither the
//! receiver's disk nor the network is flooded while the cluster serves.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until, timeout};
use varve_protocol::peer::{
    self, Channel, PeerFrame, SnapshotAck, SnapshotBegin, SnapshotChunk, SnapshotEnd,
};
use varve_raft::{SnapshotChunk as SnapshotPart, SnapshotStream};

use super::Shared;
use super::handshake::{FrameReader, PeerError, connect};
use crate::metrics::add;

/// Parts on their way that the receiver has not yet taken in.
const WINDOW: u64 = 16;
/// Parts read ahead from the store.
const READ_AHEAD: usize = 2;
/// Most bytes a second.
const BYTES_PER_SECOND: u64 = 128 << 20;
/// Pause before a failure is reported.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the receiver may take for one part.
const PART_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the receiver may take to install the whole.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Sends the snapshot and reports how that went.
pub(super) async fn send(shared: &Shared, to: u64, stream: Box<dyn SnapshotStream>) {
    let (parts_in, parts_out) = mpsc::channel(READ_AHEAD);
    let (report, reported) = oneshot::channel();
    // The store is read on a thread that may block.
    tokio::task::spawn_blocking(move || pull(stream, parts_in, reported));
    let result = transfer(shared, to, parts_out).await;
    if let Err(error) = &result {
        tracing::warn!("snapshot to member {to:x} failed: {error}");
    }
    if result.is_err() {
        // Raft tries again as soon as it hears of it.
        sleep(RETRY_PAUSE).await;
    }
    // The puller waits for it; it is gone only if the process ends.
    let _ = report.send(result.is_ok());
}

/// Reads the parts. The channel's end without a last part says that reading failed.
fn pull(
    mut stream: Box<dyn SnapshotStream>,
    parts: mpsc::Sender<SnapshotPart>,
    reported: oneshot::Receiver<bool>,
) {
    while let Some(part) = stream.next_chunk() {
        let is_last = part.is_last;
        if parts.blocking_send(part).is_err() || is_last {
            break;
        }
    }
    drop(parts);
    stream.finished(reported.blocking_recv().unwrap_or(false));
}

async fn transfer(
    shared: &Shared,
    to: u64,
    mut parts: mpsc::Receiver<SnapshotPart>,
) -> Result<(), PeerError> {
    let connection = connect(shared, to, Channel::Snapshot).await?;
    let mut sender = Sender::new(shared, connection);
    sender.begin().await?;
    loop {
        let part = parts
            .recv()
            .await
            .ok_or_else(|| PeerError::Other("the store could not be read".to_owned()))?;
        if !part.bytes.is_empty() {
            sender.part(&part.bytes).await?;
        }
        if part.is_last {
            break;
        }
    }
    sender.end().await?;
    tracing::info!(
        "snapshot of {} bytes in {} parts sent to member {to:x} in {:?}",
        sender.bytes,
        sender.sent,
        sender.started.elapsed()
    );
    Ok(())
}

struct Sender<'s> {
    shared: &'s Shared,
    reader: FrameReader<tokio::net::tcp::OwnedReadHalf>,
    write: tokio::net::tcp::OwnedWriteHalf,
    id: u64,
    /// Parts sent, and of those the ones that were taken in.
    sent: u64,
    taken: u64,
    bytes: u64,
    started: Instant,
    out: Vec<u8>,
}

impl<'s> Sender<'s> {
    fn new(shared: &'s Shared, stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            shared,
            reader: FrameReader::new(read),
            write,
            id: shared.next_snapshot(),
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

    async fn begin(&mut self) -> Result<(), PeerError> {
        peer::encode_snapshot_begin(
            &mut self.out,
            &SnapshotBegin {
                id: self.id,
                ..SnapshotBegin::default()
            },
        );
        self.flush().await?;
        self.ack(PART_TIMEOUT).await.map(drop)
    }

    async fn part(&mut self, data: &[u8]) -> Result<(), PeerError> {
        while self.sent - self.taken >= WINDOW {
            self.taken = self.ack(PART_TIMEOUT).await?.next;
        }
        // The time at which this much may have been sent.
        let due = Duration::from_secs_f64(self.bytes as f64 / BYTES_PER_SECOND as f64);
        sleep_until((self.started + due).into()).await;
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
            PeerFrame::SnapshotAck(ack) => Err(PeerError::Other(ack.failure)),
            PeerFrame::Refused(refusal) => Err(PeerError::RefusedByPeer(refusal)),
            _ => Err(PeerError::Unexpected(frame.header.opcode)),
        }
    }
}
