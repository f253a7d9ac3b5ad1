//! `/health`, with etcd's answers: alarms first, then a read.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::oneshot;
use varve_engine::mvcc::View;
use varve_raft::ReadSink;
use varve_types::{AlarmKind, ApiError};

use super::{JSON, Reply, reply};
use crate::metrics::add;
use crate::service::Service;

/// How long the read behind the answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether no alarm is on, but for those of `?exclude=`, and a read works; one that asks
/// the leader, unless `?serializable=true`; and nothing was found damaged.
pub(super) async fn health(service: &Service, query: &str) -> Reply {
    let serializable = query
        .split('&')
        .any(|pair| matches!(pair, "serializable=true" | "serializable=1"));
    let excluded = |name: &str| {
        let mut given = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("exclude="));
        given.any(|given| given == name)
    };
    let alarm = [AlarmKind::NoSpace, AlarmKind::Corrupt]
        .into_iter()
        .find(|kind| service.node.members().is_on(*kind) && !excluded(kind.name()));
    let checked = match alarm {
        Some(kind) => Err(format!("ALARM {}", kind.name())),
        None => check(service, serializable).await,
    };
    match checked.and_then(|()| check_damage(service)) {
        Ok(()) => {
            add(&service.metrics.health_success, 1);
            reply(StatusCode::OK, JSON, body(true, ""))
        }
        Err(reason) => {
            add(&service.metrics.health_failures, 1);
            // Health is asked for again and again.
            if let Some(suppressed) = service.health_log.pass() {
                tracing::warn!(suppressed, "/health error: {reason}");
            }
            reply(StatusCode::SERVICE_UNAVAILABLE, JSON, body(false, &reason))
        }
    }
}

/// etcd's order of keys, and a string where one expects a boolean.
fn body(healthy: bool, reason: &str) -> String {
    format!(
        "{{\"health\":\"{healthy}\",\"reason\":{}}}",
        serde_json::Value::from(reason)
    )
}

/// Why a read fails; one that asks the leader, or not.
pub(super) async fn check(service: &Service, serializable: bool) -> Result<(), String> {
    let range_error = |error: &dyn std::fmt::Display| format!("RANGE ERROR:{error}");
    let view = if serializable {
        service.node.view()
    } else {
        if service.node.status().leader == 0 {
            return Err("RAFT NO LEADER".to_owned());
        }
        match tokio::time::timeout(TIMEOUT, read_index(service)).await {
            Ok(Ok(view)) => view,
            Ok(Err(error)) => return Err(range_error(&error)),
            Err(_) => return Err(range_error(&"context deadline exceeded")),
        }
    };
    view.get(b"health", |_| ())
        .map(drop)
        .map_err(|error| range_error(&error))
}

/// A view that holds all that was acknowledged before.
pub(super) async fn read_index(service: &Service) -> Result<Arc<View>, ApiError> {
    let (sender, receiver) = oneshot::channel();
    service.node.read(Box::new(Once(sender)));
    receiver.await.unwrap_or(Err(ApiError::Stopped))
}

/// What was found damaged, if anything was.
pub(super) fn check_damage(service: &Service) -> Result<(), String> {
    match service.node.found_damage() {
        Some(damage) => Err(format!("ALARM CORRUPT:{damage}")),
        None => Ok(()),
    }
}

/// Takes one view to one task.
struct Once(oneshot::Sender<Result<Arc<View>, ApiError>>);

impl ReadSink for Once {
    fn ready(self: Box<Self>, view: Arc<View>, _term: u64) {
        // The asker may have given up.
        let _ = self.0.send(Ok(view));
    }

    fn refuse(self: Box<Self>, error: ApiError) {
        let _ = self.0.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        assert_eq!(body(true, ""), r#"{"health":"true","reason":""}"#);
        assert_eq!(
            body(false, "a \"b\""),
            r#"{"health":"false","reason":"a \"b\""}"#
        );
    }
}
