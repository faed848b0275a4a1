//! What standard output and standard error are: a terminal, how wide, with colour or without.

use std::io::{self, IsTerminal};

/// The width of lines where nobody says how wide a line may be.
pub(super) const WIDTH: usize = 72;
/// Narrower terminals get lines of this width.
const NARROWEST: usize = 24;

/// The two outputs of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terminal {
    /// Does a person read standard output.
    pub(super) output: bool,
    /// Can standard output take back what it shows.
    pub(super) redraws: bool,
    /// Does a person read standard error, on a terminal that can take a line back.
    pub(super) errors: bool,
    /// Columns of a line on standard output.
    pub(super) width: usize,
    /// May standard output be coloured: <https://no-color.org>.
    pub(super) colour: bool,
}

impl Terminal {
    /// This process's own.
    pub(super) fn of_process() -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let output = io::stdout().is_terminal();
        let columns = || rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
        // A terminal that does not know its own width says 0.
        let columns = output.then(columns).flatten().filter(|columns| *columns > 0);
        Self {
            output,
            redraws: output && !is_dumb,
            errors: io::stderr().is_terminal() && !is_dumb,
            width: columns.unwrap_or(WIDTH).max(NARROWEST),
            colour: output && !is_dumb && !is_set("NO_COLOR"),
        }
    }
}
