//! Watchers of everything: each must be given every event once, in order, and the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use varve_protocol::WatchRequest;
use varve_raft::simulation::history::{Event, Version};
use varve_types::{Event as Told, EventKind};

use super::cluster::Cluster;
use super::record::Record;

/// How long the last events may take once nothing is wrong any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// The revision of the first change.
const FIRST_REVISION: i64 = 2;

/// The watchers that run: one for each member, which goes on elsewhere when it must.
pub(super) struct Watchers {
    tasks: JoinSet<String>,
    next: Arc<Vec<AtomicI64>>,
    events: Arc<AtomicU64>,
}

pub(super) fn start(cluster: &Cluster, record: &Arc<Record>) -> Watchers {
    let positions = (0..cluster.count()).map(|_| AtomicI64::new(FIRST_REVISION));
    let next: Arc<Vec<AtomicI64>> = Arc::new(positions.collect());
    let events = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..cluster.count() {
        let client = cluster.client(number, Duration::from_secs(5));
        let (record, next, events) = (record.clone(), next.clone(), events.clone());
        tasks.spawn(async move {
            let mut watch = client.watch(&WatchRequest {
                key: &[0],
                range_end: &[0],
                start_revision: FIRST_REVISION,
                ..WatchRequest::default()
            });
            loop {
                let update = match watch.next().await {
                    Some(Ok(update)) => update,
                    Some(Err(error)) => return format!("watcher {number} ended: {error}"),
                    None => return format!("watcher {number} ended"),
                };
                events.fetch_add(update.events.len() as u64, Ordering::Relaxed);
                for told in update.events.chunk_by(same_revision) {
                    let at = next[number].load(Ordering::Relaxed);
                    let revision = told[0].kv.mod_revision;
                    if revision != at {
                        return format!(
                            "watcher {number} was given revision {revision} instead of {at}"
                        );
                    }
                    if let Err(what) = note(&record, told) {
                        return format!("watcher {number}: {what}");
                    }
                    next[number].store(revision + 1, Ordering::Relaxed);
                }
            }
        });
    }
    Watchers {
        tasks,
        next,
        events,
    }
}

fn same_revision(a: &Told, b: &Told) -> bool {
    a.kv.mod_revision == b.kv.mod_revision
}

/// Holds the events of one revision against what the others were given.
fn note(record: &Record, told: &[Told]) -> Result<(), String> {
    let mut ledger = record.ledger();
    let revision = told[0].kv.mod_revision;
    let events = told.iter().map(|told| Event {
        key: told.kv.key.clone(),
        put: (told.kind == EventKind::Put).then(|| Version::of(&told.kv)),
        revision,
        replaced: ledger.at(&told.kv.key, revision - 1).map(|v| v.modified),
    });
    let events: Vec<Event> = events.collect();
    ledger.take(&events)
}

impl Watchers {
    /// Waits until all have seen everything up to `last`; what was wrong with one, and how
    /// many events there were.
    pub(super) async fn end(mut self, last: i64) -> (Result<(), String>, u64) {
        let deadline = Instant::now() + PATIENCE;
        let outcome = loop {
            if let Some(ended) = self.tasks.try_join_next() {
                break Err(ended.unwrap_or_else(|error| error.to_string()));
            }
            let seen = self.next.iter().map(|next| next.load(Ordering::Relaxed));
            let seen: Vec<i64> = seen.collect();
            if seen.iter().all(|next| *next > last) {
                break Ok(());
            }
            if Instant::now() > deadline {
                break Err(format!(
                    "watchers wait at {seen:?}, the last revision is {last}"
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        (outcome, self.events.load(Ordering::Relaxed))
    }
}
