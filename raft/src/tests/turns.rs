//! Turns on other threads than the replica's.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use varve_engine::disk::{Disk, SimDisk};
use varve_engine::mvcc::View;
use varve_types::{ApiError, Command, PutRequest};

use crate::test_stores::TestStores;
use crate::{
    Completion, Config, InitialCluster, NoTransport, Node, NodeHandle, Proposal, ReadSink,
    ReplySink, push_command,
};

struct Answer(Sender<Result<Completion, ApiError>>);

impl ReplySink for Answer {
    fn complete(self: Box<Self>, completion: Completion) {
        let _ = self.0.send(Ok(completion));
    }
    fn refuse(self: Box<Self>, error: ApiError) {
        let _ = self.0.send(Err(error));
    }
}

fn start() -> Node {
    let (disk, stores) = (SimDisk::new(), TestStores::default());
    let shared: Arc<dyn Disk> = Arc::new(disk);
    let mut config = Config::new("/data", shared.clone(), stores.opener(shared));
    config.name = "n0".to_owned();
    config.advertise_peer_urls = vec!["http://10.0.0.1:2380".to_owned()];
    config.initial_cluster = InitialCluster::parse("n0=http://10.0.0.1:2380").unwrap();
    Node::start(config, Box::new(NoTransport), Box::new(())).unwrap()
}

fn propose(node: &NodeHandle, value: &[u8]) -> Receiver<Result<Completion, ApiError>> {
    let mut body = Vec::new();
    let put = Command::Put(PutRequest {
        key: b"k",
        value,
        ..PutRequest::default()
    });
    put.encode_body(&mut body);
    let mut commands = Vec::new();
    push_command(&mut commands, put.opcode(), &body);
    let (sender, answer) = channel();
    node.propose(Proposal {
        commands: commands.into(),
        count: 1,
        reply_bytes: 0,
        sink: Box::new(Answer(sender)),
    });
    answer
}

fn revision(answer: &Receiver<Result<Completion, ApiError>>) -> i64 {
    let answer = answer.recv_timeout(Duration::from_secs(60)).unwrap();
    answer.unwrap().replies[0].revision
}

#[test]
fn nobody_takes_a_turn_past_the_queue() {
    let node = start();
    let handle = node.handle();
    revision(&propose(handle, b"first"));
    for _ in 0..200 {
        let turn = handle.shared.turns.lock();
        let queued = propose(handle, b"1");
        assert!(!handle.shared.inputs.is_empty(), "the turn is taken");
        // Now it is free, and the replica's thread is on its way.
        drop(turn);
        let next = propose(handle, b"2");
        assert!(revision(&queued) < revision(&next));
    }
}

#[test]
fn a_panic_where_a_lone_put_is_applied_ends_the_node_and_answers_those_who_wait() {
    struct Panics(Arc<Mutex<bool>>);
    impl ReplySink for Panics {
        fn complete(self: Box<Self>, _completion: Completion) {
            *self.0.lock().unwrap() = true;
            panic!("a sink that panics");
        }
        fn refuse(self: Box<Self>, _error: ApiError) {}
    }
    let node = start();
    let handle = node.handle();
    revision(&propose(handle, b"first"));
    let has_run = Arc::new(Mutex::new(false));
    handle.propose(Proposal {
        commands: {
            let mut commands = Vec::new();
            let mut body = Vec::new();
            let put = Command::Put(PutRequest::default());
            put.encode_body(&mut body);
            push_command(&mut commands, put.opcode(), &body);
            commands.into()
        },
        count: 1,
        reply_bytes: 0,
        sink: Box::new(Panics(Arc::clone(&has_run))),
    });
    ends_with(handle, "a bug in the store");
    assert!(*has_run.lock().unwrap());
}

/// Waits until the node has ended for this reason. Who comes later is refused.
fn ends_with(handle: &NodeHandle, reason: &str) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while handle.failure().is_none() {
        assert!(std::time::Instant::now() < end, "the node goes on");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(handle.failure().unwrap().contains(reason));
    let refused = propose(handle, b"later");
    let refused = refused.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(refused, Err(ApiError::Stopped));
}

#[test]
fn a_panic_in_a_turn_on_another_thread_ends_the_node() {
    struct Panics(Sender<std::thread::ThreadId>);
    impl ReadSink for Panics {
        fn ready(self: Box<Self>, _view: Arc<View>, _term: u64) {
            let _ = self.0.send(std::thread::current().id());
            panic!("a sink that panics");
        }
        fn refuse(self: Box<Self>, _error: ApiError) {}
    }
    let here = std::thread::current().id();
    for _ in 0..100 {
        let node = start();
        let handle = node.handle();
        revision(&propose(handle, b"first"));
        let (sender, thread) = channel();
        handle.read(Box::new(Panics(sender)));
        let thread = thread.recv_timeout(Duration::from_secs(60)).unwrap();
        ends_with(handle, "a bug in the replica");
        if thread == here {
            return;
        }
    }
    panic!("no read was answered on the thread that brought it");
}
