//! Watches that survive the loss of a connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep};
use varve_protocol::{
    ErrorCode, Flags, Request, WatchCancelRequest, WatchCreditRequest, WatchRequest, WatchResponse,
    WireError, decode_reply,
};
use varve_types::{ApiError, Event, ResponseHeader};

use crate::connection::{CallError, Connection, StreamFrame};
use crate::{Client, ClientError};

/// Pause before a watch is opened again after it could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// News from a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchUpdate {
    /// Who sent it; the revision is that of the store when it was sent.
    pub header: ResponseHeader,
    /// Changes, by revision. All changes of one revision are in one update. None in a progress
    /// notice: everything up to the header's revision has been reported.
    pub events: Vec<Event>,
}

/// A watch.
///
/// It opens when first asked for news. Where the connection breaks, it goes on
/// at the next endpoint behind the last revision it reported: nothing is lost
/// and nothing comes twice. Dropping it cancels it.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    key: Vec<u8>,
    range_end: Vec<u8>,
    request: WatchRequest<'static>,
    stream: Option<Stream>,
    /// Whether a node has confirmed the watch.
    open: bool,
    over: bool,
    last_header: ResponseHeader,
    /// News that came while [`Watch::opened`] waited.
    early: Option<WatchUpdate>,
    /// Endpoints that refused it since it was open last, as learners serve no watches.
    learners: Vec<String>,
}

#[derive(Debug)]
struct Stream {
    connection: Arc<Connection>,
    endpoint: String,
    id: u64,
    frames: UnboundedReceiver<Result<StreamFrame, CallError>>,
    /// Events of a revision of which more is to come.
    pending: Vec<Event>,
    /// Bytes taken and not yet given back as credit.
    taken: u32,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.forget(self.id);
        let cancel = WatchCancelRequest { watch: self.id };
        self.connection.tell(&Request::WatchCancel(cancel));
    }
}

impl Watch {
    pub(crate) fn new(client: Client, request: &WatchRequest<'_>) -> Self {
        let window = client.config().watch_window_bytes.max(1);
        Self {
            key: request.key.to_vec(),
            range_end: request.range_end.to_vec(),
            request: WatchRequest {
                key: &[],
                range_end: &[],
                credit: window,
                ..*request
            },
            client,
            stream: None,
            open: false,
            last_header: ResponseHeader::default(),
            over: false,
            early: None,
            learners: Vec::new(),
        }
    }

    /// Waits for news. `None` after an error: the watch is over then.
    ///
    /// Where the start of the watch has been compacted, the error carries the
    /// compacted revision: see [`ClientError::compact_revision`].
    ///
    /// Cancel-safe: news is not lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<WatchUpdate, ClientError>> {
        if let Some(update) = self.early.take() {
            return Some(Ok(update));
        }
        while !self.over {
            match self.step().await {
                Ok(Read::Update(update)) => return Some(Ok(update)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    /// Waits until the node has the watch: changes from then on are reported. Without it, the
    /// first [`Watch::next`] opens the watch.
    pub async fn opened(&mut self) -> Result<(), ClientError> {
        while !self.over && !self.open && self.early.is_none() {
            if let Read::Update(update) = self.step().await? {
                self.early = Some(update);
            }
        }
        Ok(())
    }

    /// The header of the last frame that came, be it the one that ended the watch.
    pub fn last_header(&self) -> ResponseHeader {
        self.last_header
    }

    /// Takes one frame, from a new stream if need be.
    async fn step(&mut self) -> Result<Read, ClientError> {
        let read = match &mut self.stream {
            Some(stream) => {
                stream
                    .read(self.request.credit, &mut self.last_header)
                    .await
            }
            none => {
                *none = Some(open(&self.client, &self.request, &self.key, &self.range_end).await);
                return Ok(Read::Nothing);
            }
        };
        match read {
            Ok(Read::Opened(revision)) => {
                self.open = true;
                self.learners.clear();
                if self.request.start_revision == 0 {
                    self.request.start_revision = revision + 1;
                }
                Ok(Read::Nothing)
            }
            Ok(Read::Update(update)) => {
                let next = update.reported_revision() + 1;
                self.request.start_revision = self.request.start_revision.max(next);
                Ok(Read::Update(update))
            }
            Ok(Read::Nothing) => Ok(Read::Nothing),
            Err(End::Resume) => {
                self.stream = None;
                self.client.leave_current();
                Ok(Read::Nothing)
            }
            Err(End::Learner(error)) => {
                if let Some(stream) = self.stream.take()
                    && !self.learners.contains(&stream.endpoint)
                {
                    self.learners.push(stream.endpoint.clone());
                }
                if self.learners.len() >= self.client.endpoint_count() {
                    self.over = true;
                    return Err(ClientError::Server(error));
                }
                self.client.leave_current();
                // The others may be down for a while.
                sleep(PAUSE).await;
                Ok(Read::Nothing)
            }
            Err(End::Failed(error)) => {
                self.stream = None;
                self.over = true;
                Err(error)
            }
        }
    }
}

impl WatchUpdate {
    /// The revision up to which everything has been reported with this update.
    fn reported_revision(&self) -> i64 {
        match self.events.last() {
            Some(event) => event.kv.mod_revision,
            None => self.header.revision,
        }
    }
}

/// Opens a stream at the first endpoint that takes it. Without a deadline: a watch waits for the
/// cluster to come back.
async fn open(
    client: &Client,
    request: &WatchRequest<'static>,
    key: &[u8],
    range_end: &[u8],
) -> Stream {
    loop {
        let deadline = Instant::now() + client.config().command_timeout;
        if let Ok((connection, endpoint)) = client.any_connection(deadline).await {
            let request = Request::Watch(WatchRequest {
                key,
                range_end,
                ..*request
            });
            if let Ok((id, frames)) = connection.open_stream(&request).await {
                return Stream {
                    connection,
                    endpoint,
                    id,
                    frames,
                    pending: Vec::new(),
                    taken: 0,
                };
            }
        }
        sleep(PAUSE).await;
    }
}

/// Why a stream ended.
enum End {
    /// The node is gone or has no leader; the watch goes on elsewhere.
    Resume,
    /// The node has no vote yet, and serves no watches; another one may.
    Learner(WireError),
    Failed(ClientError),
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        match error.api() {
            Some(ApiError::NoLeader | ApiError::Stopped) => Self::Resume,
            Some(ApiError::NotSupportedForLearner) => Self::Learner(error),
            None if error.code == ErrorCode::ShuttingDown => Self::Resume,
            _ => Self::Failed(ClientError::Server(error)),
        }
    }
}

/// What a frame came to.
enum Read {
    /// The watch is there; changes after this revision of the store will be reported.
    Opened(i64),
    Update(WatchUpdate),
    Nothing,
}

impl Stream {
    async fn read(&mut self, window: u32, last_header: &mut ResponseHeader) -> Result<Read, End> {
        let frame = match self.frames.recv().await {
            Some(Ok(frame)) => frame,
            Some(Err(CallError::Server(error))) => return Err(error.into()),
            Some(Err(CallError::Lost { .. })) | None => return Err(End::Resume),
        };
        let (header, response) = decode_reply(&frame.body).map_err(|source| {
            End::Failed(ClientError::MalformedReply {
                endpoint: self.endpoint.clone(),
                source,
            })
        })?;
        *last_header = header;
        match response {
            WatchResponse::Created => Ok(Read::Opened(header.revision)),
            WatchResponse::Canceled(error) => Err(error.into()),
            WatchResponse::Progress => Ok(Read::Update(WatchUpdate {
                header,
                events: Vec::new(),
            })),
            WatchResponse::Events(mut events) => {
                self.give_credit(frame.body.len(), window);
                if frame.flags.has(Flags::MORE) {
                    self.pending.append(&mut events);
                    return Ok(Read::Nothing);
                }
                if !self.pending.is_empty() {
                    self.pending.append(&mut events);
                    events = std::mem::take(&mut self.pending);
                }
                Ok(Read::Update(WatchUpdate { header, events }))
            }
        }
    }

    /// Gives back credit, in few frames: when half of the window is used up.
    fn give_credit(&mut self, bytes: usize, window: u32) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(bytes);
        if self.taken >= window / 2 {
            let credit = WatchCreditRequest {
                watch: self.id,
                bytes: self.taken,
            };
            self.connection.tell(&Request::WatchCredit(credit));
            self.taken = 0;
        }
    }
}
