//! Why a text is not JSON, and where.

use std::fmt;

/// Why a text is not acceptable JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError {
    /// Offset of the offending byte.
    pub at: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What can be wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The text ends in the middle of a value.
    Truncated,
    /// A character that is not JSON at this place.
    Unexpected,
    /// More than one value.
    Trailing,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Deeper than [`MAX_DEPTH`](super::MAX_DEPTH).
    TooDeep,
    /// A name that the object already has.
    RepeatedName,
    /// A string escape that JSON does not have, or half of a surrogate pair.
    BadEscape,
    /// A number that is not in JSON's form.
    BadNumber,
    /// More than [`MAX_VALUES`](super::MAX_VALUES).
    TooManyValues,
}

impl JsonError {
    /// The position of the error in the text that was parsed.
    pub fn place(&self, text: &[u8]) -> Position {
        let before = &text[..self.at.min(text.len())];
        Position {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count(),
        }
    }
}

/// A line and a byte in that line, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The byte.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at byte {}", self.fault, self.at)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the text ends in the middle of a value",
            Self::Unexpected => "a character that is not allowed here",
            Self::Trailing => "something follows the value",
            Self::NotUtf8 => "bytes that are not UTF-8",
            Self::TooDeep => "nested too deeply",
            Self::RepeatedName => "a member name that the object has already",
            Self::BadEscape => "a bad string escape",
            Self::BadNumber => "a malformed number",
            Self::TooManyValues => "more values than are read",
        })
    }
}

impl std::error::Error for JsonError {}
