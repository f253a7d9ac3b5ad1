//! One connection with many calls in flight.
//!
//! Calls append their frames to a shared buffer; a writer task sends whatever
//! has gathered there, so that calls made at the same time leave together. A
//! reader task hands out replies by request id. Neither task knows retries.
//!
//! Invariants: a call whose bytes were never handed to the socket is told so
//! when the connection ends (it is safe to repeat); after the connection has
//! ended nothing waits on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use varve_protocol::{
    Decoder, Empty, Flags, Frame, FrameError, FrameHeader, Request, Step, WireError, encode_frame,
    opcode,
};
use varve_types::Reader;

use crate::{ClientConfig, ConnectionError};

/// Calls wait while this much is queued for the socket.
const MAX_QUEUED_BYTES: usize = 8 * 1024 * 1024;
/// How long to look for the server's reason after a write failed.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Room for one read.
const READ_BYTES: usize = 64 * 1024;

/// What ends a call instead of a reply.
#[derive(Debug, Clone)]
pub(crate) enum CallError {
    /// The server answered with an error.
    Server(WireError),
    /// The connection ended. `sent` says whether the request may have reached the server.
    Lost { sent: bool, reason: Arc<str> },
}

/// The bodies of a reply's frames, in order; most replies have one.
pub(crate) type Bodies = Vec<Bytes>;

/// A frame of a stream.
#[derive(Debug)]
pub(crate) struct StreamFrame {
    pub(crate) flags: Flags,
    pub(crate) body: Bytes,
}

#[derive(Debug)]
enum Sink {
    Call {
        reply: oneshot::Sender<Result<Bodies, CallError>>,
        earlier: Bodies,
    },
    Stream(mpsc::UnboundedSender<Result<StreamFrame, CallError>>),
}

impl Sink {
    fn fail(self, error: CallError) {
        // A receiver that is gone has no use for the error.
        match self {
            Self::Call { reply, .. } => drop(reply.send(Err(error))),
            Self::Stream(frames) => drop(frames.send(Err(error))),
        }
    }
}

#[derive(Debug)]
struct Waiting {
    sink: Sink,
    /// Where its request ends in the stream of all bytes queued so far.
    end: u64,
}

#[derive(Debug, Default)]
struct State {
    output: Vec<u8>,
    /// Bytes that the writer has taken out of `output` so far.
    taken: u64,
    last_id: u64,
    waiting: HashMap<u64, Waiting>,
    ended: Option<Arc<str>>,
}

impl State {
    fn queue(&mut self, request: &Request<'_>) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        encode_frame(&mut self.output, request.opcode(), Flags::NONE, id, |out| {
            request.encode(out)
        });
        id
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    work: Notify,
    /// There is room in the buffer again.
    room: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock; if it did, the state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, reason: &str) {
        let reason: Arc<str> = reason.into();
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(Arc::clone(&reason));
        let taken = state.taken;
        let waiting = std::mem::take(&mut state.waiting);
        state.output = Vec::new();
        drop(state);
        for entry in waiting.into_values() {
            // The last byte decides: a server ignores a request that is cut short.
            entry.sink.fail(CallError::Lost {
                sent: entry.end <= taken,
                reason: Arc::clone(&reason),
            });
        }
        self.work.notify_one();
        self.room.notify_waiters();
    }
}

/// A connection; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.end("connection closed by the client");
    }
}

/// Forgets a call whose future was dropped.
struct Forget<'c> {
    shared: &'c Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.id);
    }
}

impl Connection {
    pub(crate) async fn open(
        address: &str,
        config: &ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let stream = tokio::time::timeout(config.dial_timeout, TcpStream::connect(address))
            .await
            .map_err(|_| ConnectionError::DialTimeout(config.dial_timeout))??;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Notify::new(),
            room: Notify::new(),
        });
        let reader = ReplyReader {
            shared: Arc::clone(&shared),
            decoder: Decoder::new(config.max_reply_frame_bytes),
            input: BytesMut::new(),
            keepalive_time: config.keepalive_time,
            keepalive_timeout: config.keepalive_timeout,
        };
        let reader = tokio::spawn(reader.run(read)).abort_handle();
        let writer = tokio::spawn(write_queue(Arc::clone(&shared), write)).abort_handle();
        Ok(Self {
            shared,
            tasks: [reader, writer],
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.shared.lock().ended.is_none()
    }

    /// Sends a request and waits for the whole reply.
    pub(crate) async fn call(&self, request: &Request<'_>) -> Result<Bodies, CallError> {
        let (reply, answer) = oneshot::channel();
        let earlier = Bodies::new();
        let id = self.start(request, Sink::Call { reply, earlier }).await?;
        let _forget = Forget {
            shared: &self.shared,
            id,
        };
        answer.await.unwrap_or_else(|_| Err(lost_unheard()))
    }

    /// Sends a request that opens a stream.
    pub(crate) async fn open_stream(
        &self,
        request: &Request<'_>,
    ) -> Result<(u64, mpsc::UnboundedReceiver<Result<StreamFrame, CallError>>), CallError> {
        // Unbounded is safe: the stream's credit bounds what is under way.
        let (frames, receiver) = mpsc::unbounded_channel();
        let id = self.start(request, Sink::Stream(frames)).await?;
        Ok((id, receiver))
    }

    /// Sends a request that has no answer of its own. Does nothing on an ended connection.
    pub(crate) fn tell(&self, request: &Request<'_>) {
        let mut state = self.shared.lock();
        if state.ended.is_none() {
            state.queue(request);
            drop(state);
            self.shared.work.notify_one();
        }
    }

    /// Ends a stream: its further frames are dropped.
    pub(crate) fn forget(&self, id: u64) {
        self.shared.lock().waiting.remove(&id);
    }

    async fn start(&self, request: &Request<'_>, sink: Sink) -> Result<u64, CallError> {
        loop {
            let room = self.shared.room.notified();
            let mut room = std::pin::pin!(room);
            room.as_mut().enable();
            {
                let mut state = self.shared.lock();
                if let Some(reason) = &state.ended {
                    return Err(CallError::Lost {
                        sent: false,
                        reason: Arc::clone(reason),
                    });
                }
                if state.output.len() < MAX_QUEUED_BYTES {
                    let id = state.queue(request);
                    let end = state.taken + state.output.len() as u64;
                    state.waiting.insert(id, Waiting { sink, end });
                    drop(state);
                    self.shared.work.notify_one();
                    return Ok(id);
                }
            }
            room.await;
        }
    }
}

/// The sink went away without a word, which only a dying runtime causes.
fn lost_unheard() -> CallError {
    CallError::Lost {
        sent: true,
        reason: "the client is shutting down".into(),
    }
}

async fn write_queue(shared: Arc<Shared>, mut socket: OwnedWriteHalf) {
    let mut sending = Vec::new();
    loop {
        sending.clear();
        {
            let mut state = shared.lock();
            if state.ended.is_some() {
                return;
            }
            std::mem::swap(&mut sending, &mut state.output);
            state.taken += sending.len() as u64;
        }
        if sending.is_empty() {
            shared.work.notified().await;
            continue;
        }
        shared.room.notify_waiters();
        if let Err(error) = socket.write_all(&sending).await {
            // The reader may be about to find the server's own reason.
            tokio::time::sleep(LAST_WORDS).await;
            shared.end(&ConnectionError::Io(error).to_string());
            return;
        }
        if sending.capacity() > MAX_QUEUED_BYTES {
            sending = Vec::new();
        }
    }
}

struct ReplyReader {
    shared: Arc<Shared>,
    decoder: Decoder,
    input: BytesMut,
    keepalive_time: Duration,
    keepalive_timeout: Duration,
}

impl ReplyReader {
    async fn run(mut self, mut socket: OwnedReadHalf) {
        let ended = loop {
            match self.read(&mut socket).await {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        self.shared.end(&ended.to_string());
    }

    /// One read, however long it takes, as long as the server gives signs of life.
    async fn read(&mut self, socket: &mut OwnedReadHalf) -> Result<(), ConnectionError> {
        self.input.reserve(READ_BYTES);
        let quiet = tokio::time::timeout(self.keepalive_time, socket.read_buf(&mut self.input));
        let read = match quiet.await {
            Ok(read) => read?,
            Err(_) => {
                self.shared.lock().queue(&Request::Ping(Empty));
                self.shared.work.notify_one();
                let patience = self.keepalive_timeout;
                let answer = socket.read_buf(&mut self.input);
                match tokio::time::timeout(patience, answer).await {
                    Ok(read) => read?,
                    Err(_) => return Err(ConnectionError::Silent(self.keepalive_time + patience)),
                }
            }
        };
        if read == 0 {
            self.decoder.finish(&self.input)?;
            return Err(ConnectionError::Closed);
        }
        self.dispatch()
    }

    /// Hands out every whole frame, under one lock.
    fn dispatch(&mut self) -> Result<(), ConnectionError> {
        let mut state = self.shared.lock();
        let mut at = 0;
        loop {
            match self.decoder.step(&self.input[at..])? {
                Step::Frame(frame, used) => {
                    at += used;
                    deliver(&mut state, &frame)?;
                }
                Step::NeedMore(_) => break,
                Step::Skipped(used) => at += used,
                Step::TooLarge(header, _) => return Err(self.too_large(&header).into()),
            }
        }
        drop(state);
        self.input.advance(at);
        Ok(())
    }

    fn too_large(&self, header: &FrameHeader) -> FrameError {
        FrameError::TooLarge {
            length: header.body_length,
            limit: self.decoder.limit(),
        }
    }
}

fn deliver(state: &mut State, frame: &Frame<'_>) -> Result<(), ConnectionError> {
    let (flags, id) = (frame.header.flags, frame.header.request_id);
    if frame.header.opcode == opcode::CONNECTION {
        return Err(ConnectionError::refused(frame.body));
    }
    if !flags.has(Flags::REPLY) {
        return Err(ConnectionError::NotAReply(frame.header.opcode));
    }
    // Answers to calls that were given up, and to pings, have nobody waiting.
    let Some(waiting) = state.waiting.get_mut(&id) else {
        return Ok(());
    };
    let goes_on = match (&mut waiting.sink, flags.has(Flags::ERROR)) {
        (_, true) => false,
        (Sink::Call { earlier, .. }, _) if flags.has(Flags::MORE) => {
            earlier.push(Bytes::copy_from_slice(frame.body));
            true
        }
        (Sink::Call { .. }, _) => false,
        (Sink::Stream(frames), _) => {
            let body = Bytes::copy_from_slice(frame.body);
            frames.send(Ok(StreamFrame { flags, body })).is_ok() && !flags.has(Flags::END)
        }
    };
    if goes_on {
        return Ok(());
    }
    let Some(waiting) = state.waiting.remove(&id) else {
        return Ok(());
    };
    if flags.has(Flags::ERROR) {
        let error = WireError::decode(&mut Reader::new(frame.body))
            .unwrap_or_else(|error| WireError::internal(format!("unreadable error: {error}")));
        waiting.sink.fail(CallError::Server(error));
    } else if let Sink::Call { reply, mut earlier } = waiting.sink {
        earlier.push(Bytes::copy_from_slice(frame.body));
        // A caller that has left does not mind.
        drop(reply.send(Ok(earlier)));
    }
    Ok(())
}
