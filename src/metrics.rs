//! The gateway's metrics, and the one registry that writes them in Prometheus' text format.
//!
//! Labels come from the configuration and from closed enums, never from a request, so their number is bounded. Values
//! that are states rather than events (tokens, queue lengths, cache sizes) are set by the admin plane when the metrics
//! are read.

pub(crate) mod hot_requests;
mod labels;

use std::fmt::Write;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

pub use self::labels::{
    AccountLabels, AttemptLabels, BuildLabels, CauseLabels, ConfigLabel, Ending, NO_OPERATION, NoLabels, OutcomeLabels,
    ReasonLabels, RequestLabels, ResultLabels, RetryLabels, SettledLabels, SharedLabels, SharedOperationLabels,
    StaticLabel, TeamLabels, UpstreamLabels,
};
use crate::accounts::Team;
use crate::core::error::Reason;
use crate::core::outcome::Outcome;
use crate::twilio::endpoint::Operation;

/// A gauge that holds a fraction.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// Buckets from 50 µs (a hit) to 90 s (the longest deadline).
#[derive(Debug, Clone)]
pub struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        const BOUNDS: [f64; 19] = [
            50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
            10.0, 30.0, 90.0,
        ];
        Histogram::new(BOUNDS)
    }
}

/// Every metric, and the registry that writes them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests by team, operation, outcome and status.
    pub requests: Family<RequestLabels, Counter>,
    /// Refusals and failures by the gateway itself, by reason.
    pub errors: Family<ReasonLabels, Counter>,
    /// From the request's head to the response's.
    pub request_duration: Family<OutcomeLabels, Histogram, Seconds>,
    /// Attempts that went upstream, retries and refreshes included.
    pub upstream_attempts: Family<AttemptLabels, Counter>,
    /// Time of one attempt.
    pub upstream_duration: Family<UpstreamLabels, Histogram, Seconds>,
    /// Time that an attempt waited for its token.
    pub upstream_wait: Family<AccountLabels, Histogram, Seconds>,
    /// Attempts in progress.
    pub upstream_in_flight: Family<AccountLabels, Gauge>,
    /// Attempts beyond the first.
    pub retries: Family<RetryLabels, Counter>,
    /// Tokens in the account's bucket; negative while it is in debt.
    pub budget_tokens: Family<AccountLabels, FloatGauge>,
    /// Seconds until the account's pause ends.
    pub budget_paused: Family<AccountLabels, FloatGauge>,
    /// Tokens per second, after adaptation.
    pub budget_rate: Family<AccountLabels, FloatGauge>,
    /// 0 closed, 1 half open, 2 open.
    pub circuit_state: Family<AccountLabels, Gauge>,
    /// Calls that wait for a token.
    pub queue_length: Family<AccountLabels, Gauge>,
    /// 1 while Twilio rejects the account's credentials, else 0.
    pub credentials_rejected: Family<AccountLabels, Gauge>,
    /// Stored pages.
    pub cache_entries: Gauge,
    /// Bytes of keys and pages.
    pub cache_bytes: Gauge,
    /// The most that `cache_bytes` can become.
    pub cache_capacity: Gauge,
    /// Pages that were removed.
    pub cache_evictions: Family<CauseLabels, Counter>,
    /// Stored query pages, by whether they are settled or why not.
    pub cache_settled: Family<SettledLabels, Counter>,
    /// Pages on disk.
    pub cache_disk_entries: Gauge,
    /// The bytes that count against the disk's capacity.
    pub cache_disk_bytes: Gauge,
    /// Pages to be written to the disk.
    pub cache_disk_writes: Family<ResultLabels, Counter>,
    /// 1 while the shared store is reached, else 0; absent if none is configured.
    pub shared_up: Family<NoLabels, Gauge>,
    /// Operations on the shared store.
    pub shared_operations: Family<SharedLabels, Counter>,
    /// Time of one operation on the shared store.
    pub shared_duration: Family<SharedOperationLabels, Histogram, Seconds>,
    /// Values of the shared store that could not be opened.
    pub shared_unsealed: Counter,
    /// Pages that were not put into the shared store.
    pub shared_skipped: Family<ReasonLabels, Counter>,
    /// Replicas that share the store now, this one included; absent if no store is configured.
    pub replicas: Family<NoLabels, Gauge>,
    /// Spans of traces.
    pub spans: Family<ResultLabels, Counter>,
    /// Responses that contained an account's credentials.
    pub credential_echoes: Family<AccountLabels, Counter>,
    /// Records of the audit log.
    pub audit_records: Family<ResultLabels, Counter>,
    /// Configuration reloads.
    pub reloads: Family<ResultLabels, Counter>,
    /// 0 ok, 1 degraded, 2 failing.
    pub health_state: Gauge,
    /// When the data plane's certificate expires, in seconds since 1970; absent without TLS.
    pub certificate_expiry: Family<NoLabels, Gauge>,
    /// When the next of a team's tokens expires, in seconds since 1970; absent if none expires.
    pub token_expiry: Family<TeamLabels, Gauge>,
    /// Seconds since the start.
    pub uptime: FloatGauge,
    /// Always 1; the information is in its label.
    pub build: Family<BuildLabels, Gauge>,
}

impl Metrics {
    /// A new set. Each gateway has its own, so that several can run in one process.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("insights_gateway");
        let r = &mut registry;
        let metrics = Self {
            requests: register(r, "requests", "Requests by team, operation, outcome and status"),
            errors: register(r, "errors", "Errors that the gateway itself made, by reason"),
            request_duration: histogram(r, "request_duration_seconds", "Time from a request's head to its answer's"),
            upstream_attempts: register(
                r,
                "upstream_attempts",
                "Attempts sent upstream, retries and refreshes included",
            ),
            upstream_duration: histogram(r, "upstream_duration_seconds", "Time of one upstream attempt"),
            upstream_wait: histogram(r, "upstream_wait_seconds", "Time that an attempt waited for its token"),
            upstream_in_flight: register(r, "upstream_in_flight", "Attempts in progress"),
            retries: register(r, "retries", "Attempts after a call's first, by how the previous one ended"),
            budget_tokens: register(r, "budget_tokens", "Tokens in the account's bucket; negative while it is in debt"),
            budget_paused: register(r, "budget_paused_seconds", "Seconds until the account's pause ends"),
            budget_rate: register(r, "budget_rate_per_second", "Tokens a second that the bucket gets now"),
            circuit_state: register(r, "circuit_state", "0 closed, 1 half open, 2 open"),
            queue_length: register(r, "queue_length", "Calls waiting for a token"),
            credentials_rejected: register(
                r,
                "credentials_rejected",
                "Whether Twilio rejects the account's credentials",
            ),
            cache_entries: register(r, "cache_entries", "Pages in memory"),
            cache_bytes: register(r, "cache_bytes", "Bytes of keys and pages"),
            cache_capacity: register(r, "cache_capacity_bytes", "Bytes that keys and pages may take"),
            cache_evictions: register(r, "cache_evictions", "Pages removed, by cause"),
            cache_settled: register(r, "cache_settled", "Query pages stored, by whether they are settled, or why not"),
            cache_disk_entries: register(r, "cache_disk_entries", "Pages on disk"),
            cache_disk_bytes: register(r, "cache_disk_bytes", "Bytes that pages take on disk"),
            cache_disk_writes: register(r, "cache_disk_writes", "Pages to be written to the disk, by result"),
            shared_up: register(r, "shared_up", "Whether the shared store is reached"),
            shared_operations: register(r, "shared_operations", "Operations on the shared store, by result"),
            shared_duration: histogram(r, "shared_duration_seconds", "Time of one operation on the shared store"),
            shared_unsealed: register(r, "shared_unsealed", "Values of the shared store that could not be opened"),
            shared_skipped: register(r, "shared_skipped", "Pages that were not put into the shared store, by reason"),
            replicas: register(r, "replicas", "Replicas that share the store now"),
            spans: register(r, "spans", "Spans of traces, by whether they reached the collector"),
            credential_echoes: register(
                r,
                "credential_echoes",
                "Answers withheld because they repeated the account's credentials",
            ),
            audit_records: register(r, "audit_records", "Records of the audit log, by whether they were written"),
            reloads: register(r, "reloads", "Configuration reloads by result"),
            health_state: register(r, "health_state", "0 ok, 1 degraded, 2 failing"),
            certificate_expiry: register(
                r,
                "listener_certificate_expiry_timestamp_seconds",
                "When the data plane's certificate ends, in seconds since 1970",
            ),
            token_expiry: register(
                r,
                "team_token_expiry_timestamp_seconds",
                "When the next of a team's tokens ends, in seconds since 1970",
            ),
            uptime: register(r, "uptime_seconds", "Seconds since the start"),
            build: register(r, "build_info", "The version, as a label"),
            registry,
        };
        metrics.begin_at_zero();
        Arc::new(metrics)
    }

    /// Creates the series of closed lists at the start: an alert on a rate notices the first event only if there was a
    /// zero before.
    fn begin_at_zero(&self) {
        for reason in Reason::ALL {
            drop(self.errors.get_or_create(&ReasonLabels { reason: StaticLabel(reason.as_str()) }));
        }
        for cause in ["expired", "size", "replaced", "purged"] {
            drop(self.cache_evictions.get_or_create(&CauseLabels { cause: StaticLabel(cause) }));
        }
        for (family, results) in [
            (&self.reloads, &["applied", "refused"][..]),
            (&self.cache_disk_writes, &["written", "dropped", "failed"]),
            (&self.spans, &["exported", "dropped", "failed"]),
            (&self.audit_records, &["written", "dropped"]),
        ] {
            for result in results {
                drop(family.get_or_create(&ResultLabels { result: StaticLabel(result) }));
            }
        }
        self.build.get_or_create(&BuildLabels { version: StaticLabel(env!("CARGO_PKG_VERSION")) }).set(1);
    }

    /// Counts a request that was refused or failed.
    pub fn failed(&self, reason: Reason) {
        self.errors.get_or_create(&ReasonLabels { reason: StaticLabel(reason.as_str()) }).inc();
    }

    /// Counts a request that ended.
    pub fn requested(
        &self,
        team: Option<&Team>,
        operation: Option<Operation>,
        outcome: Outcome,
        status: u16,
        took: Duration,
    ) {
        let team = ConfigLabel(team.map_or_else(|| "".into(), |team| Arc::clone(&team.name)));
        let operation = operation.map_or(NO_OPERATION, StaticLabel::from);
        let outcome = StaticLabel::from(outcome);
        self.requests.get_or_create(&RequestLabels { team, operation, outcome, status }).inc();
        self.request_duration.get_or_create(&OutcomeLabels { operation, outcome }).observe(took.as_secs_f64());
    }

    /// The Prometheus text exposition, version 0.0.4.
    ///
    /// # Errors
    ///
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut open = String::new();
        encode(&mut open, &self.registry)?;
        // OpenMetrics names a counter without its suffix, and marks the end. The older format, which every scraper
        // reads, does neither.
        let mut text = String::with_capacity(open.len() + 1024);
        let counters: Vec<&str> =
            open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
        for line in open.lines().filter(|line| *line != "# EOF") {
            let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
            match described.and_then(|rest| rest.split_once(' ')) {
                Some((name, rest)) if counters.contains(&name) => writeln!(text, "{} {name}_total {rest}", &line[..6])?,
                _ => writeln!(text, "{line}")?,
            }
        }
        Ok(text)
    }

    /// Counts an attempt that ended.
    pub fn attempted(&self, account: &Arc<str>, operation: Operation, status: Ending, took: Duration) {
        let account = ConfigLabel(Arc::clone(account));
        let operation = operation.into();
        self.upstream_duration
            .get_or_create(&UpstreamLabels { account: account.clone(), operation })
            .observe(took.as_secs_f64());
        self.upstream_attempts.get_or_create(&AttemptLabels { account, operation, status }).inc();
    }
}

/// A new metric in the registry.
fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// A new family of histograms of durations in the registry.
fn histogram<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Histogram, Seconds>
where
    Family<L, Histogram, Seconds>: Metric,
    L: Clone + Eq + Hash,
{
    let metric = Family::new_with_constructor(Seconds);
    registry.register(name, help, metric.clone());
    metric
}

#[cfg(test)]
mod tests;
