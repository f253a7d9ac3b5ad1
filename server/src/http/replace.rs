//! `POST /members/replace` on the peer port: a damaged member asks for its place.
//!
//! | it is | answer |
//! |---|---|
//! | replaced, now or before | 200 and the members, as `GET /members` has them |
//! | not what the cluster knows of the damaged member, or of another cluster | 409 |
//! | removed by somebody else | 410 |
//! | not possible yet: no leader, the damaged member is still heard of, too few voters | 503 |
//! | not a request | 400 |

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;
use varve_raft::{Change, ChangeSink, Member, Membership};
use varve_types::ApiError;

use super::{JSON, Reply, list_members, reply};
use crate::ask::{self, Answer, ReplaceRequest};
use crate::service::Service;

/// Longest request.
const MAX_BODY_BYTES: usize = 64 << 10;

type Refusal = (StatusCode, String);

/// Has a damaged member replaced, if that is what the cluster knows of it.
pub(super) async fn replace(service: &Service, request: Request<Incoming>) -> Reply {
    match try_replace(service, request).await {
        Ok(members) => list_members(service, &members),
        Err((status, message)) => {
            // What may come to pass later is asked for again and again.
            match status {
                StatusCode::SERVICE_UNAVAILABLE => tracing::debug!("not replaced yet: {message}"),
                _ => tracing::warn!("a member that heals is not let in: {message}"),
            }
            let body = serde_json::json!({ "message": message });
            reply(status, JSON, body.to_string())
        }
    }
}

async fn try_replace(
    service: &Service,
    request: Request<Incoming>,
) -> Result<Arc<Membership>, Refusal> {
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
    let bad = |error: String| (StatusCode::BAD_REQUEST, error);
    let body = body.await.map_err(|error| bad(error.to_string()))?;
    let request: ReplaceRequest =
        serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(error.to_string()))?;
    let id = |text: &str| u64::from_str_radix(text, 16).map_err(|error| bad(error.to_string()));
    let cluster = id(&request.cluster_id)?;
    let (damaged, fresh) = (id(&request.damaged_id)?, id(&request.fresh_id)?);
    let by = Member {
        id: fresh,
        name: request.name,
        peer_urls: varve_raft::parse_urls(&request.peer_urls.join(","))
            .map_err(|error| bad(error.to_string()))?,
        ..Member::default()
    };
    if cluster != service.cluster_id {
        let text = format!(
            "cluster ID mismatch (got {cluster:x} want {:x})",
            service.cluster_id
        );
        return Err((StatusCode::CONFLICT, text));
    }
    let members = service.node.members();
    if is_there(&members, &by) {
        return Ok(members);
    }
    check(&members, damaged, &by)?;
    if !is_asked_for(&by).await {
        let text = format!(
            "nobody who heals as {fresh:x} answers at {}",
            by.peer_urls.join(", ")
        );
        return Err((StatusCode::CONFLICT, text));
    }
    let later = |text: String| (StatusCode::SERVICE_UNAVAILABLE, text);
    if service.node.status().leader == 0 {
        return Err(later(format!("{} knows no leader", service.name)));
    }
    tracing::warn!(
        "member {damaged:x} ({}) says that it is damaged, and is to be replaced by {fresh:x}",
        by.name
    );
    let (sender, done) = oneshot::channel();
    let change = Change::Replace { id: damaged, by };
    service.node.change(change, Box::new(Done(sender)));
    match done.await {
        Ok(Ok(members)) => Ok(members),
        Ok(Err(ApiError::Unhealthy)) => Err(later(format!(
            "member {damaged:x} was heard of within the last election timeout, or those without \
             it are no quorum"
        ))),
        Ok(Err(error)) => Err(later(error.to_string())),
        Err(_) => Err(later(ApiError::Stopped.to_string())),
    }
}

fn is_there(members: &Membership, by: &Member) -> bool {
    members
        .get(by.id)
        .is_some_and(|member| member.peer_urls == by.peer_urls)
}

/// Whether it is what is known of the damaged member here.
fn check(members: &Membership, damaged: u64, by: &Member) -> Result<(), Refusal> {
    let conflict = |text: String| Err((StatusCode::CONFLICT, text));
    let Some(former) = members.get(damaged) else {
        if members.is_removed(damaged) {
            let text = format!("member {damaged:x} has been removed from the cluster");
            return Err((StatusCode::GONE, text));
        }
        return conflict(format!("{damaged:x} is no member of this cluster"));
    };
    if former.peer_urls != by.peer_urls {
        return conflict(format!(
            "member {damaged:x} is known at {}, not at {}",
            former.peer_urls.join(", "),
            by.peer_urls.join(", ")
        ));
    }
    if former.is_started() && former.name != by.name {
        return conflict(format!(
            "member {damaged:x} is known as {:?}, not as {:?}",
            former.name, by.name
        ));
    }
    Ok(())
}

/// Whether the one who answers at the peer URLs is who asks: a member that has them, and
/// that does not serve under its former id any more.
async fn is_asked_for(by: &Member) -> bool {
    for url in &by.peer_urls {
        if let Ok(Answer::Heals(fresh)) = ask::members(url).await {
            return fresh == by.id;
        }
    }
    false
}

struct Done(oneshot::Sender<Result<Arc<Membership>, ApiError>>);

impl ChangeSink for Done {
    fn done(self: Box<Self>, outcome: Result<Arc<Membership>, ApiError>) {
        // The asker may have gone.
        let _ = self.0.send(outcome);
    }
}
