//! The connection over which messages go to one member.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use varve_protocol::peer::{Channel, MessagesWriter, PeerFrame};

use super::handshake::{FrameReader, PeerError, connect};
use super::{Shared, TIMEOUT};
use crate::metrics::{Metrics, add, subtract};

/// Bytes of messages that may wait for one member.
const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Frames are ended past this size, so that the receiver can start.
const FRAME_BYTES: usize = 1 << 20;
/// Pauses between attempts to connect: they double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Queue {
    messages: Vec<Bytes>,
    bytes: usize,
    /// Something was dropped since the member was last reported unreachable.
    dropped: bool,
    closed: bool,
    /// The member has moved.
    moved: bool,
}

/// Messages that wait for one member, and the task that sends them.
#[derive(Debug)]
pub(super) struct Link {
    queue: Mutex<Queue>,
    wake: Notify,
}

impl Link {
    /// Starts the task that connects to `to` and sends.
    pub(super) fn start(shared: &Arc<Shared>, to: u64) -> Arc<Self> {
        let link = Arc::new(Self {
            queue: Mutex::default(),
            wake: Notify::new(),
        });
        let (shared, task) = (Arc::clone(shared), Arc::clone(&link));
        shared
            .runtime
            .clone()
            .spawn(async move { task.run(&shared, to).await });
        link
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Queues messages, or drops them if too much waits already.
    pub(super) fn push(&self, messages: Vec<Bytes>, metrics: &Metrics) {
        let mut queue = self.lock();
        for message in messages {
            if queue.bytes + message.len() > MAX_QUEUED_BYTES {
                queue.dropped = true;
                add(&metrics.peer_send_failures, 1);
            } else {
                queue.bytes += message.len();
                queue.messages.push(message);
            }
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Ends the task.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Connects anew, to where the member is now.
    pub(super) fn reconnect(&self) {
        self.lock().moved = true;
        self.wake.notify_one();
    }

    /// Drops what waits; whether the link goes on.
    fn drop_queued(&self, metrics: &Metrics) -> bool {
        let mut queue = self.lock();
        add(&metrics.peer_send_failures, queue.messages.len() as u64);
        queue.messages.clear();
        queue.bytes = 0;
        (queue.dropped, queue.moved) = (false, false);
        !queue.closed
    }

    async fn run(&self, shared: &Shared, to: u64) {
        let mut pause = FIRST_PAUSE;
        let mut reported = false;
        while shared.node.get().is_none() {
            // The replica sends before the one who started it has its handle.
            sleep(FIRST_PAUSE).await;
        }
        loop {
            match connect(shared, to, Channel::Messages).await {
                Ok(stream) => {
                    tracing::info!("connected to member {to:x}");
                    (pause, reported) = (FIRST_PAUSE, false);
                    add(&shared.metrics.active_peers, 1);
                    let ended = self.serve(shared, to, stream).await;
                    subtract(&shared.metrics.active_peers, 1);
                    match ended {
                        Ok(()) => {}
                        Err(error) => {
                            shared.refused_by(&error);
                            tracing::warn!("lost the connection to {to:x}: {error}");
                        }
                    }
                }
                Err(error) => {
                    shared.refused_by(&error);
                    // Once for each outage, and each refusal as often as the limit allows.
                    let refused =
                        matches!(error, PeerError::Refused(_) | PeerError::RefusedByPeer(_));
                    if !reported || (refused && shared.log_limit.pass().is_some()) {
                        tracing::warn!("cannot connect to member {to:x}: {error}");
                        reported = true;
                    }
                }
            }
            shared.unreachable(to);
            if !self.drop_queued(&shared.metrics) {
                return;
            }
            sleep(jittered(pause, to ^ shared.member_id())).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Sends until the connection breaks or the link is closed.
    async fn serve(&self, shared: &Shared, to: u64, stream: TcpStream) -> Result<(), PeerError> {
        let (read, mut write) = stream.into_split();
        let mut reader = FrameReader::new(read);
        let mut out = Vec::new();
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    let (messages, dropped, closed, moved) = {
                        let mut queue = self.lock();
                        queue.bytes = 0;
                        let dropped = std::mem::take(&mut queue.dropped);
                        let messages = std::mem::take(&mut queue.messages);
                        (messages, dropped, queue.closed, queue.moved)
                    };
                    if dropped {
                        shared.unreachable(to);
                    }
                    for bytes in encode(&messages, &mut out) {
                        timeout(TIMEOUT, write.write_all(bytes))
                            .await
                            .map_err(|_| PeerError::Timeout)??;
                        add(&shared.metrics.peer_sent_bytes, bytes.len() as u64);
                    }
                    out.clear();
                    out.shrink_to(4 * FRAME_BYTES);
                    // A removed member gets the last word: that it is.
                    if closed {
                        return Ok(());
                    }
                    if moved {
                        tracing::info!("member {to:x} has moved to {:?}", shared.urls_of(to));
                        return Ok(());
                    }
                }
                // The other side says nothing here but why it closes the connection.
                frame = reader.next() => match frame? {
                    None => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
                    Some(frame) => match PeerFrame::decode(frame.header.opcode, &frame.body)? {
                        PeerFrame::Refused(refusal) => {
                            return Err(PeerError::RefusedByPeer(refusal));
                        }
                        _ => return Err(PeerError::Unexpected(frame.header.opcode)),
                    },
                },
            }
        }
    }
}

/// Puts messages into frames and cuts these into pieces, so that the timeout of a
/// write is about a bounded amount.
fn encode<'o>(messages: &[Bytes], out: &'o mut Vec<u8>) -> std::slice::Chunks<'o, u8> {
    let mut left = messages.iter().peekable();
    while left.peek().is_some() {
        let mut writer = MessagesWriter::new(out);
        while writer.len() < FRAME_BYTES
            && let Some(message) = left.next()
        {
            writer.push(|out| out.extend_from_slice(message));
        }
        writer.finish();
    }
    out.chunks(FRAME_BYTES)
}

/// The pause, less up to a half: members that lost a third one at the same time
/// do not come back to it at the same time. The hash is seeded per process.
fn jittered(pause: Duration, salt: u64) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let part = RandomState::new().hash_one(salt) % 1000;
    pause.mul_f64(1.0 - part as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use varve_protocol::{DEFAULT_PEER_LIMIT, Decoder};

    use super::*;

    #[test]
    fn frames_hold_all_messages_in_order() {
        let messages: Vec<_> = (0..40_u8).map(|i| Bytes::from(vec![i; 100_000])).collect();
        let mut out = Vec::new();
        let bytes: Vec<u8> = encode(&messages, &mut out).flatten().copied().collect();
        let mut buffer = bytes.as_slice().into();
        let mut decoder = Decoder::new(DEFAULT_PEER_LIMIT);
        let mut received = Vec::new();
        let mut frames = 0;
        while let Some(frame) = decoder.next_owned(&mut buffer).unwrap() {
            frames += 1;
            match PeerFrame::decode(frame.header.opcode, &frame.body).unwrap() {
                PeerFrame::Messages(found) => received.extend(found.map(<[u8]>::to_vec)),
                other => panic!("{other:?}"),
            }
        }
        assert!(frames > 2);
        assert_eq!(received, messages);
    }

    #[test]
    fn a_full_queue_drops() {
        let link = Link {
            queue: Mutex::default(),
            wake: Notify::new(),
        };
        let metrics = Metrics::default();
        let message = Bytes::from(vec![0; 8 << 20]);
        link.push(vec![message; 6], &metrics);
        assert_eq!(link.lock().messages.len(), 4);
        assert!(link.lock().dropped);
        assert_eq!(crate::metrics::get(&metrics.peer_send_failures), 2);
        assert!(link.drop_queued(&metrics));
        let queue = link.lock();
        assert_eq!((queue.bytes, queue.dropped), (0, false));
        drop(queue);
        link.close();
        assert!(!link.drop_queued(&metrics));
    }

    #[test]
    fn jitter_stays_below_the_pause() {
        for salt in 0..100 {
            let pause = jittered(LAST_PAUSE, salt);
            assert!(pause <= LAST_PAUSE && pause >= LAST_PAUSE / 2);
        }
    }
}
