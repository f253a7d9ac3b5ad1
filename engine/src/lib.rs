//! Varve's storage engine.
//!
//! [`disk`] stands between everything and the file system, [`wal`] is the log
//! with group commit, [`backend`] the trait of swappable ordered stores with
//! [`btree`] as the main one, and [`mvcc`] the revisioned key-value store on
//! top. The engine knows no Raft, no sockets and no wall clock.

pub mod backend;
pub mod btree;
pub mod disk;
pub mod mvcc;
pub mod wal;
