//! `/status` as text for a person: health first, then the last minute, accounts, teams and the cache.
//!
//! It is made from JSON, because the gateway may be older or newer than this program. Missing members are left out.

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::text::plain;

/// Outcomes of requests that were answered without an upstream attempt of their own.
const SAVED: [&str; 6] = ["hit", "shared", "stale", "stale_error", "revalidated", "collapsed"];
/// How old the points of the history are that count as the last minute.
const MINUTE: SignedDuration = SignedDuration::from_mins(1);
/// The indentation of lines that belong to the line above.
const INDENT: &str = "  ";

/// How the page is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// The greatest width of a line, in columns.
    pub(super) width: usize,
    /// Whether states have colours.
    pub(super) colour: bool,
}

/// The whole page, as of `now`.
pub(super) fn page(status: &Value, now: Timestamp, style: Style) -> String {
    let mut page = Page { text: String::new(), style };
    let state = text(&status["state"]);
    page.line(&format!(
        "insights-gateway {}, up {}, {}",
        text(&status["version"]),
        span(status["uptime_seconds"].as_u64().unwrap_or_default()),
        match state.as_str() {
            // A gateway of a version without states.
            "-" if status["ready"] == true => "ready".to_owned(),
            "-" => "not ready".to_owned(),
            state => page.painted(state),
        }
    ));
    page.line(&format!("upstream {}", text(&status["upstream"])));
    each(&status["checks"]).for_each(|check| page.check(check, now));
    page.last_minute(status, now);
    page.accounts(&status["accounts"]);
    page.teams(&status["teams"]);
    page.replicas(status);
    page.cache(&status["cache"]);
    page.text
}

struct Page {
    text: String,
    style: Style,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A text, wrapped to the width.
    fn wrapped(&mut self, text: &str) {
        let mut line = INDENT.to_owned();
        for word in text.split(' ') {
            let is_empty = line.len() == INDENT.len();
            if !is_empty && line.width() + 1 + word.width() > self.style.width {
                self.line(&line);
                INDENT.clone_into(&mut line);
            } else if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&line);
    }

    fn painted(&self, state: &str) -> String {
        let colour = match state {
            _ if !self.style.colour => return state.to_owned(),
            "ok" => 32,
            "degraded" => 33,
            "failing" => 31,
            _ => return state.to_owned(),
        };
        format!("\x1b[{colour}m{state}\x1b[0m")
    }

    /// A check that is not `ok`, or that has a detail.
    fn check(&mut self, check: &Value, now: Timestamp) {
        let state = text(&check["state"]);
        let has_a_word = check.get("detail").is_some();
        let state = match state.as_str() {
            "-" if check["ok"] == false => "failing",
            "-" => "ok",
            state => state,
        };
        if state == "ok" && !has_a_word {
            return;
        }
        let since = check["since"].as_str().and_then(|since| since.parse::<Timestamp>().ok());
        let since = since.map_or_else(String::new, |since| {
            let seconds = now.duration_since(since).as_secs();
            format!(", for {}", span(seconds.unsigned_abs()))
        });
        let heading = format!("{} {}{since}", self.painted(state), text(&check["check"]));
        self.text.push('\n');
        self.line(&heading);
        for part in ["cause", "detail"].into_iter().filter_map(|part| check.get(part)) {
            self.wrapped(&text(part));
        }
        if state != "ok"
            && let Some(runbook) = check.get("runbook")
        {
            self.wrapped(&format!("see {}", text(runbook)));
        }
    }

    fn last_minute(&mut self, status: &Value, now: Timestamp) {
        let is_recent = |entry: &&Value| {
            let at = entry["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
            at.is_some_and(|at| now.duration_since(at) <= MINUTE)
        };
        let Some(points) = status["history"]["points"].as_array() else { return };
        let mut outcomes: Vec<(&str, u64)> = Vec::new();
        for point in points.iter().filter(is_recent) {
            for (outcome, count) in point["requests"].as_object().into_iter().flatten() {
                let count = count.as_u64().unwrap_or_default();
                match outcomes.iter_mut().find(|(known, _)| known == outcome) {
                    Some((_, sum)) => *sum += count,
                    None => outcomes.push((outcome, count)),
                }
            }
        }
        let sum = |of: &dyn Fn(&str) -> bool| outcomes.iter().filter(|(outcome, _)| of(outcome)).map(|(_, n)| n).sum();
        let (all, saved): (u64, u64) = (sum(&|_| true), sum(&|outcome| SAVED.contains(&outcome)));
        self.text.push('\n');
        if all == 0 {
            return self.line("last minute: no requests");
        }
        let (rate, share) = (all as f64 / 60.0, 100.0 * saved as f64 / all as f64);
        self.line(&format!("last minute: {all} requests ({rate:.1}/s), {share:.0} % without asking Twilio"));
        outcomes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let counted = outcomes.iter().map(|(outcome, count)| format!("{} {count}", plain(outcome)));
        self.wrapped(&counted.collect::<Vec<_>>().join(", "));
        let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
        for error in each(&status["errors"]).filter(is_recent) {
            *reasons.entry(text(&error["reason"])).or_default() += 1;
        }
        if !reasons.is_empty() {
            let mut reasons: Vec<_> = reasons.into_iter().collect();
            reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let counted = reasons.iter().map(|(reason, count)| format!("{reason} {count}"));
            self.wrapped(&format!("why: {}", counted.collect::<Vec<_>>().join(", ")));
        }
    }

    fn accounts(&mut self, accounts: &Value) {
        let row = |account: &Value| {
            let number = |value: &Value| value.as_f64().map(|number| format!("{number:.1}"));
            let paused = account["paused_seconds"].as_f64().filter(|paused| *paused > 0.0);
            let rate = match (number(&account["rate_now_per_second"]), account["rate"].as_str()) {
                (Some(now), Some(rate)) => format!("{now} of {}", plain(rate)),
                _ => "unlimited".to_owned(),
            };
            [
                text(&account["name"]),
                text(&account["credentials"]),
                text(&account["circuit"]),
                number(&account["tokens"])
                    .map_or_else(|| "-".to_owned(), |n| format!("{n}/{}", text(&account["burst"]))),
                rate,
                format!("{}/{}", text(&account["in_flight"]), text(&account["concurrency_now"])),
                text(&account["waiting"]),
                paused.map_or_else(|| "-".to_owned(), |paused| format!("{paused:.1} s")),
            ]
        };
        let head = ["ACCOUNT", "KEY", "CIRCUIT", "TOKENS", "RATE", "BUSY", "WAIT", "PAUSED"];
        self.table(head, each(accounts).map(row).collect());
    }

    fn teams(&mut self, teams: &Value) {
        let row = |team: &Value| {
            let asked = team["asked"].as_object().map(|asked| {
                let count = |of: &dyn Fn(&str) -> bool| {
                    asked.iter().filter(|(outcome, _)| of(outcome)).filter_map(|(_, n)| n.as_u64()).sum::<u64>()
                };
                (count(&|_| true), count(&|outcome| outcome == "refused"), count(&|outcome| outcome == "failed"))
            });
            let shown = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
            [
                text(&team["name"]),
                text(&team["account"]),
                text(&team["requests"]),
                text(&team["upstream"]),
                shown(asked.map(|asked| asked.0)),
                shown(asked.map(|asked| asked.1)),
                shown(asked.map(|asked| asked.2)),
            ]
        };
        let head = ["TEAM", "ACCOUNT", "REQUESTS", "UPSTREAM", "ASKED", "REFUSED", "FAILED"];
        self.table(head, each(teams).map(row).collect());
    }

    /// Shown only if replicas share a cache.
    fn replicas(&mut self, status: &Value) {
        let shared = &status["shared"];
        let Some(state) = shared["state"].as_str() else { return };
        let count = match &status["replicas"] {
            Value::Array(replicas) => replicas.len().to_string(),
            count => text(count),
        };
        self.text.push('\n');
        let state = self.painted(&plain(state));
        self.line(&format!("shared {state}, replicas {count}"));
        if let Some(cause) = shared["cause"].as_str() {
            self.wrapped(&plain(cause));
        }
    }

    fn cache(&mut self, cache: &Value) {
        let disk = &cache["disk"];
        let (pages, bytes, capacity) = (text(&cache["entries"]), size(&cache["bytes"]), size(&cache["capacity_bytes"]));
        let mut line = format!("cache {pages} pages, {bytes} of {capacity}");
        if disk["enabled"] == true {
            // Writing to a string does not fail.
            let _ = write!(line, "; on disk {} pages, {}", text(&disk["entries"]), size(&disk["bytes"]));
        }
        self.text.push('\n');
        self.line(&line);
    }

    /// A blank line, a header and aligned columns; nothing if there are no rows. If the table is too wide, names are
    /// shortened.
    fn table<const N: usize>(&mut self, head: [&str; N], rows: Vec<[String; N]>) {
        /// The least number of columns that is left of a name.
        const LEAST: usize = 8;
        if rows.is_empty() {
            return;
        }
        let head = head.map(str::to_owned);
        let mut widths: [usize; N] =
            std::array::from_fn(|at| rows.iter().chain([&head]).map(|row| row[at].width()).max().unwrap_or_default());
        let all = widths.iter().sum::<usize>() + 2 * (N - 1);
        widths[0] = widths[0].saturating_sub(all.saturating_sub(self.style.width)).max(LEAST.min(widths[0]));
        self.text.push('\n');
        for row in [&head].into_iter().chain(&rows) {
            let cells = row.iter().zip(widths).map(|(cell, width)| {
                let cell = cut(cell, width);
                let fill = width.saturating_sub(cell.width());
                format!("{cell}{:fill$}", "")
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            self.line(line.trim_end());
        }
    }
}

/// The beginning of a text, with a mark if something was cut off.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        kept.push(character);
        if kept.width() >= width {
            kept.pop();
            break;
        }
    }
    kept + "…"
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A value as a word; `-` if it is missing.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

fn size(bytes: &Value) -> String {
    let bytes = bytes.as_f64().unwrap_or_default();
    match bytes {
        1_073_741_824.0.. => format!("{:.1} GiB", bytes / 1_073_741_824.0),
        1_048_576.0.. => format!("{:.1} MiB", bytes / 1_048_576.0),
        _ => format!("{:.1} KiB", bytes / 1024.0),
    }
}

fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Style = Style { width: 72, colour: false };

    fn now() -> Timestamp {
        "2026-11-22T21:02:00Z".parse().unwrap()
    }

    fn status() -> Value {
        json!({
            "version": "0.1.0", "uptime_seconds": 93_784, "ready": true, "state": "degraded",
            "upstream": "https://insights.twilio.com/",
            "checks": [
                {"check": "serving", "ok": true, "state": "ok"},
                {"check": "upstream/main", "ok": true, "state": "degraded", "since": "2026-11-22T21:00:00Z",
                 "cause": "TLS: the certificate of insights.twilio.com expired 2026-11-22T20:59:59Z",
                 "detail": "the last attempt to ask Twilio \u{1b}[1mfailed\nat 21:01", "runbook": "docs/runbook.md#upstream_unreachable"},
                {"check": "credentials/a", "ok": true, "state": "ok", "detail": "unknown"},
            ],
            "history": {"interval_seconds": 5, "points": [
                {"at": "2026-11-22T21:00:50Z", "requests": {"hit": 1000}},
                {"at": "2026-11-22T21:01:30Z", "requests": {"hit": 90, "miss": 5}},
                {"at": "2026-11-22T21:01:35Z", "requests": {"hit": 2, "stale_error": 1, "failed": 2}},
            ]},
            "errors": [
                {"at": "2026-11-22T21:01:35Z", "reason": "upstream_unreachable"},
                {"at": "2026-11-22T21:01:34Z", "reason": "upstream_unreachable"},
                {"at": "2026-11-22T20:01:34Z", "reason": "deadline"},
            ],
            "accounts": [
                {"name": "main", "credentials": "rejected", "circuit": "half_open", "tokens": 4.25, "burst": 5, "rate": "5/s", "rate_now_per_second": 2.5, "in_flight": 1, "concurrency_now": 10, "waiting": 0, "paused_seconds": 1.5},
                {"name": "a", "credentials": "accepted", "circuit": "closed", "tokens": null, "burst": 5, "rate": null, "rate_now_per_second": null, "in_flight": 0, "concurrency_now": 10, "waiting": 7, "paused_seconds": 0.0},
            ],
            "teams": [{"name": "dashboards", "account": "main", "requests": "200/s", "upstream": null, "asked": {"hit": 92, "refused": 3, "failed": 2}}],
            "shared": {"state": "degraded", "since": "2026-11-22T21:00:00Z", "cause": "no connection"}, "replicas": 3,
            "cache": {"entries": 12, "bytes": 15_360, "capacity_bytes": 268_435_456_u64, "disk": {"enabled": true, "entries": 3, "bytes": 2_097_152}},
            "unknown": [1, 2],
        })
    }

    #[test]
    fn the_page_shows_faults_and_traffic() {
        let expected = "\
insights-gateway 0.1.0, up 1 d 2 h, degraded
upstream https://insights.twilio.com/

degraded upstream/main, for 2 min
  TLS: the certificate of insights.twilio.com expired
  2026-11-22T20:59:59Z
  the last attempt to ask Twilio [1mfailed at 21:01
  see docs/runbook.md#upstream_unreachable

ok credentials/a
  unknown

last minute: 100 requests (1.7/s), 93 % without asking Twilio
  hit 92, miss 5, failed 2, stale_error 1
  why: upstream_unreachable 2

ACCOUNT  KEY       CIRCUIT    TOKENS  RATE        BUSY  WAIT  PAUSED
main     rejected  half_open  4.2/5   2.5 of 5/s  1/10  0     1.5 s
a        accepted  closed     -       unlimited   0/10  7     -

TEAM        ACCOUNT  REQUESTS  UPSTREAM  ASKED  REFUSED  FAILED
dashboards  main     200/s     -         97     3        2

shared degraded, replicas 3
  no connection

cache 12 pages, 15.0 KiB of 256.0 MiB; on disk 3 pages, 2.0 MiB
";
        assert_eq!(page(&status(), now(), PLAIN), expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut long = status();
        long["accounts"][0]["name"] = json!("a-name-that-somebody-has-made-far-too-long");
        long["teams"][0]["name"] = json!("ünïcode-ünïcode-ünïcode-ünïcode-ünïcode");
        for width in [72, 80, 100] {
            let page = page(&long, now(), Style { width, colour: false });
            assert!(page.lines().all(|line| line.width() <= width), "{page}");
        }
        assert!(
            page(&long, now(), PLAIN).contains("a-name-…  rejected")
                || page(&long, now(), PLAIN).contains("…  rejected")
        );
    }

    #[test]
    fn only_states_are_coloured() {
        let page = page(&status(), now(), Style { width: 72, colour: true });
        assert_eq!(page.matches("\x1b[33mdegraded\x1b[0m").count(), 3, "{page}");
        assert_eq!(page.matches("\x1b[32mok\x1b[0m").count(), 1, "{page}");
        assert_eq!(page.matches('\x1b').count(), 8);
    }

    #[test]
    fn an_answer_with_unknown_or_missing_members_is_shown() {
        assert!(page(&json!({}), now(), PLAIN).starts_with("insights-gateway -, up 0 s, not ready\n"));
        let old = json!({"ready": true, "checks": [{"check": "x", "ok": false, "detail": "y"}]});
        let old = page(&old, now(), PLAIN);
        assert!(old.contains(", ready\n") && old.contains("\nfailing x\n  y\n"), "{old}");
        assert!(page(&json!([1]), now(), PLAIN).contains("cache -"));
    }

    #[test]
    fn a_minute_without_requests_is_shown_as_such() {
        let quiet = json!({"history": {"points": [{"at": "2026-11-22T20:00:00Z", "requests": {"hit": 1}}]}});
        assert!(page(&quiet, now(), PLAIN).contains("\nlast minute: no requests\n"));
    }
}
