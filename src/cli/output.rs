//! What commands print on standard output and standard error.

use std::io::{self, Write};
use std::process::ExitCode;

use super::exit;

/// Prints to standard output. A reader that stops early, such as `head`, is not a failure.
pub(super) fn answer(page: &str) -> ExitCode {
    print(page).err().unwrap_or(ExitCode::from(exit::DONE))
}

/// Prints to standard output.
///
/// # Errors
///
/// The exit code, when the reader has closed the pipe or writing failed. A failure has been explained.
pub(super) fn print(page: &str) -> Result<(), ExitCode> {
    let mut output = io::stdout().lock();
    output.write_all(page.as_bytes()).and_then(|()| output.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => ExitCode::from(exit::DONE),
        _ => {
            explain(&format!("insights-gateway: cannot write to standard output: {error}"));
            ExitCode::from(exit::INTERNAL)
        }
    })
}

/// Prints one or more lines to standard error, ignoring errors.
pub(super) fn explain(lines: &str) {
    let _ = writeln!(io::stderr().lock(), "{lines}");
}
