//! `/status` and `/cache/entries` as JSON: the shared state, under stable names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::state::AdminState;
use super::{explorer, health};
use crate::cache::EntryView;
use crate::config::Config;
use crate::core::outcome::Outcome;
use crate::core::units::Rate;
use crate::health::{CredentialState, Health, State};
use crate::live::{Counts, Failure, Live, time};
use crate::replicas::SharedStore;
use crate::stack::SharedState;

impl AdminState {
    /// The content of `/status`.
    pub(super) fn status(&self) -> Value {
        status(self, &self.config.load(), &self.health())
    }
}

/// The content of `/status`, in the form that `docs/admin.md` shows. Members may be added, and none is removed.
fn status(admin: &AdminState, config: &Config, health: &Health) -> Value {
    let shared = &admin.shared;
    let checks: Vec<_> = health.checks.iter().map(health::check).collect();
    let (now, start) = (shared.clock.now(), shared.clock.start());
    let refused = shared.reloads.newest_refused();
    let accounts: Vec<_> = config.accounts.iter().map(|account| self::account(shared, account)).collect();
    let waiting = waiting(shared, config);
    let teams: Vec<_> = config
        .teams
        .iter()
        .map(|team| {
            let usage = shared.registry.usage(&team.name);
            let operations: Vec<_> = team.operations.iter().map(|permission| permission.as_str()).collect();
            json!({
                "name": team.name,
                "account": team.account,
                "requests": team.requests.map(|rate| rate.to_string()),
                "upstream": team.upstream.map(|rate| rate.to_string()),
                "weight": team.weight,
                "operations": operations,
                "asked": outcomes(|outcome| usage.answers(outcome)),
                "upstream_attempts": usage.attempts(),
                "waiting": waiting.get(team.name.as_str()).copied().unwrap_or_default(),
                "refused": refusals(&shared.live, &team.name),
            })
        })
        .collect();
    let (entries, bytes) = shared.store.size();
    let disk = shared.store.disk();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": health::time(shared.clock.started_at()),
        "uptime_seconds": (now - start).as_secs(),
        "ready": health.state() != State::Failing,
        "state": health.state().as_str(),
        "state_since": health.since().and_then(health::time),
        "checks": checks,
        "configuration": {
            "refused_since": refused.as_ref().and_then(|refused| health::time(shared.clock.wall(refused.since))),
            "faults": refused.map_or_else(Vec::new, |refused| refused.faults.lines().map(str::to_owned).collect()),
        },
        "upstream": config.upstream.url.to_string(),
        "accounts": accounts,
        "teams": teams,
        "requests": requests(&shared.live),
        "last_minute": last_minute(&admin.history.last_minute(&shared.live.counts())),
        "saved": saved(&shared.live),
        "errors": shared.live.failures().iter().map(failure).collect::<Vec<_>>(),
        "history": admin.history.to_json(),
        "admin": {"needs_token": config.admin.token_sha256.is_some(), "shows_queries": config.admin.show_queries},
        "explorer": explorer::to_json(config, admin.data.as_deref()),
        "shared": shared.replicas.as_ref().map(store),
        "replicas": shared.replicas.as_ref().map(|store| store.view().replicas),
        "cache": {
            "entries": entries,
            "bytes": bytes,
            "capacity_bytes": shared.store.capacity(),
            "disk": {
                "enabled": disk.as_ref().is_some_and(|disk| disk.enabled),
                "entries": disk.as_ref().map_or(0, |disk| disk.entries),
                "bytes": disk.as_ref().map_or(0, |disk| disk.bytes),
            },
        },
    })
}

/// The store that replicas share.
fn store(store: &SharedStore) -> Value {
    let view = store.view();
    let state = if view.cause.is_none() { State::Ok } else { State::Degraded };
    json!({"state": state.as_str(), "since": time(view.since), "cause": view.cause, "configured": view.configured})
}

/// The number of waiting calls, by team.
fn waiting(shared: &SharedState, config: &Config) -> HashMap<Arc<str>, usize> {
    let mut waiting = HashMap::new();
    // Several names of one account have one budget.
    let accounts: HashMap<_, _> = config.accounts.iter().map(|account| (&account.account_sid, account)).collect();
    for budget in accounts.values().filter_map(|account| Some(shared.registry.account(&account.name)?.budget)) {
        for (team, calls) in budget.waiting_by_team() {
            *waiting.entry(team).or_default() += calls;
        }
    }
    waiting
}

/// Why a team was refused or failed, and how often since the start, most frequent first.
fn refusals(live: &Live, team: &str) -> Vec<Value> {
    reasons(live.refusals(team))
}

fn reasons(counts: Vec<(&str, u64)>) -> Vec<Value> {
    counts.into_iter().map(|(reason, count)| json!({"reason": reason, "count": count})).collect()
}

/// The requests of the last minute by outcome, and those that were refused or failed by reason.
fn last_minute(counts: &Counts) -> Value {
    json!({"requests": outcomes(|outcome| counts.requests(outcome)), "reasons": reasons(counts.reasons())})
}

/// A rate in the unit of the configured one, or in `/s` if none is configured.
fn in_unit_of(configured: Option<Rate>, per_second: f64) -> String {
    let unit = configured.map_or(Duration::from_secs(1), Rate::window);
    let written = configured.map_or_else(|| "1/s".to_owned(), |rate| rate.to_string());
    let count = (per_second * unit.as_secs_f64() * 1000.0).round() / 1000.0;
    written.split_once('/').map_or_else(String::new, |(_, unit)| format!("{count}/{unit}"))
}

/// Requests since the start, by outcome.
fn requests(live: &Live) -> Value {
    let counts = live.latencies().read();
    outcomes(|outcome| counts.count(outcome))
}

fn outcomes(count: impl Fn(Outcome) -> u64) -> Value {
    let counted = |outcome: Outcome| (outcome.as_str().to_owned(), json!(count(outcome)));
    Value::from(Outcome::ALL.into_iter().map(counted).collect::<Map<_, _>>())
}

/// Upstream calls that the cache has saved since the start, and the time that they would have taken at the average
/// duration of real calls; `null` before the first call.
fn saved(live: &Live) -> Value {
    let (counts, measured) = (live.latencies().read(), live.upstream_time());
    let calls: u64 =
        Outcome::ALL.into_iter().filter(|outcome| outcome.saves_a_call()).map(|outcome| counts.count(outcome)).sum();
    let each = (measured.attempts > 0).then(|| measured.total.as_secs_f64() / measured.attempts as f64);
    json!({"calls": calls, "seconds": each.map(|each| (each * calls as f64 * 10.0).round() / 10.0)})
}

fn failure(failure: &Failure) -> Value {
    json!({
        "at": time(failure.at),
        "request_id": failure.request_id,
        "team": failure.team,
        "operation": failure.operation,
        "status": failure.status,
        "reason": failure.reason,
        "message": failure.message,
        "cause": failure.cause,
    })
}

fn account(shared: &SharedState, account: &crate::config::Account) -> Value {
    let state = shared.registry.account(&account.name);
    let status = state.as_ref().map(|state| state.budget.status());
    let credentials = state.as_ref().map(|state| health::credentials(state, shared.clock.reading()));
    let rejected = credentials.and_then(CredentialState::rejected);
    let now = shared.clock.wall_now();
    let rejected_for = rejected.map(|(since, _)| now.duration_since(since).unwrap_or_default().as_secs());
    let rejected_status = rejected.map(|(_, status)| status);
    json!({
        "name": account.name,
        "account_sid": account.account_sid,
        "rate": account.rate.map(|rate| rate.to_string()),
        "burst": account.burst,
        "concurrency": account.concurrency,
        "tokens": status.and_then(|s| s.tokens).map(|tokens| (tokens * 1000.0).round() / 1000.0),
        "paused_seconds": status.map(|s| (s.paused.as_secs_f64() * 1000.0).round() / 1000.0),
        "rate_now_per_second": status.and_then(|s| s.per_second).map(|rate| (rate * 1000.0).round() / 1000.0),
        "rate_now": status.and_then(|s| s.per_second).map(|rate| in_unit_of(account.rate, rate)),
        "concurrency_now": status.map(|s| s.concurrency),
        "circuit": status.map(|s| s.circuit.as_str()),
        "circuit_broken_seconds": status.and_then(|s| s.broken_for).map(|time| time.as_secs()),
        "upstream_attempts": status.map(|s| s.attempts),
        "in_flight": status.map(|s| s.in_flight),
        "waiting": status.map(|s| s.waiting),
        "credentials": credentials.map(CredentialState::as_str),
        "credentials_rejected_seconds": rejected_for,
        "credentials_rejected_status": rejected_status,
    })
}

/// One stored page of the account with this name. It has only the key of its query, unless `show_query` is set.
pub(super) fn entry(view: &EntryView, account: &str, show_query: bool) -> Value {
    let state = match view.lifetimes.ttl(view.age) {
        0.. => "fresh",
        _ if view.age <= view.lifetimes.usable() => "stale",
        _ => "expired",
    };
    let mut entry = json!({
        "key": view.key.to_string(),
        "account": account,
        "operation": view.operation.as_str(),
        "age": view.age.as_secs(),
        "state": state,
        "hits": view.hits,
        "bytes": view.bytes,
        "settled": view.settled.map(|verdict| verdict.as_str()),
    });
    if show_query {
        entry["query"] = json!(view.query.as_deref());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_in_the_unit_of_the_configuration() {
        let told = |text: &str, per_second| {
            let rate = crate::core::units::parse_rate(text).unwrap();
            in_unit_of(rate, per_second)
        };
        for (configured, per_second, expected) in [
            ("300/min", 5.0, "300/min"),
            ("300/min", 2.5, "150/min"),
            ("1000/h", 1000.0 / 3600.0, "1000/h"),
            ("5/s", 2.5, "2.5/s"),
            ("0/s", 7.0, "7/s"),
        ] {
            assert_eq!(told(configured, per_second), expected, "{configured}");
        }
    }
}
