//! `Cache-Status` (RFC 9211): how an answer came about, in one line.

use std::fmt::Write;

use http::HeaderValue;

use crate::model::key::Key;
use crate::model::outcome::Outcome;

/// Why a request went further than the cache (RFC 9211 section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    /// There was no page.
    UriMiss,
    /// There was one, too old.
    Stale,
    /// There was one, which the client's `Cache-Control` did not accept.
    Request,
    /// The client wanted nothing kept.
    Bypass,
}

impl Forward {
    const fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss => "uri-miss",
            Self::Stale => "stale",
            Self::Request => "request",
            Self::Bypass => "bypass",
        }
    }
}

/// The end of every line about one page.
pub(super) fn key_note(key: &Key) -> Box<str> {
    format!("; key=\"{}\"", key.short()).into()
}

/// An answer from the store.
pub(super) fn hit(ttl: i64, outcome: Outcome, key_note: &str) -> HeaderValue {
    let mut line = String::with_capacity(96);
    line.push_str("insights-gateway; hit; ttl=");
    line.push_str(itoa::Buffer::new().format(ttl));
    line.push_str("; detail=");
    line.push_str(outcome.as_str());
    line.push_str(key_note);
    value(line)
}

/// An answer from upstream.
pub(super) fn forwarded(
    why: Forward,
    status: u16,
    stored: bool,
    collapsed: bool,
    outcome: Outcome,
    key_note: &str,
) -> HeaderValue {
    let mut line = String::with_capacity(128);
    line.push_str("insights-gateway; fwd=");
    line.push_str(why.as_str());
    if stored {
        line.push_str("; stored");
    }
    if collapsed {
        line.push_str("; collapsed");
    }
    // Writing to a string does not fail.
    let _ = write!(line, "; fwd-status={status}; detail={}{key_note}", outcome.as_str());
    value(line)
}

fn value(line: String) -> HeaderValue {
    // Every part is a word, a number or hexadecimal digits.
    HeaderValue::try_from(line).unwrap_or_else(|_| HeaderValue::from_static("insights-gateway"))
}
