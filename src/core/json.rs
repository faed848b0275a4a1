//! A strict JSON reader that keeps what a cache key depends on: the digits of numbers and the spelling of strings.
//!
//! It follows RFC 8259 to the letter, and is stricter where readers disagree: a repeated member name, a lone surrogate
//! and nesting beyond [`MAX_DEPTH`] are refused. When two readers understand one body differently, a cache serves the
//! wrong page. It borrows from its input and does not convert numbers.

mod error;
mod reader;
mod value;

pub use self::error::{Fault, JsonError, Position};
pub use self::reader::{MAX_DEPTH, MAX_VALUES, built_size, parse, parse_within};
pub(crate) use self::reader::{all, below, equal, plain_prefix};
pub use self::value::{Member, Text, Value, member, write_array, write_separated};

#[cfg(test)]
mod tests;
