//! Phases of load, a closed loop or a steady rate, over connections that are spread over a few
//! generator threads.
//!
//! Each thread runs its own single-threaded runtime with its share of the
//! connections, so that nothing is shared or locked per operation; the threads
//! meet only to start together and at the end, when their counts are merged.

pub(crate) mod counts;
pub(crate) mod ledger;
pub(crate) mod pace;
pub(crate) mod progress;
pub(crate) mod slots;
pub(crate) mod value;
pub(crate) mod verify;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Barrier, oneshot};
use tokio::task::LocalSet;

use crate::cli::{LoadShape, OpMix, TargetKind};
use crate::error::{BenchError, Result};
use crate::target::Link;
use counts::Counts;
use ledger::Ledger;
use pace::{Pace, Schedule};
use slots::{Plan, Slot, Window, Worker, WorkerSetup};

/// How long connecting may take before the run is given up.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a lost connection or a refused operation, so that errors do not spin.
pub(crate) const BACK_OFF: Duration = Duration::from_millis(20);
/// A fill that has not moved for this long is given up.
const FILL_PATIENCE: Duration = Duration::from_secs(30);

/// What the threads share.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Set to end the phase early.
    stop: AtomicBool,
    /// When the load began, the same for all threads.
    start: OnceLock<Instant>,
    /// Operations done, for the progress display.
    pub(crate) done: AtomicU64,
    /// Operations failed, for the progress display.
    pub(crate) failed: AtomicU64,
}

impl Control {
    /// Ends the phase.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What a phase does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Write every key once.
    Fill,
    /// Measure this.
    Measure(OpMix),
}

/// One phase of load.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    /// What the endpoints speak.
    pub(crate) target: TargetKind,
    /// Where the connections go, in turn.
    pub(crate) endpoints: Vec<String>,
    /// The load.
    pub(crate) shape: LoadShape,
    /// What to do.
    pub(crate) work: Work,
}

/// What must survive from phase to phase.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What is known of each key.
    pub(crate) ledger: Ledger,
    /// The next sequence number.
    pub(crate) sequence: u64,
}

struct ThreadPlan {
    phase: Phase,
    setup: WorkerSetup,
    connections: Vec<ConnectionPlan>,
}

#[derive(Clone, Copy)]
struct ConnectionPlan {
    /// Among all connections.
    number: usize,
    /// Where it connects to first.
    endpoint: usize,
    clients: usize,
}

struct ThreadResult {
    counts: Counts,
    ledger: Ledger,
    sequence: u64,
}

/// Runs one phase on all threads and merges what they found into `memory`.
pub(crate) async fn run_phase(
    phase: &Phase,
    memory: &mut Memory,
    control: &Arc<Control>,
) -> Result<Counts> {
    let shape = &phase.shape;
    let barrier = Arc::new(Barrier::new(shape.threads));
    let mut results = Vec::new();
    for plan in split(phase, memory) {
        let (send, receive) = oneshot::channel();
        let (control, barrier) = (Arc::clone(control), Arc::clone(&barrier));
        std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                // A receiver that is gone means that the run was given up.
                let _ = send.send(run_thread(plan, &control, &barrier));
            })
            .map_err(|source| BenchError::Io {
                action: "start thread",
                path: "load".into(),
                source,
            })?;
        results.push(receive);
    }
    let mut merged: Option<Counts> = None;
    let mut failure = None;
    for receive in results {
        match receive.await.map_err(|_| BenchError::Worker)? {
            Err(error) => failure = Some(error),
            Ok(result) => {
                memory.ledger.merge(&result.ledger);
                memory.sequence = memory.sequence.max(result.sequence);
                match &mut merged {
                    Some(counts) => counts.merge(result.counts),
                    None => merged = Some(result.counts),
                }
            }
        }
    }
    match (failure, merged) {
        (Some(error), _) => Err(error),
        (None, Some(counts)) => Ok(counts),
        (None, None) => Err(BenchError::Worker),
    }
}

/// Deals connections, clients and keys out to the threads.
fn split(phase: &Phase, memory: &Memory) -> Vec<ThreadPlan> {
    let shape = &phase.shape;
    let threads = shape.threads;
    (0..threads)
        .map(|thread| {
            let share = |total: usize, parts: usize, part: usize| {
                total / parts + usize::from(part < total % parts)
            };
            let connections = (thread..shape.conns)
                .step_by(threads)
                .map(|conn| ConnectionPlan {
                    number: conn,
                    endpoint: conn % phase.endpoints.len(),
                    clients: share(shape.clients, shape.conns, conn),
                })
                .collect();
            let edge = |part: usize| (u64::from(shape.keys) * part as u64 / threads as u64) as u32;
            let plan = match phase.work {
                Work::Fill => Plan::Fill {
                    next: edge(thread),
                    end: edge(thread + 1),
                    again: Vec::new(),
                },
                Work::Measure(mix) => Plan::Random {
                    keys: shape.keys,
                    read_percent: match mix {
                        OpMix::Put => 0,
                        OpMix::Get | OpMix::Sget => 100,
                        OpMix::Mixed => shape.read_ratio,
                    },
                    serializable: mix == OpMix::Sget,
                },
            };
            ThreadPlan {
                phase: phase.clone(),
                setup: WorkerSetup {
                    plan,
                    seed: shape.seed.wrapping_add(thread as u64 * 7919),
                    value_size: shape.value_size,
                    sequence: memory.sequence + thread as u64,
                    sequence_step: threads as u64,
                    ledger: memory.ledger.for_worker(),
                },
                connections,
            }
        })
        .collect()
}

fn run_thread(plan: ThreadPlan, control: &Arc<Control>, barrier: &Barrier) -> Result<ThreadResult> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| BenchError::Io {
            action: "start runtime",
            path: "load".into(),
            source,
        })?;
    LocalSet::new().block_on(&runtime, run_connections(plan, control, barrier))
}

async fn run_connections(
    plan: ThreadPlan,
    control: &Arc<Control>,
    barrier: &Barrier,
) -> Result<ThreadResult> {
    let phase = Rc::new(plan.phase);
    let opened = open_all(&phase, &plan.connections).await;
    if opened.is_err() {
        control.stop();
    }
    // Every thread comes here, or none would start.
    barrier.wait().await;
    let links = opened?;

    let start = *control.start.get_or_init(Instant::now);
    let mut worker = Worker::new(plan.setup);
    let (mut window, mut deadline) = (None, None);
    if phase.work != Work::Fill {
        let measure_from = start + phase.shape.warmup;
        let stop_at = measure_from + phase.shape.duration;
        let counted = Window {
            measure_from,
            stop_at,
        };
        worker.open_window(counted);
        window = Some(counted);
        deadline = Some(stop_at + phase.shape.patience);
    }
    let worker = Rc::new(RefCell::new(worker));
    let mut tasks = tokio::task::JoinSet::new();
    for (link, connection) in links.into_iter().zip(plan.connections) {
        let (phase, worker) = (Rc::clone(&phase), Rc::clone(&worker));
        let pace = pace(&phase.shape, connection.number, start, window)?;
        tasks.spawn_local(async move {
            run_connection(&phase, link, connection, pace, &worker).await;
        });
    }
    supervise(&mut tasks, &worker, control, deadline, &phase).await?;
    drop(tasks);
    let mut worker = worker.borrow_mut();
    worker.give_up();
    let counts = std::mem::replace(&mut worker.counts, Counts::new());
    Ok(ThreadResult {
        counts,
        sequence: worker.next_sequence(),
        ledger: std::mem::replace(&mut worker.ledger, Ledger::new(0)),
    })
}

/// A fill has no window, and no rate.
fn pace(shape: &LoadShape, number: usize, start: Instant, window: Option<Window>) -> Result<Pace> {
    let Some(window) = window.filter(|_| shape.rate > 0.0) else {
        return Ok(Pace::Closed);
    };
    Schedule::new(shape.rate, number, shape.conns, start, window)
        .map(Pace::Open)
        .map_err(|source| BenchError::Io {
            action: "make timer",
            path: "load".into(),
            source,
        })
}

async fn open_all(phase: &Phase, connections: &[ConnectionPlan]) -> Result<Vec<Link>> {
    let mut links = Vec::with_capacity(connections.len());
    let give_up_at = Instant::now() + CONNECT_PATIENCE;
    for connection in connections {
        let endpoint = &phase.endpoints[connection.endpoint];
        loop {
            match Link::connect(phase.target, endpoint).await {
                Ok(link) => {
                    links.push(link);
                    break;
                }
                Err(what) if Instant::now() >= give_up_at => {
                    return Err(BenchError::target(endpoint, what));
                }
                Err(_) => tokio::time::sleep(BACK_OFF).await,
            }
        }
    }
    Ok(links)
}

/// Drives one connection to the end of the phase; after a loss, on the next endpoint.
async fn run_connection(
    phase: &Phase,
    link: Link,
    connection: ConnectionPlan,
    mut pace: Pace,
    worker: &RefCell<Worker>,
) {
    let mut slots = vec![Slot::idle(); connection.clients];
    let mut endpoint = connection.endpoint;
    let mut link = Some(link);
    loop {
        let why = match link.take() {
            Some(mut live) => match live.drive(&mut slots, &mut pace, worker).await {
                Ok(()) => return,
                Err(why) => why,
            },
            None => match Link::connect(phase.target, &phase.endpoints[endpoint]).await {
                Ok(live) => {
                    link = Some(live);
                    continue;
                }
                Err(why) => why,
            },
        };
        let now = Instant::now();
        worker.borrow_mut().lost(&mut slots, &why, now);
        if worker.borrow().is_over(now) {
            return;
        }
        endpoint = (endpoint + 1) % phase.endpoints.len();
        tokio::time::sleep(BACK_OFF).await;
    }
}

/// Waits for the connections to finish, passes counts on to the display, and
/// ends what does not end by itself.
async fn supervise(
    tasks: &mut tokio::task::JoinSet<()>,
    worker: &RefCell<Worker>,
    control: &Control,
    mut deadline: Option<Instant>,
    phase: &Phase,
) -> Result<()> {
    let mut shown = (0, 0);
    let mut moved_at = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                None => break,
                Some(Ok(())) => continue,
                Some(Err(_)) => return Err(BenchError::Worker),
            },
            _ = tick.tick() => {}
        }
        let now = Instant::now();
        if control.is_stopped() {
            worker.borrow_mut().stop();
            let soon = now + Duration::from_secs(1);
            deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
        }
        let seen = {
            let worker = worker.borrow();
            (worker.counts.completed, worker.counts.errors)
        };
        if seen.0 != shown.0 {
            moved_at = now;
        }
        control.done.fetch_add(seen.0 - shown.0, Ordering::Relaxed);
        control
            .failed
            .fetch_add(seen.1 - shown.1, Ordering::Relaxed);
        shown = seen;
        if phase.work == Work::Fill && now.duration_since(moved_at) > FILL_PATIENCE {
            let worker = worker.borrow();
            return Err(BenchError::Prefill {
                done: worker.counts.completed,
                keys: u64::from(phase.shape.keys),
                what: worker
                    .counts
                    .messages
                    .iter()
                    .max_by_key(|(_, count)| **count)
                    .map_or_else(|| "no answers".to_owned(), |(message, _)| message.clone()),
            });
        }
        if deadline.is_some_and(|deadline| now >= deadline) {
            break;
        }
    }
    Ok(())
}
