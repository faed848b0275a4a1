//! Sends calls again after failures.
//!
//! A call that [may be repeated](Repeatability) is sent again on 429, 502, 503, 504, connect errors, resets and timeouts,
//! and once on 500. All others are sent again only where Twilio has not processed them, and polls of a job's status only
//! where nothing was sent. A retry never begins after the
//! request's deadline. There are at most `attempts` tries of a call, and retries are at most a share of all tries, so that
//! an outage is not multiplied. Between two tries there is an exponential backoff with full jitter, or the failure's
//! `Retry-After` if that is longer. After a 429 the budget below waits until the account's pause ends.

mod allowance;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::StatusCode;
use tower::{Layer, Service, ServiceExt};

pub use self::allowance::RetryBudget;
use crate::accounts::PerAccount;
use crate::core::backoff::Backoff;
use crate::core::clock::Clock;
use crate::core::error::{GatewayError, Retry as Repeat};
use crate::metrics::{ConfigLabel, Ending, Metrics, RetryLabels};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::semantics::upstream_headers;
use crate::twilio::endpoint::Repeatability;

/// The policy for retries: how many, and how far apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Tries in all.
    pub attempts: u32,
    /// Time between tries.
    pub backoff: Backoff,
    /// Retries per first try, over the last 10 s.
    pub budget: f64,
}

/// Makes [`Retry`] services.
#[derive(Debug, Clone)]
pub struct RetryLayer {
    policy: Policy,
    budgets: PerAccount<RetryBudget>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl RetryLayer {
    /// Retries according to `policy`.
    pub fn new(policy: Policy, budgets: PerAccount<RetryBudget>, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { policy, budgets, metrics, clock }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, layer: self.clone() }
    }
}

/// Retries calls. See the module.
#[derive(Debug, Clone)]
pub struct Retry<S> {
    inner: S,
    layer: RetryLayer,
}

impl<S> Service<UpstreamCall> for Retry<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = UpstreamResponse;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<UpstreamResponse, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: UpstreamCall) -> Self::Future {
        Box::pin(tries(self.inner.clone(), self.layer.clone(), call))
    }
}

async fn tries<S>(inner: S, layer: RetryLayer, call: UpstreamCall) -> Result<UpstreamResponse, GatewayError>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone,
{
    let budget = layer.budgets.of(&call.team.account);
    budget.first_try(layer.clock.now());
    let mut result = inner.clone().oneshot(call.clone()).await;
    for tried in 1..layer.policy.attempts {
        let again = verdict(call.endpoint.repeat, &result);
        let delay = match again {
            Again::No => return result,
            Again::Once if tried > 1 => return result,
            Again::AfterThePause => Duration::ZERO,
            Again::Once | Again::AfterBackoff => {
                let asked = asked_to_wait(&result, layer.clock).unwrap_or_default();
                layer.policy.backoff.delay(tried, fastrand::f64()).max(asked)
            }
        };
        let now = layer.clock.now();
        if now + delay >= call.deadline {
            return result;
        }
        let Some(reserved) = budget.reserve(layer.policy.budget, now) else { return result };
        tokio::select! {
            biased;
            () = call.waiters.abandoned() => return result,
            () = tokio::time::sleep(delay) => {}
        }
        let reason = match &result {
            Ok(answer) => Ending::Status(answer.status.as_u16()),
            Err(error) => Ending::Reason(error.reason().as_str()),
        };
        // Not before: it may wait for its token for long, or be refused.
        let sent = || {
            reserved.sent(layer.clock.now());
            let account = ConfigLabel(Arc::clone(&call.team.account.name));
            layer.metrics.retries.get_or_create(&RetryLabels { account, reason }).inc();
        };
        let retried = once_sent(inner.clone().oneshot(call.clone()), &call, sent).await;
        if again != Again::AfterThePause && retried.as_ref().is_err_and(|refused| refused.reason().is_of_the_budget()) {
            // The error of the refused retry is not the reason for which this request failed.
            return result;
        }
        result = retried;
    }
    result
}

/// The same as `retry`, which is a try of `call`. Calls `sent` when its attempt begins, if one does.
async fn once_sent<F: Future>(retry: F, call: &UpstreamCall, sent: impl FnOnce()) -> F::Output {
    let (mut retry, before, mut sent) = (pin!(retry), call.sent.attempts(), Some(sent));
    poll_fn(|task| {
        let polled = retry.as_mut().poll(task);
        if let Some(sent) = sent.take_if(|_| call.sent.attempts() > before) {
            sent();
        }
        polled
    })
    .await
}

/// How long this failure asks not to retry. It applies to this call only: one query may be too much for an upstream
/// that can answer others.
fn asked_to_wait(result: &Result<UpstreamResponse, GatewayError>, clock: Clock) -> Option<Duration> {
    match result {
        Ok(answer) => upstream_headers::retry_after(&answer.headers, clock.wall(clock.now())),
        Err(error) => error.retry_after(),
    }
}

/// Whether and when a result is followed by another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    No,
    Once,
    AfterBackoff,
    AfterThePause,
}

fn verdict(repeat: Repeatability, result: &Result<UpstreamResponse, GatewayError>) -> Again {
    let repeatable = matches!(repeat, Repeatability::Safe | Repeatability::WithKey);
    match result {
        // The next poll is another call, when its time has come.
        Ok(_) if repeat == Repeatability::Poll => Again::No,
        // A request that was refused for its rate was never processed.
        Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => Again::AfterThePause,
        Ok(answer) if repeatable => match answer.status {
            StatusCode::INTERNAL_SERVER_ERROR => Again::Once,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Again::AfterBackoff
            }
            _ => Again::No,
        },
        Ok(_) => Again::No,
        Err(error) => match error.retry() {
            Repeat::NothingSent => Again::AfterBackoff,
            Repeat::IfRepeatable if repeatable => Again::AfterBackoff,
            Repeat::OnceIfRepeatable if repeatable => Again::Once,
            Repeat::IfRepeatable | Repeat::OnceIfRepeatable | Repeat::Never => Again::No,
        },
    }
}

#[cfg(test)]
mod tests;
