//! HTTP of a member that waits; see [`crate::waiting`].

use hyper::StatusCode;
use hyper::header::HeaderValue;

use super::{JSON, PLAIN, Port, Reply, reply, version};
use crate::metrics::text::{CONTENT_TYPE, Page};
use crate::service::VERSION;
use crate::waiting::Notice;

/// The answer to a GET.
pub(super) fn answer(notice: &Notice, port: Port, path: &str) -> Reply {
    match (port, path) {
        (_, "/version") => version(),
        (Port::Client, "/health") => {
            let body = serde_json::json!({ "health": "false", "reason": notice.reason() });
            reply(StatusCode::SERVICE_UNAVAILABLE, JSON, body.to_string())
        }
        // It is well enough not to be started again, and not well enough to be asked.
        (Port::Client, "/livez") => reply(StatusCode::OK, PLAIN, "ok\n"),
        (Port::Client, "/readyz") => {
            let what = match notice.damaged_id() {
                Some(_) => "healing",
                None => "start",
            };
            let text = format!("[-]{what} failed: {}\n", notice.reason());
            reply(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
        }
        (Port::Client, "/metrics") => reply(StatusCode::OK, CONTENT_TYPE, metrics(notice)),
        (Port::Peer, "/members" | "/members/replace") => {
            let id = format!("{:x}", notice.member_id);
            let message = notice.reason();
            let body = match notice.damaged_id() {
                Some(_) => serde_json::json!({ "message": message, "freshId": id }),
                None => serde_json::json!({ "message": message, "newId": id }),
            };
            let mut answer = reply(StatusCode::SERVICE_UNAVAILABLE, JSON, body.to_string());
            if let Ok(id) = HeaderValue::from_str(&format!("{:x}", notice.cluster_id)) {
                answer.headers_mut().insert("x-etcd-cluster-id", id);
            }
            answer
        }
        _ => reply(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n"),
    }
}

fn metrics(notice: &Notice) -> String {
    let mut page = Page::default();
    let version = "Which version is running. 1 for 'server_version' label with current version.";
    page.metric("etcd_server_version", "gauge", version);
    let label = format!("server_version=\"{VERSION}\"");
    page.sample("etcd_server_version", &label, 1);
    page.gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        0,
    );
    healing(&mut page, notice.damaged_id(), "replacement");
    page.finish()
}

/// Whether a member heals, and what it waits for.
pub(super) fn healing(page: &mut Page, damaged: Option<u64>, waits_for: &str) {
    let name = "varve_healing";
    page.metric(
        name,
        "gauge",
        "Whether this member takes the place of a damaged one: 1 until it has its vote. Labels: \
         who was damaged, and what is waited for (replacement: the cluster has to put a fresh \
         member in its place; catch-up: that one is a learner).",
    );
    match damaged {
        Some(id) => {
            let labels = format!("damaged_id=\"{id:x}\",waits_for=\"{waits_for}\"");
            page.sample(name, &labels, 1);
        }
        None => page.sample(name, "", 0),
    }
}
