//! A response on its way to clients: what of it may be kept and served again, and the form in which one client gets it.

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

/// Twilio's response in the form in which it is kept and served to clients, compressed or not: its status, the headers
/// that may be passed on, and a representation (RFC 9110 section 3.2).
#[derive(Debug)]
pub struct Representation {
    /// Twilio's status.
    pub status: StatusCode,
    /// What a client gets of Twilio's headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The whole body.
    pub body: Bytes,
    /// Names the body's bytes; only 200s have one.
    pub etag: Option<HeaderValue>,
    /// Twilio forbids another coding of its body: `no-transform` (RFC 9111 section 5.2.2.6).
    pub no_transform: bool,
}

impl Representation {
    /// Headers of an answer that a client gets, now and whenever the page is served again.
    /// Directives cross every cache (RFC 9111 section 5.2).
    const KEPT: [HeaderName; 3] =
        [header::CONTENT_TYPE, header::CACHE_CONTROL, HeaderName::from_static("twilio-request-id")];

    /// Headers that are true only at the moment of the answer, so that a page served again does without.
    const MOMENTARY: [HeaderName; 7] = [
        header::RETRY_AFTER,
        HeaderName::from_static("x-ratelimit-limit"),
        HeaderName::from_static("x-ratelimit-remaining"),
        HeaderName::from_static("x-ratelimit-reset"),
        HeaderName::from_static("x-rate-limit-limit"),
        HeaderName::from_static("x-rate-limit-remaining"),
        HeaderName::from_static("x-rate-limit-config"),
    ];

    /// An answer as clients see it, with the headers that its endpoint `returns`. Its `Cache-Control` is one line:
    /// [`normalise`](crate::semantics::cache_control::normalise). A success is kept, so it has none of the momentary headers; Twilio's own
    /// errors keep them, since clients act on them.
    pub fn new(answer: UpstreamResponse, returns: &[&'static str]) -> Self {
        let UpstreamResponse { status, headers, body, .. } = answer;
        let momentary = if status.is_success() { &[][..] } else { &Self::MOMENTARY[..] };
        // Copies of their own: headers come as slices of the connection's read buffer, and the smallest of them
        // would keep all of that alive, which may be larger than the body.
        // The usual one needs no memory at all.
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        let copied = |name: &HeaderName| match headers.get(name) {
            // All bodies are JSON, whatever they are called: under another name a browser could take one for a page.
            value if *name == header::CONTENT_TYPE && !value.is_some_and(|value| *value != JSON && is_json(value)) => {
                Some(JSON)
            }
            value => HeaderValue::from_bytes(value?.as_bytes()).ok(),
        };
        let header = |name: &HeaderName| copied(name).map(|value| (name.clone(), value));
        let returns = if status.is_success() { returns } else { &[] };
        let mut headers: Vec<_> = Self::KEPT.iter().chain(momentary).filter_map(header).collect();
        headers.extend(returns.iter().filter_map(|name| header(&HeaderName::from_static(name))));
        // Where Twilio names the state of what it answers with, that name and no other is good for `If-Match`.
        let etag = match returns.contains(&header::ETAG.as_str()) {
            true => headers.iter().find(|(name, _)| *name == header::ETAG).map(|(_, etag)| etag.clone()),
            false => (status == StatusCode::OK).then(|| etag(&body)).flatten(),
        };
        let no_transform = Self::forbids_transforms(&headers);
        Self { status, headers, body, etag, no_transform }
    }

    /// Do these headers of a page hold `no-transform`.
    pub fn forbids_transforms(headers: &[(HeaderName, HeaderValue)]) -> bool {
        headers.iter().any(|(name, value)| *name == header::CACHE_CONTROL && cache_control::has(value, "no-transform"))
    }

    /// The same with another body.
    pub fn with_body(&self, body: Bytes) -> Self {
        let etag = self.etag.is_some().then(|| etag(&body)).flatten();
        Self { status: self.status, headers: self.headers.clone(), body, etag, no_transform: self.no_transform }
    }

    /// Bodies below this gain less from being compressed than an answer's head takes.
    const LEAST_CODED: usize = 1024;

    /// May there be another coding of its body. A cache must be told so by every answer, coded or not.
    pub fn may_be_coded(&self) -> bool {
        self.status == StatusCode::OK && self.body.len() >= Self::LEAST_CODED && !self.no_transform
    }

    /// Its body compressed, unless that saves less than a tenth. Takes as long as a few hundred hits.
    pub fn gzip(&self) -> Option<CodedBody> {
        // Measured on pages: lower levels make metadata a sixth larger, higher ones gain nothing.
        const LEVEL: Compression = Compression::new(5);
        let mut encoder = GzEncoder::new(Vec::with_capacity(self.body.len() / 4), LEVEL);
        encoder.write_all(&self.body).ok()?;
        let coded = encoder.finish().ok()?;
        let worthwhile = coded.len() <= self.body.len() - self.body.len() / 10;
        // A copy, since the buffer may be larger than what is in it.
        let coded_as = |etag| CodedBody { body: Bytes::copy_from_slice(&coded), etag };
        self.gzip_etag().filter(|_| worthwhile).map(coded_as)
    }

    /// Names the compressed body's bytes.
    pub fn gzip_etag(&self) -> Option<HeaderValue> {
        let plain = self.etag.as_ref()?.to_str().ok()?.strip_suffix('"')?;
        HeaderValue::try_from(format!("{plain}-gzip\"")).ok()
    }

    /// The entity tag in `If-None-Match` by which the client has this very body, plain or compressed; the tag of what it
    /// would get comes first. A 304 carries that tag, since it speaks of the client's stored response.
    pub fn tag_of_client(&self, if_none_match: &HeaderValue, coded: Option<&CodedBody>) -> Option<HeaderValue> {
        let has = |etag: &HeaderValue| etag.to_str().is_ok_and(|etag| has_tag(if_none_match, etag));
        let would_get = coded.map(|coded| coded.etag.clone()).filter(has);
        let compressed = || self.may_be_coded().then(|| self.gzip_etag()).flatten();
        would_get.or_else(|| self.etag.clone().filter(has)).or_else(|| compressed().filter(has))
    }

    /// Bytes that it occupies, headers and fixed parts included.
    pub fn weight(&self) -> usize {
        let fixed = size_of::<(HeaderName, HeaderValue)>();
        let headers: usize = self.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + fixed).sum();
        let etag = self.etag.as_ref().map_or(0, HeaderValue::len);
        self.body.len() + headers + etag + size_of::<Self>()
    }
}

/// A page's body, compressed: gzip, which all clients know that know any coding.
#[derive(Debug)]
pub struct CodedBody {
    /// The compressed body.
    pub body: Bytes,
    /// Names these bytes.
    pub etag: HeaderValue,
}

impl CodedBody {
    /// Bytes that it occupies.
    pub fn weight(&self) -> usize {
        self.body.len() + self.etag.len() + size_of::<Self>()
    }
}

/// Is this `application/json`, or a type of which JSON is the syntax (RFC 6839 section 3.1), with nothing but a charset.
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

/// A body in gzip, made once, when it is first of use.
#[derive(Debug, Default)]
pub struct LazyGzip {
    begun: AtomicBool,
    /// Stays empty where compression is not worth it.
    done: OnceLock<CodedBody>,
}

impl LazyGzip {
    /// The compressed body, once there is one.
    pub fn get(&self) -> Option<&CodedBody> {
        self.done.get()
    }

    /// Has somebody begun to compress it.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// `true` for the one caller that is to compress it.
    pub fn begin(&self) -> bool {
        !self.begun.swap(true, Ordering::Relaxed)
    }

    /// Adds the compressed body; `false` if there is one already.
    pub fn set(&self, coded: CodedBody) -> bool {
        self.done.set(coded).is_ok()
    }
}

/// A representation without what some clients must not see.
#[derive(Debug)]
pub struct Redacted {
    /// What is left.
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
    /// The entity tag of what is sent, or of what the client has.
    pub etag: Option<HeaderValue>,
    /// How it came about.
    pub outcome: Outcome,
    /// The value of `Cache-Status`.
    pub cache_status: HeaderValue,
    /// How old it is; `None` when it came just now and was not said to be older.
    pub age: Option<Duration>,
    /// The client has these very bytes already: 304.
    pub not_modified: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_called_json_whatever_it_was_called() {
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
