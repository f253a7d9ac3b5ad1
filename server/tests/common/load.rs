//! Clients that write all the time, and what became of their writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use varve_client::Client;

use super::{Cluster, PATIENCE, all, put};

/// Clients that write until they are told to stop, and note what was acknowledged.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Outcome>>,
}

/// What became of the writes.
#[derive(Default)]
pub struct Outcome {
    /// Keys and values that were acknowledged.
    pub written: Vec<(String, String)>,
    /// Errors of the others.
    pub failed: Vec<String>,
    /// The longest that a write took until it was acknowledged or had failed.
    pub slowest: Duration,
}

impl Load {
    pub fn start(cluster: &Cluster, writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let tasks = (0..writers)
            .map(|writer| {
                let client = cluster.client();
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                tokio::spawn(async move { write(writer, client, &stop, &acknowledged).await })
            })
            .collect();
        Self {
            stop,
            acknowledged,
            tasks,
        }
    }

    /// Waits until so many more writes are acknowledged; how long that took.
    pub async fn more(&self, count: u64) -> Duration {
        let started = Instant::now();
        let goal = self.acknowledged.load(Ordering::Relaxed) + count;
        while self.acknowledged.load(Ordering::Relaxed) < goal {
            assert!(started.elapsed() < PATIENCE, "writes do not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    }

    pub async fn end(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Outcome::default();
        for task in self.tasks {
            let one = task.await.unwrap();
            all.written.extend(one.written);
            all.failed.extend(one.failed);
            all.slowest = all.slowest.max(one.slowest);
        }
        all
    }
}

async fn write(
    writer: usize,
    client: Client,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (key, value) = (format!("load/{writer}/{number:06}"), format!("v{number}"));
        let started = Instant::now();
        // What failed may have been written all the same; only what was
        // acknowledged must be there.
        match put(&client, &key, &value).await {
            Ok(_) => {
                acknowledged.fetch_add(1, Ordering::Relaxed);
                outcome.written.push((key, value));
            }
            Err(error) => outcome.failed.push(error.to_string()),
        }
        outcome.slowest = outcome.slowest.max(started.elapsed());
    }
    outcome
}

/// Every acknowledged write is there, at every member, and the members agree.
pub async fn assert_nothing_lost(cluster: &Cluster, written: &[(String, String)]) {
    cluster.assert_same_state().await;
    for member in cluster.members.iter().filter(|member| member.is_running()) {
        let found: std::collections::HashMap<_, _> =
            all(&member.client(), "load/").await.into_iter().collect();
        for (key, value) in written {
            assert_eq!(found.get(key), Some(value), "{key} at {}", member.name);
        }
    }
}
