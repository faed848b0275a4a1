//! Pays for upstream attempts from their accounts' [`budget`](crate::budget).
//!
//! It is below retry, so a retry pays like a first attempt. It waits for a permit, and reports to the budget how the
//! attempt ended. It does not decide what is retried, and keeps no request bodies.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::StatusCode;
use tower::{Layer, Service, ServiceExt};

use crate::accounts::PerAccount;
use crate::budget::{AccountBudget, AttemptOutcome};
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason, Retry};
use crate::metrics::{AccountLabels, ConfigLabel, Metrics};
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::context::{UpstreamEvent, UpstreamEventKind};
use crate::semantics::upstream_headers::{self, RateLimitHeaders};

/// Makes [`Budget`] services.
#[derive(Debug, Clone)]
pub struct BudgetLayer {
    budgets: PerAccount<AccountBudget>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl BudgetLayer {
    /// Spends from `budgets`.
    pub fn new(budgets: PerAccount<AccountBudget>, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { budgets, metrics, clock }
    }
}

impl<S> Layer<S> for BudgetLayer {
    type Service = Budget<S>;

    fn layer(&self, inner: S) -> Budget<S> {
        Budget { inner, layer: self.clone() }
    }
}

/// Pays for attempts. See the module.
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
            let arrived = clock.now();
            let permit = budgets.of(&call.team.account).acquire(&call).await;
            let decided = clock.now();
            call.context.add(UpstreamEvent {
                begun: arrived,
                ended: Some(decided),
                kind: UpstreamEventKind::Wait { granted: permit.is_ok() },
            });
            let labels = AccountLabels { account: ConfigLabel(Arc::clone(&call.team.account.name)) };
            metrics.upstream_wait.get_or_create(&labels).observe((decided - arrived).as_secs_f64());
            let mut permit = permit?;
            permit.spend();
            let deadline = call.deadline;
            let response = inner.oneshot(call).await;
            permit.end(outcome(&response, deadline, clock));
            response
        })
    }
}

/// What the end of an attempt says about the account's limits and the upstream's health.
fn outcome(response: &Result<UpstreamResponse, GatewayError>, deadline: Instant, clock: Clock) -> AttemptOutcome {
    match response {
        Ok(response) if response.status == StatusCode::TOO_MANY_REQUESTS => {
            let pause = upstream_headers::pause(&response.headers, clock.wall(clock.now()));
            AttemptOutcome::RateLimited(pause, RateLimitHeaders::read(&response.headers))
        }
        Ok(response) if response.status.is_server_error() => AttemptOutcome::Failed,
        Ok(response) => AttemptOutcome::Answered(RateLimitHeaders::read(&response.headers)),
        // The upstream is well: the credentials are wrong.
        Err(error) if error.reason() == Reason::UpstreamRejectedCredentials => {
            AttemptOutcome::Answered(RateLimitHeaders::default())
        }
        // The client's deadline came first.
        Err(error) if error.reason() == Reason::UpstreamTimeout && clock.now() >= deadline => {
            AttemptOutcome::Inconclusive
        }
        // The connection was closed while it was idle. Only what a new connection does counts.
        Err(error) if error.is_on_kept_connection() => AttemptOutcome::Inconclusive,
        // A failure that a retry would repeat is a fault of that one response.
        Err(error) if error.retry() == Retry::Never => AttemptOutcome::Inconclusive,
        Err(error) if error.reason() == Reason::UpstreamUnreachable => AttemptOutcome::Unreachable,
        Err(_) => AttemptOutcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use tower::service_fn;

    use super::*;
    use crate::budget::{CircuitPolicy, Limits};
    use crate::core::backoff::Backoff;
    use crate::core::units::Rate;
    use crate::semantics::request_directives::Urgency;
    use crate::twilio::endpoint::Operation;

    const S: Duration = Duration::from_secs(1);

    /// What each kind of response says.
    #[tokio::test(start_paused = true)]
    async fn responses_are_classified() {
        let outcome_of = |response: Result<u16, (Reason, Retry)>| {
            let response = match response {
                Ok(status) => Ok(UpstreamResponse {
                    status: StatusCode::from_u16(status).unwrap(),
                    headers: HeaderMap::new(),
                    body: Default::default(),
                    next_token: None,
                }),
                Err((reason, retry)) => Err(GatewayError::new(reason, "scripted").with_retry(retry)),
            };
            outcome(&response, Instant::now() + S, Clock::new())
        };
        let answered = AttemptOutcome::Answered(RateLimitHeaders::default());
        assert_eq!(outcome_of(Ok(200)), answered);
        assert_eq!(outcome_of(Ok(400)), answered);
        assert_eq!(outcome_of(Ok(429)), AttemptOutcome::RateLimited(None, RateLimitHeaders::default()));
        assert_eq!(outcome_of(Ok(500)), AttemptOutcome::Failed);
        assert_eq!(outcome_of(Ok(503)), AttemptOutcome::Failed);
        assert_eq!(outcome_of(Err((Reason::UpstreamRejectedCredentials, Retry::Never))), answered);
        assert_eq!(outcome_of(Err((Reason::UpstreamUnreachable, Retry::NothingSent))), AttemptOutcome::Unreachable);
        assert_eq!(outcome_of(Err((Reason::UpstreamInvalid, Retry::Never))), AttemptOutcome::Inconclusive);
        assert_eq!(outcome_of(Err((Reason::UpstreamTimeout, Retry::IfRepeatable))), AttemptOutcome::Failed);
        let died = GatewayError::new(Reason::UpstreamUnreachable, "scripted").with_retry(Retry::IfRepeatable);
        let died = Err(died.on_kept_connection());
        assert_eq!(
            outcome(&died, Instant::now() + S, Clock::new()),
            AttemptOutcome::Inconclusive,
            "a connection's fault, not Twilio's"
        );
        let hurried = Err(GatewayError::new(Reason::UpstreamTimeout, "scripted").with_retry(Retry::IfRepeatable));
        assert_eq!(
            outcome(&hurried, Instant::now(), Clock::new()),
            AttemptOutcome::Inconclusive,
            "the client's deadline, not Twilio's fault"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn every_attempt_pays_and_a_429_pauses_the_account() {
        let clock = Clock::new();
        let limits = Limits {
            rate: Rate::new(10, S),
            burst: 10,
            concurrency: 10,
            queue: 10,
            adapt: false,
            max_pause: 300 * S,
            backoff: Backoff { base: S, max: S },
            circuit: CircuitPolicy { consecutive: 10, ratio: 0.5, open: S },
        };
        let budget = AccountBudget::new("main".into(), limits, clock);
        let layer = BudgetLayer::new(PerAccount::example(budget.clone()), Metrics::new(), clock);
        let limited = service_fn(|_: UpstreamCall| async {
            let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, http::HeaderValue::from_static("9"))]);
            let status = StatusCode::TOO_MANY_REQUESTS;
            Ok(UpstreamResponse { status, headers, body: Default::default(), next_token: None })
        });
        let call = UpstreamCall::example(Operation::Query, "", "");
        let _waiter = call.waiters.join(&call.team, Urgency::default());
        layer.layer(limited).oneshot(call).await.unwrap();
        let status = budget.status();
        assert_eq!((status.paused, status.in_flight), (9 * S, 0));
        assert!(status.tokens.unwrap() < 10.0);
    }
}
