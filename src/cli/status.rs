//! `status`: prints the content of `/status` of a running gateway for people.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::ask::{ask, pause};
use super::terminal::Terminal;
use super::text::plain;
use super::{answer, exit, explain, print};

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Admin URL; by default http:// and INSIGHTS_GATEWAY_ADMIN__LISTEN, else http://127.0.0.1:9090
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The admin plane's token, if it needs one; better in the variable, which other users of the machine cannot see
    #[arg(long, value_name = "TOKEN", env = "INSIGHTS_GATEWAY_ADMIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print the JSON of /status as it comes
    #[arg(long)]
    pub json: bool,
    /// Ask again every two seconds, until interrupted
    #[arg(long)]
    pub watch: bool,
}

/// Time between two requests.
const WATCH: Duration = Duration::from_secs(2);

/// Sends the request, and prints the status.
pub fn run(args: &StatusArgs) -> ExitCode {
    match look(args) {
        Ok(page) if args.watch => watch(args, page),
        Ok(page) => answer(&page),
        Err(code) => code,
    }
}

/// Prints again and again. A gateway that does not answer for a while, for example during a restart, is asked again.
fn watch(args: &StatusArgs, first: String) -> ExitCode {
    let terminal = Terminal::of_process();
    let mut page = Some(first);
    loop {
        if let Some(page) = page {
            let printed = match terminal.redraws {
                // Overwrites the previous output, so that the screen does not flicker.
                true => print(&format!("\x1b[H{}\x1b[J", page.replace('\n', "\x1b[K\n"))),
                false => print(&page),
            };
            if let Err(code) = printed {
                return code;
            }
        }
        pause(WATCH);
        page = look(args).ok();
    }
}

/// The text to print.
///
/// # Errors
///
/// The exit code; the reason has been printed.
fn look(args: &StatusArgs) -> Result<String, ExitCode> {
    // An empty variable counts as unset, like all variables of the gateway.
    let token = args.token.as_deref().filter(|token| !token.is_empty());
    let (target, said) = ask(args.url.as_deref(), "/status", token)?;
    let refused = |why: &str| {
        explain(&format!("insights-gateway: no status at {target}: {why}"));
        Err(ExitCode::from(exit::NOT_READY))
    };
    match (said.status, serde_json::from_str::<Value>(&said.body)) {
        (200, Ok(_)) if args.json => Ok(said.body),
        (200, Ok(status)) => Ok(page(&status)),
        (200, Err(_)) => refused("the answer is not JSON; is this the admin address?"),
        (401, _) => refused("it needs its token: --token, or INSIGHTS_GATEWAY_ADMIN_TOKEN"),
        (status, _) => refused(&format!("/status answered {status}: {}", plain(&said.body))),
    }
}

/// The whole status as text.
fn page(status: &Value) -> String {
    let mut page = format!(
        "insights-gateway {}, up {}, {}\nupstream {}\n",
        text(&status["version"]),
        span(&status["uptime_seconds"]),
        if status["ready"] == true { "ready" } else { "not ready" },
        text(&status["upstream"]),
    );
    for check in each(&status["checks"]).filter(|check| check.get("detail").is_some()) {
        let mark = if check["ok"] == true { "note" } else { "WRONG" };
        let [name, detail, since] = ["check", "detail", "since"].map(|part| text(&check[part]));
        // Writing to a string does not fail.
        let _ = writeln!(page, "{mark} {name}: {detail} (since {since})");
    }
    let accounts = each(&status["accounts"]).map(|account| {
        let paused = account["paused_seconds"].as_f64().filter(|paused| *paused > 0.0);
        [
            text(&account["name"]),
            text(&account["credentials"]),
            text(&account["circuit"]),
            match account["tokens"].as_f64() {
                Some(tokens) => format!("{tokens:.1} of {}", text(&account["burst"])),
                None => "unlimited".to_owned(),
            },
            text(&account["rate"]),
            account["rate_now_per_second"].as_f64().map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s")),
            format!("{} of {}", text(&account["in_flight"]), text(&account["concurrency_now"])),
            text(&account["waiting"]),
            paused.map_or_else(|| "-".to_owned(), |paused| format!("{paused:.1} s")),
        ]
    });
    let head = ["ACCOUNT", "CREDENTIALS", "CIRCUIT", "TOKENS", "RATE", "NOW", "UNDER WAY", "WAITING", "PAUSED"];
    table(&mut page, head, accounts);
    let teams = each(&status["teams"]).map(|team| {
        let operations: Vec<String> = each(&team["operations"]).map(text).collect();
        let [name, account, requests, upstream, weight] =
            ["name", "account", "requests", "upstream", "weight"].map(|part| text(&team[part]));
        [name, account, requests, upstream, weight, operations.join(", ")]
    });
    table(&mut page, ["TEAM", "ACCOUNT", "REQUESTS", "UPSTREAM", "WEIGHT", "OPERATIONS"], teams);
    let (cache, disk) = (&status["cache"], &status["cache"]["disk"]);
    let _ = write!(
        page,
        "\ncache {} pages, {} of {}",
        text(&cache["entries"]),
        size(&cache["bytes"]),
        size(&cache["capacity_bytes"])
    );
    if disk["enabled"] == true {
        let _ = write!(page, "; on disk {} pages, {}", text(&disk["entries"]), size(&disk["bytes"]));
    }
    page.push('\n');
    page
}

/// A blank line, a header and aligned columns; nothing where there are no rows.
fn table<const N: usize>(page: &mut String, head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let head = head.map(str::to_owned);
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().chain([&head]).map(|row| row[at].chars().count()).max().unwrap_or(0));
    page.push('\n');
    for row in [&head].into_iter().chain(&rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        page.push_str(cells.join("  ").trim_end());
        page.push('\n');
    }
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A value as one word; `-` where it is absent.
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

fn span(seconds: &Value) -> String {
    let seconds = seconds.as_u64().unwrap_or_default();
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

    #[test]
    fn the_page_shows_what_is_wrong_and_what_is_left() {
        let status = json!({
            "version": "0.1.0", "uptime_seconds": 93_784, "ready": false, "upstream": "https://insights.twilio.com/",
            "checks": [
                {"check": "serving", "ok": true, "since": "2026-11-22T21:00:00Z"},
                {"check": "credentials/main", "ok": false, "since": "2026-11-22T21:00:00Z", "detail": "Twilio \u{1b}[1mrejects\nthem"},
            ],
            "accounts": [
                {"name": "main", "credentials": "rejected", "circuit": "open", "tokens": 4.25, "burst": 5, "rate": "5/s", "rate_now_per_second": 2.5, "in_flight": 1, "concurrency_now": 10, "waiting": 0, "paused_seconds": 1.5},
                {"name": "a", "credentials": "accepted", "circuit": "closed", "tokens": null, "burst": 5, "rate": null, "rate_now_per_second": null, "in_flight": 0, "concurrency_now": 10, "waiting": 7, "paused_seconds": 0.0},
            ],
            "teams": [],
            "cache": {"entries": 12, "bytes": 15_360, "capacity_bytes": 268_435_456_u64, "disk": {"enabled": true, "entries": 3, "bytes": 2_097_152}},
            "unknown": [1, 2],
        });
        let expected = "\
insights-gateway 0.1.0, up 1 d 2 h, not ready
upstream https://insights.twilio.com/
WRONG credentials/main: Twilio [1mrejects them (since 2026-11-22T21:00:00Z)

ACCOUNT  CREDENTIALS  CIRCUIT  TOKENS     RATE  NOW    UNDER WAY  WAITING  PAUSED
main     rejected     open     4.2 of 5   5/s   2.5/s  1 of 10    0        1.5 s
a        accepted     closed   unlimited  -     -      0 of 10    7        -

cache 12 pages, 15.0 KiB of 256.0 MiB; on disk 3 pages, 2.0 MiB
";
        assert_eq!(page(&status), expected);
    }

    #[test]
    fn a_response_of_another_form_does_not_panic() {
        assert!(page(&json!({})).starts_with("insights-gateway -, up 0 s, not ready\n"));
        assert!(page(&json!([1])).contains("cache -"));
    }
}
