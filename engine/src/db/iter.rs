//! Streaming over a range of one revision.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use varve_types::{KeyRange, KeyValue};

use super::error::Result;
use crate::backend::Direction;
use crate::mvcc::View;

/// Keys that are read ahead.
const CHUNK_KEYS: usize = 256;
/// Bytes of keys and values of them, past which no more are added.
const CHUNK_BYTES: usize = 64 << 10;

/// The keys of a range at one revision, in order. It holds the state that it
/// was made from: later writes do not show, and space that they free is used
/// again only when the iterator is gone. Memory does not grow with the range.
pub struct Iter {
    view: Arc<View>,
    /// The revision to read at, 0 for the newest of `view`.
    revision: i64,
    direction: Direction,
    /// What is not read yet: from (inclusive), to (exclusive; `None`: no end).
    rest: Option<(Vec<u8>, Option<Vec<u8>>)>,
    chunk: VecDeque<KeyValue>,
}

impl Iter {
    pub(super) fn new(
        view: Arc<View>,
        range: KeyRange<'_>,
        revision: i64,
        direction: Direction,
    ) -> Self {
        let rest = match range {
            KeyRange::One(key) => (key.to_vec(), Some(successor(key))),
            KeyRange::From(key) => (key.to_vec(), None),
            KeyRange::Between(key, end) => (key.to_vec(), Some(end.to_vec())),
        };
        Self {
            view,
            revision,
            direction,
            rest: Some(rest),
            chunk: VecDeque::new(),
        }
    }

    /// The state that it reads.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Reads the next chunk of what is left.
    fn fill(&mut self) -> Result<()> {
        let Some((from, to)) = self.rest.take() else {
            return Ok(());
        };
        let range = match &to {
            Some(to) => KeyRange::Between(&from, to),
            None => KeyRange::From(&from),
        };
        let (chunk, mut bytes) = (&mut self.chunk, 0);
        let mut is_full = false;
        let visit = &mut |kv: varve_types::KeyValueRef<'_>| {
            bytes += kv.encoded_len();
            chunk.push_back(kv.to_owned());
            is_full = chunk.len() >= CHUNK_KEYS || bytes >= CHUNK_BYTES;
            match is_full {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        self.view
            .scan(range, self.revision, self.direction, visit)?;
        if is_full && let Some(last) = self.chunk.back() {
            self.rest = Some(match self.direction {
                Direction::Forward => (successor(&last.key), to),
                Direction::Backward => (from, Some(last.key.clone())),
            });
        }
        Ok(())
    }
}

/// The least key after `key`.
fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

impl Iterator for Iter {
    type Item = Result<KeyValue>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.chunk.is_empty()
            && let Err(error) = self.fill()
        {
            return Some(Err(error));
        }
        self.chunk.pop_front().map(Ok)
    }
}
