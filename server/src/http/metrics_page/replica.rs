//! The replica's metrics.

use super::{flag, load};
use crate::metrics::text::Page;
use crate::service::{Service, VERSION};

pub(super) fn raft(page: &mut Page, service: &Service) {
    let metrics = service.node.metrics();
    let status = service.node.status();
    page.metric(
        "etcd_server_version",
        "gauge",
        "Which version is running. 1 for 'server_version' label with current version.",
    );
    page.sample(
        "etcd_server_version",
        &format!("server_version=\"{VERSION}\""),
        1,
    );
    page.metric(
        "etcd_server_id",
        "gauge",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
    );
    page.sample(
        "etcd_server_id",
        &format!("server_id=\"{:x}\"", service.member_id),
        1,
    );
    page.gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        flag(&metrics.has_leader),
    );
    page.gauge(
        "etcd_server_is_leader",
        "Whether or not this member is a leader. 1 if is, 0 otherwise.",
        flag(&metrics.is_leader),
    );
    page.gauge(
        "etcd_server_is_learner",
        "Whether or not this member is a learner. 1 if is, 0 otherwise.",
        u8::from(status.is_learner),
    );
    crate::http::waiting::healing(page, service.healing(), "catch-up");
    page.gauge(
        "varve_damaged_file_sets",
        "Sets of damaged files that were set aside in the data directory, at the start.",
        service.damaged_sets,
    );
    page.counter(
        "etcd_server_leader_changes_seen_total",
        "The number of leader changes seen.",
        load(&metrics.leader_changes),
    );
    page.gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
        load(&metrics.committed_index),
    );
    page.gauge(
        "etcd_server_proposals_applied_total",
        "The total number of consensus proposals applied.",
        load(&metrics.applied_index),
    );
    page.gauge(
        "etcd_server_proposals_pending",
        "The current number of pending proposals to commit.",
        load(&metrics.proposals_pending),
    );
    page.counter(
        "etcd_server_proposals_failed_total",
        "The total number of failed proposals seen.",
        load(&metrics.proposals_failed),
    );
    page.counter(
        "etcd_server_read_indexes_failed_total",
        "The total number of failed read indexes seen.",
        load(&metrics.reads_failed),
    );
    page.counter(
        "varve_state_checks_total",
        "Comparisons of the members' states that this member began as leader.",
        load(&metrics.state_checks),
    );
    page.counter(
        "varve_state_mismatches_total",
        "Answers to comparisons after which the members' states were not all the same.",
        load(&metrics.state_mismatches),
    );
    page.gauge(
        "varve_alarms",
        "Alarms that are on.",
        service.node.members().alarms().count(),
    );
    page.gauge("varve_raft_term", "The Raft term.", status.term);
    page.counter(
        "varve_raft_read_rounds_total",
        "Rounds of ReadIndex; each serves every read that waited for it.",
        load(&metrics.read_rounds),
    );
    page.counter(
        "varve_apply_batches_total",
        "Batches applied and published.",
        load(&metrics.batches_applied),
    );
    page.counter(
        "varve_apply_commands_total",
        "Client commands applied.",
        load(&metrics.commands_applied),
    );
    page.gauge(
        "varve_disk_stuck",
        "Whether writes of the log are out and none completes: such a member refuses requests.",
        flag(&metrics.is_disk_stuck),
    );
    page.gauge(
        "varve_disk_full",
        "Whether log or store wait for space: such a member refuses writes.",
        u8::from(service.node.lacks_space()),
    );
    page.counter(
        "varve_disk_stalls_total",
        "How often the disk was found stuck.",
        load(&metrics.disk_stalls),
    );
    page.gauge(
        "varve_wal_waiting_milliseconds",
        "Time for which the log has completed nothing although it was asked to.",
        load(&metrics.log_waits_ms),
    );
    for (name, help, histogram) in [
        (
            "varve_apply_duration_seconds",
            "Time to apply one batch.",
            &metrics.apply_duration,
        ),
        (
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of commit called by backend (here: of a checkpoint).",
            &metrics.checkpoint_duration,
        ),
    ] {
        let (counts, sum_us) = histogram.snapshot();
        page.metric(name, "histogram", help);
        page.histogram(name, "", &varve_raft::BUCKET_BOUNDS_US, &counts, sum_us);
    }
    page.counter(
        "varve_snapshots_sent_total",
        "Snapshots sent to other members.",
        load(&metrics.snapshots_sent),
    );
    page.counter(
        "varve_snapshots_failed_total",
        "Transfers of snapshots to other members that broke or were refused.",
        load(&metrics.snapshots_failed),
    );
    page.counter(
        "varve_snapshots_resumed_total",
        "Snapshots from another member that were gone on with after a break.",
        load(&metrics.snapshots_resumed),
    );
    page.counter(
        "varve_snapshots_received_total",
        "Snapshots taken in from another member.",
        load(&metrics.snapshots_received),
    );
}
