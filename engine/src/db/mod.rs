//! The storage engine as a database for one process, without Raft.
//!
//! [`Db`] is the revisioned store, [`Kv`] an ordered map without revisions.
//! Both are a [write-ahead log](crate::wal) in front of a
//! [storage engine](crate::backend): a batch is done when it is durable in the
//! log; the store is made durable now and then, by checkpoints.
//!
//! ```
//! use varve_engine::db::{Db, Options, WriteBatch};
//! use varve_types::{KeyRange, RangeRequest};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("store");
//! let db = Db::open(&path, Options::default())?;
//!
//! // Durable when the call returns. Threads that write at once share a sync.
//! let first = db.put(b"name", b"varve")?;
//! db.put(b"name", b"Varve")?;
//!
//! // A batch is one write and one sync, and becomes visible as a whole.
//! let mut batch = WriteBatch::new();
//! for number in 0..1000 {
//!     batch.put(format!("key/{number:04}").as_bytes(), b"value")?;
//! }
//! db.write(&batch)?;
//!
//! // Every revision can be read until it is compacted.
//! assert_eq!(db.get(b"name")?.unwrap().value, b"Varve");
//! assert_eq!(db.get_at(b"name", first)?.unwrap().value, b"varve");
//! let range = db.range(&RangeRequest {
//!     key: b"key/",
//!     range_end: &KeyRange::prefix_end(b"key/"),
//!     limit: 10,
//!     ..RangeRequest::default()
//! })?;
//! assert_eq!((range.kvs.len(), range.count), (10, 1000));
//! for entry in db.iter(KeyRange::From(b"key/0990"), 0).take(5) {
//!     assert!(entry?.key.starts_with(b"key/099"));
//! }
//! db.compact(db.revision())?;
//! assert!(db.get_at(b"name", first).is_err());
//! db.close()?;
//!
//! let db = Db::open(&path, Options::default())?;
//! assert_eq!(db.get(b"name")?.unwrap().version, 2);
//! # Ok(())
//! # }
//! ```
//!
//! Another engine than the B+tree is [`Options::engine`].
//!
//! # Loading much at once
//! A map that is to begin with sorted data takes it by [`Kv::load_sorted`]: full pages,
//! each byte written once, nothing logged. A [`Db`] has a revision for each change, so
//! there a load is batches like others: [`Db::submit`] with a few thousand ascending
//! keys each, some of them on their way at a time. Keys that come after all others
//! leave full pages behind them there too.
//!
//! ```
//! use varve_engine::db::{Kv, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let map = Kv::open(directory.path().join("map"), Options::default())?;
//! let sorted = (0..1000_u32).map(|number| (number.to_be_bytes(), "value"));
//! assert_eq!(map.load_sorted(sorted)?, 1000);
//! assert_eq!(map.get(&7_u32.to_be_bytes())?.unwrap(), b"value");
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//! 1. A batch is applied only after it is durable in the log, in the order of
//!    the log. So readers see only what a crash can't take back, and the store
//!    is never ahead of the log.
//! 2. With every state the store keeps the lsn of the last batch applied; the
//!    log is let go only behind a checkpoint, and never that batch itself.
//! 3. The log's length is bounded by [`Options::max_log_bytes`], what is on its
//!    way by [`Options::max_in_flight_bytes`]; past either, writers wait.
//! 4. After a fault of log or store nothing is written any more
//!    ([`DbError::Stopped`]); reads go on. Opening again finds out what is there.

mod apply;
mod batch;
mod error;
mod gate;
mod iter;
mod kv;
mod load;
mod machine;
mod options;
mod pending;
mod pipeline;
mod recover;
mod revisioned;

pub use batch::WriteBatch;
pub use error::{DbError, Result};
pub use iter::Iter;
pub use kv::{Kv, KvSnapshot};
pub use options::Options;
pub use pending::Pending;
pub use revisioned::{Db, Written};
