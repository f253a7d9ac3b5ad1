//! Clients of a Varve cluster.
//!
//! [`Client`] finds a node that answers, keeps many calls in flight on one
//! connection, repeats what may be repeated, and watches. [`RawConnection`] is
//! one socket with as little around it as possible, for load generators.

mod client;
mod config;
mod connection;
mod error;
mod raw;
mod reply;
mod snapshot;
mod watch;

pub use client::{Answer, Client};
pub use config::{ClientConfig, Endpoint};
pub use error::{ClientError, ConnectionError};
pub use raw::RawConnection;
pub use snapshot::Snapshot;
pub use watch::{Watch, WatchUpdate};
