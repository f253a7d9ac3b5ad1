//! Plain HTTP beside the binary protocol: health, probes, version, metrics on the client
//! port, members and version on the peer port.

mod health;
mod metrics_page;
mod probes;
mod replace;
mod waiting;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use varve_raft::Membership;

use crate::ask::{DAMAGED_HEADER, Standing};
use crate::metrics::text;
use crate::service::{Service, VERSION};
use crate::waiting::Notice;

const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";
/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the read may take that confirms who the members are.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;

/// Which port a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The clients'.
    Client,
    /// The members'.
    Peer,
}

type Reply = Response<Full<Bytes>>;

/// Serves one connection until it ends.
pub async fn serve(service: Arc<Service>, stream: TcpStream, port: Port) {
    serve_with(stream, |request| {
        let service = Arc::clone(&service);
        async move { route(&service, port, request).await }
    })
    .await;
}

/// The same for a member that waits.
pub(crate) async fn serve_waiting(notice: Arc<Notice>, stream: TcpStream, port: Port) {
    serve_with(stream, |request| {
        let answer = waiting::answer(&notice, port, request.uri().path());
        async move { answer }
    })
    .await;
}

async fn serve_with<F: Future<Output = Reply>>(
    stream: TcpStream,
    answer: impl Fn(Request<Incoming>) -> F,
) {
    let answer = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = ended {
        tracing::debug!("HTTP connection: {error}");
    }
}

async fn route(service: &Service, port: Port, request: Request<Incoming>) -> Reply {
    if (port, request.uri().path()) == (Port::Peer, "/members/replace")
        && request.method() == Method::POST
    {
        return replace::replace(service, request).await;
    }
    let known = matches!(
        (port, request.uri().path()),
        (Port::Client, "/health" | "/metrics") | (Port::Peer, "/members") | (_, "/version")
    ) || (port == Port::Client && probes::Probe::of(request.uri().path()).is_some());
    if !known {
        return reply(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n");
    }
    if request.method() != Method::GET {
        let mut refused = reply(
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            "Method Not Allowed\n",
        );
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    let query = request.uri().query().unwrap_or("");
    match request.uri().path() {
        "/health" => health::health(service, query).await,
        "/metrics" => reply(
            StatusCode::OK,
            text::CONTENT_TYPE,
            metrics_page::render(service),
        ),
        "/members" => {
            let pairs = || query.split('&');
            let leaving = pairs().find_map(|pair| pair.strip_prefix("leaves="));
            let stays = leaving.is_none_or(|id| {
                let id = u64::from_str_radix(id, 16);
                id.is_ok_and(|id| service.leave.promise(id, Instant::now()))
            });
            let standing = match stays && pairs().any(|pair| pair == "confirm=true") {
                true => standing(service).await,
                false => Standing::Unconfirmed,
            };
            let mut answer = list_members(service, &service.node.members());
            let standing = HeaderValue::from_static(standing.name());
            answer.headers_mut().insert(Standing::HEADER, standing);
            if service.node.found_damage().is_some() {
                let yes = HeaderValue::from_static("true");
                answer.headers_mut().insert(DAMAGED_HEADER, yes);
            }
            answer
        }
        path => match probes::Probe::of(path) {
            Some(probe) => probe.answer(service, query).await,
            None => version(),
        },
    }
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The keys are etcd's, so that what reads them goes on working.
fn version() -> Reply {
    let body = serde_json::json!({
        "etcdserver": VERSION,
        "etcdcluster": VERSION,
        "storage": VERSION,
    });
    reply(StatusCode::OK, JSON, body.to_string())
}

/// How much this member knows of who the members are.
async fn standing(service: &Service) -> Standing {
    let status = service.node.status();
    // The bootstrap is entry 1 of term 1; a vote, or a leader's first word, is of another.
    if (status.term, status.last_index) == (1, 1) {
        return Standing::Bare;
    }
    let read = health::read_index(service);
    match tokio::time::timeout(CONFIRM_TIMEOUT, read).await {
        Ok(Ok(_)) if status.leader != 0 => Standing::Confirmed,
        _ => Standing::Unconfirmed,
    }
}

fn list_members(service: &Service, members: &Membership) -> Reply {
    let members: Vec<_> = members
        .members()
        .map(|member| {
            let mut fields = serde_json::json!({
                "id": member.id,
                "peerURLs": member.peer_urls,
                "name": member.name,
                "clientURLs": member.client_urls,
            });
            if member.is_learner {
                fields["isLearner"] = true.into();
            }
            fields
        })
        .collect();
    let body = serde_json::Value::from(members).to_string() + "\n";
    let mut response = reply(StatusCode::OK, JSON, body);
    if let Ok(id) = HeaderValue::from_str(&format!("{:x}", service.cluster_id)) {
        response.headers_mut().insert("x-etcd-cluster-id", id);
    }
    response
}
