//! The query string of a request, in one spelling.
//!
//! Percent-encoding differs between SDKs, and page tokens hold `+`, `/` and `=`. Names and values are decoded
//! and encoded again in one way, then sorted by name; repeated names keep their order. A raw `+` stands for
//! itself, as RFC 3986 has it: tokens are base64, and neither Twilio SDK writes a space.

use std::fmt;

/// A canonical query string without its question mark, and the few parameters that the gateway reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    canonical: String,
    has_page_token: bool,
}

impl Parameters {
    /// Reads the part of a target behind the question mark.
    ///
    /// # Errors
    ///
    /// When a percent sign is not followed by two hexadecimal digits.
    pub fn parse(query: &str) -> Result<Self, BadEncoding> {
        if query.is_empty() {
            return Ok(Self::default());
        }
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (pair, None),
            };
            pairs.push((recode(name)?, value.map(recode).transpose()?));
        }
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        let has_page_token = pairs.iter().any(|(name, value)| {
            // twilio-go and one call of twilio-python spell it with a capital.
            matches!(name.as_str(), "pageToken" | "PageToken") && value.as_ref().is_some_and(|v| !v.is_empty())
        });
        let mut canonical = String::with_capacity(query.len());
        for (name, value) in &pairs {
            if !canonical.is_empty() {
                canonical.push('&');
            }
            canonical.push_str(name);
            if let Some(value) = value {
                canonical.push('=');
                canonical.push_str(value);
            }
        }
        Ok(Self { canonical, has_page_token })
    }

    /// Those of a request for the page that `token` names, as both Twilio SDKs make it.
    pub fn of_page(token: &str) -> Self {
        Self { canonical: format!("pageToken={}", encode(token.bytes())), has_page_token: !token.is_empty() }
    }

    /// The canonical text; empty without parameters.
    pub fn as_str(&self) -> &str {
        &self.canonical
    }

    /// Is there a page token that is not empty.
    pub fn has_page_token(&self) -> bool {
        self.has_page_token
    }
}

/// A percent sign that encodes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadEncoding;

impl fmt::Display for BadEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a percent sign in the query string must be followed by two hexadecimal digits")
    }
}

impl std::error::Error for BadEncoding {}

/// Decodes and encodes again.
fn recode(text: &str) -> Result<String, BadEncoding> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(BadEncoding);
            let (high, low) = (digit()?, digit()?);
            decoded.push(u8::try_from(high << 4 | low).map_err(|_| BadEncoding)?);
        } else {
            decoded.push(byte);
        }
    }
    Ok(encode(decoded.into_iter()))
}

/// Unreserved characters (RFC 3986 section 2.3) as they are, all else in capital hexadecimal.
fn encode(bytes: impl Iterator<Item = u8>) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::new();
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(query: &str) -> String {
        Parameters::parse(query).expect(query).as_str().to_owned()
    }

    #[test]
    fn tokens_have_one_spelling() {
        for spelled in ["pageToken=a+b/c==", "pageToken=a%2Bb%2Fc%3D%3D", "pageToken=a%2bb/c%3d="] {
            assert_eq!(canonical(spelled), "pageToken=a%2Bb%2Fc%3D%3D");
        }
    }

    #[test]
    fn a_token_of_an_answer_makes_the_request_for_its_page() {
        assert_eq!(Parameters::of_page("a+b/c=="), Parameters::parse("pageToken=a+b/c==").unwrap());
    }

    #[test]
    fn names_are_sorted_and_repetitions_keep_their_order() {
        assert_eq!(canonical("b=2&a=1&b=1&&flag"), "a=1&b=2&b=1&flag");
        assert_ne!(canonical("a"), canonical("a="));
        assert_ne!(canonical("a=1&a=2"), canonical("a=2&a=1"));
    }

    #[test]
    fn knows_a_page_token() {
        for (query, there) in [
            ("pageToken=x", true),
            ("PageToken=x", true),
            ("pageToken=", false),
            ("pageToken", false),
            ("x=1", false),
            ("page%54oken=x", true),
        ] {
            assert_eq!(Parameters::parse(query).unwrap().has_page_token(), there, "{query}");
        }
    }

    #[test]
    fn refuses_half_an_encoding() {
        for query in ["a=%", "a=%2", "a=%zz", "%g0=1"] {
            assert_eq!(Parameters::parse(query), Err(BadEncoding), "{query}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(query in "[a-cA-C0-9%=&+/._~ -]{0,40}") {
            if let Ok(parameters) = Parameters::parse(&query) {
                prop_assert_eq!(canonical(parameters.as_str()), parameters.as_str());
            }
        }
    }
}
