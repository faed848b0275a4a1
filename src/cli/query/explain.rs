//! Explains in words how an answer was made: the output of `--explain` on standard error.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value as Json;

use crate::cli::client::Answer;
use crate::cli::text::plain;

/// The gateway's own name in `Cache-Status`.
const CACHE: &str = "insights-gateway";

/// The parts of `Cache-Status` (RFC 9211) that come from this gateway.
#[derive(Debug, Default, PartialEq, Eq)]
struct CacheStatus {
    outcome: String,
    key: Option<String>,
    ttl: Option<i64>,
    stored: bool,
}

impl CacheStatus {
    /// Reads the list member of this gateway. A proxy in front of it may have added its own.
    fn read(header: &str) -> Option<Self> {
        let mut parts = outside_quotes(header, ',')
            .into_iter()
            .map(|member| outside_quotes(member, ';'))
            .find(|parts| parts.first().is_some_and(|name| name.trim() == CACHE))?;
        let mut status = Self::default();
        for part in parts.drain(1..) {
            let (name, value) = part.trim().split_once('=').unwrap_or((part.trim(), ""));
            match name {
                "detail" => status.outcome = plain(value),
                "key" => status.key = Some(plain(value.trim_matches('"'))),
                "ttl" => status.ttl = value.parse().ok(),
                "stored" => status.stored = true,
                _ => {}
            }
        }
        Some(status)
    }

    fn words(&self) -> String {
        let kept = if self.stored { "; the answer is kept" } else { "; the answer is not kept" };
        match (self.outcome.as_str(), self.ttl) {
            ("hit", Some(ttl)) => format!("hit: from the cache, fresh for another {ttl} s"),
            ("hit", None) => "hit: from the cache, fresh".to_owned(),
            ("shared", _) => "shared: from the cache that the replicas share".to_owned(),
            ("stale", Some(ttl)) => format!("stale: from the cache, {} s past its freshness; a refresh runs", -ttl),
            ("stale", None) => "stale: from the cache, past its freshness; a refresh runs".to_owned(),
            ("stale_error", _) => {
                "stale_error: from the cache, past its freshness, because no newer answer could be fetched".to_owned()
            }
            ("revalidated", _) => "revalidated: the answer has not changed".to_owned(),
            ("collapsed", _) => "collapsed: by a call to Twilio that another request had begun".to_owned(),
            ("miss", _) => format!("miss: by a call to Twilio{kept}"),
            ("bypass", _) => "bypass: by a call to Twilio; the answer is not kept".to_owned(),
            ("refused", _) => "refused: by the gateway, without a call to Twilio".to_owned(),
            ("failed", _) => "failed".to_owned(),
            (other, _) => other.to_owned(),
        }
    }
}

/// Splits a structured field at separators outside quotes.
fn outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let (mut in_quotes, mut is_escaped) = (false, false);
    let split = text.split(|c| {
        let is_separator = c == separator && !in_quotes;
        match c {
            '"' if !is_escaped => in_quotes = !in_quotes,
            _ => {}
        }
        is_escaped = c == '\\' && in_quotes && !is_escaped;
        is_separator
    });
    split.collect()
}

/// What was printed about the answers so far.
#[derive(Debug, Default)]
pub(super) struct Explanation {
    pages: usize,
    rows: usize,
    took: Duration,
    /// How often each outcome occurred, in the order of their first occurrence.
    outcomes: Vec<(String, usize)>,
}

impl Explanation {
    /// The lines about the first answer. Later ones only count in the sum.
    pub(super) fn answer(&mut self, answer: &Answer) -> Option<String> {
        self.took += answer.took;
        self.pages += 1;
        let status = answer.header("cache-status").and_then(CacheStatus::read).unwrap_or_default();
        let outcome = if status.outcome.is_empty() { "unknown" } else { &status.outcome };
        match self.outcomes.iter_mut().find(|(known, _)| known == outcome) {
            Some((_, count)) => *count += 1,
            None => self.outcomes.push((outcome.to_owned(), 1)),
        }
        (self.pages == 1).then(|| lines(answer))
    }

    /// Counts the rows of the last page.
    pub(super) fn rows(&mut self, count: usize) {
        self.rows += count;
    }

    /// The sum of all pages.
    pub(super) fn sum(&self) -> String {
        let outcomes: Vec<String> = self.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        let many = |count: usize, name: &str| format!("{count} {name}{}", if count == 1 { "" } else { "s" });
        let (pages, rows, took) = (many(self.pages, "page"), many(self.rows, "row"), milliseconds(self.took));
        format!("{:<9}{pages} ({}), {rows}, {took}\n", "sum", outcomes.join(", "))
    }
}

/// Everything about one answer, a page or a refusal.
pub(super) fn lines(answer: &Answer) -> String {
    let header = answer.header("cache-status");
    let status = header.and_then(CacheStatus::read).unwrap_or_default();
    let words = match status.outcome.as_str() {
        "" => "the answer does not say how it was made".to_owned(),
        _ => status.words(),
    };
    let text = |name| answer.header(name).map(plain);
    let lines = [
        ("key", Some(status.key.unwrap_or_else(|| "-".to_owned()))),
        ("answer", Some(words)),
        ("header", header.map(|header| format!("Cache-Status: {}", plain(header)))),
        ("age", text("age").map(|age| format!("{age} s"))),
        ("time", Some(milliseconds(answer.took))),
        ("request", text("x-request-id")),
    ];
    let present = lines.into_iter().filter_map(|(name, value)| Some(format!("{name:<9}{}\n", value?)));
    present.collect()
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// What `/_gateway/usage` says of the calling team; `None` if the response has another form.
pub(super) fn usage(body: &[u8]) -> Option<String> {
    let usage: Json = serde_json::from_slice(body).ok()?;
    let team = plain(usage["team"].as_str()?);
    let requests = usage["requests"].as_object()?;
    let counts: Vec<String> = requests
        .iter()
        .filter(|(_, count)| count.as_u64().is_some_and(|count| count > 0))
        .map(|(outcome, count)| format!("{count} {}", plain(outcome)))
        .collect();
    let since = usage["since"].as_str().map_or_else(String::new, |since| format!(" since {}", plain(since)));
    let number = |name: &str| usage[name].as_u64().unwrap_or_default();
    let all: u64 = requests.values().filter_map(Json::as_u64).sum();
    let mut lines = format!(
        "{:<9}team {team}: {all} requests{since} ({}); {} calls to Twilio, {} saved\n",
        "usage",
        counts.join(", "),
        number("upstream_attempts"),
        number("calls_saved"),
    );
    let limits: Vec<String> = ["requests", "upstream", "remaining"]
        .iter()
        .filter_map(|name| {
            let value = &usage["limits"][name];
            let value = value.as_str().map_or_else(|| value.to_string(), plain);
            (value != "null").then(|| format!("{name} {value}"))
        })
        .collect();
    if !limits.is_empty() {
        let _ = writeln!(lines, "{:<9}{}", "limits", limits.join(", "));
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn answer(cache_status: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("cache-status", HeaderValue::from_static(cache_status));
        headers.insert("x-request-id", HeaderValue::from_static("r1"));
        Answer { status: StatusCode::OK, headers, body: "{}".into(), took: Duration::from_micros(1500) }
    }

    #[test]
    fn the_first_answer_is_explained_and_the_others_are_summed() {
        let mut explanation = Explanation::default();
        let miss = "insights-gateway; fwd=uri-miss; stored; fwd-status=200; detail=miss; key=\"92e327f929a35ff4\"";
        let expected = format!(
            "key      92e327f929a35ff4\nanswer   miss: by a call to Twilio; the answer is kept\n\
             header   Cache-Status: {miss}\ntime     1.5 ms\nrequest  r1\n"
        );
        assert_eq!(explanation.answer(&answer(miss)), Some(expected));
        explanation.rows(50);
        assert_eq!(explanation.answer(&answer("insights-gateway; hit; ttl=59; detail=hit; key=\"1\"")), None);
        explanation.rows(3);
        assert_eq!(explanation.sum(), "sum      2 pages (1 miss, 1 hit), 53 rows, 3.0 ms\n");
    }

    #[test]
    fn cache_status_is_explained_in_words() {
        let words = |header: &str| CacheStatus::read(header).unwrap().words();
        assert_eq!(words("insights-gateway; hit; ttl=59; detail=hit"), "hit: from the cache, fresh for another 59 s");
        let stale =
            words("Edge; fwd=miss; key=\"a, insights-gateway; x\", insights-gateway; hit; ttl=-12; detail=stale");
        assert_eq!(stale, "stale: from the cache, 12 s past its freshness; a refresh runs");
        assert!(words("insights-gateway; fwd=uri-miss; detail=miss").ends_with("not kept"));
        assert_eq!(words("insights-gateway; detail=novel"), "novel");
        assert_eq!(CacheStatus::read("Other; hit"), None);
        assert_eq!(CacheStatus::read(""), None);
    }

    #[test]
    fn usage_is_printed_where_it_is_understood() {
        let body = json!({
            "team": "dashboards", "requests": {"hit": 100, "miss": 20, "stale": 0}, "upstream_attempts": 20,
            "calls_saved": 100, "since": "2026-11-28T09:00:00Z",
            "limits": {"requests": "200/s", "upstream": null, "remaining": 199}, "operations": ["query"], "restricted": false,
        });
        assert_eq!(
            usage(body.to_string().as_bytes()).as_deref(),
            Some(
                "usage    team dashboards: 120 requests since 2026-11-28T09:00:00Z (100 hit, 20 miss); 20 calls to \
                 Twilio, 100 saved\nlimits   requests 200/s, remaining 199\n"
            )
        );
        assert_eq!(usage(b"<html>"), None);
        assert_eq!(usage(b"{}"), None);
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "(insights-gateway[;,] ?)?[a-z=\"\\\\;, -]{0,40}") {
            if let Some(status) = CacheStatus::read(&header) {
                let _ = status.words();
            }
        }
    }
}
