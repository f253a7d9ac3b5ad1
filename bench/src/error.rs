//! What can keep a measurement from being made.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a run could not be made or finished.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum BenchError {
    /// A flag's value does not fit.
    #[error("{0}")]
    Usage(String),
    /// A server could not be talked to.
    #[error("{endpoint}: {what}")]
    Target {
        /// Which server.
        endpoint: String,
        /// What went wrong.
        what: String,
    },
    /// A file or process operation failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A node that was started does not serve.
    #[error("node {name} {what}; the end of its log ({}):\n{log_tail}", log.display())]
    Node {
        /// The node's name.
        name: String,
        /// What it did instead of serving.
        what: String,
        /// Where its output went.
        log: PathBuf,
        /// The last lines of it.
        log_tail: String,
    },
    /// The prefill did not come to an end.
    #[error("prefill stopped after {done} of {keys} keys: {what}")]
    Prefill {
        /// Keys written.
        done: u64,
        /// Keys asked for.
        keys: u64,
        /// The most frequent error.
        what: String,
    },
    /// A storage engine failed.
    #[error("{name}: {what}")]
    Engine {
        /// Which row.
        name: &'static str,
        /// What it said.
        what: String,
    },
    /// What was read is not what was written.
    #[error("wrong answer: {0}")]
    Mismatch(String),
    /// A generator thread ended without a result.
    #[error("a generator thread died; its message is above")]
    Worker,
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

/// What fallible functions of this program return.
pub(crate) type Result<T> = std::result::Result<T, BenchError>;

impl BenchError {
    /// An error of a server, with anything that can be printed as the cause.
    pub(crate) fn target(endpoint: &str, what: impl std::fmt::Display) -> Self {
        Self::Target {
            endpoint: endpoint.to_owned(),
            what: what.to_string(),
        }
    }
}
