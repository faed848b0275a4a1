//! Collects the inputs of health from the shared state, and makes the JSON of `/livez` and `/readyz`, one line for each
//! check.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cache::DiskView;
use crate::config::{Account, Config, Team};
use crate::core::clock::{Instant, Reading};
use crate::health::{
    self, AccountInput, Check, CredentialState, DiskState, Health, Inputs, State, StoreState, TeamInput,
};
use crate::replicas::{SharedStore, StoreUse, StoreView};
use crate::stack::{AccountState, SharedState};

/// The gateway's health now. `draining` is the time since which it has been draining, if it has.
pub(super) fn now(shared: &SharedState, config: &Config, draining: Option<Instant>) -> Health {
    let reading = shared.clock.reading();
    let refused = shared.reloads.newest_refused();
    health::evaluate(&Inputs {
        now: shared.clock.wall_now(),
        draining_since: draining.map(|since| reading.wall(since)),
        refused: refused.map(|refused| (reading.wall(refused.since), refused.faults)),
        disk: config.cache.disk.path.as_ref().map(|_| disk(shared, reading)),
        shared: shared.replicas.as_ref().map(store),
        certificate: shared.certificate.get().map(|(validity, since)| (validity, reading.wall(since))),
        teams: config.teams.iter().map(team).collect(),
        accounts: config.accounts.iter().map(|account| self::account(shared, account, reading)).collect(),
    })
}

/// The state of the disk cache that is configured.
fn disk(shared: &SharedState, reading: Reading) -> DiskState {
    let broken = |since, cause: &str| DiskState::Broken { since, cause: cause.to_owned() };
    match shared.store.disk() {
        None => broken(shared.clock.started_at(), "it was not started; restart the gateway"),
        Some(DiskView { fault: Some(fault), .. }) => broken(reading.wall(fault.since), &fault.cause),
        Some(DiskView { enabled: true, .. }) => DiskState::Works,
        Some(_) => broken(shared.clock.started_at(), "its file has not been opened yet"),
    }
}

/// The state of the store that replicas share.
fn store(store: &SharedStore) -> StoreState {
    let StoreView { usage, since, cause, .. } = store.view();
    let cause = cause.unwrap_or_default();
    match usage {
        StoreUse::All => StoreState::Used,
        StoreUse::Part => StoreState::UsedInPart { since, cause },
        StoreUse::None => StoreState::Alone { since, cause },
    }
}

/// A team's tokens.
pub(super) fn team(team: &Team) -> TeamInput {
    let tokens = team.tokens.iter().map(|token| token.expires.map(SystemTime::from)).collect();
    TeamInput { name: team.name.clone(), tokens }
}

fn account(shared: &SharedState, account: &Account, reading: Reading) -> AccountInput {
    let state = shared.registry.account(&account.name);
    let attempts = state.as_ref().map(|state| state.attempts.now()).unwrap_or_default();
    let broken_for = state.as_ref().and_then(|state| state.budget.status().broken_for);
    AccountInput {
        name: account.name.clone(),
        credentials: state.as_ref().map_or(CredentialState::Unknown, |state| credentials(state, reading)),
        failing_since: attempts.failing_since.map(|since| reading.wall(since)),
        broken_since: broken_for.and_then(|time| shared.clock.wall_now().checked_sub(time)),
        last_failure: attempts.last_failure.map(|(cause, at)| (cause, reading.wall(at))),
    }
}

/// Whether Twilio accepts an account's credentials.
pub(super) fn credentials(state: &AccountState, reading: Reading) -> CredentialState {
    match state.rejection.since() {
        Some(since) => CredentialState::Rejected { since: reading.wall(since), status: state.rejection.status() },
        None if state.attempts.now().accepted => CredentialState::Accepted,
        None => CredentialState::Unknown,
    }
}

/// A check as JSON. `ok` is older than `state`: it is false only if the check makes the gateway not ready.
pub(super) fn check(check: &Check) -> Value {
    let mut line = json!({
        "check": check.name(),
        "ok": check.state != State::Failing,
        "state": check.state.as_str(),
    });
    let since = check.since.and_then(time);
    let members = [("since", since.as_ref()), ("cause", check.cause.as_ref()), ("detail", check.detail.as_ref())];
    for (name, value) in members {
        if let Some(value) = value {
            line[name] = json!(value);
        }
    }
    if let Some(heading) = check.runbook {
        line["runbook"] = json!(format!("docs/runbook.md#{heading}"));
    }
    line
}

/// The body of `/readyz`: the verdict, and one line for each check.
pub(super) fn ready_page(verdict: State, health: &Health) -> String {
    let ready = verdict != State::Failing;
    let lines: Vec<_> = health.checks.iter().map(|line| check(line).to_string()).collect();
    format!("{{\"ready\":{ready},\"state\":\"{}\",\"checks\":[\n{}\n]}}\n", verdict.as_str(), lines.join(",\n"))
}

/// The body of `/livez`. A process that answers is alive: nothing else could be repaired only by a restart.
pub(super) fn live_page(since: SystemTime) -> String {
    let check = json!({"check": "process", "ok": true, "since": time(since)});
    format!("{{\"live\":true,\"checks\":[\n{check}\n]}}\n")
}

/// RFC 3339, in UTC, to the second.
pub(super) fn time(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| format!("{time:.0}"))
}
