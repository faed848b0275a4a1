//! Properties of standard output and standard error: whether each is a terminal, its width, and whether to use colour.

use std::io::{self, IsTerminal};

/// The width of lines where it is not known.
pub(super) const WIDTH: usize = 72;
/// The least width; narrower terminals get lines of this width.
const NARROWEST: usize = 24;

/// The two outputs of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terminal {
    /// Whether standard output is a terminal.
    pub(super) output: bool,
    /// Whether standard output can be redrawn.
    pub(super) redraws: bool,
    /// Whether standard error is a terminal that can erase a line.
    pub(super) errors: bool,
    /// Columns of a line on standard output.
    pub(super) width: usize,
    /// Whether standard output may be coloured: <https://no-color.org>.
    pub(super) colour: bool,
    /// Whether standard error may have colours.
    pub(super) errors_colour: bool,
}

impl Terminal {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let (output, errors) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let columns = || rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
        // A terminal that does not know its width reports 0.
        let columns = output.then(columns).flatten().filter(|columns| *columns > 0);
        Self {
            output,
            redraws: output && !is_dumb,
            errors: errors && !is_dumb,
            width: columns.unwrap_or(WIDTH).max(NARROWEST),
            colour: output && !is_dumb && !is_set("NO_COLOR"),
            errors_colour: errors && !is_dumb && !is_set("NO_COLOR"),
        }
    }
}
