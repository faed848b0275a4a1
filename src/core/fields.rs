//! Finds the fields of a request's head.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The values of the field `name`, one for each of its lines.
///
/// A linear search: a request has few fields, and to hash a name takes longer than to compare it with all of theirs.
pub fn values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &HeaderValue> {
    headers.iter().filter(move |(known, _)| **known == name).map(|(_, value)| value)
}
