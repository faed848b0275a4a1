//! The keys, their defaults and their limits: one function per section. Keys are read in the order of the reference
//! file, which is also the order in which they are shown.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use jiff::Timestamp;
use tracing_subscriber::EnvFilter;

pub use self::accounts::check_team_name;
use self::accounts::{accounts, team};
use self::listeners::{admin, server};
use super::checks;
use super::files::Files;
use super::proxy;
use super::reader::{Table, read_tree};
use super::record::{Key, Record};
use super::report::Report;
use super::secret;
use super::settings::{
    Cache, Circuit, Config, DiskCache, JobCache, Log, LogFormat, Retry, Settled, Telemetry, Upstream,
};
use super::shared;
use super::show;
use super::sources::Sources;
use super::tree::Node;
use super::values::{GIB, MIB, PIB, Paths, days, hours, is_loopback, minutes, parse_url, seconds};
use crate::core::clock::Clock;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::validate::Validation;

mod accounts;
mod listeners;

/// The whole tree, checked. If `report` then has faults, the faulty values are replaced by defaults.
pub(super) fn read(tree: Node, sources: &Sources, report: &Report) -> Config {
    let now = Timestamp::try_from(Clock::new().wall_now()).unwrap_or_default();
    read_tree(tree, report, |root| {
        let (server, admin) = (root.section("server", server), root.section("admin", admin));
        let upstream = root.section("upstream", |table| upstream(table, sources));
        let (accounts, account_names) = accounts(root, sources);
        let sole_account = if let [sole] = account_names.as_slice() { sole.as_str() } else { "" };
        let config = Config {
            server,
            admin,
            upstream,
            accounts,
            teams: root.named("teams", |name, table| team(name, table, sole_account, now)),
            cache: root.section("cache", cache),
            validate: root.section("validate", validate),
            shared: root.section("shared", |table| shared::read(table, sources)),
            retry: root.section("retry", retry),
            circuit: root.section("circuit", circuit),
            log: root.section("log", log),
            telemetry: root.section("telemetry", telemetry),
            warnings: Vec::new(),
            record: Record::default(),
            files: Files::default(),
        };
        checks::across_sections(&config, &account_names, now, report);
        config
    })
}

fn upstream(table: &mut Table<'_>, sources: &Sources) -> Upstream {
    let (report, path) = (table.report(), table.path().clone());
    let twilio = Uri::from_static("https://insights.twilio.com");
    let url = table.value("url", twilio, show::url, |field| field.parsed(|text| parse_url(text, Paths::Refused)));
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    if url.scheme_str() == Some("http") && !is_loopback(host) {
        report.warn(&path.key("url"), "credentials cross the network in clear text; use https");
    }
    let connect_timeout = table.positive_duration("connect_timeout", seconds(5));
    let attempt_timeout = table.positive_duration("attempt_timeout", seconds(60));
    let deadline = table.positive_duration("deadline", seconds(90));
    let max_response = table.size("max_response", 16 * MIB, 1..=GIB);
    let ca_file = table.file("ca_file");
    if let Some(file) = &ca_file {
        secret::check_pem(file, "CERTIFICATE", &path.key("ca_file"), report);
    }
    let proxy = proxy::read(table, sources, &url);
    Upstream { url, connect_timeout, attempt_timeout, deadline, max_response, ca_file, proxy }
}

fn cache(table: &mut Table<'_>) -> Cache {
    Cache {
        capacity: table.size(Key::at_start("capacity"), 256 * MIB, MIB..=PIB),
        metadata: table.section("metadata", |table| lifetimes(table, [hours(1), hours(1), hours(24)])),
        query: table.section("query", |table| lifetimes(table, [minutes(1), minutes(5), hours(1)])),
        settled: table.section("settled", |table| Settled {
            after: table.duration("after", days(1)),
            lifetimes: lifetimes(table, [hours(1), hours(12), days(7)]),
        }),
        jobs: table.section("jobs", |table| JobCache {
            dedup: table.duration("dedup", minutes(10)),
            results: table.duration("results", days(7)),
        }),
        disk: table.section("disk", |table| DiskCache {
            path: table.file(Key::at_start("path")),
            capacity: table.size(Key::at_start("capacity"), GIB, MIB..=PIB),
        }),
        errors: table.section("errors", |table| table.duration("fresh", seconds(10))),
    }
}

fn lifetimes(table: &mut Table<'_>, [fresh, revalidate, error]: [Duration; 3]) -> Lifetimes {
    Lifetimes {
        fresh: table.duration("fresh", fresh),
        stale_while_revalidate: table.duration("stale_while_revalidate", revalidate),
        stale_if_error: table.duration("stale_if_error", error),
    }
}

fn validate(table: &mut Table<'_>) -> Validation {
    const MODES: [(&str, Validation); 3] =
        [("off", Validation::Off), ("hint", Validation::Hint), ("reject", Validation::Reject)];
    table.word("mode", Validation::Hint, &MODES)
}

fn retry(table: &mut Table<'_>) -> Retry {
    Retry {
        attempts: table.number("attempts", 4, 1..=20),
        base: table.positive_duration("base", Duration::from_millis(250)),
        max: table.positive_duration("max", seconds(20)),
        budget: table.fraction("budget", 0.2, 0.0..=10.0),
        max_pause: table.duration("max_pause", minutes(5)),
    }
}

fn circuit(table: &mut Table<'_>) -> Circuit {
    let (report, path) = (table.report(), table.path().key("ratio"));
    let consecutive = table.number("consecutive", 10, 1..=u32::MAX);
    let ratio = table.fraction("ratio", 0.5, 0.0..=1.0);
    if ratio == 0.0 {
        report.fault(&path, "must be more than 0; 1 opens the circuit only when every attempt fails");
    }
    Circuit { consecutive, ratio, open: table.positive_duration("open", seconds(5)) }
}

fn log(table: &mut Table<'_>) -> Log {
    const FORMATS: [(&str, LogFormat); 3] =
        [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let filter = |text: &str| match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("not a filter; write a level such as \"info\", or \"info,insights_gateway=debug\""),
    };
    Log {
        format: table.word(Key::at_start("format"), LogFormat::Auto, &FORMATS),
        filter: table.value("filter", "info".to_owned(), show::text, |field| field.parsed(filter)),
        access: table.boolean("access", true),
        hits: table.fraction("hits", 1.0, 0.0..=1.0),
        slow: table.duration("slow", seconds(5)),
        audit: audit(table),
    }
}

fn audit(table: &mut Table<'_>) -> Option<PathBuf> {
    let (report, path) = (table.report(), table.path().key("audit"));
    let file = table.file("audit")?;
    secret::check_writable(&file, &path, report);
    Some(file)
}

fn telemetry(table: &mut Table<'_>) -> Telemetry {
    Telemetry {
        otlp: table
            .optional(Key::at_start("otlp"), show::url, |field| field.parsed(|text| parse_url(text, Paths::Allowed))),
        sample: table.fraction("sample", 0.01, 0.0..=1.0),
    }
}
