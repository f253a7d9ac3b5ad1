//! Clients of a Varve node.
//!
//! [`RawConnection`] is one socket with as little around it as possible.

mod error;
mod raw;

pub use error::{ClientError, ConnectionError};
pub use raw::RawConnection;
