//! What a client asks for in headers: `Cache-Control` (RFC 9111 section 5.2.1), `Prefer: wait` and `respond-async` (RFC 7240),
//! `Priority` (RFC 9218), `If-None-Match` (RFC 9110 section 13.1.2) and `Accept-Encoding` (section 12.5.3).
//!
//! These are preferences, so a malformed one is ignored rather than refused.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::semantics::cache_control::{self, seconds};

/// The request directives of `Cache-Control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheDirectives {
    /// Ask upstream again, and store the response for all clients.
    pub no_cache: bool,
    /// Store nothing of this.
    pub no_store: bool,
    /// Answer from a stored response or not at all.
    pub only_if_cached: bool,
    /// Accept no response older than this.
    pub max_age: Option<Duration>,
    /// Accept no response that becomes stale sooner than this.
    pub min_fresh: Option<Duration>,
    /// Accept a response that has been stale for this long; `Duration::MAX` for any.
    pub max_stale: Option<Duration>,
}

/// The order among requests of one team: 0 is first, 7 last, 3 the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Urgency(u8);

impl Default for Urgency {
    fn default() -> Self {
        Self(3)
    }
}

impl Urgency {
    /// A level above 7 counts as 7.
    pub fn new(level: u8) -> Self {
        Self(level.min(7))
    }

    /// 0 to 7.
    pub fn level(self) -> u8 {
        self.0
    }
}

/// All preferences in a client's headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestDirectives {
    /// For the cache.
    pub cache: CacheDirectives,
    /// Longest wait that the client wants.
    pub wait: Option<Duration>,
    /// The client wants an immediate answer that says where the result will be, instead of waiting (RFC 7240 section 4.1).
    pub respond_async: bool,
    /// The place in the team's queue.
    pub urgency: Urgency,
    /// Entity tags of the responses that the client has, of all lines of the header.
    pub if_none_match: Option<HeaderValue>,
    /// Whether gzip is acceptable and preferred at least as much as the plain bytes.
    pub gzip: bool,
}

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PRIORITY: HeaderName = HeaderName::from_static("priority");

impl RequestDirectives {
    /// Reads a request's headers.
    pub fn read(headers: &HeaderMap) -> Self {
        let (mut directives, mut codings) = (Self::default(), Codings::default());
        let (mut has_cache_control, mut has_pragma_no_cache) = (false, false);
        // One pass over the few headers that there are. Looking up each possible header takes several times as long.
        for (name, value) in headers {
            if *name == header::IF_NONE_MATCH {
                directives.if_none_match = Some(joined(directives.if_none_match.take(), value));
                continue;
            }
            has_cache_control |= *name == header::CACHE_CONTROL;
            let text = || value.to_str().unwrap_or_default();
            if *name == header::CACHE_CONTROL {
                directives.cache.read(text());
            } else if *name == header::PRAGMA {
                has_pragma_no_cache |= text().trim().eq_ignore_ascii_case("no-cache");
            } else if *name == header::ACCEPT_ENCODING {
                codings.read(text());
            } else if *name == PREFER {
                directives.read_prefer(text());
            } else if *name == PRIORITY {
                directives.read_priority(text());
            }
        }
        // RFC 9111 section 5.4: only where `Cache-Control` is absent.
        directives.cache.no_cache |= has_pragma_no_cache && !has_cache_control;
        directives.gzip = codings.prefer_gzip();
        directives
    }

    fn read_prefer(&mut self, text: &str) {
        for (name, value) in parts(text) {
            if name.eq_ignore_ascii_case("wait") && self.wait.is_none() {
                self.wait = value.and_then(seconds);
            }
            self.respond_async |= name.eq_ignore_ascii_case("respond-async");
        }
    }

    fn read_priority(&mut self, text: &str) {
        for (name, value) in parts(text) {
            if let ("u", Some([digit @ b'0'..=b'7'])) = (name, value.map(str::as_bytes)) {
                self.urgency = Urgency(digit - b'0');
            }
        }
    }
}

impl CacheDirectives {
    fn read(&mut self, text: &str) {
        for (name, value) in parts(text) {
            let wait = || value.and_then(seconds);
            match name.to_ascii_lowercase().as_str() {
                "no-cache" => self.no_cache = true,
                "no-store" => self.no_store = true,
                "only-if-cached" => self.only_if_cached = true,
                // Of contradicting values the stricter one holds.
                "max-age" => self.max_age = stricter(self.max_age, wait(), Duration::min),
                "min-fresh" => self.min_fresh = stricter(self.min_fresh, wait(), Duration::max),
                "max-stale" if value.is_none() => {
                    self.max_stale = stricter(self.max_stale, Some(Duration::MAX), Duration::min);
                }
                "max-stale" => self.max_stale = stricter(self.max_stale, wait(), Duration::min),
                _ => {}
            }
        }
    }
}

/// Whether a client with the tags in `if_none_match` has `etag`. The comparison is weak (RFC 9110 section 8.8.3.2), as
/// `If-None-Match` demands.
pub fn has_tag(if_none_match: &HeaderValue, etag: &str) -> bool {
    let list = if_none_match.as_bytes();
    let opaque = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
    let wanted = opaque(etag.trim().as_bytes());
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|tag| tag == b"*" || opaque(tag) == wanted)
}

/// The weights that the lines of `Accept-Encoding` give to the codings that the gateway offers.
#[derive(Debug, Clone, Copy, Default)]
struct Codings {
    gzip: Option<u16>,
    identity: Option<u16>,
    others: Option<u16>,
}

impl Codings {
    fn read(&mut self, line: &str) {
        for member in line.split(',') {
            let mut parts = member.split(';').map(str::trim);
            let coding = parts.next().unwrap_or_default();
            let Some(weight) = parts.next().map_or(Some(1000), weight) else { continue };
            let named = if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
                &mut self.gzip
            } else if coding.eq_ignore_ascii_case("identity") {
                &mut self.identity
            } else if coding == "*" {
                &mut self.others
            } else {
                continue;
            };
            // Of contradicting weights the lower one holds, so that the client gets no coding that it may be unable to
            // read.
            *named = Some(named.map_or(weight, |known: u16| known.min(weight)));
        }
    }

    /// Whether to send gzip rather than the plain bytes, where both exist (RFC 9110 section 12.5.3). The plain bytes
    /// are sent where the header is absent. They are also sent where neither is acceptable, because a response is more
    /// useful than a refusal.
    fn prefer_gzip(self) -> bool {
        let gzip = self.gzip.or(self.others).unwrap_or(0);
        // A client that lists gzip but not the plain bytes prefers gzip.
        gzip > 0 && gzip >= self.identity.unwrap_or(0)
    }
}

/// The thousandths of `q=0.5` (RFC 9110 section 12.4.2).
fn weight(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    let (whole, fraction) = value.trim().split_once('.').unwrap_or((value.trim(), ""));
    let is_weight = name.trim().eq_ignore_ascii_case("q");
    if !is_weight || fraction.len() > 3 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths = fraction.bytes().chain(*b"000").take(3).fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

fn stricter(
    old: Option<Duration>,
    new: Option<Duration>,
    pick: fn(Duration, Duration) -> Duration,
) -> Option<Duration> {
    match (old, new) {
        (Some(old), Some(new)) => Some(pick(old, new)),
        (old, new) => old.or(new),
    }
}

/// `name[=value]`, separated by commas (or, in `Prefer`, semicolons) outside quotes; quotes around a value are dropped.
fn parts(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    cache_control::members(text, b",;").map(cache_control::directive)
}

/// Appends a line to a field whose lines form one list (RFC 9110 section 5.3).
fn joined(list: Option<HeaderValue>, line: &HeaderValue) -> HeaderValue {
    let Some(list) = list else { return line.clone() };
    // Both are valid header values, so the list is one too.
    HeaderValue::from_bytes(&[list.as_bytes(), b", ", line.as_bytes()].concat()).unwrap_or(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefers_gzip<'h>(lines: impl Iterator<Item = &'h str>) -> bool {
        let mut codings = Codings::default();
        lines.for_each(|line| codings.read(line));
        codings.prefer_gzip()
    }

    fn directives(headers: &[(&'static str, &'static str)]) -> RequestDirectives {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        RequestDirectives::read(&headers.collect())
    }

    #[test]
    fn reads_every_directive() {
        let read =
            directives(&[("cache-control", "No-Cache, max-age=5, min-fresh=\"7\" ,max-stale,only-if-cached,x=1")]);
        assert_eq!(
            read.cache,
            CacheDirectives {
                no_cache: true,
                no_store: false,
                only_if_cached: true,
                max_age: Some(Duration::from_secs(5)),
                min_fresh: Some(Duration::from_secs(7)),
                max_stale: Some(Duration::MAX),
            }
        );
        assert_eq!(
            directives(&[("cache-control", "max-stale=3, no-store")]).cache.max_stale,
            Some(Duration::from_secs(3))
        );
    }

    #[test]
    fn malformed_preferences_are_ignored() {
        for value in ["max-age=-1", "max-age=abc", "max-age=", "max-age", "=", ",,", "max-age=1.5"] {
            assert_eq!(directives(&[("cache-control", value)]), RequestDirectives::default(), "{value}");
        }
        assert_eq!(directives(&[("priority", "u=9")]).urgency, Urgency(3));
        assert_eq!(directives(&[("prefer", "wait=soon")]).wait, None);
    }

    #[test]
    fn the_stricter_of_two_holds() {
        assert_eq!(
            directives(&[("cache-control", "max-age=9, max-age=3")]).cache.max_age,
            Some(Duration::from_secs(3))
        );
        let huge = directives(&[("cache-control", "max-age=99999999999999999999")]).cache.max_age;
        assert_eq!(huge, Some(Duration::from_secs(i32::MAX as u64)));
    }

    #[test]
    fn reads_waiting_and_urgency() {
        let read = directives(&[("prefer", "respond-async, wait=10"), ("priority", "u=1, i"), ("pragma", "no-cache")]);
        assert_eq!((read.wait, read.urgency, read.cache.no_cache), (Some(Duration::from_secs(10)), Urgency(1), true));
    }

    #[test]
    fn compares_tags_weakly() {
        let has = |list, tag| has_tag(&HeaderValue::from_static(list), tag);
        assert!(has("\"a\", W/\"b\"", "\"b\""));
        assert!(has("*", "\"b\""));
        assert!(!has("\"a\"", "\"b\""));
        assert!(!has("", "\"b\""));
        assert!(!has("\"a,\"b\"", "\"a\""));
    }

    #[test]
    fn several_lines_are_one_list() {
        let read = directives(&[("if-none-match", "\"a\""), ("if-none-match", "W/\"b\", \"c\"")]);
        let list = read.if_none_match.unwrap();
        assert!(["\"a\"", "\"b\"", "\"c\""].iter().all(|tag| has_tag(&list, tag)) && !has_tag(&list, "\"d\""));
        assert!(has_tag(
            &directives(&[("if-none-match", "\"a\""), ("if-none-match", "*")]).if_none_match.unwrap(),
            "\"z\""
        ));
        let unreadable = HeaderValue::from_bytes(b"\"\xff\", \"b\"").unwrap();
        assert!(has_tag(&unreadable, "\"b\""), "a tag may hold bytes beyond ASCII");
        let read = directives(&[("cache-control", "max-age=9"), ("cache-control", "no-cache, max-age=7")]);
        assert_eq!((read.cache.no_cache, read.cache.max_age), (true, Some(Duration::from_secs(7))));
        let read = directives(&[("prefer", "respond-async"), ("prefer", "wait=3")]);
        assert_eq!(read.wait, Some(Duration::from_secs(3)));
    }

    #[test]
    fn text_in_quotes_is_not_a_directive() {
        assert_eq!(directives(&[("cache-control", "x=\"a, no-store\"")]), RequestDirectives::default());
        assert!(directives(&[("cache-control", "x=\"a\\\"b\", no-store")]).cache.no_store);
    }

    #[test]
    fn negotiates_gzip() {
        let gzip = |lines: &[&'static str]| prefers_gzip(lines.iter().copied());
        for accepted in [
            "gzip",
            "x-gzip",
            "GZip",
            "gzip, deflate",
            "gzip, compress, deflate, br",
            "br;q=1.0, gzip;q=0.8, *;q=0.1",
            "*",
            "*;q=0.001",
            "identity;q=0, *",
            "identity;q=0.5, gzip;q=0.5",
            "gzip;q=1.000",
            " gzip ; q = 0.2 ",
            "*;q=0, gzip",
        ] {
            assert!(gzip(&[accepted]), "{accepted}");
        }
        for refused in [
            "",
            ",",
            "br",
            "deflate, zstd",
            "gzip;q=0",
            "gzip;q=0.000",
            "gzip;q=0, *",
            "*;q=0",
            "identity",
            "identity;q=0",
            "identity, gzip;q=0.9",
            "gzip, gzip;q=0",
            "gzip;q=2",
            "gzip;q=1.5",
            "gzip;q=0.1234",
            "gzip;q=0.!",
            "gzip;q=0.\u{e9}",
            "gzip;q=-1",
            "gzip;q=",
            "gzip;level=1",
            "gzipped",
        ] {
            assert!(!gzip(&[refused]), "{refused}");
        }
        assert!(!gzip(&[]));
        assert!(gzip(&["br", "gzip"]) && !gzip(&["gzip", "gzip;q=0"]));
        assert!(directives(&[("accept-encoding", "gzip")]).gzip && !directives(&[]).gzip);
    }

    proptest::proptest! {
        /// The literal rule: each coding has its own weight, or else that of `*`.
        #[test]
        fn weights_decide(gzip in weights(), identity in weights(), others in weights(), estimated_start in 0usize..3) {
            let listed = [("gzip", gzip), ("identity", identity), ("*", others)];
            let mut list: Vec<_> =
                listed.iter().filter_map(|(name, q)| q.map(|q| format!("{name};q={}.{:03}", q / 1000, q % 1000))).collect();
            let middle = estimated_start.min(list.len());
            list.rotate_left(middle);
            let effective = gzip.or(others).unwrap_or(0);
            let expected = effective > 0 && identity.is_none_or(|identity| effective >= identity);
            proptest::prop_assert_eq!(prefers_gzip([list.join(", ").as_str()].into_iter()), expected);
        }

        #[test]
        fn arbitrary_headers_do_not_panic(header in ".*") {
            let asked = prefers_gzip([header.as_str()].into_iter());
            // A refusal at the end overrides everything before it.
            let refused = format!("{header}, gzip;q=0");
            proptest::prop_assert!(!prefers_gzip([refused.as_str()].into_iter()));
            proptest::prop_assert!(!asked || header.contains('*') || header.to_lowercase().contains("gzip"));
        }
    }

    fn weights() -> impl proptest::strategy::Strategy<Value = Option<u16>> {
        proptest::option::of(0u16..=1000)
    }
}
