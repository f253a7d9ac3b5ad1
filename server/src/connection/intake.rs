//! From received bytes to what the replica takes: one batch for each read of
//! the socket.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use varve_engine::mvcc::{reply_bytes, validate};
use varve_protocol::{
    Empty, ErrorCode, Flags, Frame, FrameHeader, Request, RequestError, WireError, encode_error,
    encode_reply, opcode,
};
use varve_raft::Proposal;
use varve_types::{AlarmAction, ApiError, Command, RangeRequest};

use super::Connection;
use super::inbox::{MaintainedSink, Reads, ViewSink, WriteSink, Writes};
use super::snapshot::SnapshotOut;
use super::work::Work;
use crate::metrics::{Kind, Kinds, add};
use crate::service::hash_kv;

/// A proposal is handed over once it is this long: far below what the log takes.
const PROPOSAL_BYTES: usize = 1 << 20;

/// Batches whose memory a connection keeps for the next ones.
const SPARES: usize = 4;
/// Most bytes that a kept batch has room for.
const SPARE_BYTES: usize = 64 << 10;

/// Memory of answered batches.
#[derive(Default)]
pub(super) struct Spares {
    reads: Vec<Reads>,
    writes: Vec<Writes>,
}

impl Spares {
    pub(super) fn keep_reads(&mut self, mut reads: Reads) {
        if self.reads.len() < SPARES && reads.bodies.capacity() <= SPARE_BYTES {
            reads.clear();
            self.reads.push(reads);
        }
    }

    pub(super) fn keep_writes(&mut self, mut writes: Writes) {
        if self.writes.len() < SPARES {
            writes.clear();
            self.writes.push(writes);
        }
    }
}

/// The requests of one read of the socket.
#[derive(Default)]
pub(super) struct Batch {
    /// `[u32 length][u8 opcode][body]` for each write.
    commands: Vec<u8>,
    writes: Writes,
    /// Reads that must see all that was acknowledged before.
    linearizable: Reads,
    /// Reads from whatever this member has.
    local: Reads,
    /// Requests that are answered at once.
    immediate: Kinds,
    /// Bytes of input, the most that all commands together can come to.
    input_bytes: usize,
}

impl Batch {
    /// A batch for what is in `input_bytes` of input.
    pub(super) fn new(spares: &mut Spares, input_bytes: usize) -> Self {
        Self {
            writes: spares.writes.pop().unwrap_or_default(),
            linearizable: spares.reads.pop().unwrap_or_default(),
            input_bytes,
            ..Self::default()
        }
    }

    /// Whether the writes are enough for a proposal.
    pub(super) fn is_full(&self) -> bool {
        self.commands.len() >= PROPOSAL_BYTES
    }

    /// Bytes that the answers of the writes may come to.
    pub(super) fn reply_bytes(&self) -> usize {
        self.writes.reply_bytes
    }

    fn push_write(&mut self, header: &FrameHeader, kind: Kind, body: &[u8], reply_bytes: usize) {
        // A body is bounded far below 4 GiB by the decoder.
        let length = body.len() as u32 + 1;
        if self.commands.is_empty() {
            self.commands.reserve(self.input_bytes);
        }
        self.commands.extend_from_slice(&length.to_le_bytes());
        self.commands.push(header.opcode);
        self.commands.extend_from_slice(body);
        self.writes
            .requests
            .push((header.request_id, header.opcode));
        self.writes.bytes += body.len();
        self.writes.reply_bytes += reply_bytes;
        self.writes.kinds[kind as usize] += 1;
    }

    fn push_read(&mut self, header: &FrameHeader, kind: Kind, body: &[u8], local: bool) {
        let reads = if local {
            &mut self.local
        } else {
            &mut self.linearizable
        };
        reads.bodies.extend_from_slice(body);
        reads
            .requests
            .push((header.request_id, header.opcode, reads.bodies.len()));
        reads.kinds[kind as usize] += 1;
    }
}

impl Connection {
    /// Takes in one request. Errors of a request are answered; the connection goes on.
    pub(super) fn take_request(&mut self, frame: &Frame<'_>, batch: &mut Batch) {
        let FrameHeader {
            opcode, request_id, ..
        } = frame.header;
        if let Some(error) = self.service.refusal(opcode, frame.body) {
            add(&self.service.metrics.failed, 1);
            return encode_error(&mut self.out, opcode, request_id, &error);
        }
        if opcode == opcode::RANGE
            && frame.header.flags == Flags::NONE
            && !RangeRequest::lacks_key(frame.body)
            && let Some(bits) = frame.body.first()
        {
            // Read as a whole, and refused if need be, when it is answered; but a missing
            // key is said without waiting for a quorum, as by etcd.
            let (kind, local) = match bits & 1 {
                0 => (Kind::Range, false),
                _ => (Kind::SerializableRange, true),
            };
            return batch.push_read(&frame.header, kind, frame.body, local);
        }
        let taken = match Request::from_frame(frame) {
            Ok(request) => self.sort_in(&frame.header, &request, frame.body, batch),
            Err(error) => {
                self.note_malformed(&error);
                Err((&error).into())
            }
        };
        if let Err(error) = taken {
            add(&self.service.metrics.failed, 1);
            encode_error(&mut self.out, opcode, request_id, &error);
        }
    }

    fn note_malformed(&self, error: &RequestError) {
        if error.api().is_some() {
            return;
        }
        add(&self.service.metrics.malformed, 1);
        self.log_limited(format_args!("a request was refused: {error}"));
    }

    fn sort_in(
        &mut self,
        header: &FrameHeader,
        request: &Request<'_>,
        body: &[u8],
        batch: &mut Batch,
    ) -> Result<(), WireError> {
        match request {
            Request::Put(put) => {
                let replies = self.check_write(&Command::Put(*put), body)?;
                batch.push_write(header, Kind::Put, body, replies);
            }
            Request::DeleteRange(delete) => {
                let replies = self.check_write(&Command::DeleteRange(*delete), body)?;
                batch.push_write(header, Kind::DeleteRange, body, replies);
            }
            Request::Compaction(compaction) => {
                let replies = self.check_write(&Command::Compaction(*compaction), body)?;
                if compaction.physical {
                    batch.writes.physical.push(batch.writes.requests.len());
                }
                batch.push_write(header, Kind::Compaction, body, replies);
            }
            Request::Alarm(alarm) if alarm.action == AlarmAction::Get => {
                batch.push_read(header, Kind::Other, body, false);
            }
            Request::Alarm(alarm) => {
                let replies = self.check_write(&Command::Alarm(*alarm), body)?;
                batch.push_write(header, Kind::Other, body, replies);
            }
            Request::Txn(txn) => {
                let (read_only, local) = (txn.is_read_only(), txn.is_serializable());
                let replies = self.check_write(&Command::Txn(txn.clone()), body)?;
                if read_only {
                    batch.push_read(header, Kind::Txn, body, local);
                } else {
                    batch.push_write(header, Kind::Txn, body, replies);
                }
            }
            Request::MemberList(list) => {
                batch.push_read(header, Kind::Other, body, !list.linearizable);
            }
            Request::Range(range) if range.key.is_empty() => {
                return Err(ApiError::KeyNotProvided.into());
            }
            Request::Space(_) => batch.push_read(header, Kind::Other, body, true),
            _ => self.answer_at_once(header, request, batch)?,
        }
        Ok(())
    }

    /// Refuses what can be refused before it costs a place in the log; else how
    /// large the answer may be.
    fn check_write(&self, command: &Command<'_>, body: &[u8]) -> Result<usize, WireError> {
        let limits = &self.service.limits;
        if body.len() > limits.request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        validate(command, &limits.store).map_err(WireError::from)?;
        // A value came in a request, so it is at most as long as one.
        Ok(reply_bytes(command, limits.request_bytes))
    }

    fn answer_at_once(
        &mut self,
        header: &FrameHeader,
        request: &Request<'_>,
        batch: &mut Batch,
    ) -> Result<(), WireError> {
        let id = header.request_id;
        batch.immediate[match request {
            Request::Watch(_) => Kind::Watch,
            _ => Kind::Other,
        } as usize] += 1;
        match request {
            Request::Watch(watch) => {
                let (out, watches) = self.watches();
                watches.create(id, watch, out);
            }
            Request::WatchCancel(cancel) => {
                let (out, watches) = self.watches();
                watches.cancel(cancel.watch, out);
            }
            Request::WatchCredit(credit) => self.watches().1.credit(credit.watch, credit.bytes),
            Request::WatchProgress(_) => {
                let (out, watches) = self.watches();
                watches.ask_progress(id, out);
            }
            Request::Defragment(_) => {
                let revision = self.service.node.view().revision();
                let reply_header = self.service.header(revision, self.service.term());
                let inbox = Arc::clone(&self.inbox);
                let sink = MaintainedSink::new(inbox, id, header.opcode, reply_header);
                self.service.node.defragment(sink);
                self.in_flight += 1;
            }
            Request::Snapshot(_) if self.snapshot.is_some() => {
                return Err(WireError::new(
                    ErrorCode::TooManyInFlight,
                    "one snapshot at a time on a connection",
                ));
            }
            Request::Snapshot(snapshot) => {
                let view = self.service.node.view();
                let reply_header = self.service.header(view.revision(), self.service.term());
                let sending = SnapshotOut::new(id, reply_header, view, snapshot.credit);
                self.snapshot = Some(sending);
            }
            Request::SnapshotCredit(credit) => {
                if let Some(snapshot) = &mut self.snapshot {
                    snapshot.add_credit(credit.snapshot, credit.bytes);
                }
            }
            _ if self.service.change(id, request, &self.inbox)? => self.in_flight += 1,
            _ => {
                let view = self.service.node.view();
                let reply_header = self.service.header(view.revision(), self.service.term());
                let (out, service) = (&mut self.out, &self.service);
                match request {
                    Request::Hello(_) => {
                        encode_reply(out, opcode::HELLO, id, &reply_header, &service.hello());
                    }
                    Request::Ping(_) => encode_reply(out, opcode::PING, id, &reply_header, &Empty),
                    Request::Status(_) => {
                        encode_reply(out, opcode::STATUS, id, &reply_header, &service.status());
                    }
                    Request::HashKv(hash) => {
                        let reply = hash_kv(&view, hash);
                        let reply = reply.map_err(|error| service.wire_error(&error, &view))?;
                        encode_reply(out, opcode::HASH_KV, id, &reply_header, &reply);
                    }
                    _ => {
                        return Err(WireError::new(
                            ErrorCode::UnknownOpcode,
                            format!("opcode {} is not served here", header.opcode),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands over what one read of the socket brought.
    pub(super) fn hand_over(&mut self, batch: Batch) {
        let started = Instant::now();
        let service = Arc::clone(&self.service);
        let metrics = &service.metrics;
        metrics.count_requests(&batch.immediate);
        let Batch {
            commands,
            writes,
            linearizable,
            local,
            ..
        } = batch;
        if !writes.requests.is_empty() {
            metrics.count_requests(&writes.kinds);
            add(&metrics.proposals, 1);
            add(&metrics.proposed_commands, writes.requests.len() as u64);
            self.in_flight += writes.requests.len();
            self.in_flight_bytes += writes.bytes;
            self.in_flight_reply_bytes += writes.reply_bytes;
            service.node.propose(Proposal {
                commands: Bytes::from(commands),
                // Bounded by what one read of the socket holds.
                count: writes.requests.len() as u32,
                reply_bytes: writes.reply_bytes,
                sink: WriteSink::new(self.inbox.clone(), writes, started),
            });
        } else {
            self.spares.keep_writes(writes);
        }
        if !linearizable.requests.is_empty() {
            metrics.count_requests(&linearizable.kinds);
            add(&metrics.read_batches, 1);
            self.in_flight += linearizable.requests.len();
            self.in_flight_bytes += linearizable.bodies.len();
            service
                .node
                .read(ViewSink::new(self.inbox.clone(), linearizable, started));
        } else {
            self.spares.keep_reads(linearizable);
        }
        if !local.requests.is_empty() {
            metrics.count_requests(&local.kinds);
            self.in_flight += local.requests.len();
            self.in_flight_bytes += local.bodies.len();
            let (view, term) = (service.node.view(), service.term());
            let work = Work::new(&service, local, started, view, term);
            self.work.push_back(work);
        }
    }
}
