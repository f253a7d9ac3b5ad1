//! Borrowed forms of stored keys and events, so that an answer is encoded
//! straight from the page that holds it.

use crate::codec::{put_bytes, put_i64};
use crate::{Event, EventKind, KeyValue};

/// A [`KeyValue`] whose bytes are borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyValueRef<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Revision of the put that created it.
    pub create_revision: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Puts since it was created; 0 for a deleted key.
    pub version: i64,
    /// The value.
    pub value: &'a [u8],
    /// The lease it is attached to; 0 is none.
    pub lease: i64,
}

impl KeyValueRef<'_> {
    /// Bytes that [`KeyValueRef::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        KeyValue::LEAST_SIZE + self.key.len() + self.value.len()
    }

    /// Appends the same bytes as [`KeyValue::encode`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        for field in [
            self.create_revision,
            self.mod_revision,
            self.version,
            self.lease,
        ] {
            put_i64(out, field);
        }
        put_bytes(out, self.key);
        put_bytes(out, self.value);
    }

    /// A copy that owns its bytes.
    pub fn to_owned(&self) -> KeyValue {
        KeyValue {
            key: self.key.to_vec(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value: self.value.to_vec(),
            lease: self.lease,
        }
    }
}

impl<'a> From<&'a KeyValue> for KeyValueRef<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self {
            key: &kv.key,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: &kv.value,
            lease: kv.lease,
        }
    }
}

/// An [`Event`] whose bytes are borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRef<'a> {
    /// What happened.
    pub kind: EventKind,
    /// The key after it; a deletion has only key and mod revision.
    pub kv: KeyValueRef<'a>,
    /// The key before it, if asked for and not compacted.
    pub prev_kv: Option<KeyValueRef<'a>>,
}

impl EventRef<'_> {
    /// Bytes that [`EventRef::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        let prev = self.prev_kv.as_ref().map_or(0, KeyValueRef::encoded_len);
        2 + self.kv.encoded_len() + prev
    }

    /// Appends the same bytes as [`Event::encode`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.kind == EventKind::Delete));
        self.kv.encode(out);
        out.push(u8::from(self.prev_kv.is_some()));
        if let Some(prev) = &self.prev_kv {
            prev.encode(out);
        }
    }

    /// A copy that owns its bytes.
    pub fn to_owned(&self) -> Event {
        Event {
            kind: self.kind,
            kv: self.kv.to_owned(),
            prev_kv: self.prev_kv.as_ref().map(KeyValueRef::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_the_owned_form() {
        let kv = KeyValueRef {
            key: b"k",
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            value: b"value",
            lease: 7,
        };
        for prev_kv in [None, Some(kv)] {
            let event = EventRef {
                kind: EventKind::Put,
                kv,
                prev_kv,
            };
            let (mut borrowed, mut owned) = (Vec::new(), Vec::new());
            event.encode(&mut borrowed);
            event.to_owned().encode(&mut owned);
            assert_eq!(borrowed, owned);
            assert_eq!(borrowed.len(), event.encoded_len());
        }
    }
}
