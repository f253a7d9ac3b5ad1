//! `/metrics`: etcd's names where etcd has the figure, `varve_*` for the rest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use varve_engine::wal::Histogram;
use varve_types::KeyRange;

use crate::metrics::text::Page;
use crate::metrics::{BOUNDS_US, Kind, get};
use crate::service::{Service, VERSION};

/// The page.
pub(super) fn render(service: &Service) -> String {
    let mut page = Page::default();
    raft(&mut page, service);
    storage(&mut page, service);
    log(&mut page, service);
    store(&mut page, service);
    scrub(&mut page, service);
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

fn raft(page: &mut Page, service: &Service) {
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
    super::waiting::healing(page, service.healing(), "catch-up");
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

fn storage(page: &mut Page, service: &Service) {
    let backend = service.node.backend();
    let stats = backend.stats();
    page.gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
        stats.file_bytes,
    );
    page.gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
        stats.used_bytes,
    );
    page.gauge(
        "etcd_mvcc_db_open_read_transactions",
        "The number of currently open read transactions.",
        stats.readers,
    );
    for (name, help, value) in [
        (
            "varve_store_readers",
            "States of the store that readers hold, each counted as often as it is held.",
            stats.readers,
        ),
        (
            "varve_store_oldest_reader_states",
            "How many states the oldest one that is held is behind the newest.",
            stats.oldest_reader_states,
        ),
        (
            "varve_store_pinned_bytes",
            "Bytes that wait for readers to be free.",
            stats.pinned_bytes,
        ),
        (
            "varve_store_checkpoint_pending_bytes",
            "Bytes that wait for a checkpoint to be free.",
            stats.checkpoint_bytes,
        ),
        (
            "varve_store_vacuum_in_progress",
            "1 while free space is given back to the file system, 0 otherwise.",
            u64::from(backend.vacuums()),
        ),
    ] {
        page.gauge(name, help, value);
    }
    page.metric(
        "varve_disk_info",
        "gauge",
        "The disk in use; fallback is 1 where another one was asked for.",
    );
    let labels = format!(
        "disk=\"{}\",fallback=\"{}\"",
        service.disk,
        u8::from(service.disk_fallback)
    );
    page.sample("varve_disk_info", &labels, 1);
}

fn log(page: &mut Page, service: &Service) {
    let stats = service.node.wal_stats();
    page.counter(
        "varve_wal_syncs_total",
        "Durable writes of the log.",
        load(&stats.syncs),
    );
    powers(
        page,
        "etcd_disk_wal_fsync_duration_seconds",
        "The latency distributions of fsync called by WAL.",
        &stats.sync_us,
        1e-6,
    );
    powers(
        page,
        "varve_wal_batch_records",
        "Records of one group commit.",
        &stats.batch_records,
        1.0,
    );
    powers(
        page,
        "varve_wal_batch_bytes",
        "Bytes of one group commit.",
        &stats.batch_bytes,
        1.0,
    );
    page.gauge(
        "varve_wal_segments",
        "Segments of the log that are held.",
        load(&stats.segments),
    );
    page.counter(
        "etcd_disk_wal_write_bytes_total",
        "Total number of bytes written in WAL.",
        load(&stats.end_lsn),
    );
    page.gauge(
        "varve_wal_latched",
        "1 once an error of the disk has stopped the log.",
        load(&stats.latched),
    );
}

/// A histogram of the engine: buckets by powers of two, bounds exclusive.
fn powers(page: &mut Page, name: &str, help: &str, histogram: &Histogram, unit: f64) {
    page.metric(name, "histogram", help);
    let mut total = 0;
    for (bound, count) in histogram.buckets() {
        total += count;
        let bound = bound.map_or("+Inf".to_owned(), |bound| (bound as f64 * unit).to_string());
        page.sample(&format!("{name}_bucket"), &format!("le=\"{bound}\""), total);
    }
    page.sample(&format!("{name}_sum"), "", histogram.sum() as f64 * unit);
    page.sample(&format!("{name}_count"), "", total);
}

fn store(page: &mut Page, service: &Service) {
    let view = service.node.view();
    // O(log n) on the B+tree. A store that can't answer shows it elsewhere.
    if let Ok(sums) = view.live_sums(KeyRange::From(b"")) {
        page.gauge(
            "etcd_debugging_mvcc_keys_total",
            "Total number of keys.",
            sums.keys,
        );
        page.gauge(
            "varve_live_bytes",
            "Bytes of live keys and values.",
            sums.bytes,
        );
    }
    page.gauge(
        "etcd_debugging_mvcc_current_revision",
        "The current revision of store.",
        view.revision(),
    );
    page.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        view.compacted(),
    );
    let metrics = &service.metrics;
    for (name, help, value) in [
        (
            "etcd_debugging_mvcc_watcher_total",
            "Total number of watchers.",
            service.hub.watchers() as u64,
        ),
        (
            "etcd_debugging_mvcc_watch_stream_total",
            "Total number of watch streams.",
            get(&metrics.watch_streams),
        ),
        (
            "etcd_debugging_mvcc_slow_watcher_total",
            "Total number of unsynced slow watchers.",
            service.hub.behind() as u64,
        ),
        (
            "etcd_debugging_mvcc_pending_events_total",
            "Total number of pending events to be sent: none, as watches are cursors.",
            0,
        ),
    ] {
        page.gauge(name, help, value);
    }
    for (name, help, value) in [
        (
            "etcd_debugging_mvcc_events_total",
            "Total number of events sent by this member.",
            get(&metrics.events_sent),
        ),
        (
            "varve_watch_store_reads_total",
            "Reads of the history for watches that were behind.",
            get(&metrics.watch_store_reads),
        ),
    ] {
        page.counter(name, help, value);
    }
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

fn scrub(page: &mut Page, service: &Service) {
    page.gauge(
        "varve_damaged_places",
        "Pages of the store in use, and groups of the log, that were found damaged.",
        service.node.known_damage().places,
    );
    let Some(stats) = service.node.scrub_stats() else {
        return;
    };
    for (name, help, value) in [
        (
            "varve_scrub_passes_total",
            "Times that all of store and log was read and verified since the start.",
            &stats.passes,
        ),
        (
            "varve_scrub_read_bytes_total",
            "Bytes that the scrub read.",
            &stats.read_bytes,
        ),
        (
            "varve_scrub_errors_total",
            "Places that the scrub found damaged, counted anew in each pass.",
            &stats.errors,
        ),
    ] {
        page.counter(name, help, load(value));
    }
    let total = load(&stats.total_bytes).max(1);
    page.gauge(
        "varve_scrub_progress_ratio",
        "How much of the present pass of the scrub is done.",
        (load(&stats.pass_bytes) as f64 / total as f64).min(1.0),
    );
    if let Some(ended) = stats.last_pass() {
        page.gauge(
            "varve_scrub_last_pass_age_seconds",
            "Time since the scrub last came to the end of a pass.",
            ended.elapsed().as_secs(),
        );
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
