//! Metrics of the log and the store.

use varve_engine::wal::Histogram;
use varve_types::KeyRange;

use super::load;
use crate::metrics::get;
use crate::metrics::text::Page;
use crate::service::Service;

pub(super) fn storage(page: &mut Page, service: &Service) {
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

pub(super) fn log(page: &mut Page, service: &Service) {
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

pub(super) fn store(page: &mut Page, service: &Service) {
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

pub(super) fn scrub(page: &mut Page, service: &Service) {
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
