//! What a client wishes: `Cache-Control` (RFC 9111 section 5.2.1), `Prefer: wait` (RFC 7240 section 4.3),
//! `Priority` (RFC 9218) and `If-None-Match` (RFC 9110 section 13.1.2).
//!
//! Headers are wishes, so a malformed one is ignored rather than refused.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The request directives of `Cache-Control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheWishes {
    /// Ask again, and let everybody have what comes back.
    pub no_cache: bool,
    /// Keep nothing of this.
    pub no_store: bool,
    /// Answer from memory or not at all.
    pub only_if_cached: bool,
    /// Nothing older than this.
    pub max_age: Option<Duration>,
    /// Nothing that becomes stale sooner than this.
    pub min_fresh: Option<Duration>,
    /// Stale is fine, this far; `Duration::MAX` for any.
    pub max_stale: Option<Duration>,
}

/// How soon, among requests of one team: 0 is first, 7 last, 3 where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Urgency(u8);

impl Default for Urgency {
    fn default() -> Self {
        Self(3)
    }
}

impl Urgency {
    /// 0 to 7.
    pub fn level(self) -> u8 {
        self.0
    }
}

/// Everything a client's headers wish for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Of the cache.
    pub cache: CacheWishes,
    /// Longest wait that the client wants.
    pub wait: Option<Duration>,
    /// Place in the team's queue.
    pub urgency: Urgency,
    /// Entity tags that the client has.
    pub if_none_match: Option<HeaderValue>,
}

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PRIORITY: HeaderName = HeaderName::from_static("priority");

impl Wishes {
    /// Reads a request's headers.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut wishes = Self::default();
        for text in texts(headers, &header::CACHE_CONTROL) {
            wishes.cache.read(text);
        }
        if !headers.contains_key(header::CACHE_CONTROL) {
            // RFC 9111 section 5.4: only where Cache-Control is absent.
            wishes.cache.no_cache =
                texts(headers, &header::PRAGMA).any(|text| text.trim().eq_ignore_ascii_case("no-cache"));
        }
        for text in texts(headers, &PREFER) {
            for (name, value) in directives(text) {
                if name.eq_ignore_ascii_case("wait") && wishes.wait.is_none() {
                    wishes.wait = value.and_then(seconds);
                }
            }
        }
        for text in texts(headers, &PRIORITY) {
            for (name, value) in directives(text) {
                if let ("u", Some([digit @ b'0'..=b'7'])) = (name, value.map(str::as_bytes)) {
                    wishes.urgency = Urgency(digit - b'0');
                }
            }
        }
        wishes.if_none_match = headers.get(header::IF_NONE_MATCH).cloned();
        wishes
    }
}

impl CacheWishes {
    fn read(&mut self, text: &str) {
        for (name, value) in directives(text) {
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

/// Does a client that has the tags in `if_none_match` have `etag`. The comparison is weak (RFC 9110 section
/// 8.8.3.2), as `If-None-Match` asks for.
pub fn has_tag(if_none_match: &HeaderValue, etag: &str) -> bool {
    let Ok(list) = if_none_match.to_str() else {
        return false;
    };
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    list.trim() == "*" || list.split(',').any(|tag| opaque(tag) == opaque(etag))
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

fn texts<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// `name[=value]`, separated by commas (or, in `Prefer`, semicolons); quotes around a value are dropped.
fn directives(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    text.split([',', ';']).map(str::trim).filter(|part| !part.is_empty()).map(|part| match part.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
        None => (part, None),
    })
}

/// Delta seconds (RFC 9111 section 1.2.2): digits alone; what overflows is the greatest.
fn seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse::<u32>().unwrap_or(i32::MAX as u32).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(headers: &[(&'static str, &'static str)]) -> Wishes {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        Wishes::read(&headers.collect())
    }

    #[test]
    fn reads_every_directive() {
        let read = wishes(&[("cache-control", "No-Cache, max-age=5, min-fresh=\"7\" ,max-stale,only-if-cached,x=1")]);
        assert_eq!(
            read.cache,
            CacheWishes {
                no_cache: true,
                no_store: false,
                only_if_cached: true,
                max_age: Some(Duration::from_secs(5)),
                min_fresh: Some(Duration::from_secs(7)),
                max_stale: Some(Duration::MAX),
            }
        );
        assert_eq!(wishes(&[("cache-control", "max-stale=3, no-store")]).cache.max_stale, Some(Duration::from_secs(3)));
    }

    #[test]
    fn malformed_wishes_are_no_wishes() {
        for value in ["max-age=-1", "max-age=abc", "max-age=", "max-age", "=", ",,", "max-age=1.5"] {
            assert_eq!(wishes(&[("cache-control", value)]), Wishes::default(), "{value}");
        }
        assert_eq!(wishes(&[("priority", "u=9")]).urgency, Urgency(3));
        assert_eq!(wishes(&[("prefer", "wait=soon")]).wait, None);
    }

    #[test]
    fn the_stricter_of_two_holds() {
        assert_eq!(wishes(&[("cache-control", "max-age=9, max-age=3")]).cache.max_age, Some(Duration::from_secs(3)));
        let huge = wishes(&[("cache-control", "max-age=99999999999999999999")]).cache.max_age;
        assert_eq!(huge, Some(Duration::from_secs(i32::MAX as u64)));
    }

    #[test]
    fn reads_waiting_and_urgency() {
        let read = wishes(&[("prefer", "respond-async, wait=10"), ("priority", "u=1, i"), ("pragma", "no-cache")]);
        assert_eq!((read.wait, read.urgency, read.cache.no_cache), (Some(Duration::from_secs(10)), Urgency(1), true));
    }

    #[test]
    fn compares_tags_weakly() {
        let has = |list, tag| has_tag(&HeaderValue::from_static(list), tag);
        assert!(has("\"a\", W/\"b\"", "\"b\""));
        assert!(has("*", "\"b\""));
        assert!(!has("\"a\"", "\"b\""));
        assert!(!has("", "\"b\""));
    }
}
