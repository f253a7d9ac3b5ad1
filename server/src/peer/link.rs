//! The connection over which messages go to one member.
//!
//! Whoever has a message for an idle connection writes it by itself: to wake the
//! task that serves it would take longer than the write. The task writes the rest.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
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
/// Bytes of messages that are written by who brings them, at most.
const DIRECT_BYTES: usize = 8 << 10;
/// Pauses between attempts to connect: they double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Queue {
    messages: Vec<Bytes>,
    bytes: usize,
    /// The connection, while the task has nothing to write to it.
    idle: Option<Arc<OwnedWriteHalf>>,
    /// Of frames written without the task: what the socket did not take. It goes
    /// before the messages.
    rest: Vec<u8>,
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
        if queue.write_directly(&messages, metrics) {
            let is_left = !queue.rest.is_empty();
            drop(queue);
            if is_left {
                self.wake.notify_one();
            }
            return;
        }
        // What comes next must not overtake these.
        queue.idle = None;
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
        queue.rest.clear();
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
                    self.lock().idle = None;
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
        let (read, write) = stream.into_split();
        let mut reader = FrameReader::new(read);
        let write = Arc::new(write);
        let mut out = Vec::new();
        self.wake.notify_one();
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    let (messages, dropped, closed, moved) = {
                        let mut queue = self.lock();
                        queue.bytes = 0;
                        std::mem::swap(&mut queue.rest, &mut out);
                        let is_idle = queue.messages.is_empty() && out.is_empty();
                        queue.idle = is_idle.then(|| Arc::clone(&write));
                        let dropped = std::mem::take(&mut queue.dropped);
                        let messages = std::mem::take(&mut queue.messages);
                        (messages, dropped, queue.closed, queue.moved)
                    };
                    if dropped {
                        shared.unreachable(to);
                    }
                    for bytes in encode(&messages, &mut out) {
                        timeout(TIMEOUT, write_all(&write, bytes))
                            .await
                            .map_err(|_| PeerError::Timeout)??;
                        add(&shared.metrics.peer_sent_bytes, bytes.len() as u64);
                    }
                    if !out.is_empty() {
                        // Once more, for what came meanwhile; or else it is idle now.
                        self.wake.notify_one();
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

impl Queue {
    /// Writes the messages on this thread, if they are few and nothing is before them;
    /// whether they are taken. What the socket does not take is left to the task, which
    /// also meets its errors.
    fn write_directly(&mut self, messages: &[Bytes], metrics: &Metrics) -> bool {
        let bytes: usize = messages.iter().map(Bytes::len).sum();
        let Some(write) = self.idle.as_ref().filter(|_| bytes <= DIRECT_BYTES) else {
            return false;
        };
        let mut out = std::mem::take(&mut self.rest);
        let _ = encode(messages, &mut out);
        let Ok(count) = write.try_write(&out) else {
            out.clear();
            self.rest = out;
            return false;
        };
        add(&metrics.peer_sent_bytes, count as u64);
        out.drain(..count);
        if !out.is_empty() {
            self.idle = None;
        }
        self.rest = out;
        true
    }
}

async fn write_all(stream: &OwnedWriteHalf, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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

    #[tokio::test]
    async fn what_is_written_without_the_task_keeps_its_order() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let (other, _) = listener.accept().await.unwrap();
        let (_read, write) = stream.into_split();
        let link = Link {
            queue: Mutex::default(),
            wake: Notify::new(),
        };
        let metrics = Metrics::default();
        let message = |number: u32| {
            let mut bytes = vec![0; DIRECT_BYTES];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            Bytes::from(bytes)
        };
        link.push(vec![message(0)], &metrics);
        assert_eq!(link.lock().messages.len(), 1, "nothing is connected");
        link.lock().messages.clear();

        let write = Arc::new(write);
        link.lock().idle = Some(Arc::clone(&write));
        link.push(vec![Bytes::from(vec![0; DIRECT_BYTES + 1])], &metrics);
        link.push(vec![message(0)], &metrics);
        assert_eq!(link.lock().messages.len(), 2, "none overtakes a large one");
        link.lock().messages.clear();

        link.lock().idle = Some(Arc::clone(&write));
        let mut count = 0;
        // Until the socket is full: the other side does not read yet.
        while link.lock().idle.is_some() && count < 10_000 {
            link.push(vec![message(count)], &metrics);
            count += 1;
        }
        assert!(count > 1 && link.lock().messages.len() <= 1);
        link.push(vec![message(count)], &metrics);
        count += 1;
        let (rest, queued) = {
            let mut queue = link.lock();
            (
                std::mem::take(&mut queue.rest),
                std::mem::take(&mut queue.messages),
            )
        };
        assert!(!queued.is_empty(), "the task has what comes after it");
        let mut out = rest;
        let _ = encode(&queued, &mut out);
        let sending = tokio::spawn(async move { write_all(&write, &out).await });
        let mut reader = FrameReader::new(other);
        let mut received = 0;
        while received < count {
            let frame = reader.next().await.unwrap().unwrap();
            match PeerFrame::decode(frame.header.opcode, &frame.body).unwrap() {
                PeerFrame::Messages(found) => {
                    for bytes in found {
                        assert_eq!(bytes, message(received));
                        received += 1;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        sending.await.unwrap().unwrap();
    }
}
