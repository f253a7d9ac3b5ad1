//! How a command ends when it does not succeed: etcdctl's exit codes and texts.

use std::fmt::Display;

use varve_client::ClientError;

/// The command failed.
pub(crate) const EXIT_ERROR: i32 = 1;
/// What was typed into `txn` or `watch -i` cannot be read.
pub(crate) const EXIT_INVALID_INPUT: i32 = 3;
/// A valid flag with a value that is not supported.
pub(crate) const EXIT_BAD_FEATURE: i32 = 4;
/// A watch was ended by the server.
pub(crate) const EXIT_INTERRUPTED: i32 = 5;
/// Output could not be written.
pub(crate) const EXIT_IO: i32 = 6;
/// Wrong arguments.
pub(crate) const EXIT_BAD_ARGS: i32 = 128;

/// An exit code and what to print to standard error before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    /// Printed after `Error: `; nothing is printed where it is missing.
    pub(crate) message: Option<String>,
    /// A line in front of it, for people.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: i32, message: impl Display) -> Self {
        Self {
            code,
            message: Some(message.to_string()),
            hint: None,
        }
    }

    pub(crate) fn bad_args(message: impl Display) -> Self {
        Self::new(EXIT_BAD_ARGS, message)
    }

    pub(crate) fn invalid_input(message: impl Display) -> Self {
        Self::new(EXIT_INVALID_INPUT, message)
    }

    /// Everything has been said already.
    pub(crate) fn silent(code: i32) -> Self {
        Self {
            code,
            message: None,
            hint: None,
        }
    }

    /// Says it.
    pub(crate) fn report(&self) {
        let message = self.message.as_ref().map(|text| format!("Error: {text}"));
        for line in self.hint.iter().chain(&message) {
            crate::output::to_stderr(line);
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = match &error {
            ClientError::Timeout { cause } => cause.clone(),
            _ => None,
        };
        Self {
            hint,
            ..Self::new(EXIT_ERROR, error)
        }
    }
}
