//! Values that borrow from the text they were read from, and how they are written.

use std::ops::Range;

/// A JSON value that borrows from the text it was read from.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// The digits as they were written.
    Number(&'a str),
    /// A string.
    String(Text<'a>),
    /// An array. Not a `Vec`, which would keep memory for more elements.
    Array(Box<[Value<'a>]>),
    /// Members in the order in which they were written; their names differ.
    Object(Box<[Member<'a>]>),
}

/// A member of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Member<'a> {
    /// Its name.
    pub name: Text<'a>,
    /// Its value.
    pub value: Value<'a>,
}

/// A string, both as it was spelled and with its escapes resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Text<'a> {
    pub(super) raw: &'a str,
    /// `None` where it has no escapes.
    pub(super) decoded: Option<Box<str>>,
}

impl Text<'_> {
    /// The string, escapes resolved.
    pub fn as_str(&self) -> &str {
        self.decoded.as_deref().unwrap_or(self.raw)
    }

    /// The spelling between the quotes.
    pub fn raw(&self) -> &str {
        self.raw
    }

    /// The offset of its spelling in `source`, the text from which it was read.
    pub fn range_in(&self, source: &[u8]) -> Option<Range<usize>> {
        let start = (self.raw.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
        let range = start..start + self.raw.len();
        source.get(range.clone()).is_some_and(|found| found == self.raw.as_bytes()).then_some(range)
    }
}

impl<'a> Value<'a> {
    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// The members of an object.
    pub fn as_object(&self) -> Option<&[Member<'a>]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn as_array(&self) -> Option<&[Value<'a>]> {
        match self {
            Self::Array(elements) => Some(elements),
            _ => None,
        }
    }
}

impl Value<'_> {
    /// Writes it without white space; digits, spelling and order are kept.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Number(digits) => out.extend_from_slice(digits.as_bytes()),
            Self::String(text) => text.write(out),
            Self::Array(elements) => write_array(out, elements, |out, element| element.write(out)),
            Self::Object(members) => {
                out.push(b'{');
                write_separated(out, members, |out, member| {
                    member.name.write(out);
                    out.push(b':');
                    member.value.write(out);
                });
                out.push(b'}');
            }
        }
    }
}

impl Text<'_> {
    /// Writes it with its quotes, as it was spelled.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(self.raw.as_bytes());
        out.push(b'"');
    }
}

/// Writes an array whose elements `write` writes.
pub fn write_array<T>(out: &mut Vec<u8>, elements: impl IntoIterator<Item = T>, write: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    write_separated(out, elements, write);
    out.push(b']');
}

/// Writes items with commas between them.
pub fn write_separated<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

/// Looks a member up by name.
pub fn member<'v, 'a>(members: &'v [Member<'a>], name: &str) -> Option<&'v Value<'a>> {
    members.iter().find(|m| m.name.as_str() == name).map(|m| &m.value)
}
