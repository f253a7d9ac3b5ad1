//! `version`.

use crate::failure::Failure;
use crate::output::to_stdout;

pub(super) fn run() -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let api = concat!(
        env!("CARGO_PKG_VERSION_MAJOR"),
        ".",
        env!("CARGO_PKG_VERSION_MINOR")
    );
    to_stdout(format!("varvectl version: {version}\nAPI version: {api}\n").as_bytes())
}
