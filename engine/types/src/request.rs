//! Requests, borrowed from the bytes they were read from.

use crate::codec::{DecodeError, Reader, flags, put_bytes, put_count, put_i64};
use crate::{ApiError, KeyRange, MAX_TXN_DEPTH};

macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident, unknown is $unknown:expr, { $($(#[$vdoc:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value),+ }

        impl $name {
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let mut ahead = reader.clone();
                match ahead.u8(stringify!($name))? {
                    $($value => { *reader = ahead; Ok(Self::$variant) })+
                    _ => Err(DecodeError { api: $unknown, ..reader.error(stringify!($name)) }),
                }
            }
        }
    };
}

wire_enum!(
    /// Direction of a sorted range.
    SortOrder, unknown is Some(ApiError::InvalidSortOption), {
        /// The order of the store: ascending by key.
        #[default]
        None = 0,
        /// Smallest first.
        Ascend = 1,
        /// Largest first.
        Descend = 2,
    }
);

wire_enum!(
    /// What a range is sorted by.
    SortTarget, unknown is Some(ApiError::InvalidSortOption), {
        /// The key.
        #[default]
        Key = 0,
        /// The version.
        Version = 1,
        /// The create revision.
        Create = 2,
        /// The mod revision.
        Mod = 3,
        /// The value.
        Value = 4,
    }
);

wire_enum!(
    /// The relation that a [`Compare`] asks for.
    CompareResult, unknown is None, {
        /// The key's is equal to the given.
        #[default]
        Equal = 0,
        /// The key's is greater than the given.
        Greater = 1,
        /// The key's is less than the given.
        Less = 2,
        /// The key's differs from the given.
        NotEqual = 3,
    }
);

/// Reads keys at one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RangeRequest<'a> {
    /// First key.
    pub key: &'a [u8],
    /// See [`KeyRange`].
    pub range_end: &'a [u8],
    /// Most keys to return; 0 is no limit.
    pub limit: i64,
    /// Revision to read at; 0 or less is the newest.
    pub revision: i64,
    /// Direction of the sort.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
    /// Answer from this member's own state, without asking the leader.
    pub serializable: bool,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Leave out keys with a smaller mod revision; 0 is no filter.
    pub min_mod_revision: i64,
    /// Leave out keys with a larger mod revision; 0 is no filter.
    pub max_mod_revision: i64,
    /// Leave out keys with a smaller create revision; 0 is no filter.
    pub min_create_revision: i64,
    /// Leave out keys with a larger create revision; 0 is no filter.
    pub max_create_revision: i64,
}

impl<'a> RangeRequest<'a> {
    /// The keys it names.
    pub fn range(&self) -> KeyRange<'a> {
        KeyRange::new(self.key, self.range_end)
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.serializable, self.keys_only, self.count_only]));
        out.push(self.sort_order as u8);
        out.push(self.sort_target as u8);
        for field in [
            self.limit,
            self.revision,
            self.min_mod_revision,
            self.max_mod_revision,
            self.min_create_revision,
            self.max_create_revision,
        ] {
            put_i64(out, field);
        }
        put_bytes(out, self.key);
        put_bytes(out, self.range_end);
    }

    /// Whether an encoding says that it has no key; looks at that only.
    pub fn lacks_key(encoding: &[u8]) -> bool {
        // Flags, order and target, then six numbers; then the length of the key.
        const KEY: usize = 3 + 6 * 8;
        encoding.get(KEY..KEY + 4) == Some(&[0; 4])
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let bits = reader.u8("range flags")?;
        Ok(Self {
            serializable: bits & 1 != 0,
            keys_only: bits & 2 != 0,
            count_only: bits & 4 != 0,
            sort_order: SortOrder::decode(reader)?,
            sort_target: SortTarget::decode(reader)?,
            limit: reader.i64("limit")?,
            revision: reader.i64("revision")?,
            min_mod_revision: reader.i64("min_mod_revision")?,
            max_mod_revision: reader.i64("max_mod_revision")?,
            min_create_revision: reader.i64("min_create_revision")?,
            max_create_revision: reader.i64("max_create_revision")?,
            key: reader.bytes("key")?,
            range_end: reader.bytes("range_end")?,
        })
    }
}

/// Writes one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutRequest<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its new value.
    pub value: &'a [u8],
    /// Lease to attach; 0 is none (and detaches a former one).
    pub lease: i64,
    /// Return the value it replaced.
    pub prev_kv: bool,
    /// Keep the present value.
    pub ignore_value: bool,
    /// Keep the present lease.
    pub ignore_lease: bool,
}

impl<'a> PutRequest<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.prev_kv, self.ignore_value, self.ignore_lease]));
        put_i64(out, self.lease);
        put_bytes(out, self.key);
        put_bytes(out, self.value);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let bits = reader.u8("put flags")?;
        Ok(Self {
            prev_kv: bits & 1 != 0,
            ignore_value: bits & 2 != 0,
            ignore_lease: bits & 4 != 0,
            lease: reader.i64("lease")?,
            key: reader.bytes("key")?,
            value: reader.bytes("value")?,
        })
    }
}

/// Deletes keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeleteRangeRequest<'a> {
    /// First key.
    pub key: &'a [u8],
    /// See [`KeyRange`].
    pub range_end: &'a [u8],
    /// Return what was deleted.
    pub prev_kv: bool,
}

impl<'a> DeleteRangeRequest<'a> {
    /// The keys it names.
    pub fn range(&self) -> KeyRange<'a> {
        KeyRange::new(self.key, self.range_end)
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.prev_kv]));
        put_bytes(out, self.key);
        put_bytes(out, self.range_end);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            prev_kv: reader.u8("delete flags")? & 1 != 0,
            key: reader.bytes("key")?,
            range_end: reader.bytes("range_end")?,
        })
    }
}

/// What a [`Compare`] looks at, and the value it is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareTarget<'a> {
    /// The key's version.
    Version(i64),
    /// Its create revision.
    Create(i64),
    /// Its mod revision.
    Mod(i64),
    /// Its value.
    Value(&'a [u8]),
    /// Its lease.
    Lease(i64),
}

/// One condition of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compare<'a> {
    /// The relation asked for.
    pub result: CompareResult,
    /// What is compared with what.
    pub target: CompareTarget<'a>,
    /// The key, or the first of a range that must hold as a whole.
    pub key: &'a [u8],
    /// See [`KeyRange`].
    pub range_end: &'a [u8],
}

impl<'a> Compare<'a> {
    const LEAST_SIZE: usize = 1 + 1 + 4 + 4 + 4;

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.result as u8);
        let (tag, number) = match self.target {
            CompareTarget::Version(number) => (0, number),
            CompareTarget::Create(number) => (1, number),
            CompareTarget::Mod(number) => (2, number),
            CompareTarget::Value(_) => (3, 0),
            CompareTarget::Lease(number) => (4, number),
        };
        out.push(tag);
        match self.target {
            CompareTarget::Value(value) => put_bytes(out, value),
            _ => put_i64(out, number),
        }
        put_bytes(out, self.key);
        put_bytes(out, self.range_end);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let result = CompareResult::decode(reader)?;
        let target = match reader.u8("compare target")? {
            0 => CompareTarget::Version(reader.i64("version")?),
            1 => CompareTarget::Create(reader.i64("create_revision")?),
            2 => CompareTarget::Mod(reader.i64("mod_revision")?),
            3 => CompareTarget::Value(reader.bytes("value")?),
            4 => CompareTarget::Lease(reader.i64("lease")?),
            _ => return Err(reader.error("compare target")),
        };
        Ok(Self {
            result,
            target,
            key: reader.bytes("key")?,
            range_end: reader.bytes("range_end")?,
        })
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOp<'a> {
    /// A read.
    Range(RangeRequest<'a>),
    /// A write.
    Put(PutRequest<'a>),
    /// A deletion.
    DeleteRange(DeleteRangeRequest<'a>),
    /// A transaction inside this one.
    Txn(TxnRequest<'a>),
}

/// Compares, then does one of two lists of operations, all at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnRequest<'a> {
    /// All must hold for `success`.
    pub compare: Vec<Compare<'a>>,
    /// Done if they hold.
    pub success: Vec<RequestOp<'a>>,
    /// Done if one does not.
    pub failure: Vec<RequestOp<'a>>,
}

impl<'a> TxnRequest<'a> {
    /// Whether neither branch can write, however deep.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            RequestOp::Range(_) => true,
            RequestOp::Txn(txn) => txn.is_read_only(),
            RequestOp::Put(_) | RequestOp::DeleteRange(_) => false,
        })
    }

    /// Whether every read in it, however deep, is serializable.
    pub fn is_serializable(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            RequestOp::Range(range) => range.serializable,
            RequestOp::Txn(txn) => txn.is_serializable(),
            RequestOp::Put(_) | RequestOp::DeleteRange(_) => false,
        })
    }

    /// Whether a compare or an operation, nested ones too, is about more than one key.
    pub fn names_ranges(&self) -> bool {
        let of_ops = |ops: &[RequestOp<'_>]| {
            ops.iter().any(|op| match op {
                RequestOp::Range(range) => !range.range_end.is_empty(),
                RequestOp::DeleteRange(delete) => !delete.range_end.is_empty(),
                RequestOp::Put(_) => false,
                RequestOp::Txn(txn) => txn.names_ranges(),
            })
        };
        let mut compares = self.compare.iter();
        compares.any(|compare| !compare.range_end.is_empty())
            || of_ops(&self.success)
            || of_ops(&self.failure)
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.compare.len());
        for compare in &self.compare {
            compare.encode(out);
        }
        for branch in [&self.success, &self.failure] {
            put_count(out, branch.len());
            for op in branch {
                match op {
                    RequestOp::Range(range) => {
                        out.push(0);
                        range.encode(out);
                    }
                    RequestOp::Put(put) => {
                        out.push(1);
                        put.encode(out);
                    }
                    RequestOp::DeleteRange(delete) => {
                        out.push(2);
                        delete.encode(out);
                    }
                    RequestOp::Txn(txn) => {
                        out.push(3);
                        txn.encode(out);
                    }
                }
            }
        }
    }

    /// Reads one encoding; nesting deeper than [`MAX_TXN_DEPTH`] is malformed.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Self::decode_at(reader, 0)
    }

    fn decode_at(reader: &mut Reader<'a>, depth: usize) -> Result<Self, DecodeError> {
        if depth > MAX_TXN_DEPTH {
            return Err(reader.error("transaction nesting"));
        }
        let compares = reader.count(Compare::LEAST_SIZE, "compare count")?;
        let compare = (0..compares)
            .map(|_| Compare::decode(reader))
            .collect::<Result<_, _>>()?;
        let mut branch = || -> Result<Vec<RequestOp<'a>>, DecodeError> {
            let ops = reader.count(10, "operation count")?;
            (0..ops)
                .map(|_| {
                    Ok(match reader.u8("operation")? {
                        0 => RequestOp::Range(RangeRequest::decode(reader)?),
                        1 => RequestOp::Put(PutRequest::decode(reader)?),
                        2 => RequestOp::DeleteRange(DeleteRangeRequest::decode(reader)?),
                        3 => RequestOp::Txn(Self::decode_at(reader, depth + 1)?),
                        _ => return Err(reader.error("operation")),
                    })
                })
                .collect()
        };
        let (success, failure) = (branch()?, branch()?);
        Ok(Self {
            compare,
            success,
            failure,
        })
    }
}

/// Drops history below a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactionRequest {
    /// Versions superseded at or before it go; the revision itself stays readable.
    pub revision: i64,
    /// Answer only when the space is free for reuse.
    pub physical: bool,
}

impl CompactionRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.physical]));
        put_i64(out, self.revision);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            physical: reader.u8("compaction flags")? & 1 != 0,
            revision: reader.i64("revision")?,
        })
    }
}
