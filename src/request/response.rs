//! A response on its way to clients: the part that may be stored and served again, and the form in which one client
//! gets it.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::core::outcome::Outcome;
use crate::request::call::UpstreamResponse;
use crate::semantics::cache_control;
use crate::semantics::request_directives::has_tag;
use crate::semantics::upstream_headers;

/// Twilio's response in the form that is stored and served to clients, compressed or not: its status, the headers that
/// may be passed on, and a representation (RFC 9110 section 3.2).
#[derive(Debug)]
pub struct Representation {
    /// Twilio's status.
    pub status: StatusCode,
    /// The headers of Twilio's that a client gets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The whole body.
    pub body: Bytes,
    /// Identifies the body's bytes; only 200s have one.
    pub etag: Option<HeaderValue>,
    /// Whether Twilio forbids to change the coding of its body: `no-transform` (RFC 9111 section 5.2.2.6).
    pub no_transform: bool,
}

impl Representation {
    /// Headers that a client gets whenever the page is served. `Cache-Control` directives must be passed on by every
    /// cache (RFC 9111 section 5.2).
    const KEPT: [HeaderName; 3] =
        [header::CONTENT_TYPE, header::CACHE_CONTROL, HeaderName::from_static("twilio-request-id")];

    /// The response in the form for clients, with the headers that its endpoint `returns`. Its `Cache-Control` is one
    /// line: [`normalise`](crate::semantics::cache_control::normalise). A success may be stored, so the headers that are
    /// true only when it arrives are removed: `Retry-After` and the rate limit. Twilio's own errors keep them, because
    /// clients act on them.
    pub fn new(answer: UpstreamResponse, returns: &[&'static str]) -> Self {
        let UpstreamResponse { status, headers, body, .. } = answer;
        // The values are copied: they come as slices of the connection's read buffer, and the smallest of them would
        // keep the whole buffer in memory, which may be larger than the body. The usual content type needs no memory at
        // all.
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        let copied = |name: &HeaderName| match headers.get(name) {
            // All bodies are JSON, whatever their content type says. Under another type a browser could treat one as a
            // web page.
            value if *name == header::CONTENT_TYPE && !value.is_some_and(|value| *value != JSON && is_json(value)) => {
                Some(JSON)
            }
            value => HeaderValue::from_bytes(value?.as_bytes()).ok(),
        };
        let header = |name: &HeaderName| copied(name).map(|value| (name.clone(), value));
        let returns = if status.is_success() { returns } else { &[] };
        let mut headers: Vec<_> = Self::KEPT.iter().filter_map(header).collect();
        if !status.is_success() {
            headers.extend([header::RETRY_AFTER].iter().chain(&upstream_headers::RATE_LIMIT).filter_map(header));
        }
        headers.extend(returns.iter().filter_map(|name| header(&HeaderName::from_static(name))));
        // If Twilio sends an `ETag` for this endpoint, only that one is valid for `If-Match`.
        let etag = match returns.contains(&header::ETAG.as_str()) {
            true => headers.iter().find(|(name, _)| *name == header::ETAG).map(|(_, etag)| etag.clone()),
            false => (status == StatusCode::OK).then(|| etag(&body)).flatten(),
        };
        let no_transform = Self::forbids_transforms(&headers);
        Self { status, headers, body, etag, no_transform }
    }

    /// Whether these headers of a page contain `no-transform`.
    pub fn forbids_transforms(headers: &[(HeaderName, HeaderValue)]) -> bool {
        headers.iter().any(|(name, value)| *name == header::CACHE_CONTROL && cache_control::has(value, "no-transform"))
    }

    /// The same response with another body.
    pub fn with_body(&self, body: Bytes) -> Self {
        let etag = self.etag.is_some().then(|| etag(&body)).flatten();
        Self { status: self.status, headers: self.headers.clone(), body, etag, no_transform: self.no_transform }
    }

    /// A body smaller than this saves less by compression than a response's head takes.
    const LEAST_CODED: usize = 1024;

    /// Whether its body may be sent in another coding. Every response must then say so to caches (`Vary`), compressed
    /// or not.
    pub fn may_be_coded(&self) -> bool {
        self.status == StatusCode::OK && self.body.len() >= Self::LEAST_CODED && !self.no_transform
    }

    /// Its body in gzip; `None` if that saves less than a tenth. Takes as long as a few hundred hits.
    pub fn gzip(&self) -> Option<CodedBody> {
        // Measured on pages: lower levels make metadata a sixth larger, and higher ones gain nothing.
        const LEVEL: Compression = Compression::new(5);
        let mut encoder = GzEncoder::new(Vec::with_capacity(self.body.len() / 4), LEVEL);
        encoder.write_all(&self.body).ok()?;
        let coded = encoder.finish().ok()?;
        let worthwhile = coded.len() <= self.body.len() - self.body.len() / 10;
        // A copy, because the buffer may be larger than its content.
        let coded_as = |etag| CodedBody { body: Bytes::copy_from_slice(&coded), etag };
        self.gzip_etag().filter(|_| worthwhile).map(coded_as)
    }

    /// Identifies the compressed body's bytes.
    pub fn gzip_etag(&self) -> Option<HeaderValue> {
        let plain = self.etag.as_ref()?.to_str().ok()?.strip_suffix('"')?;
        HeaderValue::try_from(format!("{plain}-gzip\"")).ok()
    }

    /// The entity tag in `If-None-Match` that shows that the client has this body, plain or compressed. The tag of the
    /// form that it would get is tried first. A 304 carries the tag that matched, because that is the client's stored
    /// response.
    pub fn tag_of_client(&self, if_none_match: &HeaderValue, coded: Option<&CodedBody>) -> Option<HeaderValue> {
        let has = |etag: &HeaderValue| etag.to_str().is_ok_and(|etag| has_tag(if_none_match, etag));
        let would_get = coded.map(|coded| coded.etag.clone()).filter(has);
        let compressed = || self.may_be_coded().then(|| self.gzip_etag()).flatten();
        would_get.or_else(|| self.etag.clone().filter(has)).or_else(|| compressed().filter(has))
    }

    /// The bytes of memory that it takes, headers and fixed parts included.
    pub fn weight(&self) -> usize {
        let fixed = size_of::<(HeaderName, HeaderValue)>();
        let headers: usize = self.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + fixed).sum();
        let etag = self.etag.as_ref().map_or(0, HeaderValue::len);
        self.body.len() + headers + etag + size_of::<Self>()
    }
}

/// A page's body in gzip, which every client supports that supports any coding.
#[derive(Debug)]
pub struct CodedBody {
    /// The compressed body.
    pub body: Bytes,
    /// Identifies these bytes.
    pub etag: HeaderValue,
}

impl CodedBody {
    /// The bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        self.body.len() + self.etag.len() + size_of::<Self>()
    }
}

/// Whether this is `application/json`, or a type with JSON syntax (RFC 6839 section 3.1), without parameters other than
/// a charset.
fn is_json(value: &HeaderValue) -> bool {
    let is_token = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    let Ok(text) = value.to_str() else { return false };
    let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
    let kind = parts.next().unwrap_or_default();
    let subtype = kind.strip_prefix("application/").filter(|subtype| is_token(subtype));
    let is_charset = |part: String| part.strip_prefix("charset=").is_some_and(|name| is_token(name.trim_matches('"')));
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json")) && parts.all(is_charset)
}

fn etag(body: &[u8]) -> Option<HeaderValue> {
    let hash = blake3::hash(body).to_hex();
    HeaderValue::try_from(["\"", &hash[..32], "\""].concat()).ok()
}

/// A body in gzip, compressed once, when it is first needed.
#[derive(Debug, Default)]
pub struct LazyGzip {
    begun: AtomicBool,
    /// Stays empty where compression saves too little.
    done: OnceLock<CodedBody>,
}

impl LazyGzip {
    /// The compressed body, if it is done.
    pub fn get(&self) -> Option<&CodedBody> {
        self.done.get()
    }

    /// Whether compression has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Claims the compression: `true` for exactly one caller.
    pub fn begin(&self) -> bool {
        !self.begun.swap(true, Ordering::Relaxed)
    }

    /// Adds the compressed body; `false` if there is one already.
    pub fn set(&self, coded: CodedBody) -> bool {
        self.done.set(coded).is_ok()
    }
}

/// A representation without the parts that some clients must not see.
#[derive(Debug)]
pub struct Redacted {
    /// The parts that they may see.
    pub representation: Arc<Representation>,
    /// Its body in gzip.
    pub gzip: LazyGzip,
}

/// The response to one client.
#[derive(Debug, Clone)]
pub struct ClientResponse {
    /// What to send.
    pub page: Arc<Representation>,
    /// Its body as it is sent, where that is compressed.
    pub coded: Option<Bytes>,
    /// The entity tag of the body that is sent, or of the one that the client has.
    pub etag: Option<HeaderValue>,
    /// How it came about.
    pub outcome: Outcome,
    /// The value of `Cache-Status`.
    pub cache_status: HeaderValue,
    /// How old it is; `None` when it has just come from upstream without an `Age`.
    pub age: Option<Duration>,
    /// Whether the client already has this body: 304.
    pub not_modified: bool,
    /// Headers that the gateway sends in place of Twilio's, or beside them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_is_json_whatever_the_upstream_says() {
        let shown = |value: Option<&'static str>| {
            let headers = value.map(|value| (header::CONTENT_TYPE, HeaderValue::from_static(value)));
            let answer = UpstreamResponse {
                status: StatusCode::BAD_REQUEST,
                headers: headers.into_iter().collect(),
                body: Bytes::from_static(b"{}"),
                next_token: None,
            };
            let page = Representation::new(answer, &[]);
            let shown = page.headers.iter().find(|(name, _)| *name == header::CONTENT_TYPE);
            shown.unwrap().1.to_str().unwrap().to_owned()
        };
        for kind in
            ["application/json", "Application/JSON; Charset=UTF-8", "application/problem+json;charset=\"utf-8\""]
        {
            assert_eq!(shown(Some(kind)), kind);
        }
        for kind in [
            "text/html",
            "text/html; application/json",
            "application/json, text/html",
            "application/json; boundary=x",
            "application/javascript",
            "application/x<json>+json",
            "image/svg+xml",
            "",
        ] {
            assert_eq!(shown(Some(kind)), "application/json", "{kind}");
        }
        assert_eq!(shown(None), "application/json");
    }
}
