//! A line on standard error that shows the progress of reading pages or of waiting, and is removed at the end. The
//! number of pages is not known, so the bar moves back and forth, one step with each response of the gateway.

use std::io::{self, Write};

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    is_on: bool,
    is_shown: bool,
    steps: usize,
}

/// The width of the bar, in columns.
const BAR: usize = 12;
/// The width of the part that moves.
const MARK: usize = 3;

impl Progress {
    /// Shows nothing unless `is_on`: standard error is a terminal, and no other output goes to it.
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, is_shown: false, steps: 0 }
    }

    /// Replaces the line.
    pub(super) fn show(&mut self, text: &str) {
        if self.is_on {
            self.is_shown = true;
            // The line is not important, so an error is ignored.
            let _ = write!(io::stderr().lock(), "\r\x1b[K{} {text}", bar(self.steps));
            self.steps += 1;
        }
    }

    /// Removes the line.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

/// The bar after this number of steps.
fn bar(steps: usize) -> String {
    let free = BAR - MARK;
    let at = steps % (2 * free);
    let before = at.min(2 * free - at);
    format!("[{:before$}{:=<MARK$}{:rest$}]", "", "", "", rest = free - before)
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_moves_back_and_forth() {
        let bars: Vec<_> = [0, 1, 9, 10, 18].map(bar).into();
        assert_eq!(bars, ["[===         ]", "[ ===        ]", "[         ===]", "[        === ]", "[===         ]"]);
        assert!((0..100).all(|steps| bar(steps).len() == BAR + 2));
    }
}
