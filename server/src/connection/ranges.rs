//! Answering ranges from views, in bounded pieces.
//!
//! A range that fills more than [`PIECE_BYTES`] of output, or looks at more keys
//! than a step may, pauses and goes on once the others had their turn and the
//! output has been sent, so that an answer of any size needs one piece of memory.
//! What is paused holds no view: a client that stops reading keeps no old pages.
//! It goes on in the newest view, at the revision of the first one, and ends with
//! an error if that is compacted meanwhile. A range in another order than that of
//! keys is collected and sorted in memory before its first key leaves.

use std::ops::ControlFlow;

use varve_engine::mvcc::{RangeCursor, RangeLimits, View};
use varve_protocol::{RangeWriter, encode_error, encode_get_reply, opcode};
use varve_types::{KeyValueRef, RangeRequest, ResponseHeader};

use crate::service::Service;

/// Output after which a range pauses.
const PIECE_BYTES: usize = 256 << 10;

/// A range whose answer is under way.
pub(crate) struct PausedRange {
    request_id: u64,
    header: ResponseHeader,
    key: Vec<u8>,
    range_end: Vec<u8>,
    /// The request without what it borrows, at the revision of its answer.
    rest: RangeRequest<'static>,
    cursor: RangeCursor,
}

/// Answers `request`; what does not fit into one piece is returned.
pub(crate) fn answer(
    service: &Service,
    out: &mut Vec<u8>,
    view: &View,
    request_id: u64,
    header: ResponseHeader,
    request: &RangeRequest<'_>,
) -> Option<PausedRange> {
    if is_plain_get(request) {
        let start = out.len();
        let found = view.get(request.key, |kv| {
            encode_get_reply(out, request_id, &header, Some(kv));
        });
        match found {
            Ok(Some(())) => {}
            Ok(None) => encode_get_reply(out, request_id, &header, None),
            Err(error) => {
                out.truncate(start);
                encode_error(
                    out,
                    opcode::RANGE,
                    request_id,
                    &service.wire_error(&error, view),
                );
            }
        }
        return None;
    }
    let mut cursor = RangeCursor::default();
    if piece(service, out, view, request_id, header, request, &mut cursor) {
        return None;
    }
    let revision = match request.revision {
        ..=0 => view.revision(),
        revision => revision,
    };
    Some(PausedRange {
        request_id,
        header,
        key: request.key.to_vec(),
        range_end: request.range_end.to_vec(),
        rest: detached(request, revision),
        cursor,
    })
}

impl PausedRange {
    /// Appends the next piece, from the newest view; whether the answer is complete.
    pub(crate) fn resume(&mut self, service: &Service, out: &mut Vec<u8>, view: &View) -> bool {
        let request = RangeRequest {
            key: &self.key,
            range_end: &self.range_end,
            ..self.rest
        };
        let (id, header) = (self.request_id, self.header);
        piece(service, out, view, id, header, &request, &mut self.cursor)
    }
}

/// Appends one piece of an answer, or all of it, or an error; whether it is complete.
fn piece(
    service: &Service,
    out: &mut Vec<u8>,
    view: &View,
    request_id: u64,
    header: ResponseHeader,
    request: &RangeRequest<'_>,
    cursor: &mut RangeCursor,
) -> bool {
    let start = out.len();
    let mut writer = RangeWriter::new(out, request_id, header);
    let mut bytes = 0;
    let end = view.range_step(
        request,
        cursor,
        RangeLimits::default(),
        &mut |kv: KeyValueRef<'_>| {
            writer.push(kv);
            bytes += kv.encoded_len();
            if bytes >= PIECE_BYTES {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        },
    );
    match end {
        Ok(Some(end)) => writer.finish(end.count, end.more),
        Ok(None) if bytes > 0 => writer.finish_part(),
        Ok(None) => out.truncate(start),
        Err(error) => {
            out.truncate(start);
            encode_error(
                out,
                opcode::RANGE,
                request_id,
                &service.wire_error(&error, view),
            );
            return true;
        }
    }
    matches!(end, Ok(Some(_)))
}

/// One key at the newest revision: one descent, encoded from the page.
fn is_plain_get(request: &RangeRequest<'_>) -> bool {
    request.range_end.is_empty()
        && request.revision <= 0
        && !request.keys_only
        && !request.count_only
        && request.min_mod_revision == 0
        && request.max_mod_revision == 0
        && request.min_create_revision == 0
        && request.max_create_revision == 0
}

/// The request without what it borrows, at `revision`.
fn detached(request: &RangeRequest<'_>, revision: i64) -> RangeRequest<'static> {
    RangeRequest {
        key: &[],
        range_end: &[],
        limit: request.limit,
        revision,
        sort_order: request.sort_order,
        sort_target: request.sort_target,
        serializable: request.serializable,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    }
}
