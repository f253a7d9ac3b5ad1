//! Plain HTTP beside the binary protocol: health, probes, version, metrics on the client
//! port, members and version on the peer port.

mod health;
mod metrics_page;
mod probes;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::metrics::text;
use crate::service::{Service, VERSION};

const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";
/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
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
    let answer = service_fn(|request: Request<Incoming>| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(route(&service, port, &request).await) }
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

async fn route(service: &Service, port: Port, request: &Request<Incoming>) -> Reply {
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
        "/members" => members(service),
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

fn members(service: &Service) -> Reply {
    let members: Vec<_> = service
        .members()
        .members
        .iter()
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
