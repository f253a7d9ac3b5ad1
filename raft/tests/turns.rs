//! Who takes the replica's turns, and in what order things are done.

mod common;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use common::{Cluster, command, keys, propose, put_for_sure, read, value, wait};
use varve_engine::mvcc::View;
use varve_raft::ReadSink;
use varve_types::{ApiError, Command, DeleteRangeRequest};

struct Noted(Arc<Mutex<Option<u64>>>);

impl ReadSink for Noted {
    fn ready(self: Box<Self>, view: Arc<View>, _term: u64) {
        *self.0.lock().unwrap() = Some(view.applied().index);
    }
    fn refuse(self: Box<Self>, _error: ApiError) {}
}

#[test]
fn a_lone_read_is_answered_before_the_call_returns() {
    let cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    put_for_sure(&node, b"k", b"v");
    // Now and then the replica is at its ticks.
    wait("a read on its own thread", || {
        let noted = Arc::new(Mutex::new(None));
        node.read(Box::new(Noted(Arc::clone(&noted))));
        let index = *noted.lock().unwrap();
        index.map(|index| assert!(index > 1))
    });
}

#[test]
fn a_lone_put_is_applied_where_it_is_found_committed_and_a_range_is_not() {
    let cluster = Cluster::start(1, |_| {});
    let node = cluster.handle("n0");
    wait("a put that is applied alone", || {
        let answer = propose(&node, &[command(b"k", b"v")]).recv().unwrap();
        answer.unwrap().is_alone.then_some(())
    });
    let delete = Command::DeleteRange(DeleteRangeRequest {
        key: b"a",
        range_end: b"z",
        ..DeleteRangeRequest::default()
    });
    let many: Vec<_> = (0..100).map(|_| command(b"k", b"v")).collect();
    for commands in [&[delete][..], &many] {
        for _ in 0..20 {
            let answer = propose(&node, commands).recv().unwrap();
            assert!(!answer.unwrap().is_alone);
        }
    }
}

/// Each thread lets a few proposals run ahead, so that some are taken at once and
/// some wait in the queue.
#[test]
fn what_one_thread_proposes_is_done_in_its_order() {
    const THREADS: u32 = 3;
    const EACH: u32 = 400;
    for size in [1, 3] {
        let cluster = Cluster::start(size, |_| {});
        let node = cluster.handle(&cluster.leader());
        put_for_sure(&node, b"ready", b"");
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let node = &node;
                scope.spawn(move || {
                    let (answers, queue) = channel();
                    let key = [b't', thread as u8];
                    scope.spawn(move || {
                        let mut last = 0;
                        for answer in queue {
                            let answer: std::sync::mpsc::Receiver<
                                Result<varve_raft::Completion, _>,
                            > = answer;
                            let revision = answer.recv().unwrap().unwrap().replies[0].revision;
                            assert!(revision > last, "{revision} after {last}");
                            last = revision;
                        }
                    });
                    for number in 0..EACH {
                        answers
                            .send(propose(node, &[command(&key, &number.to_le_bytes())]))
                            .unwrap();
                        if number % 7 == thread {
                            read(node).unwrap();
                        }
                    }
                });
            }
        });
        let view = read(&node).unwrap();
        for thread in 0..THREADS {
            let last = value(&view, &[b't', thread as u8]).unwrap();
            assert_eq!(last, (EACH - 1).to_le_bytes());
        }
        assert_eq!(keys(&view), i64::from(THREADS) + 1);
        cluster.settle();
    }
}
