//! One line on standard error that says how far a walk or a wait has come, and is taken back in the end.

use std::io::{self, Write};

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    is_on: bool,
    is_shown: bool,
}

impl Progress {
    /// Shows nothing unless `is_on`: standard error is a terminal, and nothing else writes to that terminal.
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, is_shown: false }
    }

    /// Shows this in place of what was shown before.
    pub(super) fn show(&mut self, text: &str) {
        if self.is_on {
            self.is_shown = true;
            // Whoever cannot be shown it misses nothing.
            let _ = write!(io::stderr().lock(), "\r\x1b[K{text}");
        }
    }

    /// Takes the line back.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
