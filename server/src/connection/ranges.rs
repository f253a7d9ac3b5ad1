//! Answering ranges from a view, in bounded pieces.
//!
//! A range that would fill more than [`PIECE_BYTES`] of output stops between
//! two keys, keeps its view, and goes on behind the last key once the output
//! has been sent, so that an answer of any size needs one piece of memory. A
//! range in another order than that of keys can't be resumed: the store sorts
//! it in memory, and it leaves in one go.

use std::ops::ControlFlow;
use std::sync::Arc;

use varve_engine::mvcc::View;
use varve_protocol::{RangeWriter, encode_error, encode_get_reply, opcode};
use varve_types::{KeyValueRef, RangeRequest, ResponseHeader, SortOrder, SortTarget};

use crate::service::wire_error;

/// Output after which a range pauses.
const PIECE_BYTES: usize = 1 << 20;

/// A range whose answer is under way.
pub(crate) struct PausedRange {
    view: Arc<View>,
    request_id: u64,
    header: ResponseHeader,
    /// The request with the bounds of what is left.
    key: Vec<u8>,
    range_end: Vec<u8>,
    limit: i64,
    rest: RangeRequest<'static>,
    /// Keys in the whole range, found out with the first piece.
    count: i64,
}

/// Answers `request`; what does not fit into one piece is returned.
pub(crate) fn answer(
    out: &mut Vec<u8>,
    view: &Arc<View>,
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
                encode_error(out, opcode::RANGE, request_id, &wire_error(&error, view));
            }
        }
        return None;
    }
    piece(out, view, request_id, header, request, None).map(|left| {
        let (key, range_end) = match left.order {
            Order::Ascending => (after(&left.last_key), request.range_end.to_vec()),
            Order::Descending => (request.key.to_vec(), left.last_key),
        };
        PausedRange {
            view: Arc::clone(view),
            request_id,
            header,
            key,
            range_end,
            limit: left.limit,
            rest: RangeRequest {
                key: &[],
                range_end: &[],
                ..detached(request)
            },
            count: left.count,
        }
    })
}

impl PausedRange {
    /// Appends the next piece; whether the answer is complete.
    pub(crate) fn resume(&mut self, out: &mut Vec<u8>) -> bool {
        let request = RangeRequest {
            key: &self.key,
            range_end: &self.range_end,
            limit: self.limit,
            ..self.rest
        };
        let left = piece(
            out,
            &self.view,
            self.request_id,
            self.header,
            &request,
            Some(self.count),
        );
        match left {
            None => true,
            Some(left) => {
                match left.order {
                    Order::Ascending => self.key = after(&left.last_key),
                    Order::Descending => self.range_end = left.last_key,
                }
                self.limit = left.limit;
                false
            }
        }
    }
}

/// The order in which keys come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Ascending,
    Descending,
}

/// What is left after a piece.
struct Left {
    order: Order,
    last_key: Vec<u8>,
    limit: i64,
    count: i64,
}

/// Appends one piece of an answer, or all of it, or an error.
fn piece(
    out: &mut Vec<u8>,
    view: &View,
    request_id: u64,
    header: ResponseHeader,
    request: &RangeRequest<'_>,
    count: Option<i64>,
) -> Option<Left> {
    let start = out.len();
    let order = key_order(request);
    let mut writer = RangeWriter::new(out, request_id, header);
    let mut bytes = 0;
    let mut keys = 0;
    let mut last_key = None;
    let end = view.range_with(request, &mut |kv: KeyValueRef<'_>| {
        writer.push(kv);
        keys += 1;
        bytes += kv.encoded_len();
        if bytes >= PIECE_BYTES && order.is_some() && keys != request.limit {
            last_key = Some(kv.key.to_vec());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    match (end, order, last_key) {
        (Ok(end), Some(order), Some(last_key)) if end.more => {
            writer.finish_part();
            Some(Left {
                order,
                last_key,
                limit: match request.limit {
                    ..=0 => 0,
                    limit => limit - keys,
                },
                count: count.unwrap_or(end.count),
            })
        }
        (Ok(end), _, _) => {
            writer.finish(count.unwrap_or(end.count), end.more);
            None
        }
        (Err(error), _, _) => {
            out.truncate(start);
            encode_error(out, opcode::RANGE, request_id, &wire_error(&error, view));
            None
        }
    }
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

/// The order of keys, if the answer comes in one.
fn key_order(request: &RangeRequest<'_>) -> Option<Order> {
    if request.range_end.is_empty() {
        // One key is one piece.
        return None;
    }
    match (request.sort_order, request.sort_target) {
        // etcd sorts ascending where a target but no order is given.
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => Some(Order::Ascending),
        (SortOrder::Descend, SortTarget::Key) => Some(Order::Descending),
        _ => None,
    }
}

/// The request without what it borrows.
fn detached(request: &RangeRequest<'_>) -> RangeRequest<'static> {
    RangeRequest {
        key: &[],
        range_end: &[],
        limit: request.limit,
        revision: request.revision,
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

/// The smallest key behind `key`.
fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}
