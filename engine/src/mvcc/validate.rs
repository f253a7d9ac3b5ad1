//! What can be refused without looking at the state.

use varve_types::{ApiError, Command};

use super::options::Limits;

/// Refuses what no state can make valid: an empty key, a key given twice, too
/// many operations. Call it before a command is proposed.
pub fn validate(_command: &Command<'_>, _limits: &Limits) -> Result<(), ApiError> {
    unimplemented!()
}
