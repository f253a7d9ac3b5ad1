//! Commands per second through one replica, without sockets: closed loops of
//! proposals against a node of one, on a real disk.
//!
//! `replica_rate ENGINE DISK DIRECTORY [CLIENTS] [COMMANDS PER PROPOSAL] [SECONDS]`

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use varve_engine::backend::Backend;
use varve_engine::backend::memory::Memory;
use varve_engine::btree::{Btree, Options};
use varve_engine::disk;
use varve_raft::{Completion, Config, NoTransport, Node, Proposal, ReplySink, StoreOpener};
use varve_types::{ApiError, Command, PutRequest};

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;

struct Done(Sender<(usize, usize)>, usize);

impl ReplySink for Done {
    fn complete(self: Box<Self>, completion: Completion) {
        let _ = self.0.send((self.1, completion.replies.len()));
    }
    fn refuse(self: Box<Self>, _error: ApiError) {
        let _ = self.0.send((self.1, 0));
    }
}

fn proposal(count: usize, random: &mut u64) -> Bytes {
    let value = vec![7; VALUE_BYTES];
    let mut commands = Vec::new();
    for _ in 0..count {
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let key = format!("key-{:015}", (*random >> 33) % KEYS);
        let put = Command::Put(PutRequest {
            key: key.as_bytes(),
            value: &value,
            ..PutRequest::default()
        });
        let mut body = Vec::new();
        put.encode_body(&mut body);
        varve_raft::push_command(&mut commands, put.opcode(), &body);
    }
    commands.into()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let text = |i: usize, default: &str| args.get(i).map_or(default.to_owned(), Clone::clone);
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |arg| arg.parse());
    let (engine, directory) = (text(1, "btree"), text(3, "replica_rate.varve"));
    let (clients, batch) = (number(4, 100)?, number(5, 10)?);
    let seconds = number(6, 5)?;
    let disk = disk::by_name(&text(2, "uring"))?.disk;
    let opener_disk = disk.clone();
    let opener: StoreOpener = Arc::new(move |path| {
        Ok(match engine.as_str() {
            "memory" => Arc::new(Memory::new()) as Arc<dyn Backend>,
            _ => Arc::new(Btree::open(&*opener_disk, path, Options::default())?),
        })
    });
    let node = Node::start(
        Config::new(directory, disk, opener),
        Box::new(NoTransport),
        Box::new(()),
    )?;
    let handle = node.handle();

    let mut random = 1;
    let prepared: Vec<Bytes> = (0..4096 / batch.clamp(1, 64))
        .map(|_| proposal(batch, &mut random))
        .collect();
    let (sender, receiver) = channel();
    let mut sent = vec![Instant::now(); clients];
    let mut next = 0;
    let mut send = |client: usize, sent: &mut Vec<Instant>| {
        next += 1;
        sent[client] = Instant::now();
        handle.propose(Proposal {
            commands: prepared[next % prepared.len()].clone(),
            count: batch as u32,
            reply_bytes: 0,
            sink: Box::new(Done(sender.clone(), client)),
        });
    };
    for client in 0..clients {
        send(client, &mut sent);
    }
    let (started, mut done) = (Instant::now(), 0);
    let mut latencies = Vec::new();
    while started.elapsed() < Duration::from_secs(seconds as u64) {
        let (client, count) = receiver.recv()?;
        done += count;
        latencies.push(sent[client].elapsed().as_micros());
        send(client, &mut sent);
    }
    let elapsed = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize];
    let stats = handle.wal_stats();
    let syncs = stats.syncs.load(std::sync::atomic::Ordering::Relaxed);
    println!(
        "{:.0} commands/s, proposals p50 {} us p99 {} us, {syncs} syncs, {:.1} commands per sync",
        done as f64 / elapsed,
        at(0.5),
        at(0.99),
        done as f64 / syncs.max(1) as f64
    );
    node.shutdown()?;
    Ok(())
}
