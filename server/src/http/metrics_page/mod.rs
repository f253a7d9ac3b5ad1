//! `/metrics`: etcd's names where etcd has the figure, `varve_*` for the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::metrics::text::Page;
use crate::metrics::{BOUNDS_US, Kind, get};
use crate::service::Service;

mod engine;
mod replica;

/// The page.
pub(super) fn render(service: &Service) -> String {
    let mut page = Page::default();
    replica::raft(&mut page, service);
    engine::storage(&mut page, service);
    engine::log(&mut page, service);
    engine::store(&mut page, service);
    engine::scrub(&mut page, service);
    requests(&mut page, service);
    network(&mut page, service);
    process(&mut page);
    page.finish()
}

fn flag(value: &AtomicBool) -> u8 {
    u8::from(value.load(Ordering::Relaxed))
}

fn load(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}

fn requests(page: &mut Page, service: &Service) {
    let metrics = &service.metrics;
    for (kinds, name, what) in [
        (&[Kind::Put][..], "put", "puts"),
        (
            &[Kind::Range, Kind::SerializableRange][..],
            "range",
            "ranges",
        ),
        (&[Kind::Txn][..], "txn", "txns"),
        (&[Kind::DeleteRange][..], "delete", "deletes"),
    ] {
        let total: u64 = kinds.iter().map(|kind| metrics.requests(*kind)).sum();
        for prefix in ["etcd_mvcc", "etcd_debugging_mvcc"] {
            page.counter(
                &format!("{prefix}_{name}_total"),
                &format!("Total number of {what} seen by this member."),
                total,
            );
        }
    }
    page.metric(
        "varve_requests_total",
        "counter",
        "Requests that came in, by kind.",
    );
    for kind in Kind::ALL {
        page.sample(
            "varve_requests_total",
            &format!("kind=\"{}\"", kind.label()),
            metrics.requests(kind),
        );
    }
    page.metric(
        "varve_request_duration_seconds",
        "histogram",
        "Time from a request's arrival to its answer, by kind.",
    );
    for kind in Kind::ALL {
        let latency = metrics.latency(kind);
        page.histogram(
            "varve_request_duration_seconds",
            &format!("kind=\"{}\"", kind.label()),
            &BOUNDS_US,
            &latency.counts,
            latency.sum_us,
        );
    }
    for (name, help, value) in [
        (
            "varve_requests_failed_total",
            "Requests answered with an error.",
            &metrics.failed,
        ),
        (
            "varve_requests_malformed_total",
            "Frames and requests that could not be read.",
            &metrics.malformed,
        ),
        (
            "varve_proposals_total",
            "Batches of writes that connections handed over.",
            &metrics.proposals,
        ),
        (
            "varve_proposed_commands_total",
            "Writes in these batches.",
            &metrics.proposed_commands,
        ),
        (
            "varve_read_batches_total",
            "Batches of linearizable reads that connections handed over.",
            &metrics.read_batches,
        ),
        (
            "etcd_server_health_success",
            "The total number of successful health checks.",
            &metrics.health_success,
        ),
        (
            "etcd_server_health_failures",
            "The total number of failed health checks.",
            &metrics.health_failures,
        ),
    ] {
        page.counter(name, help, get(value));
    }
}

fn network(page: &mut Page, service: &Service) {
    let metrics = &service.metrics;
    for (name, help, value) in [
        (
            "etcd_network_client_grpc_received_bytes_total",
            "The total number of bytes received from clients.",
            &metrics.received_bytes,
        ),
        (
            "etcd_network_client_grpc_sent_bytes_total",
            "The total number of bytes sent to clients.",
            &metrics.sent_bytes,
        ),
        (
            "varve_connections_refused_total",
            "Client connections closed because of --max-connections.",
            &metrics.connections_refused,
        ),
        (
            "varve_peer_received_bytes_total",
            "Bytes received from other members.",
            &metrics.peer_received_bytes,
        ),
        (
            "varve_peer_sent_bytes_total",
            "Bytes sent to other members.",
            &metrics.peer_sent_bytes,
        ),
        (
            "varve_snapshot_received_bytes_total",
            "Bytes of snapshots received from other members.",
            &metrics.snapshot_received_bytes,
        ),
        (
            "varve_snapshot_sent_bytes_total",
            "Bytes of snapshots sent to other members.",
            &metrics.snapshot_sent_bytes,
        ),
        (
            "varve_peer_send_failures_total",
            "Messages to other members that were dropped.",
            &metrics.peer_send_failures,
        ),
        (
            "varve_peer_refused_total",
            "Connections refused on the peer port.",
            &metrics.peer_refused,
        ),
    ] {
        page.counter(name, help, get(value));
    }
    page.gauge(
        "varve_connections",
        "Client connections.",
        get(&metrics.connections),
    );
    page.gauge(
        "varve_active_peers",
        "Members with a connection to them.",
        get(&metrics.active_peers),
    );
}

/// What the kernel says of the process; left out where it says nothing.
fn process(page: &mut Page) {
    const PAGE_BYTES: u64 = 4096;
    const TICKS_PER_SECOND: f64 = 100.0;
    if let Ok(text) = std::fs::read_to_string("/proc/self/statm")
        && let Some(Ok(pages)) = text.split(' ').nth(1).map(str::parse::<u64>)
    {
        page.gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            pages * PAGE_BYTES,
        );
    }
    // The second field is the name in parentheses, which may hold blanks.
    if let Ok(text) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, fields)) = text.rsplit_once(") ")
    {
        let mut times = fields.split(' ').skip(11).map(str::parse::<f64>);
        if let (Some(Ok(user)), Some(Ok(system))) = (times.next(), times.next()) {
            page.counter(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                (user + system) / TICKS_PER_SECOND,
            );
        }
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        page.gauge(
            "process_open_fds",
            "Number of open file descriptors.",
            entries.count(),
        );
    }
}
