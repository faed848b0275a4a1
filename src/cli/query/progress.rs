//! One line on standard error that shows how far a walk or a wait is, and is removed at the end.

use std::io::{self, Write};

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    is_on: bool,
    is_shown: bool,
}

impl Progress {
    /// Shows nothing unless `is_on`: standard error is a terminal, and no other output goes to it.
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, is_shown: false }
    }

    /// Replaces the line.
    pub(super) fn show(&mut self, text: &str) {
        if self.is_on {
            self.is_shown = true;
            // The line is not important, so an error is ignored.
            let _ = write!(io::stderr().lock(), "\r\x1b[K{text}");
        }
    }

    /// Removes the line.
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
