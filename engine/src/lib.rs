//! Varve's storage engine.
//!
//! [`disk`] stands between everything and the file system, [`wal`] is the log
//! with group commit, [`backend`] the trait of swappable ordered stores with
//! [`btree`] as the main one, and [`mvcc`] the revisioned key-value store on
//! top. The engine knows no Raft, no sockets and no wall clock.
//!
//! [`db`] puts them together as an embedded database for one process: start
//! there to use the engine on its own.

pub mod backend;
pub mod btree;
pub mod db;
pub mod disk;
#[doc(hidden)]
pub mod mutations;
pub mod mvcc;
mod sync;
pub mod wal;

pub use db::{Db, Kv};
