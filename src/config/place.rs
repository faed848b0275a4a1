//! Where values were written: a line of the file, a variable, a flag.

use std::fmt;
use std::sync::Arc;

/// Where a value was written. The order is that of the report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The file as a whole, which could not be read.
    File(Arc<str>),
    /// A line of the file, counted from 1.
    Line(Arc<str>, usize),
    /// An environment variable, or the environment as a whole.
    Environment(Option<String>),
    /// A command line flag.
    Flags,
}

impl fmt::Display for Place {
    /// In one line, with control characters escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self {
            Self::File(file) => file.to_string(),
            Self::Line(file, line) => format!("{file}:{line}"),
            Self::Environment(Some(name)) => format!("environment: {name}"),
            Self::Environment(None) => "environment".to_owned(),
            Self::Flags => "flags".to_owned(),
        };
        write_escaped(&place, f)
    }
}

/// Control characters escaped, so that one line stays one line.
pub(super) fn write_escaped(line: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    line.chars().try_for_each(|c| match c.is_control() {
        true => write!(f, "{}", c.escape_default()),
        false => write!(f, "{c}"),
    })
}
