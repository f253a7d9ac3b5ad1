//! What can go wrong between a client and a cluster.

use std::io;
use std::time::Duration;

use thiserror::Error;
use varve_protocol::{ErrorCode, FrameError, WireError};
use varve_types::{ApiError, DecodeError, Reader};

/// Why a call failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The cluster answered with an error.
    #[error("{0}")]
    Server(WireError),
    /// No answer within the command timeout. A write may or may not have happened.
    #[error("context deadline exceeded")]
    Timeout {
        /// What stood in the way last, where that is known.
        cause: Option<String>,
    },
    /// No endpoint could be reached.
    #[error("cannot connect to {endpoint}: {reason}")]
    Unreachable {
        /// The endpoint tried last.
        endpoint: String,
        /// What happened there.
        reason: String,
    },
    /// The connection broke while the answer was awaited. A write may or may not have happened.
    #[error("connection to {endpoint} lost: {reason}")]
    ConnectionLost {
        /// The endpoint.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// A node answered with bytes that cannot be read.
    #[error("malformed reply from {endpoint}: {source}")]
    MalformedReply {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// An endpoint that is not `host:port`, with or without `http://`.
    #[error("invalid endpoint {0:?}: expected host:port, optionally with http:// before it")]
    InvalidEndpoint(String),
    /// The list of endpoints is empty.
    #[error("no available endpoints")]
    NoEndpoints,
    /// A request that no node would take.
    #[error("request of {bytes} bytes is over the client's limit of {limit} bytes")]
    RequestTooLarge {
        /// Bytes of the request.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl ClientError {
    /// The API error in it, if it is one.
    pub fn api(&self) -> Option<ApiError> {
        match self {
            Self::Server(error) => error.api(),
            _ => None,
        }
    }

    /// The compacted revision, if that is why it failed.
    pub fn compact_revision(&self) -> Option<i64> {
        match self {
            Self::Server(error) if error.code == ErrorCode::Api(ApiError::Compacted) => {
                Some(error.detail)
            }
            _ => None,
        }
    }
}

/// Why a [`crate::RawConnection`] broke.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// No connection within the dial timeout.
    #[error("no connection within {0:?}")]
    DialTimeout(Duration),
    /// The other side closed the connection.
    #[error("connection closed by the server")]
    Closed,
    /// The other side does not speak the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The server gave a reason before it closed the connection.
    #[error("{0}")]
    Refused(WireError),
    /// The server gave no sign of life, not even when asked for one.
    #[error("no answer for {0:?}")]
    Silent(Duration),
    /// The other side sent a request.
    #[error("frame with opcode {0} is not a reply")]
    NotAReply(u8),
}

impl ConnectionError {
    /// Reads the reason that a server gives before it closes a connection.
    pub(crate) fn refused(body: &[u8]) -> Self {
        match WireError::decode(&mut Reader::new(body)) {
            Ok(error) => Self::Refused(error),
            Err(_) => Self::Closed,
        }
    }
}
