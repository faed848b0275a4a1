//! What an upstream's headers say of its limits: how long to pause, and how much is left.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header};

const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const OTHER_LIMIT: HeaderName = HeaderName::from_static("x-rate-limit-limit");
const OTHER_REMAINING: HeaderName = HeaderName::from_static("x-rate-limit-remaining");
const OTHER_CONFIG: HeaderName = HeaderName::from_static("x-rate-limit-config");
const CONCURRENT: HeaderName = HeaderName::from_static("twilio-concurrent-requests");

/// The headers about the rate limit, which are true only when a response arrives.
pub const RATE_LIMIT: [HeaderName; 6] = [LIMIT, REMAINING, RESET, OTHER_LIMIT, OTHER_REMAINING, OTHER_CONFIG];

/// A number of seconds above this is taken for a date since 1970 or a mistake, and not for a wait.
const LONGEST_WAIT: u64 = 366 * 86_400;

/// The pause that a 429's headers demand: the longer of `Retry-After` and `X-RateLimit-Reset` (seconds, as Twilio
/// documents it). `None` where neither is usable: negative, absurd, or in the past.
pub fn pause(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    retry_after(headers, now).max(seconds(headers, &RESET))
}

/// A number of seconds that no date of this century reaches: not a date, but a very long wait.
const NO_EPOCH: u64 = 1 << 32;

/// The wait that `Retry-After` demands (RFC 9110 section 10.2.3), as seconds or as a date. A fraction of a second is
/// rounded up, and 2^32 seconds or more count as the longest wait. A date is relative to the response's own `Date`,
/// because both come from the upstream's clock; without a `Date` it is relative to `now`. Of several lines the longest
/// wait holds. `None` where no line is usable.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = |text: &str| httpdate::parse_http_date(text.trim()).ok();
    let sent = || texts(headers, &header::DATE).next().and_then(date).unwrap_or(now);
    let until = |text: &str| {
        let wait = date(text)?.duration_since(sent()).ok()?;
        (wait.as_secs() <= LONGEST_WAIT && !wait.is_zero()).then_some(wait)
    };
    let long = |text: &str| {
        let (whole, _) = number(text)?;
        (whole.unwrap_or(u64::MAX) >= NO_EPOCH).then_some(Duration::from_secs(LONGEST_WAIT))
    };
    let others = texts(headers, &header::RETRY_AFTER).filter_map(|text| until(text).or_else(|| long(text))).max();
    seconds(headers, &header::RETRY_AFTER).max(others)
}

fn texts<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// A wait in seconds: the longest of several lines, which a proxy may have joined into one.
fn seconds(headers: &HeaderMap, name: &HeaderName) -> Option<Duration> {
    texts(headers, name).flat_map(|line| line.split(", ")).filter_map(one_wait).max()
}

/// A wait in whole seconds, rounded up; `None` where it is zero or more than [`LONGEST_WAIT`].
fn one_wait(text: &str) -> Option<Duration> {
    let (whole, has_fraction) = number(text)?;
    let wait = whole?.checked_add(u64::from(has_fraction))?;
    (1..=LONGEST_WAIT).contains(&wait).then(|| Duration::from_secs(wait))
}

/// The whole part of a decimal number, `None` if that is 2^64 or more; and whether the fraction is not zero.
fn number(text: &str) -> Option<(Option<u64>, bool)> {
    let text = text.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    Some((whole.parse().ok(), fraction.bytes().any(|digit| digit != b'0')))
}

/// The account's limits as a response reports them (`X-RateLimit-*` or `X-Rate-Limit-*`, which Twilio declares on 429s,
/// and `Twilio-Concurrent-Requests`). Values that cannot be read are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimitHeaders {
    /// Requests allowed in the window. Twilio does not say how long the window is.
    pub limit: Option<u64>,
    /// Requests left in the window.
    pub remaining: Option<u64>,
    /// Time until the next window begins.
    pub reset: Option<Duration>,
    /// The account's requests in progress.
    pub concurrent: Option<u64>,
}

impl RateLimitHeaders {
    /// Reads a response's headers.
    pub fn read(headers: &HeaderMap) -> Self {
        let number = |name: &HeaderName| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let either = |names: [&HeaderName; 2]| names.into_iter().find_map(number);
        Self {
            limit: either([&LIMIT, &OTHER_LIMIT]),
            remaining: either([&REMAINING, &OTHER_REMAINING]),
            reset: seconds(headers, &RESET),
            concurrent: number(&CONCURRENT),
        }
    }

    /// Whether it names a limit per time.
    pub fn speaks_of_a_rate(&self) -> bool {
        self.limit.is_some() || self.remaining.is_some() || self.reset.is_some()
    }
}

/// The headers of a response that state limits or its date, as far as each holds a number or a date and `passes`
/// accepts it.
pub fn limits_alone(headers: &HeaderMap, passes: impl Fn(&HeaderValue) -> bool) -> HeaderMap {
    const NAMES: [HeaderName; 8] =
        [header::RETRY_AFTER, header::DATE, LIMIT, REMAINING, RESET, OTHER_LIMIT, OTHER_REMAINING, CONCURRENT];
    let value = |name: &HeaderName| headers.get(name).filter(|value| is_retry_after(value) && passes(value)).cloned();
    NAMES.into_iter().filter_map(|name| value(&name).map(|value| (name, value))).collect()
}

/// Whether a client can follow this `Retry-After`: digits or a date (RFC 9110 section 10.2.3).
pub fn is_retry_after(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|text| {
        let are_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        are_digits || httpdate::parse_http_date(text).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn paused(pairs: &[(&'static str, &str)]) -> Option<u64> {
        let now = httpdate::parse_http_date("Sun, 22 Nov 2026 12:00:00 GMT").unwrap();
        pause(&headers(pairs), now).map(|d| d.as_secs())
    }

    #[test]
    fn the_longer_pause_holds() {
        assert_eq!(paused(&[("x-ratelimit-reset", "45")]), Some(45));
        assert_eq!(paused(&[("retry-after", "7")]), Some(7));
        assert_eq!(paused(&[("retry-after", "7"), ("x-ratelimit-reset", "45")]), Some(45));
        assert_eq!(paused(&[("retry-after", "70"), ("x-ratelimit-reset", "45")]), Some(70));
        assert_eq!(paused(&[("retry-after", "Sun, 22 Nov 2026 12:00:09 GMT")]), Some(9));
    }

    #[test]
    fn of_several_lines_the_longest_holds() {
        assert_eq!(paused(&[("retry-after", "1"), ("retry-after", "45")]), Some(45));
        assert_eq!(paused(&[("retry-after", "Sun, 22 Nov 2026 12:00:09 GMT"), ("retry-after", "4")]), Some(9));
        assert_eq!(paused(&[("retry-after", "1, 45")]), Some(45));
        assert_eq!(paused(&[("retry-after", "0"), ("x-ratelimit-reset", "44.5")]), Some(45));
    }

    #[test]
    fn absurd_pauses_are_none() {
        for value in [
            "-1",
            "0",
            "1790000000",
            "soon",
            "",
            "0.0",
            ".5",
            "5.",
            "2.5.1",
            "2,5",
            "+2",
            "2.-5",
            "1e3",
            "Sun, 22 Nov 2020 12:00:00 GMT",
            "Sun, 22 Nov 2099 12:00:00 GMT",
        ] {
            assert_eq!(paused(&[("retry-after", value)]), None, "{value}");
        }
        for value in ["4294967296", "1000000000000", "18446744073709551615.5", "99999999999999999999999"] {
            assert_eq!(paused(&[("retry-after", value)]), Some(LONGEST_WAIT), "{value}");
            assert_eq!(paused(&[("x-ratelimit-reset", value)]), None, "{value}");
        }
        assert_eq!(paused(&[("retry-after", "-1"), ("x-ratelimit-reset", "3")]), Some(3));
        assert_eq!(paused(&[]), None);
    }

    #[test]
    fn a_fraction_of_a_second_counts_as_a_whole_one() {
        for (value, seconds) in [("2.5", 3), ("2.0", 2), ("0.001", 1), ("1.9999999999999999999999", 2), (" 7 ", 7)] {
            assert_eq!(paused(&[("retry-after", value)]), Some(seconds), "{value}");
            assert_eq!(paused(&[("x-ratelimit-reset", value)]), Some(seconds), "{value}");
        }
    }

    #[test]
    fn a_date_is_relative_to_the_responses_own_date() {
        let by_the_clock_of = |date: &str, until: &str| paused(&[("date", date), ("retry-after", until)]);
        let (slow, fast) = ("Sun, 22 Nov 2026 09:00:00 GMT", "Mon, 22 Nov 2027 12:00:00 GMT");
        assert_eq!(by_the_clock_of(slow, "Sun, 22 Nov 2026 09:00:07 GMT"), Some(7));
        assert_eq!(by_the_clock_of(fast, "Mon, 22 Nov 2027 12:00:07 GMT"), Some(7));
        assert_eq!(by_the_clock_of(fast, "Sun, 22 Nov 2026 12:00:07 GMT"), None, "it is over");
        assert_eq!(by_the_clock_of("yesterday", "Sun, 22 Nov 2026 12:00:07 GMT"), Some(7));
        assert_eq!(by_the_clock_of(slow, "7"), Some(7));
    }

    #[test]
    fn limits_are_read_in_both_spellings() {
        let of = |pairs: &[(&'static str, &str)]| RateLimitHeaders::read(&headers(pairs));
        let said = of(&[("x-ratelimit-limit", "5"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "45")]);
        let (limit, remaining, reset) = (Some(5), Some(0), Some(Duration::from_secs(45)));
        assert_eq!(said, RateLimitHeaders { limit, remaining, reset, concurrent: None });
        assert_eq!(of(&[("x-rate-limit-limit", "7"), ("x-rate-limit-remaining", "6")]).remaining, Some(6));
        assert_eq!(of(&[("x-ratelimit-limit", "many"), ("x-rate-limit-limit", "7")]).limit, Some(7));
        let crowded = of(&[("twilio-concurrent-requests", "12")]);
        assert!(crowded.concurrent == Some(12) && !crowded.speaks_of_a_rate());
        let nonsense = of(&[("x-ratelimit-limit", "-1"), ("x-ratelimit-reset", "1000000000000")]);
        assert_eq!(nonsense, RateLimitHeaders::default());
    }

    #[test]
    fn of_limits_only_numbers_and_dates_are_left() {
        let date = "Sun, 22 Nov 2026 12:00:09 GMT";
        let said = [
            ("retry-after", "7"),
            ("date", date),
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "none"),
            ("x-ratelimit-reset", "123456789"),
            ("x-rate-limit-config", "5"),
            ("content-type", "5"),
        ];
        let left = limits_alone(&headers(&said), |value| value != "123456789");
        assert_eq!(left, headers(&[("retry-after", "7"), ("date", date), ("x-ratelimit-limit", "5")]));
    }

    #[test]
    fn usable_retry_after_values_are_recognised() {
        let is = |value: &[u8]| is_retry_after(&HeaderValue::from_bytes(value).unwrap());
        assert!(is(b"7") && is(b"0") && is(b"Sun, 22 Nov 2026 12:00:09 GMT"));
        for value in [&b""[..], b"soon", b"-1", b"1.5", b"\xff", b"7, 8", b"Sun, 22 Nov 2026"] {
            assert!(!is(value), "{}", value.escape_ascii());
        }
    }
}
