//! Commands of the system: `ip`, `mount` and their like.

use std::process::{Command, Stdio};

/// Runs a command line, its words separated by single spaces; what it said if it failed.
pub(super) async fn run(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = tokio::process::Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| format!("{line}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// The same at the end of everything, when nothing can be done about a failure; whether
/// it worked.
pub(super) fn run_at_the_end(line: &str) -> bool {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap_or_default())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// Whether what only root may do can be done, or why not.
pub(super) fn may_use_root(is_wanted: bool) -> Result<(), &'static str> {
    match (is_wanted, rustix::process::geteuid().is_root()) {
        (false, _) => Err("--no-root"),
        (true, false) => Err("only root may make it"),
        (true, true) => Ok(()),
    }
}
