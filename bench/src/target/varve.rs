//! Varve over its binary protocol.
//!
//! One pass of the loop sends everything that the free slots ask for in one
//! write, takes all replies that have come, and checks them where they lie.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use varve_client::RawConnection;
use varve_protocol::{Flags, Frame, Request, StatusResponse, WireError, decode_reply, opcode};
use varve_types::{
    CompactionRequest, DecodeError, KeyValue, RangeRequest, RangeResponse, Reader, ResponseHeader,
};

use super::{Page, authority};
use crate::load::BACK_OFF;
use crate::load::pace::Pace;
use crate::load::slots::{OpKind, Reply, Slot, Worker};

const DIAL_PATIENCE: Duration = Duration::from_secs(2);
/// Request id of the few requests outside a load.
const ADMIN_ID: u64 = 1;

/// One connection.
pub(crate) struct Link {
    raw: RawConnection,
}

impl Link {
    /// Connects.
    pub(crate) async fn connect(endpoint: &str) -> Result<Self, String> {
        RawConnection::connect(authority(endpoint), DIAL_PATIENCE)
            .await
            .map(|raw| Self { raw })
            .map_err(|error| format!("connect: {error}"))
    }

    /// See [`super::Link::drive`]. The request id is the slot's number.
    pub(crate) async fn drive(
        &mut self,
        slots: &mut [Slot],
        pace: &mut Pace,
        worker: &RefCell<Worker>,
    ) -> Result<(), String> {
        let mut free: Vec<usize> = (0..slots.len()).rev().collect();
        loop {
            let now = Instant::now();
            let mut over = false;
            {
                let mut worker = worker.borrow_mut();
                while let (Some(&index), Some(since)) = (free.last(), pace.due(now)) {
                    let Some(op) = worker.issue(&mut slots[index], since, now) else {
                        over = true;
                        break;
                    };
                    free.pop();
                    pace.issued();
                    let id = index as u64;
                    match op.kind {
                        OpKind::Put => self.raw.queue_put(id, op.key, op.value),
                        OpKind::Get { serializable } => {
                            self.raw.queue_get(id, op.key, serializable);
                        }
                    }
                }
            }
            let is_idle = free.len() == slots.len();
            if is_idle && over {
                return Ok(());
            }
            let has_time = !free.is_empty() && !over;
            let mut batch = Batch {
                arrived: None,
                slots: &mut *slots,
                worker,
                free: &mut free,
                refused: false,
                broken: None,
            };
            tokio::select! {
                received = self.raw.receive(|frame| batch.take(&frame)), if !is_idle => {
                    received.map_err(|error| error.to_string())?;
                }
                waited = pace.wait(), if has_time => waited?,
            }
            if let Some(what) = batch.broken {
                return Err(what);
            }
            if batch.refused {
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }

    /// A linearizable range.
    pub(crate) async fn range(
        &mut self,
        from: &[u8],
        end: &[u8],
        limit: i64,
    ) -> Result<Page, String> {
        let request = Request::Range(RangeRequest {
            key: from,
            range_end: end,
            limit,
            ..RangeRequest::default()
        });
        let mut page = Page::default();
        self.ask(&request, |body| {
            let (header, part) = decode_reply::<RangeResponse>(body)?;
            page.kvs.extend(part.kvs);
            (page.more, page.revision) = (part.more, header.revision);
            Ok(())
        })
        .await?;
        Ok(page)
    }

    /// Whether the member leads.
    pub(crate) async fn leads(&mut self) -> Result<bool, String> {
        let mut leads = false;
        let request = Request::Status(varve_protocol::Empty);
        self.ask(&request, |body| {
            let (header, status) = decode_reply::<StatusResponse>(body)?;
            leads = status.leader == header.member_id;
            Ok(())
        })
        .await?;
        Ok(leads)
    }

    /// Compacts up to `revision`.
    pub(crate) async fn compact(&mut self, revision: i64) -> Result<(), String> {
        let request = Request::Compaction(CompactionRequest {
            revision,
            physical: false,
        });
        self.ask(&request, |_| Ok(())).await
    }

    /// Sends one request and hands each frame of the answer to `take`.
    async fn ask(
        &mut self,
        request: &Request<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<(), String> {
        self.raw.queue(ADMIN_ID, request);
        let mut end = None;
        while end.is_none() {
            self.raw
                .receive(|frame| {
                    let flags = frame.header.flags;
                    if flags.has(Flags::ERROR) {
                        end = Some(Err(error_text(frame.body)));
                    } else if let Err(error) = take(frame.body) {
                        end = Some(Err(error.to_string()));
                    } else if !flags.has(Flags::MORE) && end.is_none() {
                        end = Some(Ok(()));
                    }
                })
                .await
                .map_err(|error| error.to_string())?;
        }
        end.unwrap_or(Ok(()))
    }
}

/// The replies of one read.
struct Batch<'a> {
    /// When they were seen: one look at the clock for all of them.
    arrived: Option<Instant>,
    slots: &'a mut [Slot],
    worker: &'a RefCell<Worker>,
    free: &'a mut Vec<usize>,
    refused: bool,
    broken: Option<String>,
}

impl Batch<'_> {
    fn take(&mut self, frame: &Frame<'_>) {
        if self.broken.is_some() {
            return;
        }
        let now = *self.arrived.get_or_insert_with(Instant::now);
        if let Err(what) = self.settle(frame, now) {
            self.broken = Some(what);
        }
    }

    fn settle(&mut self, frame: &Frame<'_>, now: Instant) -> Result<(), String> {
        let header = &frame.header;
        let failed = header.flags.has(Flags::ERROR);
        if failed && header.opcode == opcode::CONNECTION {
            return Err(error_text(frame.body));
        }
        let index = header.request_id as usize;
        let slot = self
            .slots
            .get_mut(index)
            .filter(|slot| slot.is_busy())
            .ok_or_else(|| format!("a reply to request {index}, which is not open"))?;
        let malformed = |error: DecodeError| format!("malformed reply: {error}");
        let mut worker = self.worker.borrow_mut();
        if failed {
            self.refused = true;
            worker.complete(slot, Reply::Failed(&error_text(frame.body)), now);
        } else {
            let reply = match header.opcode {
                opcode::PUT => put_reply(frame.body).map_err(malformed)?,
                opcode::RANGE => get_reply(frame.body).map_err(malformed)?,
                other => return Err(format!("a reply with opcode {other}")),
            };
            worker.complete(slot, reply, now);
        }
        self.free.push(index);
        Ok(())
    }
}

fn error_text(body: &[u8]) -> String {
    WireError::decode(&mut Reader::new(body)).map_or_else(
        |error| format!("an error that cannot be read: {error}"),
        |error| error.message,
    )
}

fn put_reply(body: &[u8]) -> Result<Reply<'_>, DecodeError> {
    let header = ResponseHeader::decode(&mut Reader::new(body))?;
    Ok(Reply::Put {
        revision: header.revision,
    })
}

/// The first key of a range's reply, borrowed: the library's type would own its bytes.
fn get_reply(body: &[u8]) -> Result<Reply<'_>, DecodeError> {
    let mut reader = Reader::new(body);
    ResponseHeader::decode(&mut reader)?;
    reader.u8("range flags")?;
    reader.i64("count")?;
    if reader.count(KeyValue::LEAST_SIZE, "key count")? == 0 {
        return Ok(Reply::Absent);
    }
    reader.i64("create_revision")?;
    let mod_revision = reader.i64("mod_revision")?;
    reader.i64("version")?;
    reader.i64("lease")?;
    reader.bytes("key")?;
    let value = reader.bytes("value")?;
    reader.finish()?;
    Ok(Reply::Found {
        mod_revision,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_protocol::{Decoder, Step, encode_get_reply, encode_put_reply};
    use varve_types::KeyValueRef;

    fn body(frame: &[u8]) -> &[u8] {
        match Decoder::new(1 << 20).step(frame) {
            Ok(Step::Frame(frame, _)) => frame.body,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_what_the_protocol_writes() {
        let header = ResponseHeader {
            revision: 9,
            ..ResponseHeader::default()
        };
        let mut out = Vec::new();
        encode_put_reply(&mut out, 4, &header);
        assert!(matches!(
            put_reply(body(&out)),
            Ok(Reply::Put { revision: 9 })
        ));
        out.clear();
        encode_get_reply(&mut out, 4, &header, None);
        assert!(matches!(get_reply(body(&out)), Ok(Reply::Absent)));
        out.clear();
        let kv = KeyValueRef {
            key: b"k",
            mod_revision: 7,
            value: b"v",
            ..KeyValueRef::default()
        };
        encode_get_reply(&mut out, 4, &header, Some(kv));
        assert!(matches!(
            get_reply(body(&out)),
            Ok(Reply::Found {
                mod_revision: 7,
                value: b"v"
            })
        ));
        assert!(get_reply(&body(&out)[..60]).is_err());
    }
}
