//! The access log: one line per request, with its own log target.

use std::time::Duration;

use crate::core::outcome::Outcome;
use crate::request::ended::{RequestEnded, RequestSubscriber};

/// Writes access lines.
#[derive(Debug, Clone, Copy)]
pub struct AccessLog {
    /// Share of hits that get a line, 0 to 1.
    pub hits: f64,
    /// Requests that take longer always get a line, as a warning.
    pub slow: Duration,
}

impl RequestSubscriber for AccessLog {
    fn ended(&self, request: &RequestEnded) {
        let is_slow = request.took() >= self.slow;
        let is_sampled = || request.outcome != Outcome::Hit || self.hits >= 1.0 || fastrand::f64() < self.hits;
        if is_slow || is_sampled() {
            write(request, is_slow);
        }
    }
}

fn write(request: &RequestEnded, is_slow: bool) {
    let RequestEnded { context, outcome, status, bytes, .. } = request;
    let (team, totals) = (request.team(), context.totals(request.ended));
    // A trace id leads nowhere if the trace is not exported and the client has not sent it.
    let trace = context.trace.as_ref().filter(|trace| request.is_traced || trace.parent.is_some());
    let trace_id = trace.map(|trace| trace.trace.to_string());
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                target: "insights_gateway::access",
                // No parent span: the line itself has the fields of the request's span.
                parent: None,
                $level,
                request_id = context.head.id(),
                peer = context.head.peer.as_str(),
                team = team.map_or("", |team| &*team.name),
                account = team.map_or("", |team| &*team.account.name),
                operation = request.operation().map_or("none", |operation| operation.as_str()),
                method = context.head.method.as_str(),
                path = context.head.path(),
                status = *status,
                outcome = outcome.as_str(),
                reason = request.reason(),
                bytes = *bytes,
                duration_ms = millis(request.took()),
                wait_ms = millis(totals.wait),
                upstream_ms = millis(totals.upstream),
                attempts = totals.attempts,
                trace_id = trace_id.as_deref(),
            )
        };
    }
    if is_slow { line!(tracing::Level::WARN) } else { line!(tracing::Level::INFO) }
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
