//! `Cache-Status` (RFC 9211): how a response came about, in one line.

use std::fmt::Display;
use std::io::Write;

use http::{HeaderName, HeaderValue};

use crate::core::outcome::Outcome;

/// The name of the field.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request was forwarded (RFC 9211 section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// There was no stored response.
    UriMiss,
    /// There was a stored response, but it was too old.
    Stale,
    /// There was one, but the client's `Cache-Control` did not accept it.
    Request,
    /// The client asked that nothing be stored.
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

/// The last part of every line about one stored response: its key. Formatted once and kept with the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyParam([u8; Self::LENGTH]);

impl KeyParam {
    const LENGTH: usize = "; key=\"0123456789abcdef\"".len();

    /// From a key in its short form: 16 hexadecimal digits.
    pub fn new(short: &impl Display) -> Self {
        let mut text = [b'0'; Self::LENGTH];
        // The short form has a fixed length, so this fits.
        let _ = write!(&mut text[..], "; key=\"{short}\"");
        Self(text)
    }
}

/// The value for a stored response.
pub fn hit(ttl: i64, outcome: Outcome, key: &KeyParam) -> HeaderValue {
    line(["insights-gateway; hit; ttl=", itoa::Buffer::new().format(ttl), "; detail=", outcome.as_str()], key)
}

/// The value for a response from upstream.
pub fn forwarded(
    why: Forward,
    status: u16,
    stored: bool,
    collapsed: bool,
    outcome: Outcome,
    key: &KeyParam,
) -> HeaderValue {
    let stored = if stored { "; stored" } else { "" };
    let collapsed = if collapsed { "; collapsed" } else { "" };
    let (why, mut digits) = (why.as_str(), itoa::Buffer::new());
    let (status, outcome) = (digits.format(status), outcome.as_str());
    line(["insights-gateway; fwd=", why, stored, collapsed, "; fwd-status=", status, "; detail=", outcome], key)
}

/// Joins the parts in a buffer of exactly their length: of a larger one, the header value would need a second allocation.
/// The formatting macros would take most of the time of a hit's line.
fn line<const N: usize>(parts: [&str; N], key: &KeyParam) -> HeaderValue {
    let length = parts.iter().map(|part| part.len()).sum::<usize>() + key.0.len();
    let mut line = Vec::with_capacity(length);
    for part in parts {
        line.extend_from_slice(part.as_bytes());
    }
    line.extend_from_slice(&key.0);
    // Every part is a word, a number or hexadecimal digits.
    HeaderValue::try_from(line).unwrap_or_else(|_| HeaderValue::from_static("insights-gateway"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether it is a structured field (RFC 9651): a token and its parameters, each without value, or with a token, an
    /// integer or a string without escapes.
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
        fn every_line_is_a_structured_field(ttl in -1_000_000i64..1_000_000, outcome in 0usize..9, status in 100u16..600, stored: bool, collapsed: bool, why in 0usize..4, key: u64) {
            let outcome = Outcome::ALL[outcome];
            let key = KeyParam::new(&format_args!("{key:016x}"));
            let why = [Forward::UriMiss, Forward::Stale, Forward::Request, Forward::Bypass][why];
            for line in [hit(ttl, outcome, &key), forwarded(why, status, stored, collapsed, outcome, &key)] {
                prop_assert!(is_structured(&line), "{:?}", line);
                prop_assert!(line.to_str().unwrap().contains("; key=\""), "{:?}", line);
            }
        }
    }
}
