//! A client of a cluster: calls with retries, over one connection at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use varve_protocol::{
    Empty, ErrorCode, HashKvRequest, HashKvResponse, HelloRequest, HelloResponse, MemberAddRequest,
    MemberAddResponse, MemberIdRequest, MemberListRequest, MemberListResponse, MemberUpdateRequest,
    Reply, Request, SpaceRequest, SpaceResponse, StatusResponse, WatchProgressRequest,
    WatchRequest,
};
use varve_types::{
    AlarmAction, AlarmRequest, AlarmResponse, ApiError, CompactionRequest, DeleteRangeRequest,
    DeleteRangeResponse, KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, TxnRequest, TxnResponse,
};

use crate::connection::{CallError, Connection};
use crate::reply::{Joined, decode_single};
use crate::{ClientConfig, ClientError, Endpoint, Snapshot, Watch};

/// Pause before the endpoints are tried again from the first.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A reply with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// Who answered, at which revision.
    pub header: ResponseHeader,
    /// The reply.
    pub body: T,
}

/// What may be done about a call that went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Nothing changes by doing it twice.
    Freely,
    /// Only when it certainly was not done.
    IfNotDone,
}

/// A client of a cluster. Cheap to clone; clones share the connections.
///
/// Calls go to one endpoint until it fails, then to the next. Reads are repeated
/// as long as the command timeout allows; writes only when the former attempt
/// certainly had no effect: it never left the client, or the node refused it
/// before proposing it.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    endpoints: Vec<Slot>,
    current: AtomicUsize,
}

#[derive(Debug)]
struct Slot {
    endpoint: Endpoint,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Client {
    /// A client of the nodes at `endpoints`, connected to the first that answers. Fails when none
    /// can be reached within the command timeout.
    pub async fn connect<S: AsRef<str>>(
        endpoints: &[S],
        config: ClientConfig,
    ) -> Result<Self, ClientError> {
        let client = Self::new(endpoints, config)?;
        let deadline = Instant::now() + client.inner.config.command_timeout;
        client.any_connection(deadline).await?;
        Ok(client)
    }

    /// The same without connecting: the first call does.
    pub fn new<S: AsRef<str>>(endpoints: &[S], config: ClientConfig) -> Result<Self, ClientError> {
        let endpoints = endpoints
            .iter()
            .map(|text| {
                Ok(Slot {
                    endpoint: Endpoint::parse(text.as_ref())?,
                    connection: Mutex::default(),
                })
            })
            .collect::<Result<Vec<_>, ClientError>>()?;
        if endpoints.is_empty() {
            return Err(ClientError::NoEndpoints);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                endpoints,
                current: AtomicUsize::new(0),
            }),
        })
    }

    /// Its settings.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// Reads keys.
    pub async fn range(
        &self,
        request: &RangeRequest<'_>,
    ) -> Result<Answer<RangeResponse>, ClientError> {
        self.call(&Request::Range(*request), Repeat::Freely).await
    }

    /// Reads the newest state of one key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, ClientError> {
        let request = RangeRequest {
            key,
            ..RangeRequest::default()
        };
        Ok(self.range(&request).await?.body.kvs.pop())
    }

    /// Writes a key.
    pub async fn put(&self, request: &PutRequest<'_>) -> Result<Answer<PutResponse>, ClientError> {
        self.call(&Request::Put(*request), Repeat::IfNotDone).await
    }

    /// Deletes keys.
    pub async fn delete_range(
        &self,
        request: &DeleteRangeRequest<'_>,
    ) -> Result<Answer<DeleteRangeResponse>, ClientError> {
        let request = Request::DeleteRange(*request);
        self.call(&request, Repeat::IfNotDone).await
    }

    /// A transaction.
    pub async fn txn(&self, request: TxnRequest<'_>) -> Result<Answer<TxnResponse>, ClientError> {
        let repeat = match request.is_read_only() {
            true => Repeat::Freely,
            false => Repeat::IfNotDone,
        };
        self.call(&Request::Txn(request), repeat).await
    }

    /// Drops history.
    pub async fn compact(&self, request: &CompactionRequest) -> Result<Answer<()>, ClientError> {
        let request = Request::Compaction(*request);
        let answer: Answer<Empty> = self.call(&request, Repeat::IfNotDone).await?;
        Ok(Answer {
            header: answer.header,
            body: (),
        })
    }

    /// The members of the cluster. Linearizable, or as the node that answers knows them.
    pub async fn member_list(
        &self,
        linearizable: bool,
    ) -> Result<Answer<MemberListResponse>, ClientError> {
        let request = Request::MemberList(MemberListRequest { linearizable });
        self.call(&request, Repeat::Freely).await
    }

    /// Adds a member, with or without a vote; it then has to be started.
    pub async fn member_add(
        &self,
        peer_urls: &[String],
        is_learner: bool,
    ) -> Result<Answer<MemberAddResponse>, ClientError> {
        self.add(peer_urls, is_learner, false).await
    }

    /// Adds a learner that gets its vote by itself, once it has caught up.
    pub async fn member_add_promotable(
        &self,
        peer_urls: &[String],
    ) -> Result<Answer<MemberAddResponse>, ClientError> {
        self.add(peer_urls, true, true).await
    }

    async fn add(
        &self,
        peer_urls: &[String],
        is_learner: bool,
        is_promotable: bool,
    ) -> Result<Answer<MemberAddResponse>, ClientError> {
        let request = Request::MemberAdd(MemberAddRequest {
            peer_urls: peer_urls.to_vec(),
            is_learner,
            is_promotable,
        });
        self.call(&request, Repeat::IfNotDone).await
    }

    /// Removes a member for good; it stops by itself. The members that are left.
    pub async fn member_remove(&self, id: u64) -> Result<Answer<MemberListResponse>, ClientError> {
        let request = Request::MemberRemove(MemberIdRequest { id });
        self.call(&request, Repeat::IfNotDone).await
    }

    /// Tells the cluster where a member is reached from now on.
    pub async fn member_update(
        &self,
        id: u64,
        peer_urls: &[String],
    ) -> Result<Answer<MemberListResponse>, ClientError> {
        let request = Request::MemberUpdate(MemberUpdateRequest {
            id,
            peer_urls: peer_urls.to_vec(),
        });
        self.call(&request, Repeat::IfNotDone).await
    }

    /// Gives a learner its vote, once it has nearly all of the log.
    pub async fn member_promote(&self, id: u64) -> Result<Answer<MemberListResponse>, ClientError> {
        let request = Request::MemberPromote(MemberIdRequest { id });
        self.call(&request, Repeat::IfNotDone).await
    }

    /// The alarms that are on.
    pub async fn alarm_list(&self) -> Result<Answer<AlarmResponse>, ClientError> {
        let request = Request::Alarm(AlarmRequest {
            action: AlarmAction::Get,
            member_id: 0,
            kind: None,
        });
        self.call(&request, Repeat::Freely).await
    }

    /// Ends all alarms; the ones that were on.
    pub async fn alarm_disarm(&self) -> Result<Answer<AlarmResponse>, ClientError> {
        let request = Request::Alarm(AlarmRequest {
            action: AlarmAction::Deactivate,
            member_id: 0,
            kind: None,
        });
        self.call(&request, Repeat::IfNotDone).await
    }

    /// Makes member `id` the leader. Only the present one can do so: it has to be asked.
    pub async fn move_leader(
        &self,
        leader_endpoint: &str,
        id: u64,
    ) -> Result<Answer<()>, ClientError> {
        let request = Request::MoveLeader(MemberIdRequest { id });
        let answer: Answer<Empty> = self.call_at(leader_endpoint, &request).await?;
        Ok(Answer {
            header: answer.header,
            body: (),
        })
    }

    /// The state of one node.
    pub async fn status(&self, endpoint: &str) -> Result<Answer<StatusResponse>, ClientError> {
        self.call_at(endpoint, &Request::Status(Empty)).await
    }

    /// How many keys and bytes lie under a prefix, by path component, as the node that answers has
    /// it. Where there are more lines than one answer has, ask for those behind the last.
    pub async fn space(
        &self,
        request: &SpaceRequest<'_>,
    ) -> Result<Answer<SpaceResponse>, ClientError> {
        self.call(&Request::Space(*request), Repeat::Freely).await
    }

    /// Has one node give its free space back to the file system; answered once that is done. Reads
    /// and writes go on meanwhile.
    pub async fn defragment(&self, endpoint: &str) -> Result<Answer<()>, ClientError> {
        let answer: Answer<Empty> = self.call_at(endpoint, &Request::Defragment(Empty)).await?;
        Ok(Answer {
            header: answer.header,
            body: (),
        })
    }

    /// The hash of one node's store at a revision; 0 is the newest.
    pub async fn hash_kv(
        &self,
        endpoint: &str,
        revision: i64,
    ) -> Result<Answer<HashKvResponse>, ClientError> {
        let request = Request::HashKv(HashKvRequest { revision });
        self.call_at(endpoint, &request).await
    }

    /// A snapshot of one node's store, at one revision.
    pub async fn snapshot(&self, endpoint: &str) -> Result<Snapshot, ClientError> {
        let config = &self.inner.config;
        let connection = dial(&Endpoint::parse(endpoint)?, config).await?;
        Snapshot::open(connection, endpoint, config).await
    }

    /// Who one node is, and which version it runs.
    pub async fn hello(&self, endpoint: &str) -> Result<Answer<HelloResponse>, ClientError> {
        let client = &self.inner.config.name;
        self.call_at(endpoint, &Request::Hello(HelloRequest { client }))
            .await
    }

    /// Opens a watch. It goes on by itself at another endpoint when a connection breaks.
    pub fn watch(&self, request: &WatchRequest<'_>) -> Watch {
        Watch::new(self.clone(), request)
    }

    /// A revision up to which every watch of this client (on its present connection) has been sent
    /// everything.
    pub async fn watch_progress(&self) -> Result<i64, ClientError> {
        let request = Request::WatchProgress(WatchProgressRequest);
        let answer: Answer<Empty> = self.call(&request, Repeat::Freely).await?;
        Ok(answer.header.revision)
    }

    async fn call<R: Joined>(
        &self,
        request: &Request<'_>,
        repeat: Repeat,
    ) -> Result<Answer<R>, ClientError> {
        self.check_size(request)?;
        let deadline = Instant::now() + self.inner.config.command_timeout;
        let mut pause = FIRST_PAUSE;
        let mut last_failure = None;
        for attempt in 1usize.. {
            let index = self.inner.current.load(Ordering::Relaxed);
            let outcome = match timeout_at(deadline, self.attempt(index, request)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    // Whatever holds it up there may not hold up the next call elsewhere.
                    self.leave(index);
                    // It may still be done, whatever earlier attempts were told.
                    return Err(ClientError::Timeout {
                        cause: last_failure.map(|error: ClientError| error.to_string()),
                    });
                }
            };
            let (error, may_repeat) = match outcome {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure.judge(repeat),
            };
            // Done nowhere, and another member may be no learner.
            let is_learner = error.api() == Some(ApiError::NotSupportedForLearner);
            let may_go_on = is_learner && attempt < self.inner.endpoints.len();
            if !may_repeat && !may_go_on {
                return Err(error);
            }
            last_failure = Some(error);
            self.leave(index);
            if attempt % self.inner.endpoints.len() == 0 {
                if Instant::now() + pause >= deadline {
                    break;
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        Err(timed_out(last_failure))
    }

    async fn attempt<R: Joined>(
        &self,
        index: usize,
        request: &Request<'_>,
    ) -> Result<Answer<R>, Failure> {
        let endpoint = || self.inner.endpoints[index].endpoint.text().to_owned();
        let connection = self.connection(index).await.map_err(Failure::Unreachable)?;
        match connection.call(request).await {
            Ok(bodies) => R::join(&bodies).map_err(|source| {
                Failure::Final(ClientError::MalformedReply {
                    endpoint: endpoint(),
                    source,
                })
            }),
            Err(error) => Err(Failure::Call(error, endpoint())),
        }
    }

    /// Calls one node, which need not be among the client's endpoints.
    async fn call_at<R: Reply>(
        &self,
        endpoint: &str,
        request: &Request<'_>,
    ) -> Result<Answer<R>, ClientError> {
        let wanted = Endpoint::parse(endpoint)?;
        let slots = &self.inner.endpoints;
        let known = slots
            .iter()
            .position(|slot| slot.endpoint.address() == wanted.address());
        let deadline = Instant::now() + self.inner.config.command_timeout;
        let call = async {
            let connection = match known {
                Some(index) => self.connection(index).await?,
                None => Arc::new(dial(&wanted, &self.inner.config).await?),
            };
            match connection.call(request).await {
                Ok(bodies) => {
                    decode_single(&bodies).map_err(|source| ClientError::MalformedReply {
                        endpoint: endpoint.to_owned(),
                        source,
                    })
                }
                Err(error) => Err(Failure::Call(error, endpoint.to_owned())
                    .judge(Repeat::IfNotDone)
                    .0),
            }
        };
        timeout_at(deadline, call)
            .await
            .unwrap_or_else(|_| Err(timed_out(None)))
    }

    /// A connection to the current endpoint, or to the next that can be reached.
    pub(crate) async fn any_connection(
        &self,
        deadline: Instant,
    ) -> Result<(Arc<Connection>, String), ClientError> {
        let mut pause = FIRST_PAUSE;
        let mut last_failure = None;
        for attempt in 1usize.. {
            let index = self.inner.current.load(Ordering::Relaxed);
            match timeout_at(deadline, self.connection(index)).await {
                Ok(Ok(connection)) => {
                    let endpoint = self.inner.endpoints[index].endpoint.text().to_owned();
                    return Ok((connection, endpoint));
                }
                Ok(Err(error)) => last_failure = Some(error),
                Err(_) => break,
            }
            self.leave(index);
            if attempt % self.inner.endpoints.len() == 0 {
                if Instant::now() + pause >= deadline {
                    break;
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        Err(last_failure.unwrap_or_else(|| timed_out(None)))
    }

    pub(crate) fn endpoint_count(&self) -> usize {
        self.inner.endpoints.len()
    }

    /// Turns to the next endpoint, unless somebody else has done so.
    pub(crate) fn leave_current(&self) {
        self.leave(self.inner.current.load(Ordering::Relaxed));
    }

    fn leave(&self, index: usize) {
        let next = (index + 1) % self.inner.endpoints.len();
        // Whoever was faster has turned away from the same endpoint.
        let _ =
            self.inner
                .current
                .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn connection(&self, index: usize) -> Result<Arc<Connection>, ClientError> {
        let slot = &self.inner.endpoints[index];
        let mut connection = slot.connection.lock().await;
        if let Some(open) = connection.as_ref().filter(|open| open.is_open()) {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(dial(&slot.endpoint, &self.inner.config).await?);
        *connection = Some(Arc::clone(&opened));
        Ok(opened)
    }

    fn check_size(&self, request: &Request<'_>) -> Result<(), ClientError> {
        let (bytes, limit) = (request.payload_bytes(), self.inner.config.max_request_bytes);
        if bytes > limit {
            return Err(ClientError::RequestTooLarge { bytes, limit });
        }
        Ok(())
    }
}

async fn dial(endpoint: &Endpoint, config: &ClientConfig) -> Result<Connection, ClientError> {
    Connection::open(endpoint.address(), config)
        .await
        .map_err(|error| ClientError::Unreachable {
            endpoint: endpoint.text().to_owned(),
            reason: error.to_string(),
        })
}

/// What to say when time is up between two attempts: what a node said last, else that time
/// is up.
fn timed_out(last_failure: Option<ClientError>) -> ClientError {
    match last_failure {
        Some(error @ ClientError::Server(_)) => error,
        other => ClientError::Timeout {
            cause: other.map(|error| error.to_string()),
        },
    }
}

/// How an attempt failed.
enum Failure {
    Unreachable(ClientError),
    Call(CallError, String),
    Final(ClientError),
}

impl Failure {
    /// The error, and whether the call may be made again.
    fn judge(self, repeat: Repeat) -> (ClientError, bool) {
        let freely = repeat == Repeat::Freely;
        match self {
            Self::Unreachable(error) => (error, true),
            Self::Final(error) => (error, false),
            Self::Call(CallError::Lost { sent, reason }, endpoint) => {
                let reason = reason.to_string();
                let error = ClientError::ConnectionLost { endpoint, reason };
                (error, freely || !sent)
            }
            Self::Call(CallError::Server(error), _) => {
                let may_repeat = match error.api() {
                    None => error.code == ErrorCode::ShuttingDown,
                    // Given before anything is proposed.
                    Some(ApiError::NoLeader) => true,
                    Some(
                        ApiError::LeaderChanged
                        | ApiError::Stopped
                        | ApiError::Timeout
                        | ApiError::TimeoutLeaderFailure
                        | ApiError::TimeoutConnectionLost
                        | ApiError::TimeoutWaitAppliedIndex,
                    ) => freely,
                    _ => false,
                };
                (ClientError::Server(error), may_repeat)
            }
        }
    }
}
