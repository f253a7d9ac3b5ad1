//! Writing to standard output and error without ever panicking.

use std::io::{ErrorKind, Write};

use crate::failure::{EXIT_IO, Failure};

/// What a shell reports for a program that SIGPIPE ended.
const EXIT_SIGPIPE: i32 = 128 + 13;

/// Writes to standard output. A reader that has left (`varvectl get | head`) ends the program
/// quietly, as it would end any other.
pub(crate) fn to_stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::silent(EXIT_SIGPIPE)),
        Err(error) => Err(Failure::new(
            EXIT_IO,
            format!("write to standard output: {error}"),
        )),
    }
}

/// Writes a line to standard error. If that fails there is nowhere left to say so.
pub(crate) fn to_stderr(line: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{line}");
}
