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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::operation::Operation;

    /// Is it a structured field (RFC 9651): a token and its parameters, each a bare key, a token, an integer or a
    /// string without escapes.
    fn is_structured(value: &HeaderValue) -> bool {
        let token = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&b))
        };
        let integer = |text: &str| text.len() <= 16 && text.parse::<i64>().is_ok();
        let string = |text: &str| {
            let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            inner.is_some_and(|inner| inner.bytes().all(|b| (0x20..0x7f).contains(&b) && !b"\"\\".contains(&b)))
        };
        let key = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b"-_.*0123456789".contains(&b));
        let mut parts = value.to_str().unwrap_or_default().split("; ");
        parts.next().is_some_and(token)
            && parts.all(|part| match part.split_once('=') {
                Some((name, value)) => key(name) && (token(value) || integer(value) || string(value)),
                None => key(part),
            })
    }

    proptest! {
        #[test]
        fn every_line_is_a_structured_field(ttl in -1_000_000i64..1_000_000, outcome in 0usize..9, status in 100u16..600, stored: bool, collapsed: bool, why in 0usize..4, body: [u8; 4]) {
            let outcome = Outcome::ALL[outcome];
            let key = key_note(&Key::new("AC1", Operation::Query, "", &body));
            let why = [Forward::UriMiss, Forward::Stale, Forward::Request, Forward::Bypass][why];
            for line in [hit(ttl, outcome, &key), forwarded(why, status, stored, collapsed, outcome, &key)] {
                prop_assert!(is_structured(&line), "{:?}", line);
                prop_assert!(line.to_str().unwrap().contains("; key=\""), "{:?}", line);
            }
        }
    }
}
