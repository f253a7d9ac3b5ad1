//! A snapshot on its way to a client.
//!
//! The chunks come from one view, which keeps old pages from being used again for
//! as long as it is held. So a client has to take them in: one that takes nothing
//! for [`PATIENCE`], or less than [`LEAST_BYTES_PER_SECOND`] on the whole, gets an
//! error, and the view is let go.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use varve_engine::mvcc::{SnapshotSource, View};
use varve_protocol::{ErrorCode, WireError, encode_error, encode_snapshot_part, opcode};
use varve_types::{ApiError, ResponseHeader};

/// Bytes of one chunk, but for what its last entry is longer.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a client may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// What it has to take on the whole.
const LEAST_BYTES_PER_SECOND: u64 = 1 << 20;

/// A snapshot that is being sent.
pub(super) struct SnapshotOut {
    request_id: u64,
    header: ResponseHeader,
    source: SnapshotSource,
    /// Bytes that may be sent; `None` without flow control.
    credit: Option<i64>,
    started: Instant,
    last: Instant,
    bytes: u64,
    due: Pin<Box<Sleep>>,
}

impl SnapshotOut {
    /// Starts to send `view`.
    pub(super) fn new(
        request_id: u64,
        header: ResponseHeader,
        view: Arc<View>,
        credit: u32,
    ) -> Self {
        let now = Instant::now();
        Self {
            request_id,
            header,
            source: SnapshotSource::new(view),
            credit: (credit > 0).then_some(i64::from(credit)),
            started: now,
            last: now,
            bytes: 0,
            due: Box::pin(tokio::time::sleep_until((now + PATIENCE).into())),
        }
    }

    /// Lets snapshot `request_id` send more, if it is this one.
    pub(super) fn add_credit(&mut self, request_id: u64, bytes: u32) {
        if let Some(credit) = &mut self.credit
            && request_id == self.request_id
        {
            *credit = credit.saturating_add(bytes.into());
        }
    }

    /// Whether the client has room for more.
    pub(super) fn may_send(&self) -> bool {
        self.credit.is_none_or(|credit| credit > 0)
    }

    /// Appends the next chunk; whether that was the end of it.
    pub(super) fn send(&mut self, out: &mut Vec<u8>) -> bool {
        let id = self.request_id;
        // Chunks may come from a slow disk, and the last one counts all entries.
        let next = tokio::task::block_in_place(|| self.source.next_chunk(CHUNK_BYTES));
        let failed = match next {
            Ok(Some(chunk)) => {
                let length = chunk.len();
                let is_last = self.source.is_done();
                encode_snapshot_part(out, id, &self.header, &chunk, is_last);
                if let Some(credit) = &mut self.credit {
                    *credit = credit.saturating_sub_unsigned(length as u64);
                }
                self.last = Instant::now();
                self.bytes += length as u64;
                return is_last;
            }
            Ok(None) => WireError::internal("a snapshot went on after its end"),
            Err(error) => {
                tracing::error!("the store failed to give a snapshot: {error}");
                WireError::internal(error.to_string())
            }
        };
        encode_error(out, opcode::SNAPSHOT, id, &failed);
        true
    }

    /// Ends it if the client takes it in too slowly; else the task is woken when it
    /// may be time to look again.
    pub(super) fn poll_overdue(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) -> bool {
        while self.due.as_mut().poll(context).is_ready() {
            let due = due(self.started, self.last, self.bytes);
            if Instant::now() >= due {
                let text = format!(
                    "{}: the snapshot was taken in too slowly (nothing for {PATIENCE:?}, or less \
                     than {LEAST_BYTES_PER_SECOND} bytes a second); ask again",
                    ApiError::Timeout
                );
                tracing::warn!("{text}");
                let error = WireError::new(ErrorCode::Api(ApiError::Timeout), text);
                encode_error(out, opcode::SNAPSHOT, self.request_id, &error);
                return true;
            }
            self.due.as_mut().reset(due.into());
        }
        false
    }
}

/// When a client is too slow that was sent `bytes`, the last of them at `last`.
fn due(started: Instant, last: Instant, bytes: u64) -> Instant {
    let slowest = PATIENCE + Duration::from_secs(bytes / LEAST_BYTES_PER_SECOND);
    (last + PATIENCE).min(started + slowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_a_stalled_nor_a_slow_client_holds_a_view() {
        let started = Instant::now();
        let at = |seconds| started + Duration::from_secs(seconds);
        assert_eq!(due(started, at(0), 0), at(30));
        assert_eq!(due(started, at(25), 100), at(30));
        assert_eq!(due(started, at(25), 100 << 20), at(55));
        assert_eq!(due(started, at(125), 100 << 20), at(130));
    }
}
