//! The tree of values that file, environment and flags are joined into.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::place::Place;

/// A value and where it was written. Not `Debug`: any text may be a secret.
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A value. Text is wiped when it is dropped.
pub(super) enum Value {
    /// From the environment or a flag. The key decides what type it has.
    Raw(Zeroizing<String>),
    Text(Zeroizing<String>),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Value {
    /// The type, for "found …" in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Raw(_) | Self::Text(_) => "text",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}
