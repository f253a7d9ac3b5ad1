//! etcd over gRPC: unary calls multiplexed on one HTTP/2 connection per
//! connection of the load.
//!
//! The connection is driven in the same task as its calls, without channels or
//! other tasks, so that the generator takes as little as it can from the etcd
//! that shares the machine with it.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, Stream};
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::{HeaderMap, Method, Request, Version};
use prost::Message;
use tokio::net::TcpStream;

use super::etcd_messages as messages;
use super::{Page, authority, dial};
use crate::load::BACK_OFF;
use crate::load::pace::Pace;
use crate::load::slots::{Op, OpKind, Reply, Slot, Worker};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
const LEASE_SECONDS: i64 = 60;
const WINDOW: u32 = 16 << 20;

/// A message, or what the server or the connection said instead.
type Answer = Result<Bytes, CallError>;

enum CallError {
    /// gRPC status other than 0: the connection is fine.
    Status(String),
    /// The connection is not.
    Broken(String),
}

/// One HTTP/2 connection.
pub(crate) struct Link {
    send: SendRequest<Bytes>,
    connection: Pin<Box<Connection<TcpStream, Bytes>>>,
    put: Request<()>,
    range: Request<()>,
    authority: String,
}

impl Link {
    /// Connects and shakes hands.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self, String> {
        let stream = dial(endpoint).await?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .initial_max_send_streams(1 << 20)
            .enable_push(false)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|error| format!("HTTP/2 handshake: {error}"))?;
        let authority = authority(endpoint).to_owned();
        Ok(Self {
            send,
            connection: Box::pin(connection),
            put: request(&authority, PUT)?,
            range: request(&authority, RANGE)?,
            authority,
        })
    }

    /// See [`super::Link::drive`].
    pub(crate) async fn drive(
        &mut self,
        slots: &mut [Slot],
        pace: &mut Pace,
        worker: &RefCell<Worker>,
    ) -> Result<(), String> {
        let mut calls = FuturesUnordered::new();
        let mut free: Vec<usize> = (0..slots.len()).rev().collect();
        let mut answers: Vec<(usize, Answer)> = Vec::with_capacity(slots.len());
        loop {
            let now = Instant::now();
            let refused = {
                let mut worker = worker.borrow_mut();
                let mut refused = false;
                for (index, answer) in answers.drain(..) {
                    let slot = &mut slots[index];
                    refused |= complete(&mut worker, slot, answer, now)?;
                    free.push(index);
                }
                refused
            };
            if refused {
                tokio::time::sleep(BACK_OFF).await;
            }
            let mut over = false;
            while let (Some(&index), Some(since)) = (free.last(), pace.due(now)) {
                let mut worker = worker.borrow_mut();
                let Some(op) = worker.issue(&mut slots[index], since, now) else {
                    over = true;
                    break;
                };
                free.pop();
                pace.issued();
                let (template, body) = match op {
                    Op {
                        kind: OpKind::Put,
                        key,
                        value,
                    } => (&self.put, messages::put_request(key, value)),
                    Op {
                        kind: OpKind::Get { serializable },
                        key,
                        ..
                    } => (
                        &self.range,
                        messages::range_request(key, b"", 0, serializable),
                    ),
                };
                let response = start(&mut self.send, template, body)?;
                calls.push(async move { (index, receive(response).await) });
            }
            if calls.is_empty() && over {
                return Ok(());
            }
            let has_time = !free.is_empty() && !over;
            let connection = &mut self.connection;
            let answered = poll_fn(|context| {
                // First the socket: flushes what was issued, reads what has come.
                if let Poll::Ready(end) = connection.as_mut().poll(context) {
                    return Poll::Ready(Err(closed(end)));
                }
                let mut ready = Pin::new(&mut calls);
                while let Poll::Ready(Some(answer)) = ready.as_mut().poll_next(context) {
                    answers.push(answer);
                }
                if answers.is_empty() {
                    Poll::Pending
                } else {
                    Poll::Ready(Ok(()))
                }
            });
            tokio::select! {
                answered = answered => answered?,
                waited = pace.wait(), if has_time => waited?,
            }
        }
    }

    /// A linearizable range.
    pub(crate) async fn range(
        &mut self,
        from: &[u8],
        end: &[u8],
        limit: i64,
    ) -> Result<Page, String> {
        let request = self.range.clone();
        let body = messages::range_request(from, end, limit, false);
        let answer = self.call(&request, body).await?;
        let answer = messages::RangeResponse::decode(answer).map_err(|error| error.to_string())?;
        Ok(Page {
            revision: answer.header.map_or(0, |header| header.revision),
            more: answer.more,
            kvs: answer
                .kvs
                .into_iter()
                .map(|kv| varve_types::KeyValue {
                    key: kv.key.to_vec(),
                    create_revision: kv.create_revision,
                    mod_revision: kv.mod_revision,
                    version: kv.version,
                    value: kv.value.to_vec(),
                    lease: kv.lease,
                })
                .collect(),
        })
    }

    /// Whether the member leads.
    pub(crate) async fn leads(&mut self) -> Result<bool, String> {
        let request = self.request(STATUS)?;
        let answer = self.call(&request, messages::empty_request()).await?;
        let answer = messages::StatusResponse::decode(answer).map_err(|error| error.to_string())?;
        Ok(answer
            .header
            .is_some_and(|header| header.member_id == answer.leader))
    }

    /// Compacts up to `revision`.
    pub(crate) async fn compact(&mut self, revision: i64) -> Result<(), String> {
        let request = self.request(COMPACT)?;
        self.call(&request, messages::number_request(revision))
            .await?;
        Ok(())
    }

    /// Grants a lease and revokes it.
    ///
    /// etcd 3.4 copies the buffer of its last batch of writes for every read, at
    /// the buffer's full size, and lets go of it only when a later batch writes
    /// something but no keys. Left alone, reads after a burst of writes are four
    /// times slower than etcd can do; 3.5 does not have that.
    pub(crate) async fn settle(&mut self) -> Result<(), String> {
        let grant = self.request(LEASE_GRANT)?;
        let body = messages::number_request(LEASE_SECONDS);
        let answer = self.call(&grant, body).await?;
        let lease =
            messages::LeaseGrantResponse::decode(answer).map_err(|error| error.to_string())?;
        let revoke = self.request(LEASE_REVOKE)?;
        self.call(&revoke, messages::number_request(lease.id))
            .await?;
        Ok(())
    }

    fn request(&self, path: &str) -> Result<Request<()>, String> {
        request(&self.authority, path)
    }

    async fn call(&mut self, request: &Request<()>, body: Bytes) -> Result<Bytes, String> {
        let response = start(&mut self.send, request, body)?;
        let mut call = pin!(receive(response));
        let connection = &mut self.connection;
        let answer = poll_fn(|context| {
            let end = connection.as_mut().poll(context);
            match call.as_mut().poll(context) {
                Poll::Ready(answer) => Poll::Ready(Ok(answer)),
                Poll::Pending => match end {
                    Poll::Ready(end) => Poll::Ready(Err(closed(end))),
                    Poll::Pending => Poll::Pending,
                },
            }
        })
        .await?;
        answer.map_err(|error| match error {
            CallError::Status(what) | CallError::Broken(what) => what,
        })
    }
}

/// The head of a unary call.
fn request(authority: &str, path: &str) -> Result<Request<()>, String> {
    Request::builder()
        .version(Version::HTTP_2)
        .method(Method::POST)
        .uri(format!("http://{authority}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| error.to_string())
}

fn closed(end: Result<(), h2::Error>) -> String {
    match end {
        Ok(()) => "the server closed the connection".into(),
        Err(error) => format!("connection: {error}"),
    }
}

fn start(
    send: &mut SendRequest<Bytes>,
    template: &Request<()>,
    body: Bytes,
) -> Result<ResponseFuture, String> {
    let (response, mut stream) = send
        .send_request(template.clone(), false)
        .map_err(|error| format!("request: {error}"))?;
    stream
        .send_data(body, true)
        .map_err(|error| format!("request body: {error}"))?;
    Ok(response)
}

/// Waits for head, message and trailers of one call.
async fn receive(response: ResponseFuture) -> Answer {
    let broken = |error: h2::Error| CallError::Broken(format!("response: {error}"));
    let (head, mut body) = response.await.map_err(broken)?.into_parts();
    let mut message = Bytes::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        body.flow_control()
            .release_capacity(chunk.len())
            .map_err(broken)?;
        if message.is_empty() {
            message = chunk;
        } else {
            let mut joined = BytesMut::from(message);
            joined.extend_from_slice(&chunk);
            message = joined.freeze();
        }
    }
    // A call that fails at once has its status in the head instead.
    let status = match body.trailers().await.map_err(broken)? {
        Some(trailers) => trailers,
        None => head.headers,
    };
    check_status(&status)?;
    if message.len() < 5 || message[0] != 0 {
        return Err(CallError::Broken("response without a plain message".into()));
    }
    message.advance(1);
    if message.get_u32() as usize != message.len() {
        return Err(CallError::Broken("response of another length".into()));
    }
    Ok(message)
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some(code) => Err(CallError::Status(format!(
            "gRPC status {code}: {}",
            text("grpc-message").unwrap_or("")
        ))),
        None => Err(CallError::Broken("response without a gRPC status".into())),
    }
}

/// Hands one answer to the worker; whether it was a refusal.
fn complete(
    worker: &mut Worker,
    slot: &mut Slot,
    answer: Answer,
    now: Instant,
) -> Result<bool, String> {
    let message = match answer {
        Ok(message) => message,
        Err(CallError::Status(what)) => {
            worker.complete(slot, Reply::Failed(&what), now);
            return Ok(true);
        }
        Err(CallError::Broken(what)) => return Err(what),
    };
    let malformed = |error: prost::DecodeError| format!("malformed answer: {error}");
    match slot.kind() {
        OpKind::Put => {
            let put = messages::PutResponse::decode(message).map_err(malformed)?;
            let revision = put.header.map_or(0, |header| header.revision);
            worker.complete(slot, Reply::Put { revision }, now);
        }
        OpKind::Get { .. } => {
            let range = messages::RangeResponse::decode(message).map_err(malformed)?;
            let reply = match range.kvs.first() {
                Some(kv) => Reply::Found {
                    mod_revision: kv.mod_revision,
                    value: &kv.value,
                },
                None => Reply::Absent,
            };
            worker.complete(slot, reply, now);
        }
    }
    Ok(false)
}
