//! `/status` as text for a person: health first, then the last minute, accounts, teams and the cache.
//!
//! It is made from JSON, because the gateway may be older or newer than this program. Missing members are left out.

use std::fmt::Write;

use jiff::Timestamp;
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::text::plain;

/// Outcomes of requests that were answered without an upstream attempt of their own.
const SAVED: [&str; 6] = ["hit", "shared", "stale", "stale_error", "revalidated", "collapsed"];
/// A minute, in seconds.
const MINUTE_SECONDS: u64 = 60;
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

/// The whole page, as of `now`, of the gateway whose admin plane is at the URL `admin`.
pub(super) fn page(status: &Value, admin: &str, now: Timestamp, style: Style) -> String {
    let mut page = Page { text: String::new(), style };
    let state = text(&status["state"]);
    let state = match state.as_str() {
        // A gateway of a version without states.
        "-" if status["ready"] == true => "ready",
        "-" => "not ready",
        state => state,
    };
    let uptime = span(status["uptime_seconds"].as_u64().unwrap_or_default());
    page.stated(&format!("insights-gateway {}, up {uptime}, ", text(&status["version"])), state, "");
    page.folded("upstream ", &text(&status["upstream"]));
    each(&status["checks"]).for_each(|check| page.check(check, admin, now));
    page.last_minute(status);
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

    /// A text, wrapped to the width. The first line begins with `first`, the others are indented.
    fn folded(&mut self, first: &str, text: &str) {
        fold(first, text, self.style.width).iter().for_each(|line| self.line(line));
    }

    /// A text below a line that it belongs to, wrapped to the width.
    fn wrapped(&mut self, text: &str) {
        self.folded(INDENT, text);
    }

    /// A line with a state in it, which is painted. Colours take no columns, so it is folded first.
    fn stated(&mut self, before: &str, state: &str, after: &str) {
        for line in fold("", &[before, state, after].concat(), self.style.width) {
            match line.split_once(state) {
                Some((left, right)) => self.line(&format!("{left}{}{right}", self.painted(state))),
                None => self.line(&line),
            }
        }
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
    fn check(&mut self, check: &Value, admin: &str, now: Timestamp) {
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
        self.text.push('\n');
        self.stated("", state, &format!(" {}{since}", text(&check["check"])));
        for part in ["cause", "detail"].into_iter().filter_map(|part| check.get(part)) {
            self.wrapped(&text(part));
        }
        if state != "ok"
            && let Some(runbook) = check.get("runbook")
        {
            // The admin plane has the runbook, and a machine with the program alone has not.
            let place = text(runbook);
            self.wrapped(&match place.split_once('#').filter(|_| admin.starts_with("http")) {
                Some((_, heading)) => format!("see {admin}/runbook#{heading}"),
                None => format!("see {place}"),
            });
        }
    }

    /// A gateway that counts no last minute is older than this program. Nothing is shown then.
    fn last_minute(&mut self, status: &Value) {
        let Some(requests) = status["last_minute"]["requests"].as_object() else { return };
        let mut outcomes: Vec<_> =
            requests.iter().filter_map(|(outcome, count)| Some((outcome, count.as_u64()?))).collect();
        outcomes.retain(|(_, count)| *count > 0);
        let sum = |of: &dyn Fn(&str) -> bool| -> u64 {
            outcomes.iter().filter(|(outcome, _)| of(outcome)).map(|(_, count)| count).sum()
        };
        let (all, answered) = (sum(&|_| true), sum(&|outcome| outcome != "refused"));
        let saved = sum(&|outcome| SAVED.contains(&outcome));
        self.text.push('\n');
        if all == 0 {
            return self.line("last minute: no requests");
        }
        let seconds = status["uptime_seconds"].as_u64().unwrap_or(MINUTE_SECONDS).clamp(1, MINUTE_SECONDS);
        let (rate, share) = (all as f64 / seconds as f64, 100.0 * saved as f64 / answered.max(1) as f64);
        self.folded(
            "last minute: ",
            &format!(
                "{} ({rate:.1}/s), {share:.0} % of answers without asking Twilio",
                amount(&all.to_string(), "request")
            ),
        );
        outcomes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let counted = outcomes.iter().map(|(outcome, count)| format!("{} {count}", plain(outcome)));
        self.wrapped(&counted.collect::<Vec<_>>().join(", "));
        let reasons = each(&status["last_minute"]["reasons"]);
        let counted: Vec<_> = reasons.map(|of| format!("{} {}", text(&of["reason"]), text(&of["count"]))).collect();
        if !counted.is_empty() {
            self.wrapped(&format!("why: {}", counted.join(", ")));
        }
    }

    fn accounts(&mut self, accounts: &Value) {
        let row = |account: &Value| {
            let number = |value: &Value| value.as_f64().map(|number| format!("{number:.1}"));
            let paused = account["paused_seconds"].as_f64().filter(|paused| *paused > 0.0);
            let rate = match (account["rate_now"].as_str(), account["rate"].as_str()) {
                (None, None) => "unlimited".to_owned(),
                (Some(now), Some(rate)) if now != rate => {
                    format!("{} of {}", plain(now.split('/').next().unwrap_or(now)), plain(rate))
                }
                (_, Some(rate)) | (Some(rate), None) => plain(rate),
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
        self.table("", head, each(accounts).map(row).collect());
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
        self.table("since the start:\n", head, each(teams).map(row).collect());
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
        self.stated("shared ", &plain(state), &format!(", replicas {count}"));
        if let Some(cause) = shared["cause"].as_str() {
            self.wrapped(&plain(cause));
        }
    }

    fn cache(&mut self, cache: &Value) {
        let disk = &cache["disk"];
        let pages = |of: &Value| amount(&text(&of["entries"]), "page");
        let mut line =
            format!("cache {}, {} of {}", pages(cache), size(&cache["bytes"]), size(&cache["capacity_bytes"]));
        if disk["enabled"] == true {
            // Writing to a string does not fail.
            let _ = write!(line, "; on disk {}, {}", pages(disk), size(&disk["bytes"]));
        }
        self.text.push('\n');
        self.folded("", &line);
    }

    /// A blank line, a title, a header and aligned columns; nothing if there are no rows. If the table is too wide,
    /// names are shortened. If too little would be left of a name, each row becomes a text.
    fn table<const N: usize>(&mut self, title: &str, head: [&str; N], rows: Vec<[String; N]>) {
        /// The least number of columns that is left of a name.
        const LEAST: usize = 8;
        if rows.is_empty() {
            return;
        }
        let head = head.map(str::to_owned);
        let mut widths: [usize; N] =
            std::array::from_fn(|at| rows.iter().chain([&head]).map(|row| row[at].width()).max().unwrap_or_default());
        let all = widths.iter().sum::<usize>() + 2 * (N - 1);
        let shortened = widths[0].saturating_sub(all.saturating_sub(self.style.width));
        self.text.push('\n');
        self.text.push_str(title);
        if shortened < LEAST.min(widths[0]) {
            for row in &rows {
                let named = head.iter().zip(row).map(|(head, cell)| format!("{} {cell}", head.to_lowercase()));
                self.folded("", &named.collect::<Vec<_>>().join(", "));
            }
            return;
        }
        widths[0] = shortened;
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

/// A text in lines of at most `width` columns. The first begins with `first`, the others are indented. A word that is
/// too long for a line is broken.
fn fold(first: &str, text: &str, width: usize) -> Vec<String> {
    let (mut lines, mut line, mut is_empty) = (Vec::new(), first.to_owned(), true);
    for word in text.split(' ') {
        if !is_empty && line.width() + 1 + word.width() > width {
            lines.push(std::mem::replace(&mut line, INDENT.to_owned()));
        } else if !is_empty {
            line.push(' ');
        }
        is_empty = false;
        for character in word.chars() {
            if line.width() + character.width().unwrap_or_default() > width && line != INDENT {
                lines.push(std::mem::replace(&mut line, INDENT.to_owned()));
            }
            line.push(character);
        }
    }
    lines.push(line);
    lines
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

/// A number of things, in the singular or the plural.
fn amount(number: &str, thing: &str) -> String {
    format!("{number} {thing}{}", if number == "1" { "" } else { "s" })
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

    fn page(status: &Value, now: Timestamp, style: Style) -> String {
        super::page(status, "http://127.0.0.1:9090", now, style)
    }

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
            "last_minute": {
                "requests": {"hit": 92, "stale": 0, "miss": 5, "stale_error": 1, "refused": 100, "failed": 2},
                "reasons": [{"reason": "team_rate_limit", "count": 100}, {"reason": "upstream_unreachable", "count": 2}],
            },
            "accounts": [
                {"name": "main", "credentials": "rejected", "circuit": "half_open", "tokens": 4.25, "burst": 5, "rate": "300/min", "rate_now": "150/min", "in_flight": 1, "concurrency_now": 10, "waiting": 0, "paused_seconds": 1.5},
                {"name": "a", "credentials": "accepted", "circuit": "closed", "tokens": null, "burst": 5, "rate": null, "rate_now": null, "in_flight": 0, "concurrency_now": 10, "waiting": 7, "paused_seconds": 0.0},
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
  see http://127.0.0.1:9090/runbook#upstream_unreachable

ok credentials/a
  unknown

last minute: 200 requests (3.3/s), 93 % of answers without asking Twilio
  refused 100, hit 92, miss 5, failed 2, stale_error 1
  why: team_rate_limit 100, upstream_unreachable 2

ACCOUNT  KEY       CIRCUIT    TOKENS  RATE            BUSY  WAIT  PAUSED
main     rejected  half_open  4.2/5   150 of 300/min  1/10  0     1.5 s
a        accepted  closed     -       unlimited       0/10  7     -

since the start:
TEAM        ACCOUNT  REQUESTS  UPSTREAM  ASKED  REFUSED  FAILED
dashboards  main     200/s     -         97     3        2

shared degraded, replicas 3
  no connection

cache 12 pages, 15.0 KiB of 256.0 MiB; on disk 3 pages, 2.0 MiB
";
        assert_eq!(page(&status(), now(), PLAIN), expected);
        let by_socket = super::page(&status(), "unix:///run/admin.sock", now(), PLAIN);
        assert!(by_socket.contains("see docs/runbook.md#upstream_unreachable"), "{by_socket}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut long = status();
        let name = "a-name-that-somebody-has-made-as-long-as-a-name-in-a-file-may-be";
        long["accounts"][0]["name"] = json!(name);
        long["teams"][0]["name"] = json!("ünïcode-ünïcode-ünïcode-ünïcode-ünïcode");
        let shortened = page(&long, now(), Style { width: 80, colour: false });
        assert!(shortened.contains("a-name-that-so…  rejected"), "{shortened}");
        // The longest of everything that a configuration allows.
        long["upstream"] = json!(format!("https://{}.example/", "insights.".repeat(20)));
        long["checks"][1]["check"] = json!(format!("credentials/{name}"));
        long["checks"][1]["cause"] = json!(format!("TCP: {}:443: refused", "x".repeat(150)));
        long["last_minute"]["requests"]["hit"] = json!(123_456_789_u64);
        long["cache"]["entries"] = json!(123_456_789_u64);
        let account = &mut long["accounts"][0];
        for (member, value) in [
            ("tokens", json!(99_999.9)),
            ("burst", json!(100_000)),
            ("rate", json!("4000000000/min")),
            ("rate_now", json!("3999999999.999/min")),
            ("in_flight", json!(10_000)),
            ("concurrency_now", json!(10_000)),
            ("waiting", json!(1_000_000)),
            ("paused_seconds", json!(86_400.5)),
        ] {
            account[member] = value;
        }
        long["teams"][0]["account"] = json!(name);
        for width in [24, 40, 72, 80, 100] {
            let page = page(&long, now(), Style { width, colour: false });
            assert!(page.lines().all(|line| line.width() <= width), "{width}:\n{page}");
        }
        let whole = page(&long, now(), PLAIN);
        let unfolded = whole.replace("\n  ", "");
        assert_eq!(unfolded.matches(name).count(), 3, "nothing is left out of a text: {whole}");
        assert!(whole.contains("3999999999.999 of 4000000000/min") && whole.contains("86400.5 s"), "{whole}");
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
        let quiet = json!({"last_minute": {"requests": {"hit": 0, "failed": 0}, "reasons": []}});
        assert!(page(&quiet, now(), PLAIN).contains("\nlast minute: no requests\n"));
    }

    #[test]
    fn one_request_and_one_page_are_in_the_singular() {
        let one = json!({
            "last_minute": {"requests": {"hit": 1}, "reasons": []},
            "cache": {"entries": 1, "bytes": 0, "capacity_bytes": 0, "disk": {"enabled": true, "entries": 1, "bytes": 0}},
        });
        let shown = page(&one, now(), PLAIN);
        assert!(shown.contains("last minute: 1 request (0.0/s)"), "{shown}");
        assert!(shown.contains("cache 1 page, 0.0 KiB of 0.0 KiB; on disk 1 page, 0.0 KiB"), "{shown}");
    }
}
