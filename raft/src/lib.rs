//! One Varve replica: raft-rs driven over the engine's WAL.
