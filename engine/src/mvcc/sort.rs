//! Ranges sorted by something else than the key.
//!
//! The store has keys in key order only, so these are sorted in memory: with a
//! limit of n, at most 2n keys are held at a time. Past [`MAX_SORT_BYTES`] the
//! request is refused (`request is too large`); a limit or a smaller range helps.

use std::cmp::Ordering;

use varve_types::{ApiError, KeyValue, KeyValueRef, RangeRequest, SortOrder, SortTarget};

use super::range::left;

/// Most bytes that a sort holds.
pub(super) const MAX_SORT_BYTES: usize = 256 << 20;

/// What a key costs beside its bytes.
const OVERHEAD_BYTES: usize = size_of::<KeyValue>();

/// Collects keys and gives back the first of them.
pub(super) struct Sorter {
    target: SortTarget,
    descend: bool,
    keys_only: bool,
    limit: usize,
    kvs: Vec<KeyValue>,
    bytes: usize,
    cut: bool,
    max_bytes: usize,
}

impl Sorter {
    pub(super) fn new(request: &RangeRequest<'_>) -> Self {
        Self {
            target: request.sort_target,
            descend: request.sort_order == SortOrder::Descend,
            keys_only: request.keys_only,
            limit: left(request.limit),
            kvs: Vec::new(),
            bytes: 0,
            cut: false,
            max_bytes: MAX_SORT_BYTES,
        }
    }

    pub(super) fn push(&mut self, mut kv: KeyValueRef<'_>) -> Result<(), ApiError> {
        if self.keys_only && self.target != SortTarget::Value {
            kv.value = &[];
        }
        self.bytes += size(&kv);
        self.kvs.push(kv.to_owned());
        if self.kvs.len() >= self.limit.saturating_mul(2) || self.bytes > self.max_bytes {
            self.prune();
        }
        if self.bytes > self.max_bytes {
            return Err(ApiError::RequestTooLarge);
        }
        Ok(())
    }

    /// Drops what cannot be among the first `limit`.
    fn prune(&mut self) {
        if self.kvs.len() <= self.limit {
            return;
        }
        let (target, descend) = (self.target, self.descend);
        self.kvs
            .select_nth_unstable_by(self.limit, |a, b| compare(target, descend, a, b));
        self.kvs.truncate(self.limit);
        self.bytes = self.kvs.iter().map(|kv| size(&kv.into())).sum();
        self.cut = true;
    }

    /// The first keys in order, and whether the limit cut something off.
    pub(super) fn finish(mut self) -> (Vec<KeyValue>, bool) {
        self.prune();
        let (target, descend) = (self.target, self.descend);
        self.kvs
            .sort_unstable_by(|a, b| compare(target, descend, a, b));
        if self.keys_only {
            self.kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        (self.kvs, self.cut)
    }
}

fn size(kv: &KeyValueRef<'_>) -> usize {
    kv.key.len() + kv.value.len() + OVERHEAD_BYTES
}

/// The order asked for; keys that are equal in it come in key order.
fn compare(target: SortTarget, descend: bool, a: &KeyValue, b: &KeyValue) -> Ordering {
    let order = match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    let order = if descend { order.reverse() } else { order };
    order.then_with(|| a.key.cmp(&b.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(limit: i64, max_bytes: usize) -> Result<Sorter, ApiError> {
        let mut sorter = Sorter::new(&RangeRequest {
            limit,
            sort_target: SortTarget::Value,
            sort_order: SortOrder::Descend,
            ..RangeRequest::default()
        });
        sorter.max_bytes = max_bytes;
        for n in 0..1000u32 {
            let (key, value) = (n.to_be_bytes(), (n * 7919 % 1000).to_be_bytes());
            sorter.push(KeyValueRef {
                key: &key,
                value: &value,
                ..KeyValueRef::default()
            })?;
        }
        Ok(sorter)
    }

    #[test]
    fn keeps_no_more_than_it_needs() {
        let sorter = filled(10, 4096).unwrap();
        assert!(sorter.kvs.len() < 20);
        let (kvs, more) = sorter.finish();
        assert!(more);
        let values: Vec<_> = kvs.iter().map(|kv| kv.value.clone()).collect();
        let expected: Vec<_> = (990..1000u32)
            .rev()
            .map(|n| n.to_be_bytes().to_vec())
            .collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert_eq!(filled(0, 4096).err(), Some(ApiError::RequestTooLarge));
        let (kvs, more) = filled(0, MAX_SORT_BYTES).unwrap().finish();
        assert_eq!((kvs.len(), more), (1000, false));
    }
}
