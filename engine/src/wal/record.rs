//! Records.

/// Kinds of records from 1 to this are the user's; those above are the log's own.
pub const MAX_KIND: u8 = 0xEF;

/// Most bytes of one record's payload.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

/// Most bytes of one group, with headers and padding.
pub const MAX_GROUP_BYTES: usize = 8 << 20;
