//! The client against scripted nodes: what it repeats, what it does not, and where it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use varve_client::{Client, ClientConfig, ClientError, RawConnection};
use varve_protocol::{
    Decoder, Flags, Request, Step, WatchRequest, WatchResponse, WireError, encode_connection_error,
    encode_error, encode_frame, encode_get_reply, encode_put_reply, encode_reply, encode_watch,
    opcode,
};
use varve_types::{
    ApiError, Event, EventKind, KeyValue, KeyValueRef, PutRequest, RangeRequest, ResponseHeader,
};

/// What a scripted node does with a request.
enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes and closes the connection.
    Close(Vec<u8>),
    /// Says nothing.
    Ignore,
}

struct Node {
    endpoint: String,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Starts a node that answers the n-th request (from 0, pings aside) with `script(n, id, request)`.
async fn node(script: impl Fn(u64, u64, &Request<'_>) -> Act + Send + Sync + 'static) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(AtomicU64::new(0));
    let (script, counter) = (Arc::new(script), Arc::clone(&requests));
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (script, counter) = (Arc::clone(&script), Arc::clone(&counter));
            tokio::spawn(serve(stream, counter, script));
        }
    });
    Node {
        endpoint,
        requests,
        task,
    }
}

async fn serve(
    mut stream: TcpStream,
    counter: Arc<AtomicU64>,
    script: Arc<impl Fn(u64, u64, &Request<'_>) -> Act>,
) {
    let mut decoder = Decoder::new(64 << 20);
    let mut input = Vec::new();
    while stream.read_buf(&mut input).await.is_ok_and(|read| read > 0) {
        let mut at = 0;
        while let Step::Frame(frame, used) = decoder.step(&input[at..]).unwrap() {
            let request = Request::from_frame(&frame).unwrap();
            at += used;
            if matches!(request, Request::WatchCredit(_) | Request::WatchCancel(_)) {
                continue;
            }
            let number = counter.fetch_add(1, Ordering::SeqCst);
            match script(number, frame.header.request_id, &request) {
                Act::Send(bytes) => stream.write_all(&bytes).await.unwrap(),
                Act::Close(bytes) => return stream.write_all(&bytes).await.unwrap(),
                Act::Ignore => {}
            }
        }
        input.drain(..at);
    }
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader {
        revision,
        ..ResponseHeader::default()
    }
}

fn put_done(id: u64) -> Act {
    let mut out = Vec::new();
    encode_put_reply(&mut out, id, &header(2));
    Act::Send(out)
}

fn found(id: u64, value: &[u8]) -> Act {
    let mut out = Vec::new();
    let kv = KeyValueRef {
        key: b"k",
        value,
        ..KeyValueRef::default()
    };
    encode_get_reply(&mut out, id, &header(2), Some(kv));
    Act::Send(out)
}

fn fails(id: u64, opcode: u8, error: ApiError) -> Act {
    let mut out = Vec::new();
    encode_error(&mut out, opcode, id, &error.into());
    Act::Send(out)
}

fn config() -> ClientConfig {
    ClientConfig {
        command_timeout: Duration::from_secs(2),
        dial_timeout: Duration::from_millis(500),
        ..ClientConfig::default()
    }
}

fn client(nodes: &[&Node]) -> Client {
    let endpoints: Vec<_> = nodes.iter().map(|node| &node.endpoint).collect();
    Client::new(&endpoints, config()).unwrap()
}

const PUT: PutRequest<'static> = PutRequest {
    key: b"k",
    value: b"v",
    lease: 0,
    prev_kv: false,
    ignore_value: false,
    ignore_lease: false,
};

/// An address where nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn many_calls_in_flight_on_one_connection() {
    // Answers only when 100 requests have come, in reverse order.
    let pending = std::sync::Mutex::new(Vec::new());
    let node = node(move |_, id, _| {
        let mut pending = pending.lock().unwrap();
        pending.push(id);
        if pending.len() < 100 {
            return Act::Ignore;
        }
        let mut out = Vec::new();
        for id in pending.drain(..).rev() {
            let value = id.to_string();
            let kv = KeyValueRef {
                value: value.as_bytes(),
                ..KeyValueRef::default()
            };
            encode_get_reply(&mut out, id, &header(1), Some(kv));
        }
        Act::Send(out)
    })
    .await;
    let client = client(&[&node]);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        calls.spawn(async move { client.get(b"k").await.unwrap().unwrap().value });
    }
    let mut values: Vec<u64> = calls
        .join_all()
        .await
        .iter()
        .map(|value| std::str::from_utf8(value).unwrap().parse().unwrap())
        .collect();
    values.sort_unstable();
    assert_eq!(values, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn writes_move_on_when_nobody_took_them() {
    let node = node(|_, id, _| put_done(id)).await;
    let endpoints = [nobody().await, node.endpoint.clone()];
    let client = Client::connect(&endpoints, config()).await.unwrap();
    client.put(&PUT).await.unwrap();
    assert_eq!(node.requests(), 1);
}

#[tokio::test]
async fn no_leader_is_repeated_elsewhere() {
    let lost = node(|_, id, _| fails(id, opcode::PUT, ApiError::NoLeader)).await;
    let good = node(|_, id, _| put_done(id)).await;
    client(&[&lost, &good]).put(&PUT).await.unwrap();
    assert_eq!((lost.requests(), good.requests()), (1, 1));
    // With nowhere else to go it is repeated until time is up.
    let error = client(&[&lost]).put(&PUT).await.unwrap_err();
    assert_eq!(error.api(), Some(ApiError::NoLeader));
    assert!(lost.requests() > 4);
}

#[tokio::test]
async fn a_write_that_times_out_is_unknown_whatever_was_said_before() {
    let lost = node(|_, id, _| fails(id, opcode::PUT, ApiError::NoLeader)).await;
    let silent = node(|_, _, _| Act::Ignore).await;
    let error = client(&[&lost, &silent]).put(&PUT).await.unwrap_err();
    assert_eq!((lost.requests(), silent.requests()), (1, 1));
    assert!(
        matches!(&error, ClientError::Timeout { cause: Some(cause) }
        if cause == "etcdserver: no leader"),
        "{error:?}"
    );
    assert_eq!(error.api(), None);
}

#[tokio::test]
async fn a_write_that_may_have_happened_is_not_repeated() {
    let dying = node(|_, _, _| Act::Close(Vec::new())).await;
    let good = node(|_, id, _| put_done(id)).await;
    let error = client(&[&dying, &good]).put(&PUT).await.unwrap_err();
    assert!(
        matches!(error, ClientError::ConnectionLost { .. }),
        "{error}"
    );
    let unsure = node(|_, id, _| fails(id, opcode::PUT, ApiError::Timeout)).await;
    let error = client(&[&unsure, &good]).put(&PUT).await.unwrap_err();
    assert_eq!(error.api(), Some(ApiError::Timeout));
    assert_eq!(
        (dying.requests(), unsure.requests(), good.requests()),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn reads_are_repeated_freely() {
    let dying = node(|_, _, _| Act::Close(Vec::new())).await;
    let unsure = node(|_, id, _| fails(id, opcode::RANGE, ApiError::LeaderChanged)).await;
    let good = node(|_, id, _| found(id, b"v")).await;
    let kv = client(&[&dying, &unsure, &good]).get(b"k").await.unwrap();
    assert_eq!(kv.unwrap().value, b"v");
    assert_eq!((dying.requests(), unsure.requests()), (1, 1));
}

#[tokio::test]
async fn errors_of_the_request_are_final() {
    let node = node(|_, id, _| {
        let mut out = Vec::new();
        encode_error(&mut out, opcode::RANGE, id, &WireError::compacted(7));
        Act::Send(out)
    })
    .await;
    let error = client(&[&node]).get(b"k").await.unwrap_err();
    assert_eq!(error.compact_revision(), Some(7));
    assert_eq!(
        error.to_string(),
        "etcdserver: mvcc: required revision has been compacted"
    );
    assert_eq!(node.requests(), 1);
}

#[tokio::test]
async fn time_is_kept() {
    let silent = node(|_, _, _| Act::Ignore).await;
    let start = Instant::now();
    let error = client(&[&silent]).get(b"k").await.unwrap_err();
    assert_eq!(error.to_string(), "context deadline exceeded");
    assert!(start.elapsed() >= Duration::from_secs(2));
    // The next call turns to the other node.
    let good = node(|_, id, _| found(id, b"v")).await;
    let client = client(&[&silent, &good]);
    assert!(client.get(b"k").await.is_err());
    assert!(client.get(b"k").await.unwrap().is_some());

    let start = Instant::now();
    let client = Client::new(&[nobody().await], config()).unwrap();
    let error = client.put(&PUT).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Timeout { cause: Some(cause) }
        if cause.contains("cannot connect")),
        "{error:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_silent_node_is_left() {
    let silent = node(|_, _, _| Act::Ignore).await;
    let good = node(|_, id, _| found(id, b"v")).await;
    let config = ClientConfig {
        keepalive_time: Duration::from_millis(50),
        keepalive_timeout: Duration::from_millis(100),
        ..config()
    };
    let client = Client::new(&[&silent.endpoint, &good.endpoint], config).unwrap();
    let start = Instant::now();
    assert!(client.get(b"k").await.unwrap().is_some());
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_closing_reason_is_told() {
    let node = node(|_, _, _| {
        let mut out = Vec::new();
        encode_connection_error(&mut out, &ApiError::TooManyRequests.into());
        Act::Close(out)
    })
    .await;
    let error = client(&[&node]).put(&PUT).await.unwrap_err();
    assert!(error.to_string().contains("too many requests"), "{error}");
}

#[tokio::test]
async fn nodes_that_talk_nonsense() {
    let nonsense = node(|_, _, _| Act::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
    let error = client(&[&nonsense]).put(&PUT).await.unwrap_err();
    assert!(error.to_string().contains("not a Varve frame"), "{error}");
    let wrong = node(|_, id, _| {
        let mut out = Vec::new();
        encode_frame(&mut out, opcode::PUT, Flags::REPLY, id, |out| out.push(1));
        Act::Send(out)
    })
    .await;
    let error = client(&[&wrong]).put(&PUT).await.unwrap_err();
    assert!(
        matches!(error, ClientError::MalformedReply { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn too_large_to_send() {
    let config = ClientConfig {
        max_request_bytes: 10,
        ..config()
    };
    let client = Client::new(&[nobody().await], config).unwrap();
    let value = [0; 10];
    let put = PutRequest {
        value: &value,
        ..PUT
    };
    let error = client.put(&put).await.unwrap_err();
    assert!(matches!(
        error,
        ClientError::RequestTooLarge {
            bytes: 11,
            limit: 10
        }
    ));
}

/// A store of puts to "k" at every revision from 2 on, as a watch sees it: `per_frame` events, then
/// the connection breaks.
fn watched(id: u64, request: &WatchRequest<'_>, per_connection: i64, last: i64) -> Act {
    let mut out = Vec::new();
    encode_watch(&mut out, id, &header(1), &WatchResponse::Created);
    let start = match request.start_revision {
        0 => 2,
        start => start,
    };
    let end = (start + per_connection).min(last + 1);
    for revision in start..end {
        let event = |key: &[u8]| Event {
            kind: EventKind::Put,
            kv: KeyValue {
                key: key.to_vec(),
                mod_revision: revision,
                ..KeyValue::default()
            },
            prev_kv: None,
        };
        // Each revision comes in two frames; the connection breaks in the middle of one.
        for (key, more) in [(b"a", Flags::MORE), (b"b", Flags::NONE)] {
            if revision + 1 == end && more == Flags::NONE && end <= last {
                return Act::Close(out);
            }
            let flags = Flags::REPLY.with(more);
            encode_frame(&mut out, opcode::WATCH, flags, id, |out| {
                header(revision).encode(out);
                WatchResponse::Events(vec![event(key)]).encode(out);
            });
        }
    }
    if end > last {
        encode_watch(
            &mut out,
            id,
            &header(last),
            &WatchResponse::Canceled(WireError::compacted(9)),
        );
    }
    Act::Send(out)
}

#[tokio::test]
async fn watches_resume_without_loss_or_repetition() {
    let script = |_: u64, id: u64, request: &Request<'_>| match request {
        Request::Watch(watch) => watched(id, watch, 4, 30),
        _ => Act::Ignore,
    };
    let (one, two) = (node(script).await, node(script).await);
    let client = client(&[&one, &two]);
    let mut watch = client.watch(&WatchRequest {
        key: b"k",
        ..WatchRequest::default()
    });
    watch.opened().await.unwrap();
    let mut seen = Vec::new();
    let error = loop {
        match watch.next().await.unwrap() {
            Ok(update) => {
                // Both events of a revision come together.
                assert_eq!(update.events.len(), 2);
                seen.push(update.events[1].kv.mod_revision);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(seen, (2..=30).collect::<Vec<_>>());
    assert_eq!(error.compact_revision(), Some(9));
    assert!(watch.next().await.is_none());
    assert!(one.requests() > 2 && two.requests() > 2);
}

#[tokio::test]
async fn raw_connection() {
    let node = node(|_, id, request| match request {
        Request::Put(_) => put_done(id),
        Request::Range(RangeRequest { key, .. }) => found(id, key),
        _ => {
            let mut out = Vec::new();
            let empty = varve_protocol::Empty;
            encode_reply(&mut out, opcode::PING, id, &header(1), &empty);
            Act::Send(out)
        }
    })
    .await;
    let timeout = Duration::from_secs(1);
    let mut raw = RawConnection::connect(&node.endpoint, timeout)
        .await
        .unwrap();
    for id in 0..1000 {
        match id % 2 {
            0 => raw.queue_put(id, b"key", b"value"),
            _ => raw.queue_get(id, b"key", true),
        }
    }
    let mut seen = Vec::new();
    while seen.len() < 1000 {
        let replies = raw
            .receive(|frame| seen.push(frame.header.request_id))
            .await
            .unwrap();
        assert!(replies > 0);
    }
    assert_eq!(raw.unsent(), 0);
    assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    drop(node);
}
