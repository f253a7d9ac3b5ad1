//! Errors of the framing, and errors as they travel.

use thiserror::Error;
use varve_types::{ApiError, DecodeError, Reader, put_bytes, put_i64};

/// Bytes that are not a frame. The connection cannot go on after one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream does not speak this protocol.
    #[error("not a Varve frame: starts with {:#04x} {:#04x}", found[0], found[1])]
    BadMagic {
        /// The first bytes; 0 where there was none.
        found: [u8; 2],
    },
    /// Another version of the protocol.
    #[error(
        "protocol version {version} is not supported, this side speaks {}",
        crate::VERSION
    )]
    UnsupportedVersion {
        /// The version found.
        version: u8,
    },
    /// Flags or reserved bytes that have no meaning.
    #[error("reserved bits are set in the frame header (flags {flags:#06x})")]
    ReservedBits {
        /// The flags found.
        flags: u16,
    },
    /// The body is longer than this side accepts.
    #[error("frame body of {length} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// Bytes announced.
        length: u32,
        /// Bytes accepted.
        limit: usize,
    },
    /// The bytes changed on their way.
    #[error("frame checksum mismatch: header says {expected:#010x}, bytes give {actual:#010x}")]
    BadChecksum {
        /// In the header.
        expected: u32,
        /// Of the bytes.
        actual: u32,
    },
    /// The stream ended inside a frame.
    #[error("connection closed inside a frame ({buffered} bytes of it pending)")]
    Truncated {
        /// Bytes that had arrived or were still to be skipped.
        buffered: usize,
    },
}

/// A request that is a frame, but not one that can be answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No such request.
    #[error("unknown opcode {0}")]
    UnknownOpcode(u8),
    /// The body is not what the opcode asks for.
    #[error("opcode {opcode}: {source}")]
    Malformed {
        /// The opcode.
        opcode: u8,
        /// What is wrong, and where.
        source: DecodeError,
    },
    /// A frame of the other direction, or of the other port.
    #[error("opcode {opcode} with flags {flags:#06x} is not a request")]
    NotARequest {
        /// The opcode.
        opcode: u8,
        /// The flags.
        flags: u16,
    },
}

impl RequestError {
    /// The error of the API that says the same, where there is one.
    pub fn api(&self) -> Option<ApiError> {
        match self {
            Self::Malformed { source, .. } => source.api,
            _ => None,
        }
    }
}

/// What an error reply's number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// An error that etcd has too: 1 to 999.
    Api(ApiError),
    /// 1000: the bytes were not a frame; the connection is closed.
    BadFrame,
    /// 1001: the frame's protocol version is not spoken here; the connection is closed.
    UnsupportedVersion,
    /// 1002: no such request.
    UnknownOpcode,
    /// 1003: the body could not be read.
    MalformedBody,
    /// 1004: something inside the node failed; the text says what.
    Internal,
    /// 1005: the connection has too many requests in flight or watches open.
    TooManyInFlight,
    /// 1006: the node is shutting down and has not done it; another one may.
    ShuttingDown,
    /// Any other number, from a newer node.
    Other(u16),
}

impl ErrorCode {
    /// Its number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Api(error) => error.number(),
            Self::BadFrame => 1000,
            Self::UnsupportedVersion => 1001,
            Self::UnknownOpcode => 1002,
            Self::MalformedBody => 1003,
            Self::Internal => 1004,
            Self::TooManyInFlight => 1005,
            Self::ShuttingDown => 1006,
            Self::Other(number) => number,
        }
    }

    /// The code with this number.
    pub fn from_number(number: u16) -> Self {
        match number {
            1000 => Self::BadFrame,
            1001 => Self::UnsupportedVersion,
            1002 => Self::UnknownOpcode,
            1003 => Self::MalformedBody,
            1004 => Self::Internal,
            1005 => Self::TooManyInFlight,
            1006 => Self::ShuttingDown,
            _ => ApiError::from_number(number).map_or(Self::Other(number), Self::Api),
        }
    }
}

/// An error as it travels: the body of a frame with the error flag.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct WireError {
    /// What went wrong.
    pub code: ErrorCode,
    /// The same for people; etcd's text where etcd has the error.
    pub message: String,
    /// A number that belongs to the code, else 0: the compacted revision for `Compacted`.
    pub detail: i64,
}

impl WireError {
    /// An error with its own text.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: 0,
        }
    }

    /// A failure inside the node.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// The node is on its way down and has not touched the request.
    pub fn shutting_down() -> Self {
        Self::new(ErrorCode::ShuttingDown, ApiError::Stopped.to_string())
    }

    /// The revision asked for is gone; `compact_revision` is the oldest that is left.
    pub fn compacted(compact_revision: i64) -> Self {
        Self {
            detail: compact_revision,
            ..ApiError::Compacted.into()
        }
    }

    /// The API error, if it is one.
    pub fn api(&self) -> Option<ApiError> {
        match self.code {
            ErrorCode::Api(error) => Some(error),
            _ => None,
        }
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.code.number().to_le_bytes());
        put_i64(out, self.detail);
        put_bytes(out, self.message.as_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let number = u16::from_le_bytes([reader.u8("error number")?, reader.u8("error number")?]);
        Ok(Self {
            code: ErrorCode::from_number(number),
            detail: reader.i64("error detail")?,
            message: reader.string("error text")?.to_owned(),
        })
    }
}

impl From<ApiError> for WireError {
    fn from(error: ApiError) -> Self {
        Self::new(ErrorCode::Api(error), error.to_string())
    }
}

impl From<&FrameError> for WireError {
    fn from(error: &FrameError) -> Self {
        match error {
            FrameError::TooLarge { .. } => ApiError::RequestTooLarge.into(),
            FrameError::UnsupportedVersion { .. } => {
                Self::new(ErrorCode::UnsupportedVersion, error.to_string())
            }
            _ => Self::new(ErrorCode::BadFrame, error.to_string()),
        }
    }
}

impl From<&RequestError> for WireError {
    fn from(error: &RequestError) -> Self {
        if let Some(error) = error.api() {
            return error.into();
        }
        let code = match error {
            RequestError::UnknownOpcode(_) | RequestError::NotARequest { .. } => {
                ErrorCode::UnknownOpcode
            }
            RequestError::Malformed { .. } => ErrorCode::MalformedBody,
        };
        Self::new(code, error.to_string())
    }
}
