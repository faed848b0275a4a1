//! The query string of a request, in one spelling.
//!
//! Percent-encoding differs between SDKs, and page tokens contain `+`, `/` and `=`. Names and values are decoded and
//! encoded again in one way, then sorted by name; repeated names keep their order. A raw `+` means a plus sign, as in
//! RFC 3986: tokens are base64, and neither Twilio SDK writes a space.
//!
//! Several SDKs write `PageToken` and `PageSize`, and one of them writes `pageToken` and `PageToken` in one request.
//! Here both are one parameter in Twilio's documented spelling. A request that names two different pages is refused.

/// A canonical query string without its question mark, and the few parameters that the gateway reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    canonical: String,
    /// The encoded page token, if there is one that is not empty.
    page_token: Option<String>,
}

/// The parameter with a page token.
pub const PAGE_TOKEN: &str = "pageToken";
/// The parameter with the largest number of rows on a page.
pub const PAGE_SIZE: &str = "pageSize";

/// The status by which a list of jobs is filtered.
pub const STATUS: &str = "status";

/// The largest page size that a team with a policy may request. Twilio documents no limit.
const LARGEST_PAGE: u32 = 100_000;

impl Parameters {
    /// Reads the part of a request target after the question mark.
    ///
    /// # Errors
    ///
    /// When a percent sign is not followed by two hexadecimal digits, or there are two different page tokens.
    pub fn parse(query: &str) -> Result<Self, BadParameters> {
        if query.is_empty() {
            return Ok(Self::default());
        }
        let mut pairs: Vec<(String, Option<String>)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (pair, None),
            };
            let name = match recode(name)? {
                name if name == "PageToken" => PAGE_TOKEN.to_owned(),
                name if name == "PageSize" => PAGE_SIZE.to_owned(),
                name => name,
            };
            pairs.push((name, value.map(recode).transpose()?));
        }
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        // Repeated with the same value, these two mean nothing more. For other parameters the meaning of a repetition
        // is not documented.
        pairs.dedup_by(|again, first| again == first && matches!(first.0.as_str(), PAGE_TOKEN | PAGE_SIZE));
        let mut tokens = pairs.iter().filter(|(name, _)| name == PAGE_TOKEN).map(|(_, value)| value);
        let page_token = tokens.next().cloned().flatten().filter(|token| !token.is_empty());
        if tokens.next().is_some() {
            return Err(BadParameters::TwoPageTokens);
        }
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
        Ok(Self { canonical, page_token })
    }

    /// The parameters of a request for the page with this `token`, as both Twilio SDKs write them.
    pub fn of_page(token: &str) -> Self {
        Self::of_encoded_token(encode(token.bytes()))
    }

    fn of_encoded_token(token: String) -> Self {
        Self {
            canonical: [PAGE_TOKEN, "=", &token].concat(),
            page_token: Some(token).filter(|token| !token.is_empty()),
        }
    }

    /// The canonical text; empty without parameters.
    pub fn as_str(&self) -> &str {
        &self.canonical
    }

    /// Whether there is a page token that is not empty.
    pub fn has_page_token(&self) -> bool {
        self.page_token.is_some()
    }

    /// The parameters of a request for the same page with only its token; `None` where there is no page token.
    pub fn page_token_alone(&self) -> Option<Self> {
        self.page_token.clone().map(Self::of_encoded_token)
    }

    /// The parameters of a request for the same page with only its token; `None` where these have nothing else, or no
    /// page token.
    pub fn without_all_but_page_token(&self) -> Option<Self> {
        self.page_token_alone().filter(|alone| *alone != *self)
    }

    /// Whether there are only parameters of these `names`, each at most once, and the page size, if there is one, is
    /// valid.
    pub fn are_at_most(&self, names: &[&str]) -> bool {
        let mut before = None;
        self.canonical.split('&').filter(|pair| !pair.is_empty()).all(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // The pairs are sorted.
            before.replace(name) != Some(name) && names.contains(&name) && (name != PAGE_SIZE || is_page_size(value))
        })
    }
}

/// Whether `text` is a valid page size: digits, at least 1, without leading zeros.
pub fn is_page_size(text: &str) -> bool {
    let are_digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    are_digits && text.parse().is_ok_and(|size: u32| size <= LARGEST_PAGE)
}

/// Why a query string is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadParameters {
    /// A percent sign without two hexadecimal digits.
    #[error("a percent sign in the query string must be followed by two hexadecimal digits")]
    Encoding,
    /// The page token is given twice with different values.
    #[error("the query string names two different pages; send one pageToken")]
    TwoPageTokens,
}

/// Decodes and encodes again.
fn recode(text: &str) -> Result<String, BadParameters> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(BadParameters::Encoding);
            let (high, low) = (digit()?, digit()?);
            decoded.push(u8::try_from(high << 4 | low).map_err(|_| BadParameters::Encoding)?);
        } else {
            decoded.push(byte);
        }
    }
    Ok(encode(decoded.into_iter()))
}

/// Unreserved characters (RFC 3986 section 2.3) stay; all others are percent-encoded in capital hexadecimal.
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
    fn one_page_has_one_spelling() {
        for spelled in [
            "pageToken=a%3D",
            "PageToken=a=",
            "pageToken=a=&PageToken=a%3d",
            "PageToken=a=&pageToken=a%3D&&pageToken=a=",
            "%50ageToken=a=",
        ] {
            let parameters = Parameters::parse(spelled).unwrap();
            assert_eq!(parameters, Parameters::of_page("a="), "{spelled}");
            assert_eq!(parameters.without_all_but_page_token(), None);
        }
        for spelled in ["pageToken=a%3D&pageSize=3", "PageSize=3&PageToken=a=", "pageSize=3&PageSize=3&pageToken=a="] {
            let parameters = Parameters::parse(spelled).unwrap();
            assert_eq!(parameters.as_str(), "pageSize=3&pageToken=a%3D", "{spelled}");
            assert_eq!(parameters.without_all_but_page_token(), Some(Parameters::of_page("a=")));
        }
        assert_eq!(Parameters::parse("pageSize=3").unwrap().without_all_but_page_token(), None);
        // Repeated parameters with different values are passed on to Twilio, except page tokens.
        assert_eq!(canonical("pageSize=3&PageSize=4"), "pageSize=3&pageSize=4");
        assert_eq!(canonical("pagetoken=a&PAGETOKEN=b"), "PAGETOKEN=b&pagetoken=a");
    }

    #[test]
    fn refuses_two_pages() {
        for query in [
            "pageToken=a&PageToken=b",
            "pageToken=a&pageToken=b",
            "pageToken=a&pageToken=A",
            "pageToken=a&PageToken=",
            "pageToken&pageToken=a",
            "PageToken=a&x=1&page%54oken=b",
        ] {
            assert_eq!(Parameters::parse(query), Err(BadParameters::TwoPageTokens), "{query}");
        }
    }

    #[test]
    fn knows_when_there_is_nothing_else() {
        let at_most = |query: &str, names: &[&str]| Parameters::parse(query).unwrap().are_at_most(names);
        for query in ["", "pageSize=1", "PageSize=20", "pageSize=100000", "pageToken=T", "pageToken=T&pageSize=3"] {
            assert!(at_most(query, &[PAGE_TOKEN, PAGE_SIZE]), "{query}");
            assert_eq!(at_most(query, &[PAGE_SIZE]), !query.contains("pageToken"), "{query}");
            assert_eq!(at_most(query, &[]), query.is_empty(), "{query}");
        }
        assert!(!at_most("pageToken=", &[PAGE_SIZE]) && !at_most("PageToken", &[PAGE_SIZE]));
        for query in [
            "pageSize=0",
            "pageSize=",
            "pageSize",
            "pageSize=-1",
            "pageSize=+1",
            "pageSize=1.0",
            "pageSize=1e3",
            "pageSize=007",
            "pageSize=100001",
            "pageSize=99999999999",
            "pageSize=1&PageSize=2",
            "pagesize=1",
            "PAGESIZE=1",
            "pageSize=1&x=1",
            "pageToken=T&pagetoken=U",
            "pageToken=T&page_token=U",
            "next=U",
            "pageSize=%EF%BC%91",
            "pageToken%00=T",
        ] {
            assert!(!at_most(query, &[PAGE_TOKEN, PAGE_SIZE]), "{query}");
        }
    }

    #[test]
    fn refuses_half_an_encoding() {
        for query in ["a=%", "a=%2", "a=%zz", "%g0=1"] {
            assert_eq!(Parameters::parse(query), Err(BadParameters::Encoding), "{query}");
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
