//! A store and its log, used as a replica uses them: a command is durable in the
//! log before it is applied, checkpoints come now and then, and the log is let
//! go behind them. One thread, so that a seed gives the same run again.

use std::path::Path;
use std::sync::Arc;

use varve_engine::backend::conformance::Random;
use varve_engine::backend::memory::Memory;
use varve_engine::backend::{Applied, Backend};
use varve_engine::btree::{Btree, Options};
use varve_engine::disk::{Disk, SimDisk};
use varve_engine::mvcc::{BatchOptions, CompactBudget, Store, View};
use varve_engine::wal::{Group, Identity, Lsn, Wal, WalConfig};
use varve_types::{
    Command, CompactionRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest,
};

pub(crate) const WAL_DIR: &str = "/data/wal";
pub(crate) const STORE: &str = "/data/store";

const KEYS: usize = 96;

pub(crate) fn new_disk(recording: bool) -> SimDisk {
    let disk = if recording {
        SimDisk::recording()
    } else {
        SimDisk::new()
    };
    disk.create_dir(Path::new(WAL_DIR)).expect("directories");
    disk.sync_dir(Path::new("/data")).expect("synced");
    disk.sync_dir(Path::new("/")).expect("synced");
    disk
}

/// A command in its bytes, as the log has it.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    opcode: u8,
    body: Vec<u8>,
}

impl Logged {
    fn new(command: &Command<'_>) -> Self {
        let mut body = Vec::new();
        command.encode_body(&mut body);
        Self {
            opcode: command.opcode(),
            body,
        }
    }

    pub(crate) fn command(&self) -> Command<'_> {
        Command::decode_body(self.opcode, &self.body).expect("was encoded here")
    }
}

fn key(random: &mut Random) -> Vec<u8> {
    format!("/registry/{:03}", random.below(KEYS)).into_bytes()
}

fn value(random: &mut Random) -> Vec<u8> {
    let length = match random.below(24) {
        0 => 9000,
        1 => 3000,
        2..=6 => 700,
        _ => 40,
    };
    vec![random.number() as u8; length]
}

/// A random command on a store at `revision`.
pub(crate) fn random_command(random: &mut Random, revision: i64) -> Logged {
    let (first, second) = (key(random), key(random));
    let (old, new) = (value(random), value(random));
    let put = |key, value| PutRequest {
        key,
        value,
        ..PutRequest::default()
    };
    Logged::new(&match random.below(20) {
        0 => Command::Compaction(CompactionRequest {
            revision: revision - random.below(60) as i64,
            physical: false,
        }),
        1 | 2 => Command::DeleteRange(DeleteRangeRequest {
            key: first.as_slice().min(&second),
            range_end: first.as_slice().max(&second),
            prev_kv: false,
        }),
        3..=5 => Command::DeleteRange(DeleteRangeRequest {
            key: &first,
            ..DeleteRangeRequest::default()
        }),
        6..=9 => Command::Txn(TxnRequest {
            compare: vec![Compare {
                key: &first,
                range_end: b"",
                result: CompareResult::Greater,
                target: CompareTarget::Version(1),
            }],
            success: vec![RequestOp::DeleteRange(DeleteRangeRequest {
                key: &first,
                ..DeleteRangeRequest::default()
            })],
            failure: if first == second {
                vec![RequestOp::Put(put(&first, &old))]
            } else {
                vec![
                    RequestOp::Put(put(&first, &old)),
                    RequestOp::Put(put(&second, &new)),
                ]
            },
        }),
        _ => Command::Put(put(&first, &new)),
    })
}

/// What the log held when it was opened.
struct Record {
    index: u64,
    lsn: Lsn,
    commands: Vec<Logged>,
}

impl Record {
    fn decode(lsn: Lsn, payload: &[u8]) -> Self {
        let (index, mut rest) = payload.split_at(8);
        let mut commands = Vec::new();
        while let Some((length, more)) = rest.split_at_checked(4) {
            let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            let (command, more) = more.split_at(length);
            commands.push(Logged {
                opcode: command[0],
                body: command[1..].to_vec(),
            });
            rest = more;
        }
        Self {
            index: u64::from_le_bytes(index.try_into().expect("eight bytes")),
            lsn,
            commands,
        }
    }
}

fn encode(index: u64, commands: &[Logged], group: &mut Group) {
    let mut payload = index.to_le_bytes().to_vec();
    for command in commands {
        payload.extend_from_slice(&(command.body.len() as u32 + 1).to_le_bytes());
        payload.push(command.opcode);
        payload.extend_from_slice(&command.body);
    }
    group.clear();
    group.push(1, &[&payload]).expect("it fits");
}

pub(crate) type Failed = Box<dyn std::error::Error>;

/// Applies one log entry.
pub(crate) fn apply(store: &mut Store, index: u64, commands: &[Logged]) -> Result<(), Failed> {
    let mut txn = store.begin(BatchOptions::default())?;
    for command in commands {
        txn.apply_silent(&command.command())?;
    }
    txn.publish(Applied { term: 1, index })?;
    Ok(())
}

/// Everything of one process.
pub(crate) struct System {
    pub(crate) wal: Wal,
    pub(crate) store: Store,
    pub(crate) backend: Arc<dyn Backend>,
    /// Where the log has the entries that it may still hold.
    positions: Vec<(u64, Lsn)>,
    group: Group,
}

impl System {
    /// Opens log and store and replays what the store lacks. Gives back the state
    /// of the store before that.
    pub(crate) fn open(disk: &SimDisk) -> Result<(Self, Arc<View>), Failed> {
        let options = Options { map_bytes: 1 << 24 };
        let backend: Arc<dyn Backend> = Arc::new(Btree::open(disk, Path::new(STORE), options)?);
        let store = Store::open(backend.clone())?;
        let config = WalConfig {
            segment_bytes: 16 * 4096,
            spare_segments: 1,
            prepare_in_background: false,
        };
        let identity = Identity {
            cluster_id: 7,
            member_id: 9,
        };
        let mut records = Vec::new();
        let (wal, _) = Wal::open(
            Arc::new(disk.clone()),
            Path::new(WAL_DIR),
            config,
            identity,
            &mut |lsn, _, payload| records.push(Record::decode(lsn, payload)),
        )?;
        let mut system = Self {
            wal,
            store,
            backend,
            positions: records.iter().map(|r| (r.index, r.lsn)).collect(),
            group: Group::new(),
        };
        let found = system.store.view();
        let mut next = found.applied().index + 1;
        if let Some(last) = records.last()
            && last.index + 1 < next
        {
            let text = format!(
                "the store has entry {}, the log ends at {}",
                next - 1,
                last.index
            );
            return Err(text.into());
        }
        for record in &records {
            if record.index == next {
                apply(&mut system.store, record.index, &record.commands)?;
                next += 1;
            } else if record.index > next {
                return Err(format!("entry {next} is lost: the log has {}", record.index).into());
            }
        }
        Ok((system, found))
    }

    pub(crate) fn index(&self) -> u64 {
        self.store.view().applied().index
    }

    /// Makes an entry durable in the log.
    pub(crate) fn log(&mut self, index: u64, commands: &[Logged]) -> Result<(), Failed> {
        encode(index, commands, &mut self.group);
        let lsn = self.wal.commit(&mut self.group)?.first_lsn;
        self.positions.push((index, lsn));
        Ok(())
    }

    pub(crate) fn apply(&mut self, index: u64, commands: &[Logged]) -> Result<(), Failed> {
        apply(&mut self.store, index, commands)
    }

    /// As [`System::apply`], with a checkpoint while the batch is open.
    pub(crate) fn apply_beside_checkpoint(
        &mut self,
        index: u64,
        commands: &[Logged],
    ) -> Result<u64, Failed> {
        let mut txn = self.store.begin(BatchOptions::default())?;
        let mut durable = 0;
        for (number, command) in commands.iter().enumerate() {
            if number == commands.len() / 2 {
                durable = self.backend.checkpoint()?.index;
            }
            txn.apply_silent(&command.command())?;
        }
        txn.publish(Applied { term: 1, index })?;
        Ok(durable)
    }

    /// Removes some compacted history.
    pub(crate) fn compact_step(&mut self) -> Result<(), Failed> {
        if self.store.compaction_pending() {
            let applied = self.store.view().applied();
            let budget = CompactBudget {
                entries: 9,
                ..CompactBudget::default()
            };
            let mut txn = self.store.begin(BatchOptions::default())?;
            txn.compact_step(budget)?;
            txn.publish(applied)?;
        }
        Ok(())
    }

    /// Lets the log up to entry `index` go.
    pub(crate) fn release(&mut self, index: u64) {
        self.positions.retain(|(kept, _)| *kept > index);
        let lsn = self.positions.first().map(|(_, lsn)| *lsn);
        self.wal.release(lsn.unwrap_or(self.wal.next_lsn()));
    }
}

/// The states that commands come to, from an engine that has no disk.
pub(crate) struct Model {
    store: Store,
    states: Vec<Arc<View>>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let store = Store::open(Arc::new(Memory::new())).expect("an empty store");
        let states = vec![store.view()];
        Self { store, states }
    }

    pub(crate) fn apply(&mut self, commands: &[Logged]) {
        let index = self.states.len() as u64;
        apply(&mut self.store, index, commands).expect("memory does not fail");
        self.states.push(self.store.view());
    }

    pub(crate) fn at(&self, index: u64) -> Option<&View> {
        self.states.get(index as usize).map(|view| &**view)
    }

    /// Whether `view` is the state after its entry.
    pub(crate) fn compare(&self, view: &View) -> Result<(), Failed> {
        let index = view.applied().index;
        let expected = self
            .at(index)
            .ok_or_else(|| format!("entry {index} was never made"))?;
        let marks = |view: &View| (view.revision(), view.compacted(), view.hash());
        if marks(view) != marks(expected) {
            let (found, expected) = (marks(view), marks(expected));
            return Err(format!("entry {index}: {found:?} in place of {expected:?}").into());
        }
        let all = RangeRequest {
            key: b"\0",
            range_end: b"\0",
            ..RangeRequest::default()
        };
        if view.range(&all)? != expected.range(&all)? {
            return Err(format!("entry {index}: the hash is right, the keys are not").into());
        }
        Ok(())
    }
}
