//! `Cache-Control` (RFC 9111 section 5.2), and the other headers by which a response limits caching: `Expires`, `Age`,
//! `Vary`.
//!
//! These headers can only shorten the configured lifetimes, never lengthen them. A value that cannot be read counts as
//! the strictest one.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::semantics::lifetimes::Lifetimes;

/// Whether a position in a list is within quotes, where separators do not count (RFC 9110 section 5.6.4).
#[derive(Default)]
struct Quoting {
    quoted: bool,
    escaped: bool,
}

impl Quoting {
    /// Reads the next byte. Says whether it is outside quotes and no quote itself.
    fn is_plain(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.quoted => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            _ => return !self.quoted,
        }
        false
    }
}

/// The members of a list with these `separators`, with the quotes around their values left on.
pub fn members<'t>(text: &'t str, separators: &'static [u8]) -> impl Iterator<Item = &'t str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut quoting = Quoting::default();
        let end = text.bytes().position(|byte| quoting.is_plain(byte) && separators.contains(&byte));
        let (member, after) = match end {
            Some(end) => (&text[..end], Some(&text[end + 1..])),
            None => (text, None),
        };
        rest = after;
        Some(member.trim())
    })
    .filter(|member| !member.is_empty())
}

/// Splits `name[=value]` and removes the quotes around the value. A value that begins with a quote and does not end
/// with one has no valid value.
pub fn directive(member: &str) -> (&str, Option<&str>) {
    match member.split_once('=') {
        Some((name, value)) => {
            let value = value.trim();
            let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            (name.trim(), Some(unquoted.unwrap_or(value)))
        }
        None => (member, None),
    }
}

/// Delta seconds (RFC 9111 section 1.2.2): only digits; a number that overflows counts as the largest.
pub fn seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse::<u32>().unwrap_or(i32::MAX as u32).into()))
}

/// What a response's headers allow a shared cache to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Storage {
    /// It must not be stored: `no-store`, `private`, `no-cache` (which would need a validation that Twilio does not
    /// offer), also with field names, and `Vary: *`.
    pub forbidden: bool,
    /// Longest time of freshness: `s-maxage`, else `max-age`, else `Expires`.
    pub fresh: Option<Duration>,
    /// Must not be served stale: `must-revalidate`, `proxy-revalidate`, `s-maxage`.
    pub must_revalidate: bool,
    /// Longest `stale-while-revalidate` (RFC 5861).
    pub stale_while_revalidate: Option<Duration>,
    /// Longest `stale-if-error` (RFC 5861).
    pub stale_if_error: Option<Duration>,
    /// How old the response was when it arrived.
    pub age: Duration,
}

impl Storage {
    /// Reads a response's headers. `now` is used where it has no `Date`.
    pub fn read(headers: &HeaderMap, now: SystemTime) -> Self {
        let mut storage = Self { age: age(headers).unwrap_or_default(), ..Self::default() };
        let (mut max_age, mut s_maxage) = (None, None);
        for line in headers.get_all(header::CACHE_CONTROL) {
            let Ok(line) = std::str::from_utf8(line.as_bytes()) else {
                storage.forbidden = true;
                continue;
            };
            // Quotes that are never closed may hide any directive.
            storage.forbidden |= !quotes_are_closed(line);
            for member in members(line, b",") {
                let (name, value) = directive(member);
                // A duration that cannot be read counts as zero (RFC 9111 section 4.2.1).
                let least = |known: Option<Duration>| {
                    let stated = value.and_then(seconds).unwrap_or_default();
                    Some(known.map_or(stated, |known| known.min(stated)))
                };
                match name.to_ascii_lowercase().as_str() {
                    "no-store" | "private" | "no-cache" => storage.forbidden = true,
                    "must-revalidate" | "proxy-revalidate" => storage.must_revalidate = true,
                    "max-age" => max_age = least(max_age),
                    "s-maxage" => {
                        s_maxage = least(s_maxage);
                        storage.must_revalidate = true;
                    }
                    "stale-while-revalidate" => storage.stale_while_revalidate = least(storage.stale_while_revalidate),
                    "stale-if-error" => storage.stale_if_error = least(storage.stale_if_error),
                    _ => {}
                }
            }
        }
        storage.fresh = s_maxage.or(max_age).or_else(|| expires_in(headers, now));
        storage.forbidden |= varies_on_everything(headers);
        storage
    }

    /// Shortens `lifetimes` to what the headers allow; `None` where the response must not be stored.
    pub fn narrow(&self, lifetimes: Lifetimes) -> Option<Lifetimes> {
        let least = |configured: Duration, stated: Option<Duration>| stated.map_or(configured, |s| s.min(configured));
        let narrowed = Lifetimes {
            fresh: least(lifetimes.fresh, self.fresh),
            stale_while_revalidate: least(lifetimes.stale_while_revalidate, self.stale_while_revalidate),
            stale_if_error: least(lifetimes.stale_if_error, self.stale_if_error),
        };
        let narrowed = if self.must_revalidate { Lifetimes::fresh_only(narrowed.fresh) } else { narrowed };
        (!self.forbidden && narrowed.usable() > self.age).then_some(narrowed)
    }
}

/// The `Age` of a response (RFC 9111 section 5.1). Of several values the greatest holds; values that are not numbers
/// are ignored.
pub fn age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::AGE).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|line| line.split(',')).filter_map(|value| seconds(value.trim())).max()
}

/// The response's `Date`.
pub fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?.trim()).ok()
}

/// Makes `Cache-Control` one line that is valid wherever the response is passed on. `Expires` depends on a clock that
/// may differ from ours, so where no other directive limits freshness, it becomes a `max-age`.
pub fn normalise(headers: &mut HeaderMap, now: SystemTime) {
    let is_one_line = headers.get_all(header::CACHE_CONTROL).iter().nth(1).is_none();
    if is_one_line && !headers.contains_key(header::EXPIRES) {
        return;
    }
    let mut line: Vec<u8> = Vec::new();
    for value in headers.get_all(header::CACHE_CONTROL) {
        // A quote that is open at the end of a line would end in the next line, and hide the text in between.
        if !quotes_are_closed(&String::from_utf8_lossy(value.as_bytes())) {
            line = b"no-store".to_vec();
            break;
        }
        append(&mut line, value.as_bytes());
    }
    let text = String::from_utf8_lossy(&line);
    let limits = |member| ["max-age", "s-maxage"].iter().any(|name| directive(member).0.eq_ignore_ascii_case(name));
    let is_limited = members(&text, b",").any(limits);
    if let Some(expires) = expires_in(headers, now).filter(|_| !is_limited) {
        append(&mut line, format!("max-age={}", expires.as_secs()).as_bytes());
    }
    headers.remove(header::EXPIRES);
    // All parts are valid header values, so the list is one too.
    if let Ok(value) = HeaderValue::from_bytes(&line) {
        headers.insert(header::CACHE_CONTROL, value);
    }
}

/// Whether a line of directives has this one.
pub fn has(line: &HeaderValue, name: &str) -> bool {
    // A line that cannot be read may have it.
    let Ok(text) = std::str::from_utf8(line.as_bytes()) else { return true };
    members(text, b",").any(|member| directive(member).0.eq_ignore_ascii_case(name))
}

fn append(line: &mut Vec<u8>, part: &[u8]) {
    if !line.is_empty() && !part.is_empty() {
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(part);
}

/// How long after its own date a response expires: the shortest time that any line states. A date that cannot be read
/// is in the past (RFC 9111 section 5.3).
fn expires_in(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let from = date(headers).unwrap_or(now);
    let expires = |value: &HeaderValue| {
        let date = httpdate::parse_http_date(value.to_str().ok()?.trim()).ok()?;
        date.duration_since(from).ok()
    };
    headers.get_all(header::EXPIRES).into_iter().map(|value| expires(value).unwrap_or_default()).min()
}

fn varies_on_everything(headers: &HeaderMap) -> bool {
    const VARY: HeaderName = header::VARY;
    headers.get_all(VARY).into_iter().any(|line| match line.to_str() {
        Ok(line) => line.split(',').any(|member| member.trim() == "*"),
        Err(_) => true,
    })
}

fn quotes_are_closed(line: &str) -> bool {
    let mut quoting = Quoting::default();
    line.bytes().for_each(|byte| {
        quoting.is_plain(byte);
    });
    !quoting.quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const HOUR: Lifetimes = Lifetimes {
        fresh: Duration::from_secs(3600),
        stale_while_revalidate: Duration::from_secs(600),
        stale_if_error: Duration::from_secs(7200),
    };

    fn now() -> SystemTime {
        httpdate::parse_http_date("Sun, 22 Nov 2026 12:00:00 GMT").unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    fn storage(pairs: &[(&'static str, &str)]) -> Storage {
        Storage::read(&headers(pairs), now())
    }

    fn control(line: &str) -> Storage {
        storage(&[("cache-control", line)])
    }

    #[test]
    fn lists_are_split_outside_quotes() {
        let read = |text: &'static str| members(text, b",").collect::<Vec<_>>();
        assert_eq!(read("a, b=\"x, y\" ,,c"), ["a", "b=\"x, y\"", "c"]);
        assert_eq!(read("a=\"\\\", no-store\", b"), ["a=\"\\\", no-store\"", "b"]);
        assert_eq!(read("a=\"never closed, b"), ["a=\"never closed, b"]);
        assert_eq!(read(""), [""; 0]);
        assert_eq!(directive("max-age = \"7\""), ("max-age", Some("7")));
        assert_eq!(directive("x=\"7"), ("x", Some("\"7")));
    }

    #[test]
    fn directives_that_forbid_storing_are_found_in_every_spelling() {
        for line in [
            "no-store",
            "No-Store",
            "max-age=60,no-store",
            "private",
            "private=\"set-cookie\"",
            "no-cache",
            "no-cache=\"set-cookie, x\", max-age=9",
            "x=\"a\", no-store",
            "x=\"never closed, no-store",
        ] {
            assert!(control(line).forbidden && control(line).narrow(HOUR).is_none(), "{line}");
        }
        assert!(storage(&[("cache-control", "public"), ("cache-control", "no-store")]).forbidden);
        assert!(storage(&[("vary", "*")]).forbidden);
        assert!(storage(&[("vary", "accept"), ("vary", "accept-encoding, *")]).forbidden);
        let unreadable = HeaderValue::from_bytes(b"public, x=\xff").unwrap();
        let unreadable: HeaderMap = [(header::CACHE_CONTROL, unreadable)].into_iter().collect();
        assert!(Storage::read(&unreadable, now()).forbidden);
        for line in ["public", "x=\"no-store\"", "x=\"a, no-store\"", "no-storage", "immutable", ""] {
            assert_eq!(control(line), Storage::default(), "{line}");
        }
        assert!(!storage(&[("vary", "accept-encoding")]).forbidden);
    }

    #[test]
    fn the_strictest_limit_holds() {
        for (line, fresh) in [
            ("max-age=9", 9),
            ("max-age=\"9\"", 9),
            ("MAX-AGE=9, max-age=3", 3),
            ("max-age=9, s-maxage=3", 3),
            // For a shared cache `s-maxage` overrides `max-age`, even if it is longer.
            ("max-age=3, s-maxage=9", 9),
            ("max-age=soon", 0),
            ("max-age", 0),
            ("max-age=-1", 0),
            ("max-age=1.5", 0),
            ("max-age=99999999999999999999", i32::MAX as u64),
        ] {
            assert_eq!(control(line).fresh, Some(S * u32::try_from(fresh).unwrap()), "{line}");
        }
        let twice = storage(&[("cache-control", "max-age=9"), ("cache-control", "max-age=7")]);
        assert_eq!(twice.fresh, Some(7 * S));
    }

    #[test]
    fn nothing_is_stale_for_longer_than_allowed() {
        for line in ["must-revalidate", "Proxy-Revalidate", "s-maxage=4000"] {
            assert_eq!(control(line).narrow(HOUR), Some(Lifetimes::fresh_only(HOUR.fresh)), "{line}");
        }
        assert_eq!(control("max-age=60, must-revalidate").narrow(HOUR), Some(Lifetimes::fresh_only(60 * S)));
        assert_eq!(control("max-age=0, must-revalidate").narrow(HOUR), None);
        let narrowed = control("stale-while-revalidate=5, stale-if-error=7").narrow(HOUR).unwrap();
        assert_eq!((narrowed.stale_while_revalidate, narrowed.stale_if_error), (5 * S, 7 * S));
        assert_eq!(control("stale-if-error=999999").narrow(HOUR), Some(HOUR), "never lengthened");
    }

    #[test]
    fn expires_counts_from_the_answers_own_date() {
        let expires = |pairs: &[(&'static str, &str)]| storage(pairs).fresh.map(|fresh| fresh.as_secs());
        const DATE: (&str, &str) = ("date", "Sun, 22 Nov 2020 12:00:00 GMT");
        assert_eq!(expires(&[DATE, ("expires", "Sun, 22 Nov 2020 12:00:30 GMT")]), Some(30));
        assert_eq!(expires(&[("expires", "Sun, 22 Nov 2026 12:00:30 GMT")]), Some(30), "without a date: now");
        for passed in ["Sun, 22 Nov 2020 11:00:00 GMT", "0", "-1", "", "soon"] {
            assert_eq!(expires(&[DATE, ("expires", passed)]), Some(0), "{passed}");
        }
        let two = [DATE, ("expires", "Sun, 22 Nov 2020 12:00:30 GMT"), ("expires", "0")];
        assert_eq!(expires(&two), Some(0));
        assert_eq!(expires(&[DATE, ("expires", "0"), ("cache-control", "max-age=9")]), Some(9));
        assert_eq!(expires(&[DATE, ("expires", "0"), ("cache-control", "s-maxage=9")]), Some(9));
        assert_eq!(expires(&[DATE]), None);
    }

    #[test]
    fn an_age_that_it_has_already_counts() {
        let aged = |value| storage(&[("age", value)]);
        assert_eq!(aged("3600").age, 3600 * S);
        assert_eq!((aged("soon").age, aged("-1").age), (Duration::ZERO, Duration::ZERO));
        assert_eq!(storage(&[("age", "5, 7"), ("age", "6")]).age, 7 * S);
        assert!(aged("3600").narrow(HOUR).is_some() && aged("10800").narrow(HOUR).is_none());
        assert_eq!(storage(&[("age", "60"), ("cache-control", "max-age=60, must-revalidate")]).narrow(HOUR), None);
    }

    #[test]
    fn the_forwarded_line_is_single_and_needs_no_clock() {
        let passed = |pairs: &[(&'static str, &str)]| {
            let mut headers = headers(pairs);
            normalise(&mut headers, now());
            assert!(!headers.contains_key(header::EXPIRES));
            let lines: Vec<_> = headers.get_all(header::CACHE_CONTROL).iter().cloned().collect();
            assert!(lines.len() <= 1);
            lines.first().map(|line| line.to_str().unwrap().to_owned())
        };
        const DATE: (&str, &str) = ("date", "Sun, 22 Nov 2020 12:00:00 GMT");
        const EXPIRES: (&str, &str) = ("expires", "Sun, 22 Nov 2020 12:00:30 GMT");
        assert_eq!(passed(&[]), None);
        assert_eq!(passed(&[("cache-control", "no-store")]).unwrap(), "no-store");
        assert_eq!(passed(&[("cache-control", "a"), ("cache-control", "b=\"c\"")]).unwrap(), "a, b=\"c\"");
        assert_eq!(passed(&[DATE, EXPIRES]).unwrap(), "max-age=30");
        assert_eq!(
            passed(&[DATE, EXPIRES, ("cache-control", "must-revalidate")]).unwrap(),
            "must-revalidate, max-age=30"
        );
        assert_eq!(passed(&[DATE, EXPIRES, ("cache-control", "Max-Age=9")]).unwrap(), "Max-Age=9");
        assert!(has(&HeaderValue::from_static("a, No-Transform"), "no-transform"));
        assert!(!has(&HeaderValue::from_static("x=\"no-transform\""), "no-transform"));
    }

    #[test]
    fn a_quote_that_is_never_closed_forbids_storage_before_and_after() {
        let open = [
            vec![("cache-control", "\\\""), ("expires", "")],
            vec![("cache-control", "max-age=9, x=\"")],
            // As one line, the quotes of two lines would close each other.
            vec![("cache-control", "x=\""), ("cache-control", "no-store, y=\"")],
            vec![("cache-control", "max-age=\"9"), ("cache-control", "x=\"")],
        ];
        for pairs in open {
            let mut headers = headers(&pairs);
            assert!(Storage::read(&headers, now()).forbidden, "{pairs:?}");
            normalise(&mut headers, now());
            assert!(Storage::read(&headers, now()).forbidden, "{pairs:?} as one line");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_headers_do_not_panic(line in ".*", expires in ".*") {
            let Ok(line) = HeaderValue::from_bytes(line.as_bytes()) else { return Ok(()) };
            let Ok(expires) = HeaderValue::from_bytes(expires.as_bytes()) else { return Ok(()) };
            let mut headers: HeaderMap = [(header::CACHE_CONTROL, line), (header::EXPIRES, expires)].into_iter().collect();
            let storage = Storage::read(&headers, now());
            if let Some(narrowed) = storage.narrow(HOUR) {
                proptest::prop_assert!(narrowed.fresh <= HOUR.fresh && narrowed.usable() <= HOUR.usable());
            }
            // The normalised headers mean the same.
            normalise(&mut headers, now());
            let again = Storage::read(&headers, now());
            proptest::prop_assert_eq!(again.narrow(HOUR), storage.narrow(HOUR));
        }
    }
}
