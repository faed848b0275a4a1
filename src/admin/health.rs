//! `/livez` and `/readyz`: one line a check, which says what is wrong and since when.
//!
//! They are answered without a token, so they say nothing that an unknown reader must not know.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::config::Config;
use crate::core::clock::Instant;
use crate::stack::SharedState;

/// Something that is worth a word.
struct Finding {
    /// Does it keep the gateway from being ready.
    wrong: bool,
    since: Option<Instant>,
    detail: String,
}

/// The checks that `/readyz` lists. All must be `ok` for the gateway to be ready; one that is `ok` may have a `detail`
/// all the same.
pub(super) fn checks(shared: &SharedState, config: &Config, draining: Option<Instant>) -> Vec<Value> {
    let line = |check: &str, finding: Option<Finding>| {
        let mut line = json!({"check": check, "ok": finding.as_ref().is_none_or(|finding| !finding.wrong)});
        if let Some(Finding { since, detail, .. }) = finding {
            line["since"] = json!(since.and_then(|since| time(shared.clock.wall(since))));
            line["detail"] = json!(detail);
        }
        line
    };
    let draining = draining.map(|since| {
        let detail = "draining: the gateway is shutting down".to_owned();
        Finding { wrong: true, since: Some(since), detail }
    });
    let refused = shared.reloads.newest_refused().map(|refused| {
        let detail = "the new configuration is refused, and the old one in use; /status and the log say why".to_owned();
        Finding { wrong: false, since: Some(refused.since), detail }
    });
    let mut checks = vec![line("serving", draining), line("configuration", refused)];
    if config.cache.disk.path.is_some() {
        let works = shared.store.disk().is_some_and(|disk| disk.enabled);
        let detail = || "the disk cache does not work, pages are in memory alone; the log says why".to_owned();
        checks.push(line("disk", (!works).then(|| Finding { wrong: false, since: None, detail: detail() })));
    }
    for account in &config.accounts {
        let state = shared.registry.account(&account.name);
        let rejected = state.as_ref().and_then(|state| state.rejection.since()).map(|since| {
            let seconds = shared.clock.now().saturating_duration_since(since).as_secs();
            let detail =
                format!("Twilio has rejected this account's credentials for {seconds} s; replace its key or secret");
            Finding { wrong: true, since: Some(since), detail }
        });
        checks.push(line(&format!("credentials/{}", account.name), rejected));
        let broken = state.and_then(|state| state.budget.status().broken_for).map(|time| {
            let detail = format!(
                "Twilio has failed for {} s, so only probes are sent; stale pages are served meanwhile",
                time.as_secs()
            );
            Finding { wrong: false, since: shared.clock.now().checked_sub(time), detail }
        });
        checks.push(line(&format!("upstream/{}", account.name), broken));
    }
    checks
}

/// Is everything as it must be.
pub(super) fn all_well(checks: &[Value]) -> bool {
    checks.iter().all(|check| check["ok"] == true)
}

/// The answer of a probe: a verdict, and one line a check.
pub(super) fn page(verdict: &str, well: bool, checks: &[Value]) -> String {
    let lines: Vec<String> = checks.iter().map(ToString::to_string).collect();
    format!("{{\"{verdict}\":{well},\"checks\":[\n{}\n]}}\n", lines.join(",\n"))
}

/// RFC 3339, in UTC, to the second.
pub(super) fn time(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| format!("{time:.0}"))
}
