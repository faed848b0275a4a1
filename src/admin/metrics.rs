//! `/metrics`: the registry, with the gauges that are read when they are asked for.

use std::time::SystemTime;

use http::{Response, StatusCode};

use super::answer::{refuse, text};
use super::health;
use super::state::AdminState;
use crate::metrics::{AccountLabels, ConfigLabel, Metrics, NoLabels, TeamLabels};
use crate::request::body::ResponseBody;
use crate::stack::SharedState;

impl AdminState {
    pub(super) fn metrics(&self) -> Response<ResponseBody> {
        let SharedState { clock, metrics, store, registry, certificate, .. } = &self.shared;
        let (entries, bytes) = store.size();
        metrics.cache_entries.set(entries.try_into().unwrap_or(i64::MAX));
        metrics.cache_bytes.set(bytes.try_into().unwrap_or(i64::MAX));
        metrics.cache_capacity.set(store.capacity().try_into().unwrap_or(i64::MAX));
        metrics.uptime.set((clock.now() - clock.start()).as_secs_f64());
        metrics.health_state.set(self.health().state().level());
        metrics.certificate_expiry.clear();
        if let Some((validity, _)) = certificate.get() {
            metrics.certificate_expiry.get_or_create(&NoLabels {}).set(seconds(validity.not_after));
        }
        metrics.token_expiry.clear();
        for team in &self.config.load().teams {
            if let Some(expiry) = health::team(team).expiry(clock.wall_now()) {
                let labels = TeamLabels { team: ConfigLabel(team.name.as_str().into()) };
                metrics.token_expiry.get_or_create(&labels).set(seconds(expiry));
            }
        }
        // Accounts that a reload took away are gone from here too.
        for gauge in [&metrics.budget_tokens, &metrics.budget_rate, &metrics.budget_paused] {
            gauge.clear();
        }
        let Metrics { queue_length, upstream_in_flight, credentials_rejected, circuit_state, .. } = &**metrics;
        for gauge in [queue_length, upstream_in_flight, credentials_rejected, circuit_state] {
            gauge.clear();
        }
        for account in &self.config.load().accounts {
            let Some(state) = registry.account(&account.name) else { continue };
            let status = state.budget.status();
            let labels = AccountLabels { account: ConfigLabel(account.name.as_str().into()) };
            if let Some(tokens) = status.tokens {
                metrics.budget_tokens.get_or_create(&labels).set(tokens);
            }
            if let Some(per_second) = status.per_second {
                metrics.budget_rate.get_or_create(&labels).set(per_second);
            }
            metrics.circuit_state.get_or_create(&labels).set(status.circuit.level());
            metrics.budget_paused.get_or_create(&labels).set(status.paused.as_secs_f64());
            metrics.queue_length.get_or_create(&labels).set(status.waiting.try_into().unwrap_or(i64::MAX));
            metrics.upstream_in_flight.get_or_create(&labels).set(status.in_flight.into());
            let rejected = state.rejection.since().is_some();
            metrics.credentials_rejected.get_or_create(&labels).set(rejected.into());
        }
        match metrics.encode() {
            Ok(body) => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body),
            Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written; try again"),
        }
    }
}

/// Whole seconds since 1970.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}
