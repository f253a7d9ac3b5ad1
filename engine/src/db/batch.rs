//! Write batches, and the record of the log that each becomes.
//!
//! A record of kind [`KIND_BATCH`] is `[u8 format = 1]` and then commands as
//! [`push_command`] writes them: the bytes that clients of a node send. Its lsn
//! is its number: the store keeps the lsn of the last batch it applied, and the
//! log's records after that are what recovery replays.

use varve_types::{
    ApiError, Command, Commands, DeleteRangeRequest, KeyRange, MAX_KEY_BYTES, PutRequest,
    push_command,
};

use super::error::{DbError, Result};
use super::machine::Logged;
use crate::wal::{Group, MAX_PAYLOAD_BYTES};

/// The kind of a batch's record.
pub(super) const KIND_BATCH: u8 = 1;

/// Version of the record.
pub(super) const FORMAT: u8 = 1;

/// Longest commands of a batch.
const MAX_BYTES: usize = MAX_PAYLOAD_BYTES - 1;
/// Of a put beside key and value: length, opcode, flags and lease, two lengths.
const PUT_BYTES: usize = 5 + 9 + 4 + 4;

/// Changes that become durable and visible together: all of them, or, after a
/// crash, none. They are made in the order in which they were added.
///
/// In a [`super::Db`] each change gets a revision of its own, as if each had
/// been written alone; [`super::Db::txn`] makes several in one revision.
#[derive(Debug, Default, Clone)]
pub struct WriteBatch {
    bytes: Vec<u8>,
    count: usize,
    body: Vec<u8>,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to `value`. A batch that an error is returned for is as before.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        check_key(key)?;
        self.push(&Command::Put(PutRequest {
            key,
            value,
            ..PutRequest::default()
        }))
    }

    /// Removes `key`, if it is there.
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        check_key(key)?;
        self.push(&Command::DeleteRange(DeleteRangeRequest {
            key,
            ..DeleteRangeRequest::default()
        }))
    }

    /// Removes the keys of `range`.
    pub fn delete_range(&mut self, range: KeyRange<'_>) -> Result<()> {
        let (key, range_end) = ends(range);
        if key.is_empty() {
            return Err(ApiError::KeyNotProvided.into());
        }
        self.push(&Command::DeleteRange(DeleteRangeRequest {
            key,
            range_end,
            ..DeleteRangeRequest::default()
        }))
    }

    /// Adds a command that was validated.
    pub(super) fn push(&mut self, command: &Command<'_>) -> Result<()> {
        self.body.clear();
        command.encode_body(&mut self.body);
        let before = self.bytes.len();
        push_command(&mut self.bytes, command.opcode(), &self.body);
        let bytes = self.bytes.len();
        if bytes > MAX_BYTES {
            self.bytes.truncate(before);
            return Err(DbError::BatchTooLarge {
                bytes,
                limit: MAX_BYTES,
            });
        }
        self.count += 1;
        Ok(())
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that it takes in the log.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Removes all changes; the memory is kept for the next ones.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// Adds the record to `group`.
    pub(super) fn log(&self, group: &mut Group) -> Result<()> {
        group.push(KIND_BATCH, &[&[FORMAT], &self.bytes])?;
        Ok(())
    }
}

/// etcd's `key` and `range_end` for `range`. No key is empty, so a range may
/// begin with the empty key, and means the same as one that begins with `\0`.
pub(super) fn ends(range: KeyRange<'_>) -> (&[u8], &[u8]) {
    // Ends that would be read as another kind of range have no key below them.
    const NOTHING: (&[u8], &[u8]) = (b"\x01", b"\x01");
    match range {
        KeyRange::One(key) => (key, b""),
        KeyRange::From([]) => (b"\0", b"\0"),
        KeyRange::From(key) => (key, b"\0"),
        KeyRange::Between(_, [] | [0]) => NOTHING,
        KeyRange::Between(key, end) if end <= key => NOTHING,
        KeyRange::Between([], end) => (b"\0", end),
        KeyRange::Between(key, end) => (key, end),
    }
}

/// Refuses a value that no batch could hold under its key.
pub(super) fn check_value(key: &[u8], value: &[u8]) -> Result<()> {
    let bytes = key.len() + value.len() + PUT_BYTES;
    match bytes > MAX_BYTES {
        true => Err(DbError::BatchTooLarge {
            bytes,
            limit: MAX_BYTES,
        }),
        false => Ok(()),
    }
}

/// Refuses a key that no node would take.
pub(super) fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(ApiError::KeyNotProvided.into());
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(ApiError::RequestTooLarge.into());
    }
    Ok(())
}

/// The commands of a batch's record. The text says what the record is not.
pub(super) fn commands(payload: &[u8]) -> std::result::Result<Commands<'_>, String> {
    match payload.split_first() {
        Some((&FORMAT, commands)) => Ok(Commands::new(commands)),
        _ => Err("not a batch of this format".to_owned()),
    }
}

/// Opcodes and bodies of the commands of batches, to look ahead in them.
pub(super) fn raw<'a>(batches: &'a [Logged<'a>]) -> impl Iterator<Item = (u8, &'a [u8])> {
    let batches = batches.iter();
    batches.flat_map(|batch| commands(batch.payload).into_iter().flat_map(Commands::raw))
}

/// Calls `each` with the commands of a batch's record. The text says what the
/// record is not.
pub(super) fn decode<'a>(
    payload: &'a [u8],
    mut each: impl FnMut(Command<'a>) -> Result<()>,
) -> Result<std::result::Result<(), String>> {
    let mut commands = match commands(payload) {
        Ok(commands) => commands,
        Err(what) => return Ok(Err(what)),
    };
    loop {
        let next = match commands.next_command() {
            Ok(Some((opcode, body))) => Command::decode_body(opcode, body),
            Ok(None) => return Ok(Ok(())),
            Err(error) => Err(error),
        };
        match next {
            Ok(command) => each(command)?,
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_golden() {
        let mut batch = WriteBatch::new();
        batch.put(b"k", b"v").unwrap();
        batch.delete(b"k").unwrap();
        let mut group = Group::new();
        batch.log(&mut group).unwrap();
        let (_, kind, payload) = group.iter().next().unwrap();
        assert_eq!(kind, 1);
        assert_eq!(
            payload,
            [
                1, // format
                20, 0, 0, 0, 2, // length, put
                0, 0, 0, 0, 0, 0, 0, 0, 0, // flags, lease
                1, 0, 0, 0, b'k', 1, 0, 0, 0, b'v', // key, value
                11, 0, 0, 0, 3, // length, delete
                0, 1, 0, 0, 0, b'k', 0, 0, 0, 0, // flags, key, no range end
            ]
        );
    }

    #[test]
    fn refuses_what_cannot_be_written_and_stays_as_it_was() {
        let mut batch = WriteBatch::new();
        batch.put(b"a", b"1").unwrap();
        let bytes = batch.bytes();
        let refused = [
            batch.put(b"", b"x"),
            batch.delete(b""),
            batch.put(&[7; MAX_KEY_BYTES + 1], b"x"),
            batch.delete_range(KeyRange::One(b"")),
        ];
        for refused in refused {
            assert!(refused.unwrap_err().api().is_some());
        }
        let long = vec![0; MAX_PAYLOAD_BYTES];
        let error = batch.put(b"b", &long).unwrap_err();
        assert!(matches!(error, DbError::BatchTooLarge { .. }), "{error}");
        assert_eq!((batch.len(), batch.bytes()), (1, bytes));
        let most = MAX_BYTES - bytes - PUT_BYTES - 1;
        batch.put(b"b", &long[..most]).unwrap();
        assert_eq!(batch.bytes(), MAX_BYTES);
        batch.log(&mut Group::new()).unwrap();
    }

    #[test]
    fn ranges_keep_their_meaning() {
        let ranges = [
            KeyRange::One(b"a"),
            KeyRange::From(b"a"),
            KeyRange::Between(b"a", b"c"),
            KeyRange::Between(b"a", b""),
            KeyRange::Between(b"a", b"\0"),
            KeyRange::Between(b"\0", b""),
            KeyRange::Between(b"\0", b"\0"),
            KeyRange::Between(b"", b"b"),
            KeyRange::From(b""),
        ];
        for range in ranges {
            let (key, end) = ends(range);
            let read = KeyRange::new(key, end);
            for probe in [&b"\0"[..], b"a", b"b", b"c"] {
                let expected = range.contains(probe);
                assert_eq!(read.contains(probe), expected, "{range:?} {probe:?}");
            }
        }
    }

    #[test]
    fn foreign_records_are_told() {
        let none = |_: Command<'_>| Ok(());
        assert!(decode(&[], none).unwrap().is_err());
        assert!(decode(&[2], none).unwrap().is_err());
        assert!(decode(&[1, 9], none).unwrap().is_err());
        assert!(decode(&[1, 1, 0, 0, 0, 200], none).unwrap().is_err());
        assert!(decode(&[1], none).unwrap().is_ok());
    }
}
