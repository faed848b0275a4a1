//! Every upstream attempt pays here: a token of its account's bucket and one of its places.
//!
//! It sits inside retry, so that a retry pays like a first try. Where tokens are short, calls wait in fair lines, and
//! whoever would wait in vain is told so at once. It watches what comes back: a 429 pauses the whole account and
//! may lower its rate, and an upstream that fails again and again is left alone for a while. It does not decide
//! what is tried again, and holds no request bodies.
//!
//! From the inside out: `bucket` and `queue` are arithmetic, `adapt` and `circuit` learn from answers, `waiting` is who
//! waits, `state` is all of that for one account, and `account` is where something waits and wakes.

mod account;
mod adapt;
mod bucket;
mod circuit;
mod queue;
mod state;
mod waiting;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::StatusCode;
use tower::{Layer, Service, ServiceExt};

use account::Ended;
pub use account::{AccountBudget, BudgetStatus};
use bucket::Quota;
pub use circuit::{CircuitPolicy, CircuitState};

use crate::core::backoff::Backoff;
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason, Retry};
use crate::core::units::Rate;
use crate::metrics::{AccountLabels, ConfigLabel, Metrics};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::context::{UpstreamEvent, UpstreamEventKind};
use crate::semantics::upstream_headers::{self, RateLimitHeaders};

/// What an account may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Tokens; `None` is without limit.
    pub rate: Option<Rate>,
    /// Tokens that may be spent at once.
    pub burst: u32,
    /// Attempts at once.
    pub concurrency: u32,
    /// Waiting calls at most.
    pub queue: u32,
    /// Are rate and concurrency lowered by what Twilio answers.
    pub adapt: bool,
    /// Longest pause that a 429's headers can impose.
    pub max_pause: Duration,
    /// The pause after a 429 that names none.
    pub backoff: Backoff,
    /// When an upstream that fails is left alone.
    pub circuit: CircuitPolicy,
}

impl Limits {
    fn quota(&self) -> Option<Quota> {
        self.rate.map(|rate| Quota::new(rate, self.burst))
    }

    fn per_second(&self) -> Option<f64> {
        self.rate.map(Rate::per_second)
    }
}

/// The budgets of all accounts. They outlive a reload, so that no reload forgets what is owed.
#[derive(Debug, Clone, Default)]
pub struct Budgets(Arc<Mutex<HashMap<Arc<str>, AccountBudget>>>);

impl Budgets {
    /// Sets an account's limits; an account that is new starts with a full bucket.
    pub fn set(&self, account: &Arc<str>, limits: Limits, clock: Clock) {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match budgets.get(account) {
            Some(known) => known.set_limits(limits),
            None => drop(budgets.insert(Arc::clone(account), AccountBudget::new(Arc::clone(account), limits, clock))),
        }
    }

    /// One account's budget.
    pub fn get(&self, account: &str) -> Option<AccountBudget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(account).cloned()
    }
}

/// Makes [`Budget`] services.
#[derive(Debug, Clone)]
pub struct BudgetLayer {
    budgets: Budgets,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl BudgetLayer {
    /// Spends from `budgets`.
    pub fn new(budgets: Budgets, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { budgets, metrics, clock }
    }
}

impl<S> Layer<S> for BudgetLayer {
    type Service = Budget<S>;

    fn layer(&self, inner: S) -> Budget<S> {
        Budget { inner, layer: self.clone() }
    }
}

/// Makes attempts pay. See the module.
#[derive(Debug, Clone)]
pub struct Budget<S> {
    inner: S,
    layer: BudgetLayer,
}

impl<S> Service<UpstreamCall> for Budget<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = UpstreamResponse;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<UpstreamResponse, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        // The inner service is made ready once there is a token.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: UpstreamCall) -> Self::Future {
        let (inner, BudgetLayer { budgets, metrics, clock }) = (self.inner.clone(), self.layer.clone());
        Box::pin(async move {
            let account = Arc::clone(&call.team.account.name);
            let Some(budget) = budgets.get(&account) else {
                return Err(GatewayError::new(Reason::Internal, "the account has no budget"));
            };
            let arrived = clock.now();
            let permit = budget.acquire(&call).await;
            let decided = clock.now();
            call.context.add(UpstreamEvent {
                begun: arrived,
                ended: decided,
                kind: UpstreamEventKind::Wait { granted: permit.is_ok() },
            });
            let labels = AccountLabels { account: ConfigLabel(account) };
            metrics.upstream_wait.get_or_create(&labels).observe((decided - arrived).as_secs_f64());
            let mut permit = permit?;
            permit.spend();
            let deadline = call.deadline;
            let answer = inner.oneshot(call).await;
            permit.end(ended(&answer, deadline, clock));
            answer
        })
    }
}

/// What an attempt's end says of the account's limits and of the upstream's health.
fn ended(answer: &Result<UpstreamResponse, GatewayError>, deadline: Instant, clock: Clock) -> Ended {
    match answer {
        Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
            let pause = upstream_headers::pause(&answer.headers, clock.wall(clock.now()));
            Ended::Limited(pause, RateLimitHeaders::read(&answer.headers))
        }
        Ok(answer) if answer.status.is_server_error() => Ended::Failed,
        Ok(answer) => Ended::Answered(RateLimitHeaders::read(&answer.headers)),
        // The upstream is there: it is the credentials that are bad.
        Err(error) if error.reason() == Reason::UpstreamRejectedCredentials => {
            Ended::Answered(RateLimitHeaders::default())
        }
        // It was the client that had no more time.
        Err(error) if error.reason() == Reason::UpstreamTimeout && clock.now() >= deadline => Ended::Unclear,
        // It died while nobody used it: what a new connection does is what counts.
        Err(error) if error.is_on_kept_connection() => Ended::Unclear,
        // What another try would not mend is that one answer's fault.
        Err(error) if error.retry() == Retry::Never => Ended::Unclear,
        Err(_) => Ended::Failed,
    }
}

#[cfg(test)]
mod tests;
